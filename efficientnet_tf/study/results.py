"""Reads what the runs of a study measured: from the job queue, and from the model directories of the runs."""

import logging
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any, TypeGuard

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import parse_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape
from efficientnet_tf.models.run_directory import read_class_names
from efficientnet_tf.models.run_metrics import find_best_step, group_evaluations, is_number, read_metrics
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.study.job_queue import read_owners, run_state
from efficientnet_tf.study.runs import Run

_OPTIONAL = ("images_per_second", "peak_bytes", "top5")  # may be None. Up to five classes have no top-5.
_MEASURED = ("classes", "top1", "top5", "loss", "raw_top1", _OPTIONAL[0], "train_seconds", _OPTIONAL[1])

Row = dict[str, Any]  # a finished run: its labels, its name, and the columns that `read_rows` lists


def read_rows(runs: Sequence[Run], output_dir: str, storage: str | None, study_name: str) -> list[Row]:
    """Return the results of the finished runs of a study. Runs nothing.

    Args:
        runs: The runs of the study.
        output_dir: Folder of the study.
        storage: Database URL, or None for the default database in `output_dir`.
        study_name: Name of the study within the database.

    Returns:
        One row per finished run, in the order of `runs`. After the labels of the run it has these columns:

        - "run": Name of the run.
        - "depth", "width", "resolution": Multipliers and image side of its network.
        - "params", "macs": Trainable parameters and multiply-adds of the network that was trained.
        - "classes": Number of classes.
        - "top1", "top5", "loss": From the last evaluation, or the best one if `eval.best` chooses one, of the EMA
          weights if there are any. "top5" is None for up to five classes.
        - "raw_top1": Top-1 accuracy of the raw weights.
        - "images_per_second": Median training rate of all loops but the first, which compiles. None if there is only
          one loop.
        - "train_seconds": Time in training loops. Start, evaluation and checkpoints are not included.
        - "peak_bytes": Peak resident memory of the last process that trained it. None if the system does not report it.
        - "config": Path of its config.yaml relative to `output_dir`.
    """
    owners = read_owners(output_dir, storage, study_name)
    rows = []
    for run in runs:
        trial = owners.get(run.name)
        if run_state(trial) == "done" and trial is not None:
            result = trial.user_attrs.get("result")
            if not _is_result(result):
                logging.getLogger(__name__).warning(
                    "The result of run %s in the database is damaged, and was skipped.", run.name
                )
                continue
            measured = {key: result.get(key) for key in _MEASURED}
            path = f"runs/{run.name}/config.yaml"
            config = parse_config(trial.user_attrs["config"], f"the config of {run.name} in the database")
            rows.append(run.labels | _describe_network(run, config, result["classes"]) | measured | {"config": path})
    return rows


def _is_result(result: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a value from the database has all numbers of `read_result`."""
    return (
        isinstance(result, dict)
        and all(is_number(result.get(key)) or (key in _OPTIONAL and result.get(key) is None) for key in _MEASURED)
        and isinstance(result["classes"], int)
        and math.isfinite(result["top1"])
        and result["classes"] > 0
    )


def read_states(runs: Sequence[Run], output_dir: str, storage: str | None, study_name: str) -> dict[str, str]:
    """Return the state of each run: "waiting", "running", "done" or "failed". Takes the arguments of `read_rows`.

    A run whose process has died counts as running until another process takes it over.
    """
    owners = read_owners(output_dir, storage, study_name)
    states = {run.name: run_state(owners.get(run.name)) for run in runs}
    return {name: "waiting" if state in ("missing", "interrupted") else state for name, state in states.items()}


def _describe_network(run: Run, config: Config, classes: int) -> Row:
    """Return the part of a row that follows from the config."""
    cost = count_cost(config.model, config.image_size, classes, config.data.channels)
    return {
        "run": run.name,
        "depth": run.spec.depth,
        "width": run.spec.width,
        "resolution": run.spec.resolution,
        "params": cost.params,
        "macs": cost.macs,
    }


def read_result(model_dir: str, metric: str = "none") -> Row:
    """Return the part of a row that a finished training has left in its model directory.

    Args:
        model_dir: The model directory.
        metric: `eval.best` of the run. "none" takes the last evaluation, others the best one.

    Raises:
        UserError: If its files are missing or damaged.
    """
    lines, damaged = read_metrics(model_dir)
    where = escape(os.path.join(model_dir, "metrics.jsonl"))
    if damaged:
        logging.getLogger(__name__).warning("%s has %d damaged lines, which were skipped.", where, damaged)
    evaluation = _choose_evaluation(lines, metric)
    raw = evaluation.get("raw", {})
    best = evaluation.get("ema", raw)
    loops = [line for line in lines if line["kind"] == "train" and is_number(line.get("seconds"))]
    rates = [line["images_per_second"] for line in loops[1:] if is_number(line.get("images_per_second"))]
    result = {
        "classes": len(read_class_names(model_dir)),
        **{key: best.get(key) for key in ("top1", "top5", "loss")},
        "raw_top1": raw.get("top1"),
        "images_per_second": statistics.median(rates) if rates else None,
        "train_seconds": sum(line["seconds"] for line in loops),
    }
    if not _is_result(result):
        raise UserError(f"{where} has no complete evaluation, so the result of the run is unknown.")
    return result


def _choose_evaluation(lines: Sequence[Row], metric: str) -> dict[str, Row]:
    """Return the lines {"raw": ..., "ema": ...} of the evaluation that counts."""
    evaluations = group_evaluations(lines, "top1" if metric == "none" else metric)
    return evaluations.get(find_best_step(evaluations, metric) or max(evaluations, default=0), {})


def read_accuracies(model_dir: str) -> dict[int, float]:
    """Return the top-1 accuracy at each step that was evaluated so far, of the EMA weights if there are any."""
    try:
        lines, _ = read_metrics(model_dir)
    except UserError:
        return {}
    found: dict[str, dict[int, float]] = {"eval/raw": {}, "eval/ema": {}}
    for line in lines:
        if line["kind"] in found and isinstance(line.get("step"), int) and is_number(line.get("top1")):
            found[line["kind"]][line["step"]] = line["top1"]
    return found["eval/ema"] or found["eval/raw"]


def read_accuracy(model_dir: str) -> float | None:
    """Return the top-1 accuracy of the last evaluation so far, or None if there is none that can be read."""
    try:
        lines, _ = read_metrics(model_dir)
    except UserError:
        return None
    found = [line["top1"] for line in lines if line["kind"].startswith("eval/") and is_number(line.get("top1"))]
    return found[-1] if found else None

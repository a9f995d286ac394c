"""Reads what the runs of a study measured: from the job queue, and from the model directories of the runs."""

import json
import os
import statistics
from collections.abc import Sequence
from typing import Any

from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.study.job_queue import read_owners, run_state
from efficientnet_tf.study.runs import Run

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
        - "params", "macs": Trainable parameters and multiply-adds, counted with the number of classes of the data.
        - "classes": Number of classes.
        - "top1", "top5", "loss": From the last evaluation, of the EMA weights if there are any.
        - "raw_top1": Top-1 accuracy of the raw weights.
        - "images_per_second": Median training rate of all loops but the first, which compiles. None if there is only
          one loop.
        - "train_seconds": Time in training loops. Start, evaluation and checkpoints are not included.
        - "peak_bytes": Peak resident memory of the last process that trained it. None if the system does not report it.
        - "config": Path of its config.yaml relative to `output_dir`.
    """
    owners = read_owners(output_dir, storage, study_name)
    results = {name: trial.user_attrs["result"] for name, trial in owners.items() if run_state(trial) == "done"}
    finished = [(run, results[run.name]) for run in runs if run.name in results]
    return [run.labels | _describe_network(run, result["classes"]) | result for run, result in finished]


def read_states(runs: Sequence[Run], output_dir: str, storage: str | None, study_name: str) -> dict[str, str]:
    """Return the state of each run: "waiting", "running", "done" or "failed". Takes the arguments of `read_rows`.

    A run whose process has died counts as running until another process takes it over.
    """
    owners = read_owners(output_dir, storage, study_name)
    states = {run.name: run_state(owners.get(run.name)) for run in runs}
    return {name: "waiting" if state in ("missing", "interrupted") else state for name, state in states.items()}


def _describe_network(run: Run, classes: int) -> Row:
    """Return the part of a row that follows from the spec."""
    cost = count_cost(run.spec, classes=classes)
    return {
        "run": run.name,
        "depth": run.spec.depth,
        "width": run.spec.width,
        "resolution": run.spec.resolution,
        "params": cost.params,
        "macs": cost.macs,
    }


def read_result(model_dir: str) -> Row:
    """Return the part of a row that a finished training has left in its model directory."""
    lines = _read_metrics(model_dir)
    last = {line["kind"]: line for line in lines}
    raw = last["eval/raw"]
    best = last.get("eval/ema", raw)
    loops = [line for line in lines if line["kind"] == "train"]
    rates = [line["images_per_second"] for line in loops[1:]]
    with open(os.path.join(model_dir, "classes.txt")) as file:
        classes = sum(1 for _ in file)
    return {
        "classes": classes,
        **{key: best[key] for key in ("top1", "top5", "loss")},
        "raw_top1": raw["top1"],
        "images_per_second": statistics.median(rates) if rates else None,
        "train_seconds": sum(line["seconds"] for line in loops),
    }


def read_accuracy(model_dir: str) -> float | None:
    """Return the top-1 accuracy of the last evaluation so far, or None before the first one."""
    evaluations = [line for line in _read_metrics(model_dir) if line["kind"].startswith("eval/")]
    return evaluations[-1]["top1"] if evaluations else None


def _read_metrics(model_dir: str) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that are complete: training may be writing the last one."""
    path = os.path.join(model_dir, "metrics.jsonl")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return [json.loads(line) for line in file if line.endswith("}\n")]

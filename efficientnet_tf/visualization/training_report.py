"""Makes the page that shows and compares training runs: their curves, evaluations and configs."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.image_size import format_size
from efficientnet_tf.config.schema import METRICS
from efficientnet_tf.models.run_directory import flatten
from efficientnet_tf.models.run_metrics import is_number
from efficientnet_tf.models.selection import METRIC_TEXTS
from efficientnet_tf.visualization.page import make_page
from efficientnet_tf.visualization.runs import TRAIN, LoggedRun, describe_files, join_loops, list_times, name_runs

CONTENT = Path(__file__).with_suffix(".html")
# What is drawn of each kind of line, besides the metric of the task.
VALUES = {"train": ("loss", "learning_rate", "images_per_second"), "eval/raw": ("loss",), "eval/ema": ("loss",)}
# The metric that training logs as well.
DRAWN = {
    "classification": ("top1", "top-1 accuracy (%)"),
    "multilabel": ("exact", "images with all labels right (%)"),
    "regression": ("mae", "mean absolute error"),
}


def make_report(runs: Sequence[LoggedRun], shared_plotly: str | None = None) -> str:
    """Return a page that compares runs, as one HTML text.

    Args:
        runs: Runs of `read_run`, at least one.
        shared_plotly: As for `make_page`.

    Raises:
        UserError: If the runs have different tasks, or one is given twice.
    """
    tasks = [run.config.data.task for run in runs]
    if len(set(tasks)) > 1:
        raise UserError(f"The runs have different tasks, which cannot be compared: data.task={', '.join(tasks)}.")
    key, title = DRAWN[tasks[0]]
    keys = *METRICS[tasks[0]], "loss"
    shares = [key for key in keys if METRIC_TEXTS[key].form.endswith("%")]
    kinds = {"ema": "EMA", "raw": "raw"}
    names = name_runs([run.model_dir for run in runs])
    named = list(zip(names, runs, strict=True))
    data = {
        "title": f"Training of {names[0]}" if len(runs) == 1 else f"Comparison of {len(runs)} training runs",
        "status": _describe_status(runs),
        "metric": {"key": key, "title": title, "is_share": key in shares},
        "shares": [f"{kind}_{key}" for kind in kinds for key in shares],
        "metric_titles": {
            f"{kind}_{key}": f"{text} {METRIC_TEXTS[key].label}{' (%)' if key in shares else ''}"
            for kind, text in kinds.items()
            for key in keys
        },
        "notes": [note for run in runs for note in describe_files(run)],
        "runs": [_describe_curves(name, run) for name, run in named],
        "overview": [_describe_run(name, run) for name, run in named],
        "evaluations": [row for name, run in named for row in _list_evaluations(name, run)],
        "phases": [row for name, run in named for row in _list_phases(name, run)],
        "settings": _compare_configs(runs),
        "epochs_are_known": all(run.steps_per_epoch for run in runs if run.step),
    }
    return make_page(CONTENT, data, shared_plotly)


def _describe_status(runs: Sequence[LoggedRun]) -> str:
    finished = sum(run.is_finished for run in runs)
    read = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if finished == len(runs):
        state = "The run is finished." if finished == 1 else f"All {finished} runs are finished."
    elif len(runs) == 1:
        state = "The run is not finished."
    else:
        state = f"{finished} of {len(runs)} runs {'is' if finished == 1 else 'are'} finished."
    return f"{state} Read on {read}."


def _epoch(run: LoggedRun, step: int) -> float | None:
    return step / run.steps_per_epoch if run.steps_per_epoch else None


def _describe_curves(name: str, run: LoggedRun) -> dict[str, Any]:
    """Return the points of the curves of a run, by the kinds of its lines."""
    times = list_times(run)
    curves = {}
    metric, _ = DRAWN[run.config.data.task]
    for kind, others in VALUES.items():
        keys = metric, *others
        lines = join_loops(run.lines[kind]) if kind == TRAIN else run.lines[kind]
        curves[kind] = {
            "step": list(lines),
            "epoch": [_epoch(run, step) for step in lines],
            "hours": [times[step] / 3600 for step in lines],
            **{key: [_number(line.get(key)) for line in lines.values()] for key in keys},
        }
    starts = [phase.first_epoch * run.steps_per_epoch for phase in run.phases[1:]] if run.steps_per_epoch else []
    return {"name": name, "curves": curves, "phase_starts": [_locate(run, times, step) for step in starts]}


def _locate(run: LoggedRun, times: Mapping[int, float], step: float) -> dict[str, float | None]:
    """Return where a step is on each x axis. A step that has not been reached yet has no time."""
    reached = [logged for logged in times if logged >= step]
    return {"step": step, "epoch": _epoch(run, round(step)), "hours": times[reached[0]] / 3600 if reached else None}


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _describe_run(name: str, run: LoggedRun) -> dict[str, Any]:
    """Return the row of a run in the table of all runs."""
    config, cost, seconds = run.config, run.cost, list_times(run)[run.step]
    return {
        "run": name,
        "state": "finished" if run.is_finished else "unfinished",
        "steps": run.step,
        "epochs": _epoch(run, run.step),
        "planned_epochs": config.train.epochs,
        "hours": seconds / 3600 if seconds else None,
        "network": config.model.name,
        "image_size": format_size(config.image_size),
        "classes": run.classes,
        "params": cost.trainable_params / 1e6 if cost else None,
        "macs": cost.macs / 1e6 if cost else None,
        "batch_size": config.train.batch_size,
        "folder": run.model_dir,
    }


def _list_evaluations(name: str, run: LoggedRun) -> list[dict[str, Any]]:
    """Return the best and the last evaluation of a run, in one row if they are the same."""
    evaluations, rows = run.evaluations, []
    roles: dict[int, list[str]] = {}
    if run.best_step is not None:
        roles.setdefault(run.best_step, []).append(f"best {METRIC_TEXTS[run.metric].label}")
    if evaluations:
        roles.setdefault(max(evaluations), []).append("last")
    for step, role in roles.items():
        row: dict[str, Any] = {"run": name, "evaluation": " and ".join(role), "step": step, "epoch": _epoch(run, step)}
        for kind in ("ema", "raw"):
            line = evaluations[step].get(kind, {})
            row |= {f"{kind}_{key}": _number(line.get(key)) for key in (*METRICS[run.config.data.task], "loss")}
        images = [_number(line.get("examples")) for line in evaluations[step].values()]
        rows.append(row | {"images": next(filter(None, images), None)})
    return rows


def _list_phases(name: str, run: LoggedRun) -> list[dict[str, Any]]:
    return [
        {
            "run": name,
            "phase": number,
            "first_epoch": phase.first_epoch,
            "end_epoch": phase.end_epoch,
            "changes": ", ".join(f"{key}={_format(value)}" for key, value in phase.changes.items()) or "nothing",
        }
        for number, phase in enumerate(run.phases, 1)
    ]


def _compare_configs(runs: Sequence[LoggedRun]) -> list[dict[str, Any]]:
    """Return a row for each key of the configs: its values in the runs, and whether they differ."""
    configs = [flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = []
    for key in keys:
        values = [config.get(key) for config in configs]
        differs = any(value != values[0] for value in values)
        rows.append({"key": key, "values": list(map(_list_texts, values)), "differs": differs})
    return rows


def _list_texts(value: Any) -> list[str]:
    """Return a value of a config as lines, of which a table such as `model.stages` has one for each row."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [", ".join(f"{key}={_format(part)}" for key, part in row.items()) for row in value]
    return [_format(value)]


def _format(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

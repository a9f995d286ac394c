"""Reads the metrics of a run, while it is being trained or later. Imports no TensorFlow."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from efficientnet_tf.models.selection import Selection
from efficientnet_tf.runtime.files import TEXT_LIMIT_BYTES, exists, read_bytes

METRICS = "metrics.jsonl"
EVALUATIONS = ("eval/raw", "eval/ema")

Line = dict[str, Any]  # a line of metrics.jsonl, with a "kind" of type str
Evaluations = dict[int, dict[str, Line]]  # {step: {"raw": line, "ema": line}}


def read_metrics(model_dir: str) -> tuple[list[Line], int]:
    """Return the valid lines of metrics.jsonl, and the number of others. Training may be writing the last one.

    Args:
        model_dir: The model directory, local or on gs://. A directory without the file has no lines.

    Raises:
        UserError: If the file cannot be read.
    """
    path = os.path.join(model_dir, METRICS)
    if not exists(path):
        return [], 0
    *texts, _ = read_bytes(path, TEXT_LIMIT_BYTES).split(b"\n")
    lines = [_parse_line(text) for text in texts if text]
    valid = [line for line in lines if line is not None]
    return valid, len(lines) - len(valid)


def _parse_line(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and isinstance(line.get("kind"), str) else None


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a value from a file or a database is a number that can be computed with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not 1e100 < abs(value) < math.inf


def group_evaluations(lines: Iterable[Line], metric: str = "top1") -> Evaluations:
    """Return the evaluations by their steps, without lines that lack a metric.

    Args:
        lines: Lines of `read_metrics`.
        metric: A metric that each evaluation has, "top1", "top5" or "loss".
    """
    evaluations: Evaluations = {}
    for line in lines:
        step = line.get("step", 0)
        if line["kind"] in EVALUATIONS and type(step) is int and is_number(line.get(metric)):
            evaluations.setdefault(step, {})[line["kind"].removeprefix("eval/")] = line
    return evaluations


def find_best_step(evaluations: Mapping[int, Mapping[str, Line]], metric: str) -> int | None:
    """Return the step of the best evaluation, of the EMA weights if there are any, or None if there is none.

    Args:
        evaluations: Evaluations of `group_evaluations` for this metric.
        metric: `eval.best` of the run. "none" chooses none.
    """
    selection = Selection(metric)
    for step, results in evaluations.items():
        selection = selection.add(step, results, selection.improves(results))
    return selection.best_step

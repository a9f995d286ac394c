"""Reads what training runs have logged, for their curves and tables. Imports no TensorFlow."""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape
from efficientnet_tf.models.run_directory import read_class_names, read_config, read_history
from efficientnet_tf.models.run_metrics import (
    EVALUATIONS,
    METRICS,
    Evaluations,
    Line,
    find_best_step,
    group_evaluations,
    is_number,
    read_metrics,
)
from efficientnet_tf.runtime.files import exists, is_folder, is_remote, list_folder
from efficientnet_tf.scaling.complexity import Cost, count_cost

TRAIN = "train"
MOST_HINTS = 3  # folders that an error names


@dataclass(frozen=True)
class RunPhase:
    """A phase of a run.

    Attributes:
        first_epoch: The epoch at which it begins.
        end_epoch: The epoch at which it ends.
        changes: What the config sets in it, {"section.key": value}.
    """

    first_epoch: float
    end_epoch: float
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class LoggedRun:
    """A run, finished or not, with what it has logged so far.

    Attributes:
        model_dir: Path of the model directory.
        config: The config.
        classes: Number of classes, or None if classes.txt cannot be read.
        lines: The lines of each kind, "train", "eval/raw" and "eval/ema", by step in ascending order.
        steps_per_epoch: How many steps an epoch takes, estimated from the steps of the evaluations. None if there is no
            evaluation yet, or if the batch size changes from phase to phase.
        is_finished: Whether the run has written its model.
        damaged: Number of lines that cannot be read.
        history: Deliberate changes of the config, as `read_history` returns them.
    """

    model_dir: str
    config: Config
    classes: int | None
    lines: Mapping[str, Mapping[int, Line]]
    steps_per_epoch: float | None
    is_finished: bool
    damaged: int = 0
    history: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The last step that was logged, or 0."""
        return max((step for lines in self.lines.values() for step in lines), default=0)

    @property
    def evaluations(self) -> Evaluations:
        """The evaluations by their steps."""
        lines = (line for kind in EVALUATIONS for line in self.lines[kind].values())
        return group_evaluations(lines, schema.METRICS[self.config.data.task][0])

    @property
    def metric(self) -> str:
        """The metric of the best evaluation: `eval.best`, or the first one of the task if the run chooses none."""
        return schema.METRICS[self.config.data.task][0] if self.config.eval.best == "none" else self.config.eval.best

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation, or None if there is none."""
        return find_best_step(dict(sorted(self.evaluations.items())), self.metric)

    @property
    def phases(self) -> list[RunPhase]:
        """The phases of the run, or an empty list if it has only one."""
        phases, first = [], 0.0
        for phase in self.config.train.phases:
            end = phase.until * self.config.train.epochs
            phases.append(RunPhase(first, end, phase.set))
            first = end
        return phases

    @property
    def cost(self) -> Cost | None:
        """Parameters and multiply-adds of the network, or None if the number of classes is unknown."""
        if self.classes is None:
            return None
        return count_cost(self.config.model, self.config.image_size, self.classes, self.config.data.channels)["total"]


def read_run(model_dir: str) -> LoggedRun:
    """Read what a run has logged. Another process may be training it.

    Args:
        model_dir: The model directory, local or on gs://.

    Raises:
        UserError: If there is no model directory, or its config or metrics.jsonl cannot be read.
    """
    if not is_remote(model_dir) and not os.path.lexists(model_dir):
        raise UserError(f"model_dir={escape(model_dir)}: no such file or folder.")
    if not is_folder(model_dir):
        raise UserError(f"model_dir={escape(model_dir)} is a file, not the model directory of a run.")
    config = _read_config(model_dir)
    read, damaged = read_metrics(model_dir)
    lines, invalid = _sort_lines(read)
    try:
        classes = len(read_class_names(model_dir))
    except UserError:
        classes = None
    return LoggedRun(
        model_dir,
        config,
        classes,
        lines,
        _estimate_steps_per_epoch(config, lines),
        is_finished=exists(os.path.join(model_dir, "model.keras")),
        damaged=damaged + invalid,
        history=read_history(model_dir),
    )


def _read_config(model_dir: str) -> Config:
    """Return the config of a run. If the folder is none but contains some, the error names them."""
    try:
        return read_config(model_dir)
    except UserError as error:
        if exists(os.path.join(model_dir, "config.yaml")):
            raise
        paths = [os.path.join(model_dir, name) for name in list_folder(model_dir)]
        runs = [escape(path) for path in paths if exists(os.path.join(path, "config.yaml"))]
        if not runs:
            raise
        more = "" if len(runs) <= MOST_HINTS else f" and {len(runs) - MOST_HINTS} more"
        raise UserError(f"{error} These folders in it are: {', '.join(runs[:MOST_HINTS])}{more}.") from None


def _sort_lines(lines: Iterable[Line]) -> tuple[dict[str, dict[int, Line]], int]:
    """Return the lines by kind and step, and the number of those without a valid step.

    A step that was logged twice, because the run went back to a checkpoint, counts once.
    """
    found: dict[str, dict[int, Line]] = {kind: {} for kind in (TRAIN, *EVALUATIONS)}
    invalid = 0
    for line in lines:
        step = line.get("step")
        if type(step) is not int or not 0 <= step < 2**53:
            invalid += 1
        elif line["kind"] in found:
            found[line["kind"]][step] = line
    return {kind: dict(sorted(steps.items())) for kind, steps in found.items()}, invalid


def _estimate_steps_per_epoch(config: Config, lines: Mapping[str, Mapping[int, Line]]) -> float | None:
    """Return how many steps an epoch takes, from the distances between evaluations."""
    steps = sorted({0, *(step for kind in EVALUATIONS for step in lines[kind])})
    distances = [after - before for before, after in zip(steps, steps[1:], strict=False)]
    if not distances or len({phase.train.batch_size for _, phase in config.phases}) > 1:
        return None
    epochs, every = config.train.epochs, config.eval.every_epochs
    # The last evaluation is at the end of the run, which can be sooner. A damaged line makes a distance longer.
    distance = min(distances[:-1] or distances)
    estimate = distance / min(every, epochs)
    # An evaluation at the end of the run gives a more precise estimate.
    exact = steps[-1] / epochs
    return exact if abs(exact * min(every, epochs) - distance) < 1 else estimate


def join_loops(lines: Mapping[int, Line], most: int = 1000) -> dict[int, Line]:
    """Return the lines of training loops, those of few steps joined with the ones before.

    The mean over a few steps before an evaluation is mostly noise.

    Args:
        lines: Lines of the kind "train", by step in ascending order.
        most: About how many lines to return at most.

    Returns:
        Lines with "loss", the metric that training logs, "learning_rate" and "images_per_second", by their last steps.
        A value is None where it is not a number. The learning rate is that of the last step, the others are means.
    """
    counts = [after - before for before, after in zip([0, *lines], lines, strict=False)]
    short, least = statistics.median(counts) / 2 if counts else 0, sum(counts) / most
    groups: list[list[tuple[int, int]]] = []  # (step, number of steps) of the lines of each group
    size = 0  # steps of the last group
    for step, count in zip(lines, counts, strict=True):
        if groups and (count < short or size < least):
            groups[-1].append((step, count))
            size += count
        else:
            groups.append([(step, count)])
            size = count
    return {group[-1][0]: _join(lines, group) for group in groups}


def _join(lines: Mapping[int, Line], group: Sequence[tuple[int, int]]) -> Line:
    def average(key: str, weights: Iterable[Any]) -> float | None:
        pairs = [(lines[step].get(key), weight) for (step, _), weight in zip(group, weights, strict=True)]
        pairs = [(value, weight) for value, weight in pairs if is_number(value) and is_number(weight)]
        total = sum(weight for _, weight in pairs)
        return sum(value * weight for value, weight in pairs) / total if total > 0 else None

    counts = [count for _, count in group]
    seconds = [lines[step].get("seconds", 1) for step, _ in group]
    rate = lines[group[-1][0]].get("learning_rate")
    return {
        "loss": average("loss", counts),
        **{key: average(key, counts) for key in ("top1", "exact", "mae") if key in lines[group[-1][0]]},
        "learning_rate": rate if is_number(rate) else None,
        "images_per_second": average("images_per_second", seconds),
    }


def list_times(run: LoggedRun) -> dict[int, float]:
    """Return the seconds of training up to each step that was logged, without starts, evaluations and checkpoints."""
    seconds, times = 0.0, {0: 0.0}
    for step in sorted({step for lines in run.lines.values() for step in lines}):
        line = run.lines[TRAIN].get(step, {})
        if is_number(value := line.get("seconds")):
            seconds += value
        times[step] = seconds
    return times


def name_runs(model_dirs: Sequence[str]) -> list[str]:
    """Return a name for each run: the last folder of its path, or as many folders as it takes to tell them apart.

    Raises:
        UserError: If a path is given twice.
    """
    paths = [path if is_remote(path) else os.path.abspath(path) for path in model_dirs]
    parts = [[part for part in path.rstrip("/").split("/") if part] or ["/"] for path in paths]
    for path, given in zip(paths, model_dirs, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"model_dir={escape(given)} is given twice. Give each run once.")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return paths


def describe_files(run: LoggedRun) -> list[str]:
    """Return sentences that say what is unusual about the files of a run."""
    where, notes = escape(os.path.join(run.model_dir, METRICS)), []
    if not run.step:
        notes.append(f"{where} has no line yet. The run has not completed a loop of steps.")
    elif not run.evaluations:
        notes.append(f"{where} has no evaluation yet.")
    if run.damaged:
        plural = "line" if run.damaged == 1 else "lines"
        notes.append(f"{where} has {run.damaged} damaged {plural}, which this page leaves out.")
    for entry in run.history:
        changes = ", ".join(
            f"{key} from {value[0]} to {value[1]}" if isinstance(value, list) and len(value) == 2 else str(key)
            for key, value in entry["changes"].items()
        )
        notes.append(f"The config of {escape(run.model_dir)} was changed after step {entry.get('step')}: {changes}.")
    return notes

"""Logs a run: progress bar, metrics.jsonl, TensorBoard and, on request, Weights & Biases."""

import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.image_size import format_size
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import find_reason
from efficientnet_tf.evaluation.metrics import format_evaluation
from efficientnet_tf.runtime.files import exists, is_remote, read_bytes, sync, write_text
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.training.wandb import WandbLog, keep_damaged

_LOGGER = logging.getLogger(__name__)

STUCK_SECONDS = 600


class RunLog:
    """Writes the metrics of a run to the terminal, to metrics.jsonl and to its trackers. Use it as a context manager.

    If nothing is written for ten minutes, it prints that the run may be stuck, and again after each ten minutes more.

    Args:
        model_dir: The run's directory.
        config: The config of the run.
        step: Number of steps done already. Later lines of metrics.jsonl, which a killed process left, are dropped.
        total_steps: Number of steps of the whole run.
        tracker: "tensorboard", or "wandb" for Weights & Biases as well.
        stuck_seconds: How long nothing may happen before a warning, in seconds.
        check: Raises UserError if nothing may be written any more, because the directory is gone.
        repeats: Whether `step` is evaluated again in any case, so that lines about it are dropped.

    Attributes:
        lacks_evaluation: Whether `step` is evaluated again, or the files that exist have no complete evaluation of it.

    Raises:
        UserError: If a file cannot be written, or a tracker cannot start.
    """

    def __init__(
        self,
        model_dir: str,
        config: Config,
        step: int,
        total_steps: int,
        tracker: str = "tensorboard",
        stuck_seconds: float = STUCK_SECONDS,
        check: Callable[[], None] = lambda: None,
        repeats: bool = False,
    ):
        self._path = os.path.join(model_dir, "metrics.jsonl")
        self._stuck_seconds, self._check = stuck_seconds, check
        kinds = {"eval/raw", "eval/ema"} if config.train.ema_decay else {"eval/raw"}
        with self._writing():
            kept = [line for line in _read_lines(self._path) if line["step"] <= step]
            self.lacks_evaluation = repeats or not kinds <= {line.get("kind") for line in kept if line["step"] == step}
            if self.lacks_evaluation:  # It is evaluated again.
                kept = [line for line in kept if line["step"] < step or line.get("kind") not in kinds]
            write_text(self._path, "".join(map(_format_line, kept)))
            self._writer = tf.summary.create_file_writer(os.path.join(model_dir, "tensorboard"))
            self._wandb = WandbLog(model_dir, config, kept, check) if tracker == "wandb" else None
        self._bar = ProgressBar(total_steps, config.model.name, "steps", completed=step)
        self._ended, self._moved = False, threading.Event()
        self._watch = threading.Thread(target=self._watch_progress, daemon=True)

    def __enter__(self):
        self._bar.__enter__()
        self._watch.start()
        return self

    def __exit__(self, *exception):
        self._ended = True
        self._moved.set()
        self._watch.join()
        self._bar.__exit__(*exception)
        self._writer.close()
        if self._wandb:
            self._wandb.close(failed=exception[0] is not None)

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Record values at a step. Their kind is "train", "eval/raw" or "eval/ema"."""
        self._moved.set()
        with self._writing():
            with tf.io.gfile.GFile(self._path, "a") as file:
                file.write(_format_line({"step": step, "kind": kind, **values}))
            with self._writer.as_default(step):
                for name, value in values.items():
                    tf.summary.scalar(f"{kind}/{name}", value)
            self._writer.flush()
            if self._wandb:
                self._wandb.write({"step": step, "kind": kind, **values})

    def sync(self) -> None:
        """Wait until the lines written so far are on the disk, so that no checkpoint is newer than they are."""
        if not is_remote(self._path):
            with self._writing():
                sync(self._path)

    def log_training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a loop of training steps, and move the progress bar to `step`."""
        self.write(step, "train", metrics)
        self._bar.set_status(
            f"loss {metrics['loss']:.3f}, {_describe_metric(metrics)}, rate {metrics['learning_rate']:.2g}, "
            f"{metrics['images_per_second']:.0f} images/s"
        )
        self._bar.advance(step - self._bar.completed)

    def log_evaluation(self, step: int, results: Mapping[str, Mapping[str, Any]], note: str = "") -> None:
        """Record the results of an evaluation, {"raw": {...}, "ema": {...}}, and print them in one line with a note."""
        for kind, values in results.items():
            self.write(step, f"eval/{kind}", values)
        self.print(f"step {step}: {format_evaluation(results)}{note}")

    def print(self, line: str) -> None:
        """Print a line above the progress bar."""
        self._bar.print(line)

    @contextlib.contextmanager
    def _writing(self):
        self._check()
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            self._check()  # This is the reason if it fails.
            raise UserError(f"{self._path} or a file next to it cannot be written: {find_reason(error)}") from None

    def _watch_progress(self):
        idle_seconds = 0.0
        while not self._ended:
            if self._moved.wait(self._stuck_seconds):
                self._moved.clear()
                idle_seconds = 0.0
                continue
            idle_seconds += self._stuck_seconds
            self.print(
                f"No progress for {idle_seconds / 60:g} minutes after step {self._bar.completed}. Check that the "
                "storage, the device and the other workers can be reached. If steps are just slow, a smaller "
                "train.steps_per_loop reports more often."
            )


class SilentLog(contextlib.nullcontext):
    """Takes the place of a RunLog in processes that do not report, because the chief does."""

    lacks_evaluation = False

    def __enter__(self) -> "SilentLog":
        return self

    def sync(self) -> None:
        """Do nothing."""

    def log_training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def log_evaluation(self, step: int, results: Mapping[str, Mapping[str, Any]], note: str = "") -> None:
        """Do nothing."""

    def print(self, line: str) -> None:
        """Do nothing."""


def _describe_metric(metrics: Mapping[str, float]) -> str:
    """Return the metric of a training loop for people."""
    if "top1" in metrics:
        return f"top-1 {metrics['top1']:.1%}"
    if "exact" in metrics:
        return f"all labels right {metrics['exact']:.1%}"
    return f"mean error {metrics['mae']:.3g}"


def describe_run(
    config: Config, model: keras.Model, sizes: tuple[int, int], devices: str, total_steps: int
) -> Iterator[str]:
    """Yield the lines that say what a run trains.

    Args:
        config: The config of the run.
        model: The model of the run.
        sizes: Numbers of training and evaluation images.
        devices: Description of the devices.
        total_steps: Number of steps of the whole run.
    """
    params = sum(math.prod(v.shape) for v in model.trainable_variables)
    name, epochs = config.model.name, config.train.epochs
    yield f"{name}: {params:,} parameters, {format_size(config.image_size)} pixels, {_count_outputs(config, model)}"
    yield f"Data: {config.data.source}, {sizes[0]:,} training and {sizes[1]:,} evaluation images"
    yield f"Device: {devices}, {model.dtype_policy.name}"
    plural = "" if epochs == 1 else "s"
    yield f"Steps: {total_steps:,} of {config.train.batch_size} images each, {epochs:g} epoch{plural}"
    if "CPU" in devices and model.dtype_policy.name == "mixed_bfloat16":
        yield (
            "Hint: on a CPU, training in mixed_bfloat16 is usually slower than in float32, because only the products "
            "are faster. --set train.precision=float32 is usually the better choice."
        )
    spec = config.model
    stride = spec.stem_stride * (1 + spec.stem_pool) * math.prod(stage.stride for stage in spec.stages)
    if max(config.image_shape) <= stride and spec.stem_stride > 1:
        yield (
            "Hint: the last feature maps have a single pixel. For images this small, --set model.stem_stride=1 usually "
            "gives a higher accuracy. Each step then takes longer."
        )


def _count_outputs(config: Config, model: keras.Model) -> str:
    count = model.output_shape[-1]
    what = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}[config.data.task]
    return f"{count:,} {what if count > 1 else what.removesuffix('s')}"


def _format_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def _read_lines(path: str) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, {"step": int, "kind": str, ...}, as far as they can be read.

    A last line that a kill has cut short is dropped. If others are damaged, a warning says so, and the damaged file is
    kept under another name.
    """
    if not exists(path):
        return []
    content = read_bytes(path)
    *whole, cut = content.split(b"\n")
    lines = [_parse_line(line) for line in whole]
    damaged = [str(number) for number, line in enumerate(lines, 1) if line is None]
    if damaged:
        _LOGGER.warning(
            "%s: line %s cannot be read. The run continues without. The damaged file is kept as %s.",
            *(path, ", ".join(damaged[:10]), keep_damaged(path, content)),
        )
    # A last line without its end, for example from an editor, counts if it is whole.
    return [line for line in [*lines, _parse_line(cut)] if line is not None]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_valid = isinstance(values, dict) and type(values.get("step")) is int and isinstance(values.get("kind"), str)
    return values if is_valid else None

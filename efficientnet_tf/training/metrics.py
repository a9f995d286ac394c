"""Logs a run: progress bar, metrics.jsonl, TensorBoard and, on request, Weights & Biases."""

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.evaluation.metrics import format_evaluation
from efficientnet_tf.runtime.files import read_text, write_text
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.training.wandb import WandbLog

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
    ):
        self._path = os.path.join(model_dir, "metrics.jsonl")
        self._stuck_seconds = stuck_seconds
        kept = []
        if tf.io.gfile.exists(self._path):
            kept = [line for line in read_text(self._path).splitlines() if _step_of(line) <= step]
        with self._writing():
            write_text(self._path, "".join(line + "\n" for line in kept))
            self._writer = tf.summary.create_file_writer(os.path.join(model_dir, "tensorboard"))
            self._wandb = WandbLog(model_dir, config, map(json.loads, kept)) if tracker == "wandb" else None
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
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            with self._writer.as_default(step):
                for name, value in values.items():
                    tf.summary.scalar(f"{kind}/{name}", value)
            self._writer.flush()
            if self._wandb:
                self._wandb.write({"step": step, "kind": kind, **values})

    def log_training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a loop of training steps, and move the progress bar to `step`."""
        self.write(step, "train", metrics)
        self._bar.set_status(
            "loss {loss:.3f}, top-1 {top1:.1%}, rate {learning_rate:.2g}, {images_per_second:.0f} images/s".format(
                **metrics
            )
        )
        self._bar.advance(step - self._bar.completed)

    def log_evaluation(self, step: int, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Record the results of an evaluation, {"raw": {...}, "ema": {...}}, and print them in one line."""
        for kind, values in results.items():
            self.write(step, f"eval/{kind}", values)
        self.print(f"step {step}: {format_evaluation(results)}")

    def print(self, line: str) -> None:
        """Print a line above the progress bar."""
        self._bar.print(line)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"{self._path} or a file next to it cannot be written: {str(error)[:300]}") from None

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

    def __enter__(self) -> "SilentLog":
        return self

    def log_training(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def log_evaluation(self, step: int, results: Mapping[str, Mapping[str, Any]]) -> None:
        """Do nothing."""

    def print(self, line: str) -> None:
        """Do nothing."""


def _step_of(line: str) -> float:
    """Return the step of a line of metrics.jsonl. A line that a kill has cut short counts as the future."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")

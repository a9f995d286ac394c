"""What a run tells while it goes on: progress bar, metrics.jsonl, TensorBoard and, when asked, Weights & Biases."""

import contextlib
import json
import os
import sys
import threading

import tensorflow as tf
from tqdm import tqdm

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.files import read_text, write_text
from efficientnet_tf.training.wandb import WandbLog

STUCK_SECONDS = 600


class RunLog:
    """Writes the numbers of a run to the screen, to metrics.jsonl and to its trackers. A context manager.

    Where nothing is written for ten minutes within it, and after each ten more, it says that the run may be stuck.

    Args:
        model_dir: str.
        name: str, shown before the bar.
        step: int, steps done already; lines of metrics.jsonl past it, left by a run that was killed, are dropped.
        total: int, steps of the whole run.
        tracker: str, "tensorboard", or "wandb" for Weights & Biases, too.
        config: config.Config, which Weights & Biases shows.

    Raises:
        UserError: when a file cannot be written, or a tracker cannot begin.
    """

    def __init__(self, model_dir, name, step, total, tracker="tensorboard", config=None):
        self._path = os.path.join(model_dir, "metrics.jsonl")
        kept = []
        if tf.io.gfile.exists(self._path):
            kept = [line for line in read_text(self._path).splitlines() if _step(line) <= step]
        with self._writing():
            write_text(self._path, "".join(line + "\n" for line in kept))
            self._writer = tf.summary.create_file_writer(os.path.join(model_dir, "tensorboard"))
            self._wandb = WandbLog(model_dir, config, map(json.loads, kept)) if tracker == "wandb" else None
        self._bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            desc=name,
            dynamic_ncols=True,
            # In a log file, a line every half minute is enough.
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )

        self._ended, self._moved = False, threading.Event()
        self._watch = threading.Thread(target=self._watch_progress, daemon=True)

    def __enter__(self):
        self._watch.start()
        return self

    def __exit__(self, *exception):
        self._ended = True
        self._moved.set()
        self._watch.join()
        self._bar.close()
        self._writer.close()
        if self._wandb:
            self._wandb.close(failed=exception[0] is not None)

    def write(self, step, kind, values):
        """Record values, {name: float}, of a kind ("train", "eval/ema", ...) at a step."""
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

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"{self._path} or what lies beside it cannot be written: {str(error)[:300]}") from None

    def _watch_progress(self):
        idle_seconds = 0
        while not self._ended:
            if self._moved.wait(STUCK_SECONDS):
                self._moved.clear()
                idle_seconds = 0
                continue
            idle_seconds += STUCK_SECONDS
            self.say(
                f"no progress for {idle_seconds / 60:g} minutes after step {self._bar.n}: are storage, device and "
                "other workers within reach? Where steps are just slow, a smaller train.steps_per_loop tells more often"
            )

    def train(self, step, values):
        """Record what the training loop returned, and move the bar to `step`."""
        self.write(step, "train", values)
        self._bar.set_postfix_str(
            "loss {loss:.3f}, top-1 {top1:.1%}, rate {learning_rate:.2g}, {images_per_second:.0f} images/s".format(
                **values
            ),
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    def evaluation(self, step, result):
        """Record and print what evaluations returned, {kind: values}."""
        for kind, values in result.items():
            self.write(step, f"eval/{kind}", values)
            self.say(f"step {step}: " + format_metrics(kind, values))

    def say(self, line):
        """Print a line above the bar."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()


class SilentLog(contextlib.nullcontext):
    """Takes the place of a Report where another process, the chief, reports."""

    def train(self, step, values):
        """Say nothing."""

    def evaluation(self, step, result):
        """Say nothing."""

    def say(self, line):
        """Say nothing."""


def format_metrics(kind, values):
    """Return an evaluation's values as a line for people."""
    text = "top-1 {top1:.2%}, top-5 {top5:.2%}, loss {loss:.4f} on {examples} examples".format(**values)
    return f"{kind}: {text}"


def _step(line):
    """Return the step of a line of metrics.jsonl; a line cut short by a kill counts as the future."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")

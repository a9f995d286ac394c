"""What a run tells while it goes on: progress bar, metrics.jsonl, TensorBoard."""

import contextlib
import json
import os
import sys

import tensorflow as tf
from tqdm import tqdm

from efficientnet_tf.config import UserError
from efficientnet_tf.files import read_text, write_text


class Report:
    """Writes the numbers of a run to the screen, to metrics.jsonl and to TensorBoard. A context manager.

    Args:
        model_dir: str.
        name: str, shown before the bar.
        step: int, steps done already; lines of metrics.jsonl past it, left by a run that was killed, are dropped.
        total: int, steps of the whole run.
    """

    def __init__(self, model_dir, name, step, total):
        self._path = os.path.join(model_dir, "metrics.jsonl")
        kept = []
        if tf.io.gfile.exists(self._path):
            kept = [line for line in read_text(self._path).splitlines() if _step(line) <= step]
        with self._writing():
            write_text(self._path, "".join(line + "\n" for line in kept))
            self._writer = tf.summary.create_file_writer(os.path.join(model_dir, "tensorboard"))
        self._bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            desc=name,
            dynamic_ncols=True,
            # In a log file, a line every half minute is enough.
            mininterval=0.1 if sys.stderr.isatty() else 30,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
        self._writer.close()

    def write(self, step, kind, values):
        """Record values, {name: float}, of a kind ("train", "eval/ema", ...) at a step."""
        with self._writing():
            with tf.io.gfile.GFile(self._path, "a") as file:
                file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
            with self._writer.as_default(step):
                for name, value in values.items():
                    tf.summary.scalar(f"{kind}/{name}", value)
            self._writer.flush()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"{self._path} or tensorboard/ beside it cannot be written: {str(error)[:300]}") from None

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
            self.say(f"step {step}: " + summary(kind, values))

    def say(self, line):
        """Print a line above the bar."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()


def summary(kind, values):
    """Return an evaluation's values as a line for people."""
    text = "top-1 {top1:.2%}, top-5 {top5:.2%}, loss {loss:.4f} on {examples} examples".format(**values)
    return f"{kind}: {text}"


def _step(line):
    """Return the step of a line of metrics.jsonl; a line cut short by a kill counts as the future."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")

"""What a run tells while it goes on: progress bar, metrics.jsonl, TensorBoard and, when asked, Weights & Biases."""

import contextlib
import json
import os
import re
import secrets
import sys
import threading
import time

import tensorflow as tf
from tqdm import tqdm

from efficientnet_tf.config import UserError
from efficientnet_tf.files import read_text, write_text

STUCK_SECONDS = 600
SECONDS_IN_MEMORY = 30  # twice as long as wandb says that it keeps lines


def require_tracker(tracker):
    """Check that a tracker's package is there.

    Args:
        tracker: str, "tensorboard" or "wandb".

    Raises:
        UserError: when it is not.
    """
    if tracker != "wandb":
        return
    try:
        import wandb  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "--tracker=wandb needs Weights & Biases, which is not installed: pip install 'efficientnet_tf[wandb]'"
        ) from None


class Report:
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
            self._wandb = _Wandb(model_dir, config, map(json.loads, kept)) if tracker == "wandb" else None
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
            self.say(f"step {step}: " + summary(kind, values))

    def say(self, line):
        """Print a line above the bar."""
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()


class Silence(contextlib.nullcontext):
    """Takes the place of a Report where another process, the chief, reports."""

    def train(self, step, values):
        """Say nothing."""

    def evaluation(self, step, result):
        """Say nothing."""

    def say(self, line):
        """Say nothing."""


class _Wandb:
    """Tells one run of Weights & Biases every line of metrics.jsonl, however often training was stopped.

    wandb.json in the model directory holds the run's id and how many lines are safe with wandb: a run that goes on
    writes the same lines again in the same order. wandb keeps them in memory for up to 15 seconds, so a line counts
    once it is older or the run was ended; after a SIGKILL the last ones may be told twice, at the same step, but none
    is missing. The step is told as a value, for the steps that wandb counts itself cannot go back.

    Args:
        model_dir: str; wandb's files lie in it, where it is local.
        config: config.Config.
        lines: iterable of dict, the lines that are there already.

    Raises:
        UserError: when wandb cannot begin.
    """

    def __init__(self, model_dir, config, lines):
        import wandb

        self._path, self._line = os.path.join(model_dir, "wandb.json"), 0
        self._marked, self._marked_at = 0, time.monotonic()
        name = re.sub(r"[^\w.-]", "-", os.path.basename(os.path.abspath(model_dir)))[:80]
        if tf.io.gfile.exists(self._path):
            self._told = json.loads(read_text(self._path))
        else:
            self._told = {"id": f"{name}-{secrets.token_hex(4)}", "lines": 0}
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "efficientnet_tf"),
                name=os.environ.get("WANDB_NAME", name),
                id=self._told["id"],
                resume="allow",
                dir=None if "://" in model_dir else model_dir,
                config=config.model_dump(mode="json"),
                allow_val_change=True,
            )
        except wandb.Error as error:
            raise UserError(
                f"--tracker=wandb: {error}\nLog in by 'wandb login', or set WANDB_MODE=offline and upload later by "
                "'wandb sync'"
            ) from None
        self._run.define_metric("*", step_metric="step")
        self._save(0)
        for line in lines:
            self.write(line)

    def write(self, line):
        """Tell a line of metrics.jsonl, unless an earlier process has."""
        self._line += 1
        if self._line <= self._told["lines"]:
            return
        kind, step = line["kind"], line["step"]
        values = {f"{kind}/{name}": value for name, value in line.items() if name not in ("kind", "step")}
        self._run.log({"step": step, **values})
        if time.monotonic() - self._marked_at > SECONDS_IN_MEMORY:
            self._save(self._marked)
            self._marked, self._marked_at = self._line, time.monotonic()

    def close(self, failed):
        """End the run, until it goes on."""
        self._run.finish(exit_code=int(failed))
        self._save(self._line)

    def _save(self, lines):
        self._told["lines"] = max(lines, self._told["lines"])
        write_text(self._path, json.dumps(self._told))


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

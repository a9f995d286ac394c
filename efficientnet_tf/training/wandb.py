"""TODO docstring (from report)."""

import json
import os
import re
import secrets
import time

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.files import read_text, write_text

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


class WandbLog:
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

"""Logs a run to Weights & Biases, without gaps or repeated lines, however often the run is stopped."""

import contextlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.runtime.files import exists, read_bytes, write_bytes, write_text

_LOGGER = logging.getLogger(__name__)

SECONDS_IN_MEMORY = 30  # Twice as long as wandb says that it buffers lines.


def require_tracker(tracker: str) -> None:
    """Check that the package of a tracker is installed.

    Args:
        tracker: "tensorboard" or "wandb".

    Raises:
        UserError: If it is not.
    """
    if tracker != "wandb":
        return
    try:
        import wandb  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            "tracker=wandb needs Weights & Biases, which is not installed. Run pip install 'efficientnet_tf[wandb]'."
        ) from None


class WandbLog:
    """Sends every line of metrics.jsonl to one run of Weights & Biases.

    wandb.json in the model directory records the id of that run and how many lines it has for sure. A resumed run
    writes the same lines again in the same order, so lines that wandb has are skipped. wandb buffers lines for up to 15
    seconds. A line counts as sent once it is older than that or the run was closed. After a SIGKILL the last lines may
    be sent twice, with the same step, but none is missing. The step is logged as a value, because the steps that wandb
    counts itself cannot go back.

    wandb's own TensorBoard sync is not used: it would send the steps after the last checkpoint twice when a run is
    killed and resumed.

    Args:
        model_dir: The run's directory. If it is local, wandb's files are written there.
        config: The config that wandb shows.
        lines: The lines of metrics.jsonl that exist already.
        check: Raises UserError if nothing may be written any more, because the directory is gone.

    Raises:
        UserError: If wandb cannot start.
    """

    def __init__(
        self,
        model_dir: str,
        config: Config,
        lines: Iterable[dict[str, Any]],
        check: Callable[[], None] = lambda: None,
    ):
        import wandb

        self._path, self._line, self._check = os.path.join(model_dir, "wandb.json"), 0, check
        self._marked, self._marked_at = 0, time.monotonic()
        name = re.sub(r"[^\w.-]", "-", os.path.basename(os.path.abspath(model_dir)))[:80]
        self._sent = _read_sent(self._path) or {"id": f"{name}-{secrets.token_hex(4)}", "lines": 0}
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "efficientnet_tf"),
                name=os.environ.get("WANDB_NAME", name),
                id=self._sent["id"],
                resume="allow",
                dir=None if "://" in model_dir else model_dir,
                config=config.model_dump(mode="json"),
                allow_val_change=True,
            )
        except (wandb.Error, OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"tracker=wandb: {error}\nLog in with 'wandb login', or set WANDB_MODE=offline and upload later with "
                "'wandb sync'."
            ) from None
        self._run.define_metric("*", step_metric="step")
        self._save(0)
        for line in lines:
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        """Send a line of metrics.jsonl, unless an earlier process has sent it."""
        self._line += 1
        if self._line <= self._sent["lines"]:
            return
        kind, step = line["kind"], line["step"]
        values = {f"{kind}/{name}": value for name, value in line.items() if name not in ("kind", "step")}
        self._run.log({"step": step, **values})
        if time.monotonic() - self._marked_at > SECONDS_IN_MEMORY:
            self._save(self._marked)
            self._marked, self._marked_at = self._line, time.monotonic()

    def close(self, failed: bool) -> None:
        """Close the run. A later process can continue it."""
        self._run.finish(exit_code=int(failed))
        if not failed:
            self._save(self._line)
            return
        with contextlib.suppress(UserError, OSError):  # The directory may be what failed.
            self._save(self._line)

    def _save(self, lines: int) -> None:
        self._check()
        self._sent["lines"] = max(lines, self._sent["lines"])
        write_text(self._path, json.dumps(self._sent))


def _read_sent(path: str) -> dict[str, Any] | None:
    """Return the content of wandb.json, or None if there is none. If it is damaged, a warning says so."""
    if not exists(path):
        return None
    content = read_bytes(path)
    try:
        sent = json.loads(content)
        if re.fullmatch(r"[\w.-]{1,128}", sent["id"]) and type(sent["lines"]) is int and sent["lines"] >= 0:
            return {"id": sent["id"], "lines": sent["lines"]}
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    _LOGGER.warning(
        "%s cannot be read. A new run of Weights & Biases is begun. The damaged file is kept as %s.",
        *(path, keep_damaged(path, content)),
    )
    return None


def keep_damaged(path: str, content: bytes) -> str:
    """Write the content of a damaged file under another name, and return that name."""
    name = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    write_bytes(name, content)
    return name

"""Measures the inference time of the networks of a study, each in a separate process."""

import contextlib
import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.children import describe_end, last_lines, module_command, run_child
from efficientnet_tf.runtime.files import TEXT_LIMIT_BYTES, check_file, read_text, write_text
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.study.results import Row
from efficientnet_tf.study.runs import Run

MEASURE_SECONDS = 1800.0  # the longest time for one network
LOCK_SECONDS = 600.0  # the longest wait for another process that measures

_logger = logging.getLogger(__name__)


def measure_inference(variant: str, command: Sequence[str] | None = None) -> float | None:
    """Measure the inference time of a network with random weights in a separate process.

    Args:
        variant: Path of its YAML file.
        command: The command that measures, to which flags are appended. Defaults to `summary` of this package.

    Returns:
        Seconds for one image at batch size 1, or None if that failed, which is logged.
    """
    command = command or module_command("efficientnet_tf.summary")
    ended = run_child([*command, f"--variant={variant}", "--measure", "--json"], MEASURE_SECONDS)
    try:
        if ended.status != 0:
            raise ValueError(f"{describe_end(ended.status)}. {last_lines(ended.errors)}")
        return _check_seconds(json.loads(ended.output)["measured"]["inference_seconds"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "the answer is damaged"
        _logger.warning("The inference time of %s could not be measured: %s", escape(variant), escape(reason)[:300])
        return None


def _check_seconds(value: object) -> float:
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise TypeError
    return float(value)


def add_inference(
    rows: Sequence[Row],
    runs: Sequence[Run],
    output_dir: str,
    measure: Callable[[str], float | None] | None = measure_inference,
) -> list[Row]:
    """Return the rows with the column "inference_seconds", which is None for networks that are not measured.

    Times are kept in measured.json, so that each network is measured once.

    Args:
        rows: Rows of `read_rows`.
        runs: The runs of the study.
        output_dir: Folder of the study.
        measure: Function that takes the path of a variant and returns seconds, or None if that failed. If this is None,
            only times in measured.json are used.
    """
    networks = {run.name: _describe(run.spec) for run in runs}
    path = os.path.join(output_dir, "measured.json")
    with _lock(path) as is_locked:
        seconds = _read_seconds(path)
        first_runs: dict[str, str] = {}
        for row in rows:
            first_runs.setdefault(networks[row["run"]], row["run"])
        missing = {network: run for network, run in first_runs.items() if network not in seconds}
        if measure and missing and is_locked:
            with ProgressBar(len(missing), "inference time", "networks") as bar:
                for network, run in missing.items():
                    measured = measure(os.path.join(output_dir, "variants", f"{run}.yaml"))
                    bar.advance()
                    if measured is not None:
                        seconds[network] = measured
                        bar.print(f"{escape(network)}: {measured * 1000:.2f} ms per image")
                        write_text(path, json.dumps(seconds, indent=1))
    return [row | {"inference_seconds": seconds.get(networks[row["run"]])} for row in rows]


@contextlib.contextmanager
def _lock(path: str) -> Iterator[bool]:
    """Let one process after the other measure. Yield whether this one may, or has waited for too long."""
    name, deadline = f"{path}.lock", time.monotonic() + LOCK_SECONDS
    if os.path.lexists(name):
        check_file(name)
    with open(name, "ab") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    _logger.warning("Another process has measured for %g s. Times are left out.", LOCK_SECONDS)
                    yield False
                    return
                time.sleep(0.2)
        yield True


def _read_seconds(path: str) -> dict[str, float]:
    """Return the times that are known. A damaged file counts as empty, and is measured again."""
    if not os.path.lexists(path):
        return {}
    check_file(path)
    try:
        content = json.loads(read_text(path, TEXT_LIMIT_BYTES))
        return {network: _check_seconds(value) for network, value in content.items()}
    except (UserError, ValueError, AttributeError, TypeError, RecursionError):
        _logger.warning("%s is damaged. Its times are measured again.", escape(path))
        return {}


def _describe(spec: ModelSpec) -> str:
    return f"{spec.name}, depth {spec.depth:g}, width {spec.width:g}, {spec.resolution} pixels"

"""Measures the inference time of the networks of a study, each in a separate process."""

import fcntl
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.study.results import Row
from efficientnet_tf.study.runs import Run


def measure_inference(variant: str) -> float | None:
    """Measure the inference time of a network with random weights in a separate process.

    Args:
        variant: Path of its YAML file.

    Returns:
        Seconds for one image at batch size 1, or None if that failed, which is logged.
    """
    command = [sys.executable, "-m", "efficientnet_tf.summary", f"--variant={variant}", "--measure", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        logging.getLogger(__name__).warning(
            "The inference time of %s could not be measured: %s", variant, done.stderr.strip()[-300:]
        )
        return None
    return json.loads(done.stdout)["measured"]["inference_seconds"]


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
    with open(f"{path}.lock", "w") as lock:
        # Processes that finish at the same time must not measure at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        seconds = {}
        if os.path.exists(path):
            with open(path) as file:
                seconds = json.load(file)
        first_runs: dict[str, str] = {}
        for row in rows:
            first_runs.setdefault(networks[row["run"]], row["run"])
        missing = {network: run for network, run in first_runs.items() if network not in seconds}
        if measure and missing:
            with ProgressBar(len(missing), "inference time", "networks") as bar:
                for network, run in missing.items():
                    measured = measure(os.path.join(output_dir, "variants", f"{run}.yaml"))
                    bar.advance()
                    if measured is not None:
                        seconds[network] = measured
                        bar.print(f"{network}: {measured * 1000:.2f} ms per image")
                        write_text(path, json.dumps(seconds, indent=1))
    return [row | {"inference_seconds": seconds.get(networks[row["run"]])} for row in rows]


def _describe(spec: ModelSpec) -> str:
    return f"{spec.name}, depth {spec.depth:g}, width {spec.width:g}, {spec.resolution} pixels"

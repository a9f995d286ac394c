"""Run workers in rounds: each of them for a few seconds, one after the other, again and again.

A shared machine is not equally fast all the time. With alternating rounds, a slow period affects all workers alike.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from efficientnet_tf.benchmark.worker import Setting
from efficientnet_tf.config.errors import UserError

PROCESS_BYTES = 2**29  # rough memory of a process before it has a network: Python, TensorFlow, torch


class WorkerKilled(UserError):
    """A signal has ended a worker. In most cases the system did so because memory ran out."""


class Runner(Protocol):
    """Anything that can be timed in rounds."""

    def run(self, seconds: float) -> float:
        """Run steps for about `seconds` and return the seconds of one step."""
        ...


class Worker:
    """A process that runs steps on request. Use it as a context manager, which ends the process.

    Args:
        setting: What the process runs.

    Attributes:
        setting: What the process runs.
        start_seconds: Seconds from the start of the process to the end of its first step.
        facts: What is known about the process. "first_step_seconds" is the part of `start_seconds` that the first step
            took, with tracing and compiling. "peak_bytes" is the peak memory of the whole process, None if the system
            does not say. Exported files have "file_bytes". jax and timm have "device", its name, and
            "device_peak_bytes", None on a CPU.
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        self.start_seconds = float("nan")
        self.facts: dict[str, Any] = {}
        self._step_seconds = 1.0

    def __enter__(self) -> "Worker":
        command = [sys.executable, "-m", "efficientnet_tf.benchmark.worker", json.dumps(asdict(self.setting))]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        self._errors = tempfile.TemporaryFile("w+")
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        try:
            self._read_answer()
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    @property
    def pid(self) -> int:
        """ID of the process."""
        return self._process.pid

    def _read_answer(self):
        """Read the seconds that the process took for its steps, and update `facts`."""
        assert self._process.stdout  # noqa: S101 - for the type checker: it is a pipe
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
            status = self._process.returncode
            kind = WorkerKilled if status < 0 else UserError
            raise kind(f"{self.setting.implementation} ended with status {status}: {last[:300]}")
        answer = json.loads(line)
        self.facts |= answer["facts"]
        return answer["seconds"]

    def run(self, seconds: float) -> float:
        """Run steps for about `seconds`, at least one step, and return the seconds of one step."""
        steps = max(1, round(seconds / self._step_seconds))
        assert self._process.stdin  # noqa: S101 - for the type checker: it is a pipe
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self._step_seconds = self._read_answer() / steps
        return self._step_seconds


def count_operations_per_mac(mode: str) -> int:
    """Return the arithmetic operations per multiply-add of a network: 2 for inference, 6 for training.

    Training computes the forward pass, the gradients of the activations and the gradients of the weights.
    """
    return 6 if mode == "train" else 2


def run_rounds(
    workers: Mapping[str, Runner],
    rounds: int,
    seconds: float,
    after_each: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Time workers in rounds. A first round to warm up does not count.

    Args:
        workers: What to time, by name.
        rounds: Number of rounds that count, at least 1.
        seconds: Length of one measurement, above 0. A measurement has at least one step.
        after_each: Called after each measurement.

    Returns:
        For each name the seconds of one step in each round that counts.
    """
    step_seconds = {name: [] for name in workers}
    for round_index in range(rounds + 1):
        for name, worker in workers.items():
            taken = worker.run(seconds)
            if round_index:
                step_seconds[name].append(taken)
            after_each()
    return step_seconds

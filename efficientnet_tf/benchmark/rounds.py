"""Run workers in rounds: each of them for a few seconds, one after the other, again and again.

A shared machine is not equally fast all the time. With alternating rounds, a slow period affects all workers alike.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NoReturn, Protocol

from efficientnet_tf.benchmark.setting import Setting
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.runtime.children import describe_end, last_lines

PROCESS_BYTES = 2**29  # rough memory of a process before it has a network: Python, TensorFlow, torch
ANSWER_SECONDS = 3600.0  # the longest wait for an answer, beyond the time that was asked for
MOST_BYTES = 2**20  # of an answer or of an error message
WORKER_COMMAND = (sys.executable, "-m", "efficientnet_tf.benchmark.worker")


class WorkerKilled(UserError):
    """A signal has ended a worker. In most cases the system did so because memory ran out."""


class Runner(Protocol):
    """Anything that can be timed in rounds."""

    def run(self, seconds: float) -> float:
        """Run steps for about `seconds` and return the seconds of one step."""
        ...


class Worker:
    """A process that runs steps on request. Use it as a context manager, which ends the process.

    Entering and `run` raise `UserError` if the process ends, answers with anything else, or does not answer for
    `ANSWER_SECONDS`, and `WorkerKilled` if a signal ended it.

    Args:
        setting: What the process runs.
        command: The command of the process, to which the setting is appended as JSON. Defaults to the module `worker`.

    Attributes:
        setting: What the process runs.
        start_seconds: Seconds from the start of the process to the end of its first step.
        facts: What is known about the process. "first_step_seconds" is the part of `start_seconds` that the first step
            took, with tracing and compiling. "peak_bytes" is the peak memory of the whole process, None if the system
            does not say. Exported files have "file_bytes". jax and timm have "device", its name, and
            "device_peak_bytes", None on a CPU.
    """

    def __init__(self, setting: Setting, command: Sequence[str] = WORKER_COMMAND):
        self.setting, self._command = setting, command
        self.start_seconds = float("nan")
        self.facts: dict[str, Any] = {}
        self._step_seconds = 1.0

    def __enter__(self) -> "Worker":
        command = [*self._command, json.dumps(asdict(self.setting))]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        self._errors = tempfile.TemporaryFile()
        started = time.perf_counter()
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, stderr=self._errors, env=environment
        )
        try:
            self._read_answer(0)
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe:
                pipe.close()

    @property
    def pid(self) -> int:
        """ID of the process."""
        return self._process.pid

    def _read_answer(self, seconds):
        """Read the seconds that the process took for steps that should take `seconds`, and update `facts`."""
        line = self._read_line(ANSWER_SECONDS + 10 * seconds)
        if b"\n" not in line and len(line) < MOST_BYTES:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(min(10, ANSWER_SECONDS))
            if self._process.returncode is None:
                self._fail("closed its output but did not end")
            size = self._errors.seek(0, os.SEEK_END)
            self._errors.seek(max(0, size - MOST_BYTES))
            last = last_lines(self._errors.read().decode(errors="replace")) or "no message"
            status = self._process.returncode
            how = f"{status}, {describe_end(status)}" if status < 0 else f"{status}"
            self._fail(f"ended with status {how}: {last[:300]}", WorkerKilled if status < 0 else UserError)
        try:
            answer = json.loads(line)
            taken = float(answer["seconds"])
            self.facts |= dict(answer["facts"])
        except (ValueError, LookupError, TypeError, RecursionError):
            self._fail(f"did not answer with a time but with {escape(shorten(repr(line[:1000])))}")
        if not 0 < taken < float("inf"):
            self._fail(f"answered that it took {taken} seconds")
        return taken

    def _read_line(self, limit_seconds):
        """Return the next line of the process's output, with what follows it at once. At its end the line is cut."""
        assert self._process.stdout  # noqa: S101 - for the type checker: it is a pipe
        output, line, deadline = self._process.stdout, b"", time.monotonic() + limit_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while b"\n" not in line and len(line) < MOST_BYTES:
                if not selector.select(deadline - time.monotonic()):
                    self._fail(f"did not answer for {limit_seconds:,.0f} seconds")
                part = os.read(output.fileno(), MOST_BYTES)
                if not part:
                    return line
                line += part
        return line

    def _fail(self, reason: str, kind: type[UserError] = UserError) -> NoReturn:
        raise kind(f"{self.setting.implementation} {reason.rstrip('.')}.")

    def run(self, seconds: float) -> float:
        """Run steps for about `seconds`, at least one step, and return the seconds of one step."""
        steps = max(1, round(seconds / self._step_seconds))
        assert self._process.stdin  # noqa: S101 - for the type checker: it is a pipe
        with contextlib.suppress(BrokenPipeError):  # It has ended, which the answer says.
            self._process.stdin.write(f"{steps}\n".encode())
        self._step_seconds = self._read_answer(seconds) / steps
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

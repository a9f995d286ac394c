"""Contestants, each in a process of its own, measured in turns."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict

from efficientnet_tf.config.errors import UserError

PROCESS_BYTES = 2**29  # what a process takes before it has a network, about: TensorFlow, torch


class WorkerKilled(UserError):
    """A contestant that a signal has ended: the system's, when memory ran out, as a rule."""


class Worker:
    """A process that does steps when it is told to; a context, which ends it.

    Attributes:
        setting: Setting.
        start_seconds: float, from the beginning of the process to the end of its first step.
        facts: dict; "first_step_seconds", of these, tracing and compiling included; "peak_bytes", memory of the whole
            process, None where the system does not say; of an exported file "file_bytes"; of jax and timm "device", its
            name, and "device_peak_bytes", None on a CPU.
    """

    def __init__(self, setting):
        self.setting = setting
        self.start_seconds, self.facts = None, {}
        self._step_seconds = 1.0

    def __enter__(self):
        command = [sys.executable, "-m", "efficientnet_tf.benchmark.worker", json.dumps(asdict(self.setting))]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        self._errors = tempfile.TemporaryFile("w+")
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
            status = self._process.returncode
            kind = WorkerKilled if status < 0 else UserError
            raise kind(f"{self.setting.contestant} ended with status {status}: {last[:300]}")
        told = json.loads(line)
        self.facts |= told["facts"]
        return told["seconds"]

    def run(self, seconds):
        """Let it do steps for about so many seconds, one at least; return the seconds of one."""
        steps = max(1, round(seconds / self._step_seconds))
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        self._step_seconds = self._answer() / steps
        return self._step_seconds


def operations_of(mode):
    """Return the operations for each multiply-add of a network: two, and in training, there and back, three times."""
    return 6 if mode == "train" else 2


def run_rounds(runners, rounds, seconds, after_each=lambda: None):
    """Let contestants run one after the other, again and again; the first turn does not count.

    Args:
        runners: dict, name to Contestant.
        rounds: int >= 1, turns that count.
        seconds: float > 0, length of a measurement; a step at least.
        after_each: function, called after each measurement.

    Returns:
        dict, name to the seconds of a step in each turn.
    """
    taken = {name: [] for name in runners}
    for turn in range(rounds + 1):
        for name, runner in runners.items():
            step = runner.run(seconds)
            if turn:
                taken[name].append(step)
            after_each()
    return taken

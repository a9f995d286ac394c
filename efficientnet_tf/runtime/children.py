"""Starts processes that end with this one, and bounds the wait for their answers."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from efficientnet_tf.config.text import escape

# Ends the process when its standard input is closed, which happens when the process that started it is gone.
WATCH_PARENT = (
    "import os, runpy, sys, threading\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()\n"
)
MOST_BYTES = 2**20  # of an output that are read, from its end


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        status: Its exit status, negative for a signal, or None if it was killed at the time limit.
        output: The end of its standard output.
        errors: The end of its standard error.
    """

    status: int | None
    output: str
    errors: str


def module_command(module: str) -> tuple[str, ...]:
    """Return the command that runs a module of Python, and ends when its standard input is closed."""
    run = f"sys.argv[0] = {module!r}\nrunpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    return (sys.executable, "-c", WATCH_PARENT + run)


def run_child(command: Sequence[str], limit_seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command of `module_command` until it ends, and kill it at a time limit.

    Args:
        command: The command.
        limit_seconds: The longest time that it may take.
        environment: Further environment variables.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            env=os.environ | (environment or {}),
        )
        try:
            status = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()
        return Ended(status, _read_end(output), _read_end(errors))


def _read_end(file):
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - MOST_BYTES))
    return file.read().decode(errors="replace")


def describe_end(status: int | None) -> str:
    """Return how a process ended: "exit status 1", "killed by SIGKILL" or "killed at its time limit"."""
    if status is None:
        return "killed at its time limit"
    if status >= 0:
        return f"exit status {status}"
    with contextlib.suppress(ValueError):  # real-time signals have no name
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"


def last_lines(text: str, count: int = 1) -> str:
    """Return the last lines of a log that are not empty, without what could move the cursor of a terminal.

    Args:
        text: The log. Of a line that a progress bar wrote again and again, only the last state counts.
        count: Number of lines, at least 1.
    """
    lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join([escape(line) for line in lines if line][-count:])

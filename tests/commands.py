"""Runs commands: in a process of their own as a user does, or in this process to save time."""

import importlib
import subprocess
import sys

import pytest

from efficientnet_tf import cli


def run_process(command, *arguments, timeout=240, **options):
    """Run `python -m efficientnet_tf.<command>` and return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", f"efficientnet_tf.{command}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def load_command(command):
    """Return the module of a command."""
    module = importlib.import_module(f"efficientnet_tf.{command}")
    if hasattr(module, "main"):
        return module
    return importlib.import_module(f"efficientnet_tf.{command}.__main__")  # a package


def run_here(command, *arguments):
    """Run a command's `main` in this process. Return its exit status, None for 0. Errors are raised as UserError."""
    module = load_command(command)
    return module.main(module.make_parser().parse_args([*map(str, arguments)]))


def exit_status(command, *arguments):
    """Run a command in this process like a user does, with its error messages, and return the exit status."""
    module = load_command(command)
    # Without --verbose, the command would redirect standard error, which the tests capture.
    with pytest.raises(SystemExit) as exited:
        cli.run(module.main, module.make_parser(), [command, "--verbose", *map(str, arguments)])
    return exited.value.code or 0


def find_error(status, stderr):
    """Return the error message that a command ended with. It must not print a traceback."""
    assert status not in (0, 75)
    assert "Traceback" not in stderr, stderr
    return stderr[stderr.index("error: ") :]

"""Turns every failure of a command into one sentence and an exit status.

What the user can change (a `UserError`, a full disk, too little memory) is explained, with status 1. Anything else is a
bug: its traceback goes to a log file that the sentence names, with status 70.
"""

import contextlib
import errno
import faulthandler
import os
import re
import select
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, escape_lines, shorten

EXIT_ERROR = 1  # a mistake that the user can fix
EXIT_BUG = 70  # of this package or of a library. EX_SOFTWARE in sysexits.h
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as shells report Ctrl-C
LONGEST_REASON = 300

_NO_TENSORFLOW = (
    "TensorFlow is not installed. Choose the build for your device: pip install 'efficientnet_tf[cpu]' (or [gpu], "
    "[tpu])."
)
_NO_MEMORY = "There is not enough memory. Use a smaller batch, image size or network, or end other programs."


def explain(error: BaseException) -> str | None:
    """Return a sentence about a failure that the user can do something about, or None if it is a bug.

    Args:
        error: What was raised. Errors of TensorFlow and HDF5 count as the error of the system that they wrap.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ImportError):
        return _explain_import(error)
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if isinstance(error, RecursionError):
        return "The input is nested too deeply, for example a config, a JSON file or a folder that contains itself."
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        return (
            f"{shorten(repr(error.object))} cannot be the name of a file here, because the locale does not use UTF-8. "
            "Set LC_ALL=C.UTF-8 or PYTHONUTF8=1."
        )
    if type(error).__module__.startswith("tensorflow."):
        return _explain_tensorflow(error)
    if type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError") and "RESOURCE_EXHAUSTED" in str(error):
        return _NO_MEMORY
    return _explain_system(error) if isinstance(error, OSError) else None


def _explain_import(error: ImportError) -> str | None:
    """Return a sentence about a library that is missing or broken. None for a module of this package."""
    name = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name == "tensorflow":
        return _NO_TENSORFLOW
    if "Failed to load the native TensorFlow runtime" in str(error):
        lines = [line for line in str(error).splitlines() if "Error: " in line]
        reason = f": {shorten(lines[-1].strip(), LONGEST_REASON)}" if lines else ""
        return (
            f"TensorFlow is installed but cannot be loaded{reason}. Install it again, in a new environment if need be."
        )
    if isinstance(error, ModuleNotFoundError) and name and name != "efficientnet_tf":
        return f"The Python package of the module {name} is not installed. Install it with pip, and try again."
    return None


def _explain_system(error: OSError) -> str | None:
    """Return a sentence that names the path and the reason."""
    text = str(error)
    wrapped = re.search(r"errno = (\d+)", text)  # HDF5 puts the system's error into its message.
    code = error.errno or (int(wrapped[1]) if wrapped else None)
    if code is None:
        return None
    reason = os.strerror(code)
    named = re.search(r"(?:file)?name = '([^']+)'", text)
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " and ".join(escape(name) for name in names) or (escape(named[1]) if named else "A file")
    if code == errno.ENOENT and not names and not named:
        return None
    return f"{where} cannot be read or written: {reason}."


def _explain_tensorflow(error: BaseException) -> str | None:
    """Return a sentence for an error of TensorFlow that is about a file or memory, or a UserError in its threads."""
    message = (getattr(error, "message", None) or str(error)).strip()
    nested = re.search(r"\bUserError: (.*?)\n+Traceback", message, re.DOTALL)
    if nested:
        return nested[1]
    first_line = shorten(message.partition("\n")[0], LONGEST_REASON)
    if type(error).__name__ == "ResourceExhaustedError" and "No space left" not in message:
        return f"{_NO_MEMORY} TensorFlow says: {first_line}"
    if type(error).__name__ == "DataLossError":
        reason = re.sub(r"^.*}} ", "", first_line).partition(" [Op:")[0]
        return f"A record file or a checkpoint is damaged: {reason}. Restore it from a copy, or write it again."
    # TensorFlow's own names for an error of the system end with its text: "path; Permission denied".
    path, separator, reason = first_line.rpartition("; ")
    if separator and reason in _REASONS:
        return f"{path} cannot be read or written: {reason}."
    if "File system scheme" in message:
        return f"{first_line}. Use a local path or gs://."
    if "Error executing an HTTP request" in message or "gs://" in first_line:
        return f"Google Cloud Storage cannot be used: {first_line}"
    return None


_REASONS = frozenset(map(os.strerror, errno.errorcode))


def guard(function: Callable[[], int | str | None], command: Sequence[str]) -> int | str | None:
    """Call a function of a command, and report whatever it raises.

    Args:
        function: Returns the exit status.
        command: The words of the command line, for the log.

    Returns:
        The exit status.
    """
    prepare_streams()
    with contextlib.suppress(Exception):  # where standard error is no file
        faulthandler.enable()  # for crashes of native libraries
    with quiet_hooks():
        try:
            status = function()
            sys.stdout.flush()  # A full disk must be noticed before the process ends.
            return status
        except (Exception, KeyboardInterrupt) as error:
            return report(error, command)


def report(error: BaseException, command: Sequence[str], edit: Callable[[str], str] = str) -> int:
    """Print what ended a command as one sentence on standard error, and return the exit status.

    Args:
        error: What was raised.
        command: The words of the command line, for the log.
        edit: Changes the sentence of a failure that is no bug.
    """
    if isinstance(error, KeyboardInterrupt):
        _print("Interrupted.")
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        discard_output()  # Nobody reads on, as in `| head`.
        return EXIT_ERROR
    sentence = explain(error)
    if isinstance(error, OSError) and error.filename is None and _output_is_full():
        sentence = f"Standard output cannot be written: {os.strerror(error.errno or errno.EIO)}."
    if sentence is not None:
        sentence = edit(sentence).rstrip()
        # Libraries, and values at the end of a message, leave out the period.
        _print(f"error: {sentence}{'' if sentence.endswith(('.', '!', '?', '.)')) else '.'}")
        return EXIT_ERROR
    _print(f"error: {_describe_bug(error, command)}")
    return EXIT_BUG


def _describe_bug(error: BaseException, command: Sequence[str]) -> str:
    message = str(error).partition("Traceback (most recent call last)")[0].strip()
    summary = shorten(f"{type(error).__name__}: {message}".rstrip(": "), LONGEST_REASON)
    place = write_log(error, command)
    # The name and the message help to find a known problem. They come from the library and may have several lines.
    return (
        f"{escape(summary)}. This is a bug in efficientnet_tf, or in a library that it uses. {place} Please attach it "
        "to a report of the problem."
    )


def write_log(error: BaseException, command: Sequence[str]) -> str:
    """Write the traceback of an error, the command and the versions to a new file in the folder of temporary files.

    Returns:
        A sentence that says where the file is, or why there is none.
    """
    lines = ["command: " + " ".join(map(shlex.quote, command)), f"folder: {_working_folder()}"]
    try:
        # Imported late: this needs a library for YAML, which may be what fails.
        from efficientnet_tf.config.load import describe_environment

        lines += [f"{name}: {value}" for name, value in describe_environment("h5py", "pydantic", "rich").items()]
    except Exception as other:
        lines.append(f"versions: unknown, because of {other!r}")
    lines += ["", *traceback.format_exception(error)]
    try:
        descriptor, path = tempfile.mkstemp(prefix="efficientnet_tf-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join(lines))
    except OSError as other:
        return f"The log with the traceback cannot be written: {other}. Set TMPDIR to another folder, and try again."
    return f"The log with the traceback is {path}."


def _working_folder() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        return str(error)


def _print(text: str) -> None:
    """Print lines on standard error in which no character of a file or a name can act on the terminal."""
    try:
        print(escape_lines(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):  # Standard error is full, gone or closed. The exit status says enough.
        discard_output()


# ------------------------------------------------------------------------------------------------- standard streams


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode if the locale has another encoding, such as ASCII in LC_ALL=C.

    Otherwise names of files outside of ASCII would be other texts than the same names in configs, tables and class
    names, which are UTF-8. Processes that this one starts inherit the mode. Call this before anything else.
    """
    if sys.getfilesystemencoding() == "utf-8" or sys.flags.utf8_mode or len(sys.orig_argv) < 2:
        return
    os.environ["PYTHONUTF8"] = "1"
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def prepare_streams() -> None:
    """Make standard output and error take any text, whatever the locale is, and exist.

    Characters that the encoding lacks are written as escapes. A stream that the caller closed is replaced by one that
    goes nowhere. Otherwise the next file that is opened would get its number, and then the messages of libraries.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Let the rest of standard output go nowhere, so that Python does not try to write it once more at its end."""
    try:
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        return


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def _output_is_full() -> bool:
    """Return whether standard output cannot be written. What is left of it is then discarded."""
    try:
        os.write(sys.stdout.fileno(), b"")
        sys.stdout.flush()
        return False
    except OSError as error:
        discard_output()
        return error.errno is not None
    except (ValueError, AttributeError):
        return False


# ------------------------------------------------------------------------------------------------- other threads


@contextlib.contextmanager
def quiet_hooks() -> Iterator[None]:
    """Print one sentence for an exception that ends a thread, and nothing for one in a finalizer, within the block."""

    def report_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
            report(arguments.exc_value, sys.argv)

    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = report_thread, lambda _: None
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hooks

"""What a command shows on the terminal: progress bars, tables, and no log lines of other libraries."""

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
from typing import Any

from absl import logging as absl_logging
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from efficientnet_tf.config.text import escape, escape_lines

SECONDS_BETWEEN_LINES = 30.0  # between progress lines where the output is not a terminal
# File and class names are printed as they are, even if they look like rich's markup or emoji codes.
LITERAL: Any = {"highlight": False, "markup": False, "emoji": False}
# How the logs of TensorFlow, absl, XLA and LiteRT begin, below the level of a fatal error.
NATIVE_LOG = (
    r"^([IWE][0-9]{4} [0-9:. ]+|[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+: [IWE] |"
    r"(INFO|WARNING): (All log messages before absl|Created TensorFlow Lite|Attempting to use a delegate))"
)


@contextlib.contextmanager
def quiet_native_logs():
    """Hide the log lines that native libraries write to the process's standard error within the block.

    A small process filters the file descriptor, so fatal messages pass even when this process dies at once. Python's
    own `sys.stderr` keeps writing to the terminal directly. Does nothing where `grep` is not installed.
    """
    grep = shutil.which("grep")
    if grep is None:
        yield
        return
    sys.stderr.flush()
    terminal, python_stderr = os.dup(2), sys.stderr
    reading, writing = os.pipe()
    # A session of its own: Ctrl-C must not end the filter before this process has said its last words.
    command = [grep, "--line-buffered", "-avE", NATIVE_LOG]
    process = subprocess.Popen(command, stdin=reading, stdout=terminal, start_new_session=True)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    sys.stderr = open(os.dup(terminal), "w", buffering=1, errors="backslashreplace")  # noqa: SIM115 - closed below
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = python_stderr
        os.dup2(terminal, 2)
        os.close(terminal)
        # Child processes that live on keep the filter alive; do not wait for them.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)


@contextlib.contextmanager
def quiet_logger(name):
    """Hide what a logger says below the level of warnings within the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


class _WarningFormatter(logging.Formatter):
    """Escapes what a name in a message could do to the terminal."""

    def format(self, record):
        return escape_lines(super().format(record))


@contextlib.contextmanager
def quiet_libraries():
    """Show this package's own warnings within the block, and hide the messages of other libraries."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    logger, tensorflow = logging.getLogger("efficientnet_tf"), logging.getLogger("tensorflow")
    before = absl_logging.get_verbosity(), tensorflow.level, logger.level, logger.propagate
    absl_logging.set_verbosity(absl_logging.FATAL)
    tensorflow.setLevel(logging.CRITICAL)
    with quiet_native_logs(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_WarningFormatter("warning: %(message)s"))
        # absl raises the level of the root logger, which this one would inherit, and prints what reaches the root.
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            verbosity, tensorflow_level, level, logger.propagate = before
            logger.setLevel(level)
            tensorflow.setLevel(tensorflow_level)
            absl_logging.set_verbosity(verbosity)


class ProgressBar:
    """Shows how far a task is, on standard error. Use it as a context manager.

    On a terminal this is a bar. Elsewhere, for example in a log file, it is a plain line every half minute.

    Args:
        total: Number of units of the whole task, int >= 0.
        description: Text in front of the bar, str.
        unit: What is counted, in the plural, str, for example "steps".
        completed: Units that are done already, int >= 0.
    """

    def __init__(self, total, description, unit="", completed=0):
        self.total, self.completed = total, completed
        self._description, self._unit, self._status = escape(description), unit, ""
        self._console = Console(file=sys.stderr, **LITERAL)
        # In Jupyter, rich needs ipywidgets. Otherwise each refresh would be another line of the notebook.
        has_widgets = importlib.util.find_spec("ipywidgets") is not None
        self._is_live = has_widgets if self._console.is_jupyter else self._console.is_terminal
        self._last_line = time.monotonic()
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(unit, markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}", markup=False),
        ]
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task(self._description, total=total, completed=completed, status="")

    def __enter__(self):
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *exception):
        if self._is_live:
            self._progress.stop()

    def advance(self, count=1):
        """Count `count` more units as done."""
        self.completed += count
        self._progress.update(self._task, completed=self.completed)
        self._print_line()

    def describe(self, description):
        """Replace the text in front of the bar."""
        self._description = escape(description)
        self._progress.update(self._task, description=self._description)

    def set_status(self, status):
        """Replace the text behind the bar."""
        self._status = escape(status)
        self._progress.update(self._task, status=self._status)

    def print(self, line, file=None):
        """Print a text above the bar, to standard output or to `file`. What could act on the terminal is escaped."""
        file = file or sys.stdout
        line = escape_lines(line)
        if self._is_live and file.isatty():
            self._console.print(line, soft_wrap=True)
        else:
            print(line, file=file, flush=True)

    def _print_line(self):
        if self._is_live or time.monotonic() - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = time.monotonic()
        line = f"{self._description}: {self.completed} of {self.total} {self._unit}".rstrip()
        print(f"{line}, {self._status}" if self._status else line, file=sys.stderr, flush=True)


class RateBar(ProgressBar):
    """A progress bar with the units per second behind it, counted from its creation. Arguments as `ProgressBar`."""

    def __init__(self, total, description, unit):
        super().__init__(total, description, unit)
        self._start = time.monotonic()

    def advance(self, count=1):
        """Count `count` more units as done."""
        self.set_status(self._format_rate(self.completed + count))
        super().advance(count)

    def summarize(self):
        """Return how many units were done, in how many seconds, and how many per second, as text."""
        seconds = time.monotonic() - self._start
        return f"{self.completed:,} {self._unit} in {seconds:.1f} s, {self._format_rate(self.completed)}"

    def _format_rate(self, count):
        rate = count / max(time.monotonic() - self._start, 1e-9)
        return f"{rate:,.{0 if rate >= 10 else 1}f} {self._unit}/s"


def track(items, total, description, unit=""):
    """Yield the items of an iterable and show how far it is.

    Args:
        items: Iterable.
        total: Number of items, int.
        description: Text in front of the bar, str.
        unit: What is counted, in the plural, str.
    """
    with ProgressBar(total, description, unit) as bar:
        for item in items:
            yield item
            bar.advance()


def make_table(header, rows, title=None, left=(0,)):
    """Return a table for `show`.

    Args:
        header: Sequence of str, the names of the columns.
        rows: Sequence of sequences of str, one per row; None starts a new section.
        title: Text above the table, str or None.
        left: Indices of the columns that are aligned left. The others are aligned right, as numbers are.

    Returns:
        A `rich.table.Table`.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index in left else "right", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(escape, row))
    return table


def show(*parts, file=None):
    """Print texts and tables: with lines and colors on a terminal, as plain text elsewhere.

    Args:
        *parts: Texts, str, and tables of `make_table`.
        file: Where to print. Defaults to standard output.
    """
    file = file or sys.stdout
    parts = [escape_lines(part) if isinstance(part, str) else part for part in parts]
    if file.isatty():
        console = Console(file=file, **LITERAL)
        console = Console(file=file, width=max(console.width, _width(parts)), **LITERAL)
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))
    else:
        print(render(*parts, encoding=file.encoding or "utf-8"), file=file, flush=True)


def render(*parts, encoding="utf-8"):
    """Return texts and tables of `make_table` as one plain text, str, without trailing blanks.

    Args:
        *parts: Texts, str, and tables.
        encoding: Encoding of the place where the text goes. Without Unicode, tables have lines of ASCII.
    """
    # The console chooses the lines by the encoding of its file. The text itself is never encoded.
    text = _Text()
    text.encoding = encoding
    console = Console(file=text, color_system=None, width=_width(parts), **LITERAL)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n"))


class _Text(io.StringIO):
    encoding = "utf-8"


def _width(parts):
    """Return the columns that the widest table needs, so that no cell is cut off."""
    wide = Console(width=10_000, file=io.StringIO(), **LITERAL)
    tables = [part for part in parts if isinstance(part, Table)]
    return max((wide.measure(table).maximum for table in tables), default=80)

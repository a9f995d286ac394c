"""The table and the JSON file of the benchmark command."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import write_output
from efficientnet_tf.runtime.terminal import make_table, show

Row = dict[str, Any]


def format_markdown(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table with aligned columns.

    Args:
        rows: Dicts with the same keys, at least one. A value whose key starts with `of_` is a share, shown in percent.
    """
    header, cells = _format_cells(rows)
    cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in (header, *cells)
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def print_table(rows: Sequence[Row]):
    """Print rows on standard output: a table on a terminal, Markdown when the output goes into a file or a pipe."""
    if sys.stdout.isatty():
        show(make_table(*_format_cells(rows), left=()))
    else:
        print(format_markdown(rows))


def write_json(path: str, mode: str, command: str, environment: Row, rows: Sequence[Row], skipped: Sequence[Row]):
    """Write the results of one command to a JSON file.

    Args:
        path: The file to write.
        mode: "input", "train", "infer" or "export".
        command: The command line.
        environment: Versions and hardware at the start of the command.
        rows: The measurements.
        skipped: The cases that were not measured, each with its reason.

    Raises:
        UserError: If the file cannot be written.
    """
    report = {"mode": mode, "command": command, "environment": environment, "rows": rows, "skipped": skipped}
    write_output("output", path, json.dumps(report, indent=1))


def _format_cells(rows):
    """Return the header and the lines of a table as text."""
    keys = list(rows[0])

    def text(key, value):
        if key.startswith("of_"):
            return f"{value:.0%}"
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return "" if value is None else escape(str(value))

    return [key.replace("_", " ") for key in keys], [[text(key, row[key]) for key in keys] for row in rows]

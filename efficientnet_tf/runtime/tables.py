r"""Writes and reads CSV tables in which no text can be a formula.

Excel, LibreOffice and Google Sheets run a cell that begins with one of `= + - @` (also in full width), a tab or a line
break. Names of classes and files come from strangers, so such a text gets an apostrophe in front, which these programs
take as "this is text". `parse_csv` removes it again. Numbers stay numbers.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# With the apostrophes that are there already, so that one more can be told from them.
_FORMULA = re.compile("'*[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r\n]")


def format_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    r"""Return a table as CSV with a header and `\n` as line ending.

    Args:
        columns: Names of the columns.
        rows: The rows. A missing value and None become an empty cell.
    """
    return "".join(map(format_csv_row, [columns, *([row.get(name) for name in columns] for row in rows)]))


def format_csv_row(cells: Iterable[Any]) -> str:
    r"""Return the cells of a row as a line of CSV that ends in `\n`."""
    line = io.StringIO(newline="")
    # With this line ending, both of its characters are quoted.
    csv.writer(line, lineterminator="\r\n").writerow(map(protect_cell, cells))
    text = line.getvalue().removesuffix("\r\n") + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # names of files may not be UTF-8


def parse_csv(text: str) -> list[dict[str, str]]:
    """Return the rows of a table that `format_csv` wrote, as texts by the names of the columns."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [{restore_cell(name): restore_cell(cell) for name, cell in row.items()} for row in rows]


def protect_cell(value: Any) -> Any:
    """Return a value of a CSV cell, with an apostrophe in front if it is a text that a spreadsheet would run."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def restore_cell(text: str) -> str:
    """Return the text that `protect_cell` protected."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text

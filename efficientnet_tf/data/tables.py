"""Reads tables of paths and labels, `<split>.csv` or `<split>.tsv`. `labels` says what the labels mean.

Imports no TensorFlow for local files, so that a command can check its data at once.
"""

import collections
import csv
import dataclasses
import io
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import escape, normalize_name, shorten
from efficientnet_tf.data.image_formats import READABLE_SUFFIXES
from efficientnet_tf.data.scan import count, show
from efficientnet_tf.runtime.files import check_file, check_path, is_remote, list_folder, read_text

_READABLE = frozenset(READABLE_SUFFIXES)


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes:
        name: Path of the table.
        folder: What the paths in it are relative to.
        columns: Names of the columns with labels, as they were asked for.
        paths: Path of each image.
        cells: What these columns have for each image, in the form of `normalize_name`. A cell can be empty.
        lines: Line of each row.
        remarks: Sentences about what was read in another way than it is written.
        unit: What `lines` counts, for messages.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    paths: list[str]
    cells: list[tuple[str, ...]]
    lines: list[int]
    remarks: list[str]
    unit: str = "line"


def list_tables(folder: str) -> dict[str, list[str]]:
    """Return the tables in a folder: the file names by split. A split should have one of them."""
    found = {}
    for name in list_folder(folder):
        split, suffix = os.path.splitext(name)
        if suffix.lower() in (".csv", ".tsv"):
            found.setdefault(split, []).append(name)
    return found


def read_table(name: str, folder: str, columns: Sequence[str] = ("label",)) -> Table:
    """Read a table. The first line names its columns, of which `path` and those with labels are used.

    Args:
        name: Path of the table. Its columns are separated by commas, semicolons or tabs.
        folder: What the paths in it are relative to.
        columns: Names of the columns with labels. Letter case and blanks at the ends do not matter.

    Raises:
        UserError: If it is malformed, or a path cannot be one.
    """
    paths, cells, lines, forms = [], [], [], {}
    for line, path, *labels in _read_rows(name, columns):
        for label in labels:
            if label not in forms:
                forms[label] = normalize_name(label)
        paths.append(_locate(folder, path, f"{escape(name)}, line {line}"))
        cells.append(tuple(forms[label] for label in labels))
        lines.append(line)
    if not paths:
        raise UserError(f"{escape(name)} names its columns but has no rows.")
    changed = sorted(f"'{written}'" for written, form in forms.items() if written != form)
    remarks = []
    if changed:
        ignored = "blanks at the ends and different Unicode forms of labels are ignored"
        remarks.append(f"{escape(name)}: {ignored}, as in {show(changed)}.")
    return Table(name, folder, tuple(columns), paths, cells, lines, remarks)


def _read_rows(name, columns):
    """Yield (line, path, *labels) of each row."""
    try:
        lines, delimiter, first = _split_header(name, read_text(name), columns)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = next(reader, [])
        places = _find_columns(name, header, ("path", *columns))
        for cells in reader:
            line = reader.line_num + first
            if not cells:
                continue
            if any(cells[len(header) :]):
                raise UserError(
                    f"{escape(name)}, line {line}: this row has {len(cells)} cells, the first line names "
                    f"{len(header)}. Write a text that contains the separator in double quotes."
                )
            path, *labels = (cells[place] if place < len(cells) else "" for place in places)
            if not path:
                raise UserError(f"{escape(name)}, line {line}: the path is empty.")
            yield line, path, *labels
    except csv.Error as error:
        raise UserError(f"{escape(name)} is not a valid table in UTF-8: {error}.") from None


def _split_header(name, text, columns):
    """Return the text as a file, its separator, and the number of lines before the names of the columns."""
    first = 0
    header, _, rest = text.partition("\n")
    match = re.fullmatch('"?sep=(.)"?', header)  # Excel reads and writes this line.
    if match:
        text, first = rest, 1
        return io.StringIO(text, newline=""), match[1], first
    needed = {_simplify(column) for column in ("path", *columns)}
    usual = "," if name.lower().endswith(".csv") else "\t"
    for delimiter in (usual, ";", "\t", ","):  # Excel uses semicolons where the comma is the decimal mark.
        if needed <= {cell.strip(' "').lower() for cell in header.split(delimiter)}:
            return io.StringIO(text, newline=""), delimiter, first
    return io.StringIO(text, newline=""), usual, first


def _find_columns(name, header, columns):
    """Return the positions of columns. Letter case and blanks do not matter."""
    names = [_simplify(column) for column in header]
    missing = [column for column in columns if _simplify(column) not in names]
    if missing:
        found = escape(shorten(", ".join(header))) or "no column"
        listed = f"{', '.join(map(escape, columns[:-1]))} and {escape(columns[-1])}"
        hint = suggest(missing[0], header) if missing != ["path"] else ""
        if missing == ["label"] and columns == ("path", "label"):
            hint = " Set data.label_columns to use another column than label."
        raise UserError(
            f"{escape(name)}: the first line must name the columns {shorten(listed)}; it has {found}.{hint}"
        )
    for column in columns:
        if names.count(_simplify(column)) > 1:
            raise UserError(f"{escape(name)}: the first line names the column {escape(column)} more than once.")
    return [names.index(_simplify(column)) for column in columns]


def _simplify(column):
    return column.strip().lower()


def _locate(folder, path, where):
    """Return the path of an image, given the path in a table."""
    path = path.removeprefix("file://")
    if "\0" in path or "://" in path or not path.strip():
        check_path(f"{where}: path", path)
    return path if is_remote(path) else os.path.join(folder, path)


# ----------------------------------------------------------------------------------------------------------- files


def check_files(table: Table, max_bad_fraction: float) -> Table:
    """Check the files that a table names, as far as they are local.

    Args:
        table: The table.
        max_bad_fraction: The fraction of files that may be missing. They are then counted as images that cannot be
            read.

    Returns:
        The table. A path that exists only without blanks at its ends, with / for each backslash, or in another Unicode
        form is replaced.

    Raises:
        UserError: If too many files are missing, one is not a regular file, or one has two labels.
    """
    paths, missing, repaired, lines_of, repeated = list(table.paths), [], [], {}, 0
    for row, (path, labels, line) in enumerate(zip(table.paths, table.cells, table.lines, strict=True)):
        key = path
        if not is_remote(path):
            status = _stat(path)
            if status is None:
                paths[row] = _repair(table.folder, path)
                status = _stat(paths[row])
                (repaired if status else missing).append(row)
            if status:
                if not stat.S_ISREG(status.st_mode):
                    _refuse(table, line, paths[row])
                key = (status.st_dev, status.st_ino)  # also finds the same file under two paths
        other = lines_of.setdefault(key, row)
        repeated += other != row
        if table.cells[other] != labels:
            first, second = (escape(shorten(", ".join(cells))) for cells in (table.cells[other], labels))
            raise UserError(
                f"{escape(table.name)}, lines {table.lines[other]} and {line}: {escape(path)} has the labels "
                f"'{first}' and '{second}'. Keep the right one. An image with several labels has one row with all of "
                "them, which needs data.task=multilabel."
            )
    remarks = list(table.remarks)
    endings = collections.Counter(os.path.splitext(path)[1].lower() for path in paths)
    others = {escape(ending) or "without an ending": n for ending, n in endings.items() if ending not in _READABLE}
    if others:
        found = ", ".join(f"{number:,} {ending}" for ending, number in list(others.items())[:10])
        what = count(sum(others.values()), "path does", "paths do")
        remarks.append(f"{escape(table.name)}: {what} not end as images do: {found}. Their content decides.")
    if missing:
        sentence = _describe_missing(table, missing)
        if len(missing) > max_bad_fraction * len(paths):
            raise UserError(sentence)
        remarks.append(sentence)
    if repaired:
        remarks.append(
            f"{escape(table.name)}: {count(len(repaired), 'path')} found only without blanks at the ends, with / for "
            f"each backslash, or in another Unicode form: {show([paths[row] for row in repaired], 2)}."
        )
    if repeated:
        rows = count(repeated, "row repeats", "rows repeat")
        remarks.append(f"{escape(table.name)}: {rows} a file of an earlier row, with the same label.")
    return dataclasses.replace(table, paths=paths, remarks=remarks)


def _stat(path):
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _repair(folder, path):
    """Return another form of a path that exists, or else the path."""
    written = path.removeprefix(os.path.join(folder, "")).strip()
    forms = [written, written.replace("\\", "/")]
    forms += [unicodedata.normalize(form, text) for text in forms for form in ("NFC", "NFD")]
    return next((p for p in (os.path.join(folder, form) for form in forms) if _stat(p)), path)


def _refuse(table, line, path):
    try:
        check_file(path)
    except UserError as error:
        raise UserError(f"{escape(table.name)}, line {line}: {error}") from None


def _describe_missing(table, rows):
    path = table.paths[rows[0]]
    hint = " Write / instead of backslashes." if "\\" in path else ""
    others = f" {len(rows):,} of its {len(table.paths):,} files are missing." if len(rows) > 1 else ""
    return f"{escape(table.name)}, line {table.lines[rows[0]]}: {escape(path)}: no such file.{hint}{others}"

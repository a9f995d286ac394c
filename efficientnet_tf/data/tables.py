"""Reads tables of paths and labels, `<split>.csv` or `<split>.tsv`, and finds labels that are no single class.

Imports no TensorFlow for local files, so that a command can check its data at once.
"""

import collections
import csv
import dataclasses
import io
import math
import os
import re
import stat
import unicodedata
from dataclasses import dataclass

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, normalize_name, shorten
from efficientnet_tf.data.image_formats import READABLE_SUFFIXES
from efficientnet_tf.data.scan import count, show
from efficientnet_tf.runtime.files import check_file, check_path, is_remote, list_folder, read_text

_MOST_DECIMAL_CLASSES = 10  # for example the ratings 0.5 to 5
_MOST_RARE_NUMBERS = 5  # of classes that have about one image each
# A list as Python and JSON write it, or several numbers, such as 0 1 0.
_LIST = re.compile(r"\[.*\]|\{.*\}|\(.*,.*\)|\d+([\s,;|]+\d+)+")
_READABLE = frozenset(READABLE_SUFFIXES)


@dataclass(frozen=True)
class Table:
    """The rows of a table.

    Attributes:
        name: Path of the table.
        folder: What the paths in it are relative to.
        paths: Path of each image.
        labels: Label of each image, in the form of `normalize_name`.
        lines: Line of each row.
        remarks: Sentences about what was read in another way than it is written.
    """

    name: str
    folder: str
    paths: list[str]
    labels: list[str]
    lines: list[int]
    remarks: list[str]


def list_tables(folder: str) -> dict[str, list[str]]:
    """Return the tables in a folder: the file names by split. A split should have one of them."""
    found = {}
    for name in list_folder(folder):
        split, suffix = os.path.splitext(name)
        if suffix.lower() in (".csv", ".tsv"):
            found.setdefault(split, []).append(name)
    return found


def read_table(name: str, folder: str) -> Table:
    """Read a table. The first line names its columns, of which `path` and `label` are used.

    Args:
        name: Path of the table. Its columns are separated by commas, semicolons or tabs.
        folder: What the paths in it are relative to.

    Raises:
        UserError: If it is malformed, or a path cannot be one.
    """
    paths, labels, lines, forms = [], [], [], {}
    for line, path, label in _read_rows(name):
        where = f"{escape(name)}, line {line}"
        if label not in forms:
            forms[label] = normalize_name(label)
            if not forms[label]:
                raise UserError(f"{where}: the label consists of blanks.")
        paths.append(_locate(folder, path, where))
        labels.append(forms[label])
        lines.append(line)
    if not paths:
        raise UserError(f"{escape(name)} names its columns but has no rows.")
    changed = sorted(f"'{written}'" for written, form in forms.items() if written != form)
    remarks = []
    if changed:
        ignored = "blanks at the ends and different Unicode forms of labels are ignored"
        remarks.append(f"{escape(name)}: {ignored}, as in {show(changed)}.")
    return Table(name, folder, paths, labels, lines, remarks)


def _read_rows(name):
    """Yield (line, path, label) of each row."""
    try:
        lines, delimiter, first = _split_header(name, read_text(name))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        columns = next(reader, [])
        path, label = _find_columns(name, columns)
        for cells in reader:
            line = reader.line_num + first
            if not cells:
                continue
            if any(cells[len(columns) :]):
                raise UserError(
                    f"{escape(name)}, line {line}: this row has {len(cells)} cells, the first line names "
                    f"{len(columns)}. Write a text that contains the separator in double quotes."
                )
            values = [cells[column] if column < len(cells) else "" for column in (path, label)]
            if not all(values):
                raise UserError(f"{escape(name)}, line {line}: path or label is empty.")
            yield line, *values
    except csv.Error as error:
        raise UserError(f"{escape(name)} is not a valid table in UTF-8: {error}.") from None


def _split_header(name, text):
    """Return the text as a file, its separator, and the number of lines before the names of the columns."""
    first = 0
    header, _, rest = text.partition("\n")
    match = re.fullmatch('"?sep=(.)"?', header)  # Excel reads and writes this line.
    if match:
        text, first = rest, 1
        return io.StringIO(text, newline=""), match[1], first
    usual = "," if name.lower().endswith(".csv") else "\t"
    for delimiter in (usual, ";", "\t", ","):  # Excel uses semicolons where the comma is the decimal mark.
        if {"path", "label"} <= {cell.strip(' "').lower() for cell in header.split(delimiter)}:
            return io.StringIO(text, newline=""), delimiter, first
    return io.StringIO(text, newline=""), usual, first


def _find_columns(name, columns):
    """Return the positions of the columns path and label. Letter case and blanks do not matter."""
    names = [column.strip().lower() for column in columns]
    if not {"path", "label"} <= set(names):
        found = escape(shorten(", ".join(columns))) or "no column"
        raise UserError(f"{escape(name)}: the first line must name the columns path and label; it has {found}.")
    for column in ("path", "label"):
        if names.count(column) > 1:
            raise UserError(f"{escape(name)}: the first line names the column {column} more than once.")
    return names.index("path"), names.index("label")


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
    for row, (path, label, line) in enumerate(zip(table.paths, table.labels, table.lines, strict=True)):
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
        if table.labels[other] != label:
            raise UserError(
                f"{escape(table.name)}, lines {table.lines[other]} and {line}: {escape(path)} has the labels "
                f"'{escape(table.labels[other])}' and '{escape(label)}'. Keep the right one. Images with several "
                "classes are not supported."
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


# ---------------------------------------------------------------------------------------------------------- labels


def check_labels(table: Table) -> None:
    """Raise UserError if the labels of a training table are lists of classes or measured numbers.

    Whole numbers are classes, unless most of them differ and they do not count from 0 or 1. Numbers with decimals are
    classes only if there are at most ten and most of them repeat.

    A label is a list if it is written in brackets or consists of several numbers, or if it has the separator ";", "|"
    or "," (without a blank after it) and one of its parts is in other labels, too. With any other separator, such as a
    blank, all of its parts must be labels of their own. A name with a semicolon in it therefore is a name.
    """
    counts = collections.Counter(table.labels)
    examples = _find_numbers(counts) if all(_parse_number(label) is not None for label in counts) else None
    if examples:
        raise UserError(
            f"{escape(table.name)}: the labels are {len(counts):,} different numbers in {len(table.labels):,} rows, "
            f"for example {show(examples, 3)}. Each would become a class. Labels must be class names. Learning numbers "
            "(regression) is not supported."
        )
    lists = _find_lists(counts)
    if lists:
        line, examples = table.lines[table.labels.index(lists[0])], show([shorten(label) for label in lists], 3)
        raise UserError(
            f"{escape(table.name)}, line {line}: the label '{escape(shorten(lists[0]))}' seems to name several "
            f"classes. {len(lists):,} of {len(counts):,} labels do so: {examples}. Each would become a class. Images "
            "with several classes are not supported. Give each image one class. If it is the name of one class, write "
            "it without the separator."
        )


def _parse_number(label):
    """Return a label as a finite number, or None. The decimal mark may be a comma. Percent and money are numbers."""
    try:
        number = float(label.strip("%$€£ ").replace(",", ".").replace("_", "x"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _find_numbers(counts):
    """Return examples if numeric labels are measured values and not the numbers of classes, or else None."""
    numbers = sorted({_parse_number(label) or 0.0 for label in counts})
    mostly_differ = len(counts) * 2 > counts.total()
    if all(label.isdecimal() for label in counts) or all(number == round(number) for number in numbers):
        counts_up = numbers == list(range(int(numbers[0]), int(numbers[0]) + len(numbers))) and numbers[0] in (0, 1)
        is_measured = mostly_differ and not counts_up and len(counts) > _MOST_RARE_NUMBERS
    else:
        is_measured = mostly_differ or len(counts) > _MOST_DECIMAL_CLASSES
    return list(counts)[:3] if is_measured else None


def _find_lists(counts):
    """Return the labels that are lists of classes."""
    lists = [label for label in counts if _LIST.fullmatch(label)]
    for separator, needs_all in ((r"[;|]|,(?! )", False), (r"[;|,\s+/&]+", True)):
        parts = {label: _split(label, separator) for label in counts}
        uses = collections.Counter(part for found in parts.values() for part in set(found))
        for label, found in parts.items():
            known = [part in counts if needs_all else uses[part] > 1 for part in found]
            if len(found) > 1 and (all(known) if needs_all else any(known)):
                lists.append(label)
    return list(dict.fromkeys(lists))


def _split(label, separator):
    return [part for part in (normalize_name(part) for part in re.split(separator, label)) if part]

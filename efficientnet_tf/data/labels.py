"""Says what the labels in a table mean: a class, several labels, or numbers. Imports no TensorFlow.

The training table determines the names, with `find_names`. `convert_labels` then turns the cells of any table into
numbers.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import check_class_names, escape, normalize_name, shorten
from efficientnet_tf.data.scan import show

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig
    from efficientnet_tf.data.tables import Table

_MOST_DECIMAL_CLASSES = 10  # for example the ratings 0.5 to 5
_MOST_RARE_NUMBERS = 5  # of classes that have about one image each
# A list as Python and JSON write it, or several numbers, such as 0 1 0.
_LIST = re.compile(r"\[.*\]|\{.*\}|\(.*,.*\)|\d+([\s,;|]+\d+)+")
_NO, _YES = ("0", "0.0", "false"), ("1", "1.0", "true")  # of a label that has its own column
LARGEST = 1e30  # number to learn, far above what anyone uses and far below the largest of float32
_LARGEST_WEIGHT = 10**6
_SEPARATORS = (";", "|", ",", " ")


def find_names(table: Table, data: DataConfig) -> list[str]:
    """Return the names of the classes, labels or numbers, given the training table.

    Classes are sorted by name. So are the labels in a single column. Labels with columns of their own, and numbers,
    have the names and the order of the columns.

    Raises:
        UserError: If cells are empty or not what `data.task` says.
    """
    if data.task == "regression" or _has_columns(data):
        return list(table.columns)
    if data.task == "multilabel":
        names = sorted({name for [cell] in table.cells for name in _split_cell(cell, data)})
        if not names:
            raise UserError(f"{escape(table.name)}: no image has a label in the column {escape(table.columns[0])}.")
        check_class_names(names, escape(table.name))
        _check_separator(table, names, data.label_separator)
        return names
    labels = _list_classes(table)
    check_labels(table, labels)
    return sorted(set(labels))


def convert_labels(table: Table, names: Sequence[str], data: DataConfig) -> np.ndarray:
    """Return the labels of a table as numbers.

    Args:
        table: The table.
        names: What `find_names` returns for the training table.
        data: The section `data` of the configuration.

    Returns:
        Class numbers, int32 [N]; or 1 for each label of an image and 0 for the others, uint8 [N, labels]; or numbers,
        float32 [N, numbers].

    Raises:
        UserError: If a cell is empty or not what `data.task` says, or has a name that the training table does not have.
    """
    if data.task == "regression":
        return _convert(table, _parse_target).astype(np.float32)
    if _has_columns(data):
        return _convert(table, _parse_flag).astype(np.uint8)
    number = {name: i for i, name in enumerate(names)}
    if data.task == "multilabel":
        parts = [_split_cell(cell, data) for [cell] in table.cells]
        _check_known({name for found in parts for name in found}, names, table, data)
        labels = np.zeros([len(parts), len(names)], np.uint8)
        for row, found in enumerate(parts):
            labels[row, [number[name] for name in found]] = 1
        return labels
    classes = _list_classes(table)
    _check_known(set(classes), names, table, data)
    return np.array([number[name] for name in classes], np.int32)


def convert_weights(table: Table) -> np.ndarray:
    """Return the weights of the images of a table, float32 [N], given a table whose only column has them.

    Raises:
        UserError: If a cell is empty, not a number, negative or not finite, or all weights are 0.
    """
    weights = _convert(table, _parse_weight)[:, 0].astype(np.float32)
    if not weights.any():
        raise UserError(
            f"{escape(table.name)}: all weights in the column {escape(table.columns[0])} are 0, so there is nothing to "
            "learn."
        )
    return weights


def add_weights(labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Return labels with the weight of each image, as the training step takes them.

    Args:
        labels: What `convert_labels` returns.
        weights: What `convert_weights` returns, or None.

    Returns:
        float32 [N, K + 1]: the class, the labels or the numbers of each image, and its weight. Without weights, the
        labels themselves.
    """
    if weights is None:
        return labels
    return np.column_stack([labels.astype(np.float32), weights])


def describe_labels(labels: np.ndarray, names: Sequence[str], where: str) -> list[str]:
    """Return sentences about labels of training images that cannot be learned, or raise UserError for such numbers.

    Args:
        labels: What `convert_labels` returns for the training images.
        names: Names of the labels or numbers.
        where: Name of the table or array, for messages.

    Raises:
        UserError: If all images have the same number, which cannot be learned.
    """
    if labels.ndim == 1:
        return []
    same = [name for name, column in zip(names, labels.T, strict=True) if (column == column[0]).all()]
    if labels.dtype == np.uint8:
        remarks = []
        if same:
            what = "label is" if len(same) == 1 else "labels are"
            remarks.append(f"{where}: {len(same)} {what} on all training images or on none: {show(same, 5)}.")
        if len(names) > 1 and (labels.sum(axis=1) == 1).all():
            remarks.append(
                f"{where}: every image has exactly one label. If this is always so, data.task=classification usually "
                "gives better results."
            )
        return remarks
    if same:
        raise UserError(
            f"{where}: the number {escape(same[0])} is {labels[0, list(names).index(same[0])]:g} for all "
            "training images, so there is nothing to learn."
        )
    return []


def name_numbers(numbers: np.ndarray, where: str) -> list[str]:
    """Return the numbers 0, 1, ... as names of the classes of training images that have no other names.

    Args:
        numbers: Class of each image, int [N], all >= 0.
        where: Where they are, for messages, and what else can name the classes.

    Raises:
        UserError: If a number is missing.
    """
    found = np.unique(numbers)
    if found[-1] != len(found) - 1:
        missing = int(np.flatnonzero(found != np.arange(len(found)))[0])
        advice = "Number the classes from 0 without gaps"
        advice += f", for example by subtracting {found[0]}." if missing == 0 else "."
        raise UserError(
            f"{where}: no training image has the label {missing}, but labels go up to {found[-1]}. {advice} If this is "
            "right, name all classes in classes.txt or in data.class_names."
        )
    return [str(number) for number in found]


# --------------------------------------------------------------------------------------------------------- several


def _has_columns(data):
    """Return whether each label has a column of its own."""
    return data.task == "multilabel" and len(data.label_columns or ()) > 1


def _split_cell(cell, data):
    """Return the names of the labels in a cell, which can be none."""
    return [name for name in map(normalize_name, cell.split(data.label_separator)) if name]


def _check_separator(table, names, separator):
    """Refuse names that are lists themselves, because another separator than the given one is between the labels."""
    for other in _SEPARATORS:
        if other == separator:
            continue
        parts = {name: [part for part in map(normalize_name, name.split(other)) if part] for name in names}
        uses = collections.Counter(part for found in parts.values() for part in set(found))
        lists = [name for name, found in parts.items() if len(found) > 1 and all(uses[part] > 1 for part in found)]
        if lists:
            raise UserError(
                f"{escape(table.name)}: the label '{escape(shorten(lists[0]))}' seems to be several labels with "
                f"'{other}' between them. Set data.label_separator='{other}'."
            )


def _convert(table, parse):
    """Return the cells of a table as numbers, float64 [N, columns]."""
    values = np.empty([len(table.cells), len(table.columns)])
    for row, cells in enumerate(table.cells):
        for column, cell in enumerate(cells):
            try:
                values[row, column] = parse(cell)
            except ValueError as error:
                where = f"{escape(table.name)}, {table.unit} {table.lines[row]}, column {escape(table.columns[column])}"
                received = f"'{escape(shorten(cell))}'" if cell else "an empty cell"
                raise UserError(f"{where}: {error}, received {received}.") from None
    return values


def _parse_flag(cell):
    if cell.lower() in (*_NO, *_YES):
        return float(cell.lower() in _YES)
    raise ValueError("a label with a column of its own is 1 or 0, or true or false")


def _parse_target(cell):
    try:
        number = float(cell.replace("_", "x"))
    except ValueError:
        raise ValueError("not a number. Write a point as the decimal mark, and nothing else than the number") from None
    if not abs(number) <= LARGEST:
        raise ValueError(f"a number must be finite, and at most {LARGEST:g}")
    return number


def _parse_weight(cell):
    number = _parse_target(cell)
    if number < 0 or number > _LARGEST_WEIGHT:
        raise ValueError(f"a weight is from 0 to {_LARGEST_WEIGHT:,}")
    return number


def _check_known(found, names, table, data):
    unknown = sorted(found - set(names))
    if unknown:
        raise UserError(
            f"{escape(table.name)} has labels that {escape(data.train_split)!r} does not have: "
            f"{unknown[:10]}. Remove these rows, or add training images." + suggest(unknown[0], names)
        )


# ------------------------------------------------------------------------------------------------------------- one


def _list_classes(table):
    """Return the class of each row."""
    for line, [label] in zip(table.lines, table.cells, strict=True):
        if not label:
            raise UserError(f"{escape(table.name)}, {table.unit} {line}: the label is empty. Each image needs a class.")
    return [label for [label] in table.cells]


def check_labels(table: Table, labels: Sequence[str]) -> None:
    """Raise UserError if the labels of a training table are lists of classes or measured numbers.

    Whole numbers are classes, unless most of them differ and they do not count from 0 or 1. Numbers with decimals are
    classes only if there are at most ten and most of them repeat.

    A label is a list if it is written in brackets or consists of several numbers, or if it has the separator ";", "|"
    or "," (without a blank after it) and one of its parts is in other labels, too. With any other separator, such as a
    blank, all of its parts must be labels of their own. A name with a semicolon in it therefore is a name.
    """
    counts = collections.Counter(labels)
    examples = _find_numbers(counts) if all(_parse_number(label) is not None for label in counts) else None
    if examples:
        raise UserError(
            f"{escape(table.name)}: the labels are {len(counts):,} different numbers in {len(labels):,} rows, "
            f"for example {show(examples, 3)}. Each would become a class. To learn the numbers themselves, set "
            "data.task=regression."
        )
    lists = _find_lists(counts)
    if lists:
        line, examples = table.lines[labels.index(lists[0])], show([shorten(label) for label in lists], 3)
        raise UserError(
            f"{escape(table.name)}, {table.unit} {line}: the label '{escape(shorten(lists[0]))}' seems to name several "
            f"classes. {len(lists):,} of {len(counts):,} labels do so: {examples}. Each would "
            "become a class. If images have several labels, set data.task=multilabel and data.label_separator. If it "
            "is the name of one class, write it without the separator."
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

"""Turns columns of values, as Parquet and JSON have them, into labels. Imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, normalize_name, shorten
from efficientnet_tf.data.labels import convert_labels, convert_weights, find_names, name_numbers
from efficientnet_tf.data.scan import show
from efficientnet_tf.data.tables import Table

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_MOST_CLASSES = 10**6


def label_columns(data: DataConfig) -> tuple[str, ...]:
    """Return the names of the columns with labels: `data.label_columns`, or `label`."""
    return data.label_columns or ("label",)


def convert_columns(
    columns: Mapping[str, Sequence[Any]],
    data: DataConfig,
    where: str,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Return the labels of a split, and the names of its classes, labels or numbers.

    Args:
        columns: Values of the columns with labels. A value is a number, a text, a list of them, or None if there is
            none.
        data: The section `data` of the configuration.
        where: Name of the files, for messages.
        classes: What the files call the classes 0, 1, ..., if they do.
        names: The names of the training split, if this is another split.

    Returns:
        Labels, as `listing.Listing` has them, and the names.

    Raises:
        UserError: If a value is missing or not what `data.task` says, or a name is not one of the training split.
    """
    values = next(iter(columns.values()))
    if data.task == "classification" and all(type(value) is int for value in values):
        return _convert_numbers(values, where, classes, names)
    if data.task == "classification":
        _check_texts(values, where)
    rows = zip(*columns.values(), strict=True)
    cells = [tuple(_write_cell(value, data, classes) for value in row) for row in rows]
    table = Table(where, "", tuple(columns), [""] * len(cells), cells, list(range(len(cells))), [], "row")
    found = list(names) if names is not None else find_names(table, data)
    return convert_labels(table, found, data), found


def convert_weight_column(values: Sequence[Any], data: DataConfig, where: str) -> np.ndarray:
    """Return the weights of images, float32 [N], given the values of `data.weight_column`.

    Raises:
        UserError: As `convert_weights`.
    """
    cells = [("" if value is None else str(value),) for value in values]
    lines = list(range(len(cells)))
    return convert_weights(Table(where, "", (str(data.weight_column),), [""] * len(cells), cells, lines, [], "row"))


def _convert_numbers(values, where, classes, names):
    """Return the labels of classes that have numbers."""
    names = names or classes
    end = len(names) if names else _MOST_CLASSES
    for row, value in enumerate(values):
        if not 0 <= value < end:
            hint = " In many data sets, -1 says that the label is not known." if value == -1 else ""
            known = f"there are {end:,} classes: {show(names, 10)}" if names else "classes count from 0"
            raise UserError(f"{escape(where)}, row {row}: the label is {value}, but {known}.{hint}")
    labels = np.array(values, np.int32)
    return labels, list(names) if names else name_numbers(labels, escape(where))


def _check_texts(values, where):
    """Raise UserError unless all values are texts."""
    for row, value in enumerate(values):
        if not isinstance(value, str):
            received = f"received {escape(shorten(repr(value)))}"
            hint = ""
            if isinstance(value, float):
                hint = " To learn numbers, set data.task=regression."
            elif isinstance(value, list):
                hint = " If images have several labels, set data.task=multilabel."
            raise UserError(
                f"{escape(where)}, row {row}: the label must be a whole number or a text, {received}.{hint}"
            )


def _write_cell(value, data, classes):
    """Return a value as the text of a cell in a table."""
    if value is None:
        return ""
    if isinstance(value, list):
        return data.label_separator.join(_write_cell(part, data, classes) for part in value)
    if isinstance(value, bool):
        return str(int(value))
    has_classes = len(label_columns(data)) == 1 and data.task == "multilabel"
    if classes and has_classes and isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    return normalize_name(value) if isinstance(value, str) else repr(value)

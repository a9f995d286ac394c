"""Reads the labels of ImageNet's other test sets, so that a model with 1,000 classes can be evaluated on them.

ImageNet-A and ImageNet-R have 200 of the 1,000 classes. The folders of ImageNet-V2 are named 0 to 999. ImageNet-ReaL
lists all classes that are visible in each validation image.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.json_text import parse_json
from efficientnet_tf.config.text import escape, normalize_name, shorten
from efficientnet_tf.runtime.files import read_text

if TYPE_CHECKING:
    from efficientnet_tf.data.source import Source

# Finds the number of a validation image in its path. The syntax is that of RE2, because it runs inside tf.data.
_NUMBER = r"^(?:.*/)?[^/]*ILSVRC2012_val_([0-9]{8})(?:[^0-9/][^/]*)?$"
_LARGEST_FILE_BYTES = 2**24  # The published file has 1.5 MB.
_MOST_CELLS = 2**26  # of the table of labels, which has as many columns as the longest list
_NO_LABEL, _OTHER_CLASS = -1, -2  # neither is equal to a prediction


def _columns_by_name(names: Sequence[str], class_names: Sequence[str]) -> dict[str, int]:
    """Return the model's column for each name: its class name, or its number if only `names` are numbers.

    Names that look the same are treated as the same, because a model may be older than this rule.
    """
    are_numbers = all(n.isdecimal() for n in names) and not any(n.isdecimal() for n in class_names)
    known = [str(i) for i in range(len(class_names))] if are_numbers else class_names
    return {normalize_name(name): i for i, name in enumerate(known)}


def match_classes(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Return the columns of a model's logits that belong to the classes of a data set.

    Args:
        names: Class names of the data. They are class names of the model, or all are label numbers, as the folders of
            ImageNet-V2. If the class names of the model are numbers themselves, numbers are names.
        class_names: Class names of the model, in the order of its logits.

    Returns:
        A column for each name. It is list(range(classes)) if both have the same names in the same order.

    Raises:
        UserError: If the model does not have one of the classes.
    """
    columns = _columns_by_name(names, class_names)
    unknown = [name for name in names if normalize_name(name) not in columns]
    if unknown:
        numbers = f", or the label numbers 0 to {len(class_names) - 1}" if "0" in columns else ""
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise UserError(
            f"The data has the {len(names)} classes {_show(names, 5)}, but the model does not have "
            f"{_show(unknown[:10], 10)}{more}. It has the {len(class_names)} classes {_show(class_names, 5)}. "
            f"Use its class names{numbers}." + suggest(unknown[0], columns)
        )
    return [columns[normalize_name(name)] for name in names]


def _show(names, most):
    return ", ".join(escape(shorten(name, 60)) for name in names[:most]) + (", ..." if len(names) > most else "")


def read_real_labels(path: str, class_names: Sequence[str], columns: Sequence[int]) -> np.ndarray:
    """Read the labels of ImageNet-ReaL.

    Args:
        path: Path of real.json: a list that has a list of label numbers for each image, ILSVRC2012_val_00000001 first.
        class_names: Class names of the model.
        columns: The model's column for each class of the data.

    Returns:
        Labels as numbers of the data's classes, int32 [images + 1, K]. Row n belongs to image n, and row 0 to none.
        Rows are padded with -1. A class that the data does not have is -2.

    Raises:
        UserError: If the file cannot be read, is not such a list, or has labels that the model does not have.

    Source: Beyer et al. 2020, https://arxiv.org/abs/2006.07159.
    """
    lists = _read_lists(path)
    used = sorted({label for labels in lists for label in labels})
    known = _columns_by_name([_write(label) for label in used if label >= 0], class_names)
    unknown = [label for label in used if _write(label) not in known]
    if unknown:
        raise UserError(
            f"real_labels={escape(path)} has the labels {_show([_write(label) for label in unknown], 10)}, which the "
            "model does not have. "
            f"Use the labels 0 to {len(class_names) - 1}."
        )
    width = max(1, *map(len, lists), 1)
    if (len(lists) + 1) * width > _MOST_CELLS:
        raise UserError(
            f"real_labels={escape(path)} has {len(lists):,} images with up to {width:,} labels, which is too much for "
            "memory. Each image has a few labels."
        )
    label_of = {column: label for label, column in enumerate(columns)}
    rows = np.full([len(lists) + 1, width], _NO_LABEL, np.int32)
    for number, labels in enumerate(lists, 1):
        rows[number, : len(labels)] = [label_of.get(known[str(label)], _OTHER_CLASS) for label in labels]
    return rows


def _read_lists(path: str) -> list[list[int]]:
    """Return the content of real.json."""
    try:
        lists = parse_json(read_text(path, _LARGEST_FILE_BYTES), path)
    except UserError as error:
        raise UserError(f"real_labels={error}") from None
    if not isinstance(lists, list) or not lists:
        raise UserError(
            f"real_labels={escape(path)} must be a list of lists of label numbers, received {_quote(lists)}."
        )
    for number, labels in enumerate(lists, 1):
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise UserError(
                f"real_labels={escape(path)} must have a list of label numbers for image {number}, received "
                f"{_quote(labels)}."
            )
    return lists


def _quote(value):
    try:
        return shorten(json.dumps(value), 80)
    except RecursionError:
        return "nested lists"


def _write(label):
    """Return a label as a text. A number of thousands of digits cannot be one, and Python refuses to write it."""
    return str(label) if abs(label) < 2**63 else hex(label)[:20] + "..."


def with_real_labels(source: Source, rows: np.ndarray) -> tuple[Source, Callable[[], None]]:
    """Return a source that gives the labels of ImageNet-ReaL in addition to its own.

    Args:
        source: Validation images of ImageNet, or some of them. The name of each file contains its number.
        rows: The labels that `read_real_labels` returns.

    Returns:
        A source whose labels are int32 [1 + K], and a function that raises UserError if the name of an image had no
        number. Call it after all images were read.

    Raises:
        UserError: If the source has no file names, or the name of the first file has no number.
    """
    import tensorflow as tf

    from efficientnet_tf.data.source import Order

    pattern = f"ILSVRC2012_val_00000001 to {len(rows) - 1:08d}"
    find_name = source.file_name
    if find_name is None:
        raise UserError(
            f"real_labels needs images whose file names contain {pattern}, but this data has no file names. Its first "
            f"image is {source.describe(0)!r}."
        )
    unnumbered = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)  # filled inside tf.data

    def load(payload):
        encoded, label = source.load(payload)
        name = find_name(payload)
        is_numbered = tf.strings.regex_full_match(name, _NUMBER)
        digits = tf.where(is_numbered, tf.strings.regex_replace(name, _NUMBER, r"\1"), "0")
        number = tf.strings.to_number(digits, tf.int32)
        number = tf.where(number < len(rows), number, 0)
        names = tf.boolean_mask([name], [number == 0])
        unnumbered.insert(names, tf.ones_like(names, tf.int64))
        return encoded, tf.concat([[label], tf.gather(rows, number)], axis=0)

    def check():
        names = sorted(escape(os.fsdecode(name)) for name in unnumbered.export()[0].numpy())
        if names:
            raise UserError(
                f"real_labels needs images whose file names contain {pattern}, but {len(names)} names have no such "
                f"number: {', '.join(map(repr, names[:10]))}{', ...' if len(names) > 10 else ''}"
            )

    for _, _, payload in source.stream(Order(batch=1, steps=1)):
        load(payload)
        check()
    return dataclasses.replace(source, load=load, label_shape=(1 + rows.shape[1],)), check

"""Lists the images of a split: a folder with one subfolder per class, or a table of paths and labels.

Imports no TensorFlow for local data, so that a command can check its data at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import check_class_names, escape
from efficientnet_tf.data.arrays import list_arrays
from efficientnet_tf.data.class_folders import find_alias, list_class_folders
from efficientnet_tf.data.image_formats import check_readable
from efficientnet_tf.data.record_files import find_record_files, read_record_classes
from efficientnet_tf.data.scan import count, show
from efficientnet_tf.data.tables import check_files, check_labels, list_tables, read_table
from efficientnet_tf.runtime.files import is_folder, is_remote

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig


@dataclass(frozen=True)
class Listing:
    """The images of a split.

    Attributes:
        paths: Path of each image.
        labels: Label of each image.
        class_names: Names of the labels 0, 1, ...
        remarks: Sentences that the user should read, for example about files that were left out.
    """

    paths: list[str]
    labels: list[int]
    class_names: list[str]
    remarks: list[str]


@dataclass(frozen=True)
class CheckedSplit:
    """What `check_data` knows about a split.

    Attributes:
        class_names: Names of the labels 0, 1, ...
        images: Number of images, or None if it is not known.
    """

    class_names: Sequence[str]
    images: int | None


def check_data(data: DataConfig, splits: Sequence[str] | None = None) -> dict[str, CheckedSplit]:
    """Check the data of a run, as far as possible without TensorFlow: local folders, tables, arrays and records.

    Args:
        data: The section `data` of the configuration.
        splits: The splits that are needed. The default is those for training and evaluation.

    Returns:
        What is known about each split that was read.

    Raises:
        UserError: If the data are missing or malformed, have names that cannot be class names, or only one class.
    """
    splits = (data.train_split, data.eval_split) if splits is None else splits
    if data.source == "digits":
        allowed = ("train", "test")
    elif data.source == "synthetic":
        allowed = ("train", "val")
    else:
        allowed = ()
    known: dict[str, CheckedSplit] = {}
    for split in splits:
        if allowed:
            check_split(split, allowed, f"data.source={data.source}")
        elif data.source in ("folder", "table") and not is_remote(str(data.dir)):
            listing = list_split(data, split, split == data.train_split)
            known[split] = CheckedSplit(listing.class_names, len(listing.paths))
        elif data.source == "arrays":
            arrays = list_arrays(data, split, split == data.train_split)
            known[split] = CheckedSplit(arrays.class_names, len(arrays.rows))
        elif data.source == "records" and not is_remote(str(data.dir)):
            find_record_files(str(data.dir), split)
            known[split] = CheckedSplit(read_record_classes(data), None)
        if split in known:
            check_classes(data.source, known[split].class_names)
    return known


def check_classes(source: str, class_names: Sequence[str]) -> None:
    """Raise UserError unless names can be class names and are at least two. `source` is the value of `data.source`."""
    check_class_names(class_names, f"data.source={source}")
    if len(class_names) < 2:
        raise UserError(
            f"data.source={source}: found only one class, {', '.join(map(repr, class_names))}. "
            "A classifier needs at least two."
        )


def check_split(split: str, allowed: Sequence[str], what: str) -> None:
    """Raise UserError if a split is not one of the allowed ones. `what` names the dataset in the message."""
    if split not in allowed:
        raise UserError(
            f"{what} has no split {split!r}. Set data.train_split and data.eval_split to one of {', '.join(allowed)}."
            + suggest(split, allowed)
        )


def list_split(data: DataConfig, split: str, training: bool) -> Listing:
    """List the images of a split of a folder or a table.

    In a folder, the images are in DIR/<split>/<class>/..., or in DIR/<class>/... if `data.val_fraction` is set. In the
    first case, the folder of the training split determines the labels. A table is DIR/<split>.csv or DIR/<split>.tsv,
    with paths relative to DIR. The classes are the sorted labels of the training table.

    If the default split `val` is missing, `valid` or `validation` in any letter case is used, and `training` for
    `train`.

    Args:
        data: The section `data` of the configuration. Its source is "folder" or "table".
        split: Name of the split.
        training: Which part to list if `data.val_fraction` is set.

    Raises:
        UserError: If the folders or tables do not have this structure.
    """
    folder = str(data.dir)
    if not is_folder(folder):
        raise UserError(f"data.dir='{escape(folder)}' is not a folder.")
    if data.source == "table":
        listing = _list_table(data, folder, split)
    else:
        listing = Listing(*list_class_folders(data, folder, split, training))
    check_readable(listing.paths)
    by_case = {}
    for name in listing.class_names:
        by_case.setdefault(name.casefold(), []).append(name)
    for names in by_case.values():
        if len(names) > 1:
            listing.remarks.append(f"the classes {show(names)} differ in letter case only.")
    return listing


# ---------------------------------------------------------------------------------------------------------- tables


def _list_table(data, folder, split):
    train, _ = _open_table(data, folder, data.train_split)
    check_labels(train)
    if split == data.train_split:
        table, name, remarks = train, split, []
    else:
        table, name = _open_table(data, folder, split)
        common = {os.path.normpath(path) for path in train.paths} & {os.path.normpath(path) for path in table.paths}
        remarks = []
        if common:
            images = count(len(common), "image")
            remarks.append(f"{escape(table.name)}: {images} also in the training table: {show(sorted(common), 3)}.")
    if name != split:
        remarks.append(f"'{escape(folder)}' has no table {split!r}, so {name!r} is used.")
    class_names = sorted(set(train.labels))
    number = {name: i for i, name in enumerate(class_names)}
    unknown = sorted(set(table.labels) - set(class_names))
    if unknown:
        raise UserError(
            f"table {split!r} in '{escape(folder)}' has labels that {data.train_split!r} does not have: "
            f"{unknown[:10]}. Remove these rows, or add training images." + suggest(unknown[0], class_names)
        )
    check_classes(data.source, class_names)
    table = check_files(table, data.max_bad_fraction)
    return Listing(table.paths, [number[label] for label in table.labels], class_names, table.remarks + remarks)


def _open_table(data, folder, split):
    """Return the table of a split, and the name that it has."""
    tables = list_tables(folder)
    name = find_alias(data, split, list(tables))
    if name is None:
        others = [other for other in tables if other not in (data.train_split, data.eval_split)]
        role = "train" if split == data.train_split else "eval"
        hint = f" It has {show([name for other in others for name in tables[other]], 3)}." if others else ""
        hint += f" Use --set data.{role}_split={escape(others[0])}." if len(others) == 1 else ""
        raise UserError(f"data.dir='{escape(folder)}' has neither {escape(split)}.csv nor {escape(split)}.tsv.{hint}")
    if len(tables[name]) > 1:
        raise UserError(f"data.dir='{escape(folder)}' has both {' and '.join(tables[name])}. Remove one of them.")
    return read_table(os.path.join(folder, tables[name][0]), folder), name

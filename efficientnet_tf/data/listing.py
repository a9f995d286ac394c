"""Lists the images of a split: a folder with one subfolder per class, or a table of paths and labels.

Imports no TensorFlow for local data, so that a command can check its data at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import check_class_names, escape
from efficientnet_tf.data.arrays import list_arrays
from efficientnet_tf.data.class_folders import find_alias, list_class_folders
from efficientnet_tf.data.image_formats import check_readable
from efficientnet_tf.data.labels import convert_labels, convert_weights, describe_labels, find_names
from efficientnet_tf.data.parquet_files import list_parquet
from efficientnet_tf.data.pseudo_labels import add_pseudo_labels
from efficientnet_tf.data.record_files import find_record_files, read_record_classes
from efficientnet_tf.data.scan import count, show
from efficientnet_tf.data.tables import check_files, list_tables, read_table
from efficientnet_tf.data.tar_files import list_tar
from efficientnet_tf.runtime.files import is_folder, is_remote

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig


@dataclass(frozen=True)
class Listing:
    """The images of a split.

    Attributes:
        paths: Path of each image.
        labels: Class of each image, int32 [N], or the probabilities of the classes, float32 [N, classes]. With other
            tasks than classification the labels of each image, uint8 [N, labels], or its numbers, float32 [N, numbers].
        class_names: Names of the classes 0, 1, ..., or of the columns of the labels.
        remarks: Sentences that the user should read, for example about files that were left out.
        weights: Weight of each image of the training split, float32 [N], or None without `data.weight_column`.
    """

    paths: list[str]
    labels: np.ndarray
    class_names: list[str]
    remarks: list[str]
    weights: np.ndarray | None = None


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
    """Check the data of a run, as far as possible without TensorFlow: everything local but TensorFlow Datasets.

    Args:
        data: The section `data` of the configuration.
        splits: The splits that are needed. The default is those for training and evaluation.

    Returns:
        What is known about each split that was read.

    Raises:
        UserError: If the data are missing or malformed, do not fit the task, have names that cannot be class names, or
            only one class.
    """
    check_task(data)
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
        elif data.source == "parquet":
            rows = list_parquet(data, split)
            known[split] = CheckedSplit(rows.class_names, len(rows.labels))
        elif data.source == "webdataset":
            samples = list_tar(data, split)
            known[split] = CheckedSplit(samples.class_names, len(samples.labels))
        elif data.source == "records" and not is_remote(str(data.dir)):
            find_record_files(str(data.dir), split)
            known[split] = CheckedSplit(read_record_classes(data), None)
        if split in known:
            check_classes(data, known[split].class_names)
    return known


def check_task(data: DataConfig) -> None:
    """Raise UserError if a source cannot have the labels of the task."""
    if data.task != "classification" and data.source not in ("arrays", "parquet", "table", "webdataset"):
        raise UserError(
            f"data.task={data.task} needs data.source=table, arrays, parquet or webdataset, received "
            f"data.source={data.source}. A table has a line for each image, with its labels."
        )


def check_classes(data: DataConfig, class_names: Sequence[str]) -> None:
    """Raise UserError unless names can be class names and are enough for the task."""
    check_class_names(class_names, f"data.source={data.source}")
    if data.task == "classification" and len(class_names) < 2:
        raise UserError(
            f"data.source={data.source}: found only one class, {', '.join(map(repr, class_names))}. "
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
        listing = _list_folders(data, folder, split, training)
    if training and data.pseudo_labels is not None:
        paths, labels, remarks = add_pseudo_labels(data, listing.paths, listing.labels, listing.class_names)
        listing = Listing(paths, labels, listing.class_names, listing.remarks + remarks)
    check_readable(listing.paths)
    by_case = {}
    for name in listing.class_names:
        by_case.setdefault(name.casefold(), []).append(name)
    for names in by_case.values():
        if len(names) > 1:
            listing.remarks.append(f"the classes {show(names)} differ in letter case only.")
    return listing


def _list_folders(data, folder, split, training):
    paths, labels, class_names, remarks = list_class_folders(data, folder, split, training)
    return Listing(paths, np.array(labels, np.int32), class_names, remarks)


# ---------------------------------------------------------------------------------------------------------- tables


def _list_table(data, folder, split):
    train, _ = _open_table(data, folder, data.train_split)
    class_names = find_names(train, data)
    remarks = describe_labels(convert_labels(train, class_names, data), class_names, escape(train.name))
    if split == data.train_split:
        table, name = train, split
    else:
        table, name = _open_table(data, folder, split)
        common = {os.path.normpath(path) for path in train.paths} & {os.path.normpath(path) for path in table.paths}
        remarks = []  # Those about the training table come with the training split.
        if common:
            images = count(len(common), "image")
            remarks.append(f"{escape(table.name)}: {images} also in the training table: {show(sorted(common), 3)}.")
    if name != split:
        remarks.append(f"'{escape(folder)}' has no table {split!r}, so {name!r} is used.")
    labels = convert_labels(table, class_names, data)
    check_classes(data, class_names)
    weights = None
    if data.weight_column is not None and split == data.train_split:
        weights = convert_weights(read_table(table.name, folder, [data.weight_column]))
    table = check_files(table, data.max_bad_fraction)
    return Listing(table.paths, labels, class_names, table.remarks + remarks, weights)


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
    return read_table(os.path.join(folder, tables[name][0]), folder, data.label_columns or ("label",)), name

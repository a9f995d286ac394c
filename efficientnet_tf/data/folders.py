"""Sources of image files: a folder with one subfolder per class, or a table of paths and labels."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.source import Source, indexed_source
from efficientnet_tf.runtime.files import read_text

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def find_images(paths: Sequence[str]) -> list[str]:
    """Return the image files that some paths name.

    Args:
        paths: Files, which are returned as they are, and folders, which are searched for images.

    Returns:
        The paths of the files, in the order of the arguments, sorted within each folder.

    Raises:
        UserError: If a path does not exist, or if a folder has no image.
    """
    found = []
    for path in paths:
        if not tf.io.gfile.exists(path):
            raise UserError(f"{path}: no such file or folder")
        if not tf.io.gfile.isdir(path):
            found.append(path)
            continue
        inside = [os.path.join(root, name) for root, _, names in tf.io.gfile.walk(path) for name in names]
        images = sorted(name for name in inside if name.lower().endswith(IMAGE_SUFFIXES))
        if not images:
            raise UserError(f"{path}: no image in this folder. Supported suffixes are {', '.join(IMAGE_SUFFIXES)}.")
        found += images
    return found


# --------------------------------------------------------------------------------------------------------- folders


def open_folder(data: DataConfig, split: str, training: bool) -> Source:
    """Open a folder with one subfolder per class.

    The images are in DIR/<split>/<class>/..., or in DIR/<class>/... if `data.val_fraction` is set. In the first case,
    the folder of the training split determines the labels.

    Args:
        data: The section `data` of the configuration.
        split: Name of the split.
        training: Which part to open if `data.val_fraction` is set.

    Raises:
        UserError: If the folders do not have this structure.
    """
    folder = str(data.dir)
    if not tf.io.gfile.isdir(folder):
        raise UserError(f"data.dir={folder!r} is not a folder.")
    root, class_names = _find_class_folders(data, split)
    labels = class_names
    train_root = os.path.join(folder, data.train_split)
    if data.val_fraction is None and split != data.train_split and tf.io.gfile.isdir(train_root):
        labels = _list_subfolders(train_root)
        unknown = sorted(set(class_names) - set(labels))
        if unknown:
            raise UserError(
                f"{root!r} has classes that {data.train_split!r} does not have: {', '.join(unknown[:10])}. "
                "Remove them, or add training images."
            )
    images = _find_class_images(root, class_names)
    if data.val_fraction is not None:
        images = {name: _split_files(paths, data.val_fraction, training) for name, paths in images.items()}
    number = {name: i for i, name in enumerate(labels)}
    paths = [path for files in images.values() for path in files]
    return _make_file_source(paths, [number[name] for name, files in images.items() for _ in files], labels)


def _find_class_folders(data, split):
    """Return the folder of a split and the sorted names of the class folders in it."""
    root, present = data.dir, _list_subfolders(data.dir)
    if data.val_fraction is not None and {data.train_split, data.eval_split} <= set(present):
        raise UserError(
            f"{root!r} has the subfolders {data.train_split!r} and {data.eval_split!r}, which data.val_fraction would "
            "treat as classes. Leave data.val_fraction out."
        )
    if data.val_fraction is None:
        if split not in present:
            raise UserError(
                f"{root!r} has no subfolder {split!r}; it has {', '.join(present[:10]) or 'no subfolder'}. Put the "
                f"images into {split}/<class>/. If they are in <class>/, use --set data.val_fraction=0.2."
            )
        root = os.path.join(root, split)
        present = _list_subfolders(root)
    if not present:
        raise UserError(f"{root!r} has no class folder. Put the images into <class>/ in this folder.")
    return root, present


def _list_subfolders(path):
    """Return the sorted names of the subfolders of a folder, local or gs://, without hidden ones."""
    names = sorted(n.rstrip("/") for n in tf.io.gfile.listdir(path) if not n.startswith("."))
    return [n for n in names if tf.io.gfile.isdir(os.path.join(path, n))]


def _find_class_images(folder, class_names):
    """Return the sorted image paths of every class folder, {class name: [path, ...]}, without hidden files."""
    found = {}
    for name in class_names:
        files = []
        for root, _, names in tf.io.gfile.walk(os.path.join(folder, name)):
            paths = [os.path.join(root, n) for n in names if n.lower().endswith(IMAGE_SUFFIXES)]
            files += [path for path in paths if "/." not in path.removeprefix(folder)]
        if not files:
            raise UserError(
                f"class folder {os.path.join(folder, name)!r} has no image. "
                f"Supported suffixes are {', '.join(IMAGE_SUFFIXES)}."
            )
        found[name] = sorted(files)
    return found


def _split_files(paths, fraction, training):
    """Return the training or the validation files of a class. The split depends only on the sorted names."""
    held_out = max(1, round(len(paths) * fraction))
    if held_out >= len(paths):
        raise UserError(
            f"data.val_fraction={fraction} leaves no training image in {os.path.dirname(paths[0])!r}, "
            f"which has {len(paths)}. Use a smaller fraction or add images."
        )
    shuffled = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    return sorted(shuffled[held_out:] if training else shuffled[:held_out])


def _make_file_source(paths, labels, class_names):
    """Return a source of image files."""
    path_tensor, label_tensor = tf.constant(paths), tf.constant(labels, tf.int32)
    return indexed_source(
        len(paths),
        class_names,
        load=lambda index: (tf.io.read_file(tf.gather(path_tensor, index)), tf.gather(label_tensor, index)),
        describe=lambda index: paths[index],
        file_name=lambda index: tf.gather(path_tensor, index),
    )


# ---------------------------------------------------------------------------------------------------------- tables


def open_table(data: DataConfig, split: str) -> Source:
    """Open a table of paths and labels: DIR/<split>.csv or DIR/<split>.tsv.

    The first line names the columns, of which `path` and `label` are used. Paths are relative to DIR. The classes are
    the sorted labels of the training table.

    Args:
        data: The section `data` of the configuration.
        split: Name of the split.

    Raises:
        UserError: If a table is missing or malformed, or if it has labels that the training table does not have.
    """
    train = _read_table(data.dir, data.train_split)
    rows = train if split == data.train_split else _read_table(data.dir, split)
    class_names = sorted({label for _, label in train})
    number = {name: i for i, name in enumerate(class_names)}
    unknown = sorted({label for _, label in rows} - set(class_names))
    if unknown:
        raise UserError(
            f"table {split!r} in {data.dir!r} has labels that {data.train_split!r} does not have: {unknown[:10]}. "
            "Remove these rows, or add training images."
        )
    paths = [path if "://" in path else os.path.join(str(data.dir), path) for path, _ in rows]
    return _make_file_source(paths, [number[label] for _, label in rows], class_names)


def _read_table(folder, split):
    """Return the rows of a table, [(path, label), ...]."""
    name = _find_table(folder, split)
    rows = []
    try:
        text = io.StringIO(read_text(name).removeprefix("\ufeff"), newline="")  # Excel writes a byte order mark.
        reader = csv.DictReader(text, delimiter="," if name.endswith(".csv") else "\t", strict=True)
        columns = reader.fieldnames or []
        if not {"path", "label"} <= set(columns):
            raise UserError(
                f"{name}: the first line must name the columns path and label; it has "
                f"{', '.join(columns) or 'no column'}."
            )
        for row in reader:
            if not row["path"] or not row["label"]:
                raise UserError(f"{name}, line {reader.line_num}: path or label is empty.")
            rows.append((row["path"], row["label"]))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{name} is not a valid table in UTF-8: {error}") from None
    if not rows:
        raise UserError(f"{name} names its columns but has no rows.")
    return rows


def _find_table(folder, split):
    names = [os.path.join(folder, split + suffix) for suffix in (".csv", ".tsv")]
    names = [name for name in names if tf.io.gfile.exists(name)]
    if not names:
        raise UserError(f"data.dir={folder!r} has neither {split}.csv nor {split}.tsv.")
    if len(names) > 1:
        raise UserError(f"data.dir={folder!r} has both {split}.csv and {split}.tsv. Remove one of them.")
    return names[0]

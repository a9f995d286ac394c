"""Images as files: a folder a class, or a table of paths and labels."""

import csv
import io
import os

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.source import indexed_source
from efficientnet_tf.runtime.files import read_text

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def find_images(paths):
    """Return the image files that `paths` name: files as they are, folders searched for images, in order.

    Raises:
        UserError: for a path that is not there, and a folder without an image.
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
            raise UserError(f"{path}: no image in this folder; looked for {', '.join(IMAGE_SUFFIXES)}")
        found += images
    return found


def _listdir(path):
    """Return (sub-folders, files) of a folder, local or gs://, sorted, hidden names left out."""
    names = sorted(n.rstrip("/") for n in tf.io.gfile.listdir(path) if not n.startswith("."))
    folders = [n for n in names if tf.io.gfile.isdir(os.path.join(path, n))]
    return folders, [n for n in names if n not in set(folders)]


def _class_images(folder, class_names):
    """Return the image paths of every class folder, {class name: [path, ...]}."""
    found = {}
    for name in class_names:
        files = []
        for root, _, names in tf.io.gfile.walk(os.path.join(folder, name)):
            paths = [os.path.join(root, n) for n in names if n.lower().endswith(IMAGE_SUFFIXES)]
            files += [path for path in paths if "/." not in path.removeprefix(folder)]  # hidden, as in `_listdir`
        if not files:
            raise UserError(
                f"class folder {os.path.join(folder, name)!r} holds no image; "
                f"looked for files that end in {', '.join(IMAGE_SUFFIXES)}"
            )
        found[name] = sorted(files)
    return found


def _hold_out(paths, fraction, training):
    """Split a class's files: every example keeps its side, for the choice depends on the sorted names alone."""
    held = max(1, round(len(paths) * fraction))
    if held >= len(paths):
        raise UserError(
            f"data.val_fraction={fraction} leaves no training image in {os.path.dirname(paths[0])!r}, "
            f"which holds {len(paths)}"
        )
    shuffled = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    return sorted(shuffled[held:] if training else shuffled[:held])


def open_folder(data, split, training):
    """Class per sub-folder: DIR/<split>/<class>/..., or DIR/<class>/... with `data.val_fraction`."""
    root = data.dir
    if not tf.io.gfile.isdir(root):
        raise UserError(f"data.dir={root!r} is not a folder")
    present, _ = _listdir(root)
    if data.val_fraction is not None and {data.train_split, data.eval_split} <= set(present):
        raise UserError(
            f"{root!r} has the sub-folders {data.train_split!r} and {data.eval_split!r}: leave data.val_fraction out, "
            "or they would be taken for classes"
        )
    if data.val_fraction is None:
        if split not in present:
            raise UserError(
                f"{root!r} has no sub-folder {split!r}; it has {', '.join(present[:10]) or 'no sub-folder'}. Expected "
                f"{split}/<class>/images; for <class>/images alone pass --set data.val_fraction=0.2"
            )
        root = os.path.join(root, split)
        present, _ = _listdir(root)
    if not present:
        raise UserError(f"{root!r} holds no class folder; expected <class>/images in it")
    classes, train_root = present, os.path.join(data.dir, data.train_split)
    if data.val_fraction is None and split != data.train_split and tf.io.gfile.isdir(train_root):
        classes, _ = _listdir(train_root)  # the training folder says what the labels are
        unknown = sorted(set(present) - set(classes))
        if unknown:
            raise UserError(f"{root!r} has classes that {data.train_split!r} lacks: {', '.join(unknown[:10])}")
    images = _class_images(root, present)
    if data.val_fraction is not None:
        images = {name: _hold_out(paths, data.val_fraction, training) for name, paths in images.items()}
    label = {name: i for i, name in enumerate(classes)}
    paths = [path for files in images.values() for path in files]
    return _files(paths, [label[name] for name, files in images.items() for _ in files], classes)


def _files(paths, labels, class_names):
    """Make a source of image files."""
    path_tensor, label_tensor = tf.constant(paths), tf.constant(labels, tf.int32)
    return indexed_source(
        len(paths),
        class_names,
        load=lambda index: (tf.io.read_file(tf.gather(path_tensor, index)), tf.gather(label_tensor, index)),
        describe=lambda index: paths[index],
        file_name=lambda index: tf.gather(path_tensor, index),
    )


def open_table(data, split):
    """Open DIR/<split>.csv or .tsv, with a line of names that has `path` and `label`; paths are relative to DIR.

    The training table says what the classes are: its labels, sorted.
    """
    train = _read_table(data.dir, data.train_split)
    rows = train if split == data.train_split else _read_table(data.dir, split)
    class_names = sorted({label for _, label in train})
    number = {name: i for i, name in enumerate(class_names)}
    unknown = sorted({label for _, label in rows} - set(class_names))
    if unknown:
        raise UserError(f"table {split!r} in {data.dir!r} has labels that {data.train_split!r} lacks: {unknown[:10]}")
    paths = [path if "://" in path else os.path.join(data.dir, path) for path, _ in rows]
    return _files(paths, [number[label] for _, label in rows], class_names)


def _read_table(folder, split):
    """Return [(path, label), ...] of a table."""
    names = [os.path.join(folder, split + suffix) for suffix in (".csv", ".tsv")]
    names = [name for name in names if tf.io.gfile.exists(name)]
    if len(names) != 1:
        has = "both" if names else "neither"
        raise UserError(f"data.dir={folder!r} has {has} {split}.csv {'and' if names else 'nor'} {split}.tsv")
    name, rows = names[0], []
    try:
        text = io.StringIO(read_text(name).removeprefix("\ufeff"), newline="")  # Excel begins a file with a mark
        reader = csv.DictReader(text, delimiter="," if name.endswith(".csv") else "\t", strict=True)
        columns = reader.fieldnames or []
        if not {"path", "label"} <= set(columns):
            raise UserError(
                f"{name}: expected a first line that names the columns path and label; it has "
                f"{', '.join(columns) or 'no line'}"
            )
        for row in reader:
            if not row["path"] or not row["label"]:
                raise UserError(f"{name}, line {reader.line_num}: path or label is empty")
            rows.append((row["path"], row["label"]))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{name}: not a table in UTF-8: {error}") from None
    if not rows:
        raise UserError(f"{name}: has a line of names and no row")
    return rows

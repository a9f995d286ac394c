"""Finds the files of each split of a data set that is divided into Parquet or tar files. Imports no TensorFlow."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import escape
from efficientnet_tf.data.class_folders import find_alias
from efficientnet_tf.data.record_files import read_class_file
from efficientnet_tf.data.scan import list_entries, show
from efficientnet_tf.runtime.files import is_folder, is_remote
from efficientnet_tf.runtime.hub import fetch_data

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_NUMBER = r"[-_.]?\d+(-of-\d+)?"  # at the end of a name: train-00000-of-00004, train_0001, train-000
_SUBFOLDERS = ("data", "default")  # of the data sets of the Hugging Face Hub


def download_shards(data: DataConfig, suffix: str) -> DataConfig:
    """Return a config whose folder is local, after downloading the files if they are on the Hugging Face Hub.

    Args:
        data: The section `data` of the configuration.
        suffix: Ending of the files, ".parquet" or ".tar".

    Raises:
        UserError: If they cannot be downloaded.
    """
    return data.model_copy(update={"dir": fetch_data(str(data.dir), [f"*{suffix}", "classes.txt"])})


def find_shards(data: DataConfig, split: str, suffix: str) -> list[str]:
    """Return the files of a split, sorted by name.

    They are DIR/<split>.parquet, DIR/<split>-00000-of-00004.parquet and so on, or all files in DIR/<split>. DIR/data
    and DIR/default are searched, too. Other words can precede the name of the split, as in `imagenet1k-train-0000.tar`.

    Args:
        data: The section `data` of the configuration.
        split: Name of the split.
        suffix: Ending of the files, ".parquet" or ".tar".

    Raises:
        UserError: If there are none, or some of them are missing.
    """
    root, where = str(data.dir), f"data.dir='{escape(str(data.dir))}'"
    if is_remote(root):
        raise UserError(
            f"data.source={data.source} reads local files, received {where}. Copy the files to a local folder first."
        )
    if not is_folder(root):
        raise UserError(f"{where} is not a folder.")
    found = _list_splits(root, suffix)
    if not found:
        raise UserError(f"{where} has no {suffix} files, such as train-00000{suffix}.")
    name = find_alias(data, split, list(found)) or _find_longer_name(data, split, found)
    if name is None:
        role = "train" if split == data.train_split else "eval"
        others = [other for other in found if other != (data.eval_split if role == "train" else data.train_split)]
        advice = f" Use --set data.{role}_split={escape(others[0])}." if len(others) == 1 else suggest(split, found)
        raise UserError(
            f"{where} has no split '{escape(split)}'; its {suffix} files are of {show(list(found))}.{advice}"
        )
    _check_complete(found[name], where)
    return found[name]


def read_classes(data: DataConfig) -> list[str] | None:
    """Return the names of the classes in DIR/classes.txt, or else those of `data.class_names`, or else None."""
    path = os.path.join(str(data.dir), "classes.txt")
    if os.path.lexists(path):
        return read_class_file(path)
    return None if data.class_names is None else list(data.class_names)


def _list_splits(root, suffix):
    """Return the files of each split."""
    found = {}
    for folder in (root, *(os.path.join(root, name) for name in _SUBFOLDERS)):
        if not is_folder(folder):
            continue
        for name, kind in sorted(list_entries(folder)):
            path = os.path.join(folder, name)
            if kind == "folder" and name not in _SUBFOLDERS:
                inside = [os.path.join(path, file) for file, _ in sorted(list_entries(path)) if file.endswith(suffix)]
                if inside:
                    found.setdefault(name, []).extend(inside)
            elif name.endswith(suffix):
                split = re.sub(_NUMBER + "$", "", name.removesuffix(suffix))
                found.setdefault(split or name.removesuffix(suffix), []).append(path)
    return found


def _find_longer_name(data, split, names):
    """Return the only name whose last word is that of a split, or None."""
    last = [re.split(r"[-_.]", name)[-1] for name in names]
    word = find_alias(data, split, last)
    return next(name for name, end in zip(names, last, strict=True) if end == word) if last.count(word) == 1 else None


def _check_complete(paths, where):
    """Raise UserError if a file is missing from a set whose names state its size."""
    counts = {match[1] for path in paths if (match := re.search(r"-of-(\d+)\.\w+$", path))}
    if len(counts) > 1:
        raise UserError(f"{where} has files of several sets: {show([os.path.basename(path) for path in paths])}.")
    if counts and int(min(counts)) != len(paths):
        names = show([os.path.basename(path) for path in paths], 3)
        raise UserError(
            f"{where} has {len(paths):,} of {int(min(counts)):,} files: {names}. "
            "Download the others, or rename these without -of-."
        )

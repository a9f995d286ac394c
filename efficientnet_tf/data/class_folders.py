"""Lists the images of class folders, and refuses folders that are a level too high or are splits.

Imports no TensorFlow for local folders, so that a command can check its data at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import escape, normalize_name
from efficientnet_tf.data.image_formats import READABLE_SUFFIXES
from efficientnet_tf.data.scan import Scan, count, list_entries, show
from efficientnet_tf.runtime.files import is_remote

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_Item = TypeVar("_Item", str, int)
_TRAIN_NAMES = ("train", "training")
_EVAL_NAMES = ("val", "valid", "validation")
_SPLIT_WORDS = re.compile(r"(?<![a-z])(train|training|trainval|val|valid|validation|test|testing|dev|eval)(?![a-z])")
_ADDED = re.compile(r"([ _-]?(set|data|images|20\d\d))?")  # to the word alone, as in test_set and train2017


def list_class_folders(
    data: DataConfig, folder: str, split: str, training: bool
) -> tuple[list[str], list[int], list[str], list[str]]:
    """List the images of a split that has one folder per class.

    Args:
        data: The section `data` of the configuration.
        folder: The folder `data.dir`, which exists.
        split: Name of the split.
        training: Which part to list if `data.val_fraction` is set.

    Returns:
        The fields of a `listing.Listing`.

    Raises:
        UserError: If the folders do not have this structure.
    """
    remarks = []
    root = folder if data.val_fraction is not None else _find_split_folder(data, folder, split, remarks)
    folders, files = _list_root(root)
    _check_names_of_classes(data, root, folders, files)
    groups = _group_by_name(root, folders, remarks)
    class_names = sorted(groups)
    if data.val_fraction is None and split != data.train_split:
        class_names = _list_training_classes(data, folder, root, class_names, remarks)
    scan = Scan()
    images = {name: _find_class_images(scan, root, name, groups[name]) for name in sorted(groups)}
    remarks += scan.remarks(f"'{escape(root)}'")
    loose = sorted(name for name in files if name.lower().endswith(READABLE_SUFFIXES))
    if loose:
        what = count(len(loose), "image next to the class folders is", "images next to the class folders are")
        remarks.append(f"'{escape(root)}': {what} not used: {show(loose, 3)}.")
    _check_depth(data, root, groups, images, remarks)
    if data.val_fraction is not None:
        images = {
            name: hold_out(paths, data.val_fraction, training, f"'{escape(os.path.dirname(paths[0]))}'")
            for name, paths in images.items()
        }
    number = {name: i for i, name in enumerate(class_names)}
    paths = [path for files in images.values() for path in files]
    return paths, [number[name] for name, files in images.items() for _ in files], class_names, remarks


def _list_root(root):
    """Return the sorted names of the folders and of the files in a folder, without junk."""
    entries = sorted(list_entries(root))
    return [name for name, kind in entries if kind == "folder"], [name for name, kind in entries if kind == "file"]


def _find_splits(names: Sequence[str]) -> dict[str, str]:
    """Return the names that mean splits, and "train" or "eval" for each.

    A name means a split if it is such a word, perhaps with an addition, or if it differs from another name only in
    that one is for training and the other is not: seg_train and seg_test.
    """
    found, pairs = {}, {}
    for name in names:
        text = name.strip().casefold()
        match = _SPLIT_WORDS.search(text)
        if match:
            role = "train" if match[1].startswith("train") else "eval"
            rest = text[: match.start()], text[match.end() :]
            if not rest[0] and _ADDED.fullmatch(rest[1]):
                found[name] = role
            pairs.setdefault(rest, []).append((name, role))
    for group in pairs.values():
        if {"train", "eval"} == {role for _, role in group}:
            found |= dict(group)
    return {name: found[name] for name in names if name in found}


def find_alias(data: DataConfig, split: str, names: Sequence[str]) -> str | None:
    """Return the name that is used for a split, for example `valid` for the default `val`. None if there is none.

    Args:
        data: The section `data` of the configuration.
        split: Name of the split.
        names: The folders or tables that exist.

    Raises:
        UserError: If there are several.
    """
    if split in names:
        return split
    aliases = {"train": _TRAIN_NAMES, "val": _EVAL_NAMES}.get(split, ())
    found = [name for name in names if name.strip().casefold() in aliases]
    if not found or data.train_split == data.eval_split:
        return None
    if len(found) > 1:
        raise UserError(
            f"data.dir='{escape(str(data.dir))}' has no split {split!r}, but {show(found)}. Set "
            f"data.{'train' if split == data.train_split else 'eval'}_split to one of them."
        )
    return found[0]


def _find_split_folder(data, folder, split, remarks):
    """Return the folder of a split."""
    present, _ = _list_root(folder)
    name = find_alias(data, split, present)
    if name is None:
        raise UserError(
            f"'{escape(folder)}' has no subfolder '{escape(split)}'; it has {show(present, 10) or 'no subfolder'}. "
            + _advise(data, folder, split, present)
        )
    if name != split:
        remarks.append(f"'{escape(folder)}' has no subfolder {split!r}, so '{escape(name)}' is used.")
    return os.path.join(folder, name)


def _advise(data, folder, split, present):
    """Return what to do about a missing split folder."""
    role, other = ("train", data.eval_split) if split == data.train_split else ("eval", data.train_split)
    splits = _find_splits(present)
    fitting = [name for name in splits if splits[name] == role and name != other]
    if fitting:
        return f"Use --set data.{role}_split={escape(fitting[0])}."
    if splits:
        first = next(iter(splits))
        path = escape(os.path.join(folder, first))
        return f"To hold out a part of '{escape(first)}', use --set data.dir={path} and --set data.val_fraction=0.2."
    for name in present[:10]:
        inside, _ = _list_root(os.path.join(folder, name))
        if split in inside or _find_splits(inside):
            return f"'{escape(name)}' has {show(inside)}. Use --set data.dir={escape(os.path.join(folder, name))}."
    return f"Put the images into {escape(split)}/<class>/. If they are in <class>/, use --set data.val_fraction=0.2."


def _check_names_of_classes(data, root, folders, files):
    """Raise UserError if there are no class folders, or if their names mean splits."""
    if not folders:
        hint = f" It has the images {show(files, 3)}." if files else ""
        raise UserError(f"'{escape(root)}' has no class folder. Put the images into <class>/ in this folder.{hint}")
    splits = _find_splits(folders)
    if data.val_fraction is not None and splits:
        raise UserError(
            f"'{escape(root)}' has {_name_folders(splits)}, which data.val_fraction would treat as "
            f"{'classes' if len(splits) > 1 else 'a class'}. " + _advise_without_fraction(data, root, splits)
        )
    # A class may have such a name, as the vehicle in CIFAR-100, but then its folder has images.
    if list(splits) == folders or any(_has_class_folders(os.path.join(root, name)) for name in splits):
        raise UserError(
            f"'{escape(root)}' has {_name_folders(splits)}, where class folders are expected. Give the folder "
            f"that holds the class folders, for example {escape(os.path.join(root, next(iter(splits))))}. If these are "
            f"the splits, set data.dir={escape(root)}."
        )


def _name_folders(names):
    *first, last = [f"'{escape(name)}'" for name in names]
    return f"the subfolders {', '.join(first)} and {last}" if first else f"the subfolder {last}"


def _advise_without_fraction(data, root, splits):
    train, others = ([name for name in splits if splits[name] == role] for role in ("train", "eval"))
    if train and others:
        settings = []
        for default, aliases, found in (
            (data.train_split, _TRAIN_NAMES, train),
            (data.eval_split, _EVAL_NAMES, others),
        ):
            known = [name for name in found if name == default or name.strip().casefold() in aliases]
            settings.append("" if known else f"data.{splits[found[0]]}_split={escape(found[0])}")
        choice = " and ".join(f"--set {setting}" for setting in settings if setting)
        return f"Leave data.val_fraction out{' and use ' + choice if choice else ''}."
    if train:
        return f"To hold out a part of '{escape(train[0])}', use --set data.dir={escape(os.path.join(root, train[0]))}."
    return "Leave data.val_fraction out and put the other images into train/<class>/, or rename the folder of a class."


def _has_class_folders(path):
    folders, files = _list_root(path)
    return bool(folders) and not any(name.lower().endswith(READABLE_SUFFIXES) for name in files)


def _group_by_name(root, folders, remarks):
    """Return {class name: [folder, ...]}. Folders whose names look the same belong to one class."""
    groups = {}
    for name in folders:
        groups.setdefault(normalize_name(name), []).append(name)
    merged = [names for names in groups.values() if len(names) > 1]
    if merged:
        shown = "; ".join(" and ".join(map(repr, map(escape, names))) for names in merged[:3])
        remarks.append(
            f"'{escape(root)}': folders whose names differ only in blanks or the Unicode form are one class: {shown}."
        )
    return groups


def _list_training_classes(data, folder, root, class_names, remarks):
    """Return the class names of the training folder, or those of the split itself if there is none."""
    present, _ = _list_root(folder)
    name = find_alias(data, data.train_split, present)
    if name is None:
        return class_names
    train_root = os.path.join(folder, name)
    if not is_remote(root) and os.path.samefile(train_root, root):
        remarks.append(f"'{escape(root)}' is the same folder as '{escape(name)}': the same images are in both splits.")
    labels = sorted(_group_by_name(train_root, _list_root(train_root)[0], []))
    unknown = sorted(set(class_names) - set(labels))
    if unknown:
        raise UserError(
            f"'{escape(root)}' has classes that {name!r} does not have: {show(unknown, 10)}. "
            "Remove them, or add training images." + suggest(unknown[0], labels)
        )
    return labels


def _find_class_images(scan, root, name, folders):
    """Return the images of a class."""
    before = scan.left_out.copy()
    images = sorted(path for folder in folders for path in scan.add_folder(os.path.join(root, folder), name))
    if not images:
        left_out = ", ".join(f"{count} {ending}" for ending, count in (scan.left_out - before).most_common(5))
        raise UserError(
            f"class folder '{escape(os.path.join(root, folders[0]))}' has no image. Supported suffixes are "
            f"{', '.join(READABLE_SUFFIXES)}." + (f" It has {left_out}." if left_out else "")
        )
    return images


def _check_depth(data, root, groups, images, remarks):
    """Find class folders that do not hold their images themselves. They may be a level too high."""
    folders = [os.path.join(root, folder) for names in groups.values() for folder in names]
    if any(os.path.dirname(path) in folders for paths in images.values() for path in paths):
        return
    inside, _ = _list_root(folders[0])
    if len(groups) == 1 and len(inside) > 1 and data.val_fraction is not None:
        raise UserError(
            f"'{escape(root)}' has only the subfolder '{escape(next(iter(groups)))}', which has {show(inside)}. If "
            f"these are the classes, use --set data.dir={escape(folders[0])}."
        )
    remarks.append(
        f"'{escape(root)}': all images are in subfolders of the class folders, for example in {show(inside, 3)} of "
        f"'{escape(os.path.basename(folders[0]))}'. The classes are {show(sorted(groups))}."
    )


def hold_out(items: Sequence[_Item], fraction: float, training: bool, where: str) -> list[_Item]:
    """Return the training or the validation items of a class, sorted.

    Args:
        items: All items of the class, sorted. Which ones are held out depends only on their number.
        fraction: Share of the items to hold out for validation, from 0 to 1.
        training: Which part to return.
        where: Name of the class in messages.

    Raises:
        UserError: If no item would be left for training.
    """
    held_out = max(1, round(len(items) * fraction))
    if held_out >= len(items):
        raise UserError(
            f"data.val_fraction={fraction} leaves no training image in {where}, which has {len(items)}. Use a smaller "
            "fraction or add images."
        )
    shuffled = [items[i] for i in np.random.default_rng(0).permutation(len(items))]
    return sorted(shuffled[held_out:] if training else shuffled[:held_out])

"""Lists the images of arrays: .npz archives of NumPy, and the idx files in which MNIST and Fashion-MNIST are published.

Imports no TensorFlow, so that a command can check its data at once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import escape, normalize_name
from efficientnet_tf.data.array_files import StoredArray, list_members, open_array
from efficientnet_tf.data.class_folders import find_alias, hold_out
from efficientnet_tf.data.labels import LARGEST, describe_labels, name_numbers
from efficientnet_tf.data.record_files import read_class_file
from efficientnet_tf.data.scan import list_entries, show
from efficientnet_tf.runtime.files import is_folder, is_remote

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_MOST_SIDE = 2**16  # pixels
_MOST_CLASSES = 10**6
_CLASSES = "classes"  # the array of class names
_IDX_FILE = re.compile(r"(.+)-(images|labels)[-.]idx\d-ubyte(\.gz)?")
_IDX_SPLITS = {"t10k": "test"}  # the name that MNIST has for its 10,000 test images
# The names that Keras and MedMNIST give to the arrays of a split.
_MEMBERS = (re.compile(r"(?P<role>x|y)_(?P<split>.+)", re.I), re.compile(r"(?P<split>.+)_(?P<role>images|labels)"))
_ROLES = {"x": "images", "y": "labels"}
_EXPECTED = (
    "Expected are one .npz file with the arrays x_train, y_train, x_test and y_test, files <split>.npz with the arrays "
    "images and labels, or idx files such as train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz."
)

_Place = tuple[str, str | None]  # path of a file, and name of the array in an archive


@dataclass(frozen=True)
class ArrayListing:
    """The images of a split.

    Attributes:
        images: The array of the images: uint8 [N, H, W], [N, H, W, 1] or [N, H, W, 3].
        rows: Index in it of each image of the split, int64 [M].
        labels: Label of each image of the split, as `listing.Listing` has them.
        class_names: Names of the classes 0, 1, ..., or of the columns of the labels.
        remarks: Sentences that the user should read.
    """

    images: StoredArray
    rows: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    remarks: list[str]


def list_arrays(data: DataConfig, split: str, training: bool) -> ArrayListing:
    """List the images of a split, and check all labels. The pixels are not read.

    `data.dir` is an .npz file, or a folder of .npz or idx files. If the default split `val` is missing, `valid` or
    `validation` is used. The class names are the array `classes` next to the training images, or else the lines of
    `classes.txt` in their folder, or else `data.class_names`, or else the numbers. With another task than
    classification, they name the columns of the labels, [N, columns].

    Args:
        data: The section `data` of the configuration. Its source is "arrays".
        split: Name of the split.
        training: Which part of the training split to list if `data.val_fraction` is set.

    Raises:
        UserError: If there are no such arrays, or they cannot be images and their labels.
    """
    root, remarks = str(data.dir), []
    places = _find_places(root)
    if data.val_fraction is None:
        name = _choose_split(data, split, places)
        train = find_alias(data, data.train_split, list(places)) or name
    else:
        name = train = next(iter(places)) if len(places) == 1 else _choose_split(data, data.train_split, places)
    if data.val_fraction is None and name != split:
        remarks.append(f"'{escape(root)}' has no split {split!r}, so '{escape(name)}' is used.")
    images, train_labels = _open_split(root, train, places[train], data.task)
    labels = train_labels
    if name != train:
        images, labels = _open_split(root, name, places[name], data.task)
    class_names = _read_class_names(data, places[train]["images"])
    if class_names is None:
        is_class, where = train_labels.ndim == 1, _show(places[train]["labels"])
        class_names = name_numbers(train_labels, where) if is_class else [str(n) for n in range(train_labels.shape[-1])]
    for part, found in {train: train_labels, name: labels}.items():
        _check_range(places[part]["labels"], found, class_names)
    found = describe_labels(train_labels, class_names, _show(places[train]["labels"]))
    remarks += found if name == train else []
    rows = np.arange(len(labels))
    if data.val_fraction is not None:
        rows = _hold_out(labels, class_names, data.val_fraction, training)
    return ArrayListing(images, rows, labels[rows], class_names, remarks)


# ---------------------------------------------------------------------------------------------------------- splits


def _find_places(root: str) -> dict[str, dict[str, _Place]]:
    """Return where the arrays of each split are: {split: {"images": place, "labels": place}}."""
    if is_remote(root):
        raise UserError(
            f"data.source=arrays reads local files, received data.dir='{escape(root)}'. Copy the files to a local "
            "folder, or write them to this one as records with `prepare` and use data.source=records."
        )
    if not os.path.lexists(root):
        raise UserError(f"data.dir='{escape(root)}': no such file or folder.")
    names = [os.path.join(root, name) for name, _ in sorted(list_entries(root))] if is_folder(root) else [root]
    places, others = {}, []
    for path in names:
        found = list(_find_in_file(path, root, others))
        for split, role, place in found:
            known = places.setdefault(split, {}).setdefault(role, place)
            # An idx file is often both as it was downloaded and unpacked.
            if known != place and place != (f"{known[0]}.gz", None):
                raise UserError(
                    f"data.dir='{escape(root)}' has the {role} of '{escape(split)}' twice: {_show(known)}, and "
                    f"{_show(place)}. Keep one of them."
                )
    if not any("images" in roles for roles in places.values()):
        raise UserError(f"data.dir='{escape(root)}' has no arrays of images. {_EXPECTED}{' '.join(['', *others[:3]])}")
    return {split: roles for split, roles in places.items() if "images" in roles}


def _find_in_file(path, root, others):
    """Yield (split, role, place) of each array in a file. Add a sentence to `others` if it has none that is known."""
    folder, file = os.path.split(path)
    idx = _IDX_FILE.fullmatch(file)
    if idx:
        yield _IDX_SPLITS.get(idx[1], idx[1]), idx[2], (path, None)
        return
    if not file.lower().endswith(".npz"):
        if path == root:
            others.append(f"{escape(file)} is no .npz file.")
        return
    members = list_members(path)
    known = False
    for member in members:
        match = next((m for pattern in _MEMBERS if (m := pattern.fullmatch(member))), None)
        split, role = (match["split"], match["role"].lower()) if match else (os.path.splitext(file)[0], member)
        role = _ROLES.get(role, role) if match else role
        if role in ("images", "labels"):
            known = known or role == "images"
            yield split, role, (path, member)
    if not known:
        others.append(f"{escape(file)} has {'the arrays ' + show(members, 10) if members else 'no array'}.")


def _show(place):
    path, member = place
    return f"{escape(path)}{', array ' + escape(member) if member else ''}"


def _choose_split(data, split, places):
    """Return the name that a split has."""
    names = list(places)
    name = find_alias(data, split, names)
    if name is not None:
        return name
    role, other = ("train", data.eval_split) if split == data.train_split else ("eval", data.train_split)
    rest = [name for name in names if name != other]
    if rest:
        advice = f"Use --set data.{role}_split={escape(rest[0])}." + suggest(split, rest)
    else:
        advice = f"To hold out a part of '{escape(names[0])}', use --set data.val_fraction=0.2."
    what = "the split" if len(names) == 1 else "the splits"
    raise UserError(
        f"data.dir='{escape(str(data.dir))}' has no split '{escape(split)}'; it has {what} {show(names)}. {advice}"
    )


def _hold_out(labels, class_names, fraction, training):
    """Return the rows of the training or of the validation images, sorted. Every class has its share in both.

    Images with several labels or numbers are divided at random.
    """
    if labels.ndim > 1:
        return np.array(hold_out(range(len(labels)), fraction, training, "the arrays"), np.int64)
    order, counts = np.argsort(labels, kind="stable"), np.bincount(labels, minlength=len(class_names))
    rows = []
    for name, of_class in zip(class_names, np.split(order, np.cumsum(counts)[:-1]), strict=True):
        if len(of_class):
            rows += hold_out(of_class.tolist(), fraction, training, f"the class '{escape(name)}'")
    return np.array(sorted(rows), np.int64)


# ---------------------------------------------------------------------------------------------------------- arrays


def _open_split(root, split, places, task):
    """Return the array of the images of a split, which is not read, and its labels."""
    images = open_array(*places["images"])
    _check_images(images)
    if "labels" not in places:
        raise UserError(f"data.dir='{escape(root)}' has no labels for {images.name}. {_EXPECTED}")
    labels = open_array(*places["labels"])
    if task != "classification":
        return images, _read_rows(labels, images, task)
    _check_labels(labels, images)
    values = labels.read().reshape(-1)
    row = int(values.argmin() if values.min() < 0 else values.argmax())
    if not 0 <= values[row] < 2**31:
        raise UserError(f"{labels.name}: the label of image {row} is {values[row]}. Labels count the classes from 0.")
    return images, values.astype(np.int32)


def _read_rows(labels, images, task):
    """Return labels, uint8 [N, K] of 0 and 1, or numbers, float32 [N, K]."""
    size, shape = images.shape[0], list(labels.shape)
    kind = "numbers" if task == "regression" else "zeros and ones"
    if labels.dtype.kind not in "biuf":
        raise UserError(f"{labels.name}: data.task={task} needs {kind}, received the type {labels.dtype}.")
    single = task == "regression" and len(shape) == 1
    if len(shape) != 2 - single or shape[0] != size or not all(shape):
        form = f"[{size}] or [{size}, numbers]" if task == "regression" else f"[{size}, labels]"
        raise UserError(
            f"{labels.name}: {images.name} has {size:,} images, so with data.task={task} the labels must "
            f"have the shape {form}, received {shape}."
        )
    values = labels.read().reshape(size, -1)
    if task == "regression":
        wrong = ~(np.abs(values.astype(np.float64)) <= LARGEST)
        expected = f"finite numbers of at most {LARGEST:g}"
    else:
        wrong, expected = (values != 0) & (values != 1), kind
    if wrong.any():
        row, column = map(int, np.argwhere(wrong)[0])
        raise UserError(
            f"{labels.name}: data.task={task} needs {expected}, but image {row} has {values[row, column]} in column "
            f"{column}."
        )
    return values.astype(np.float32 if task == "regression" else np.uint8)


def _check_images(images):
    """Raise UserError unless an array can hold images."""
    shape = f"shape {list(images.shape)}"
    if images.dtype != np.uint8:
        raise UserError(
            f"{images.name}: images must have the type uint8 and values from 0 to 255, received {images.dtype} with "
            f"{shape}. If the values are from 0 to 1, save np.round(images * 255).astype(np.uint8); if they are "
            "whole numbers from 0 to 255, save images.astype(np.uint8)."
        )
    rank, channels = len(images.shape), images.shape[-1:]
    if rank == 4 and channels not in ((1,), (3,)) and images.shape[1] in (1, 3):
        raise UserError(
            f"{images.name}: the channels must come last, as in [N, H, W, 3], received {shape}. Save "
            "images.transpose(0, 2, 3, 1)."
        )
    if rank not in (3, 4) or (rank == 4 and channels not in ((1,), (3,))):
        raise UserError(
            f"{images.name}: images must have the shape [N, H, W], [N, H, W, 1] or [N, H, W, 3], received {shape}."
        )
    if not images.shape[0]:
        raise UserError(f"{images.name} has no images.")
    if not all(1 <= side <= _MOST_SIDE for side in images.shape[1:3]):
        raise UserError(f"{images.name}: images must have sides from 1 to {_MOST_SIDE:,} pixels, received {shape}.")


def _check_labels(labels, images):
    """Raise UserError unless an array has one number for each image."""
    count, shape = images.shape[0], list(labels.shape)
    if labels.dtype.kind not in "iu":
        hint = f" Save the names as an array {_CLASSES!r}, and their numbers." if labels.dtype.kind in "US" else ""
        raise UserError(
            f"{labels.name}: labels must be integers, 0 for the first class, received the type {labels.dtype}.{hint}"
        )
    if len(shape) == 2 and shape[1] > 1:
        raise UserError(
            f"{labels.name}: each image must have one label, received the shape {shape}. If the labels are one-hot, "
            "save np.argmax(labels, axis=1). If images have several labels, set data.task=multilabel."
        )
    if shape not in ([count], [count, 1]):
        raise UserError(
            f"{labels.name}: {images.name} has {count:,} images, so the labels must have the shape [{count}] or "
            f"[{count}, 1], received {shape}."
        )


# --------------------------------------------------------------------------------------------------------- classes


def _read_class_names(data, place):
    """Return the class names, given the place of the training images, or None if there are none."""
    path, member = place
    if member is not None and _CLASSES in list_members(path):
        return _read_class_array(open_array(path, _CLASSES))
    file = os.path.join(os.path.dirname(path), "classes.txt")
    if os.path.lexists(file):
        return read_class_file(file)
    return None if data.class_names is None else list(data.class_names)


def _read_class_array(array):
    if array.dtype.kind not in "US" or len(array.shape) != 1 or array.shape[0] > _MOST_CLASSES:
        raise UserError(
            f"{array.name}: the class names must be a list of texts, received the type {array.dtype} with shape "
            f"{list(array.shape)}."
        )
    try:
        names = array.read().tolist()
        return [normalize_name(name if isinstance(name, str) else name.decode()) for name in names]
    except UserError:
        raise
    except ValueError:
        raise UserError(f"{array.name}: the class names are not valid Unicode.") from None


def _check_range(place, labels, class_names):
    if labels.ndim > 1:
        if labels.shape[1] != len(class_names):
            raise UserError(
                f"{_show(place)}: the labels have {labels.shape[1]} columns, but there are {len(class_names)} names: "
                f"{show(class_names, 10)}."
            )
        return
    if labels.max() >= len(class_names):
        row = int(np.argmax(labels >= len(class_names)))
        raise UserError(
            f"{_show(place)}: the label of image {row} is {labels[row]}, but there are {len(class_names)} classes: "
            f"{show(class_names, 10)}. Labels count from 0."
        )

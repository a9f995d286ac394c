"""Images that a network has labeled, which are added to the training images. Imports no TensorFlow.

`predict --soft` writes the file: a row for each image, with the probabilities of all classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.data.scan import count, show
from efficientnet_tf.runtime.files import check_path, is_remote
from efficientnet_tf.runtime.parquet import open_parquet, read_column

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

COLUMNS = {"path": "text", "probabilities": "numbers"}  # of the file, with the types of `ParquetWriter`
CLASS_NAMES = "class_names"  # the note in the file that names the classes, as a list in JSON
_TOLERANCE = 1e-2  # of the sum of the probabilities of an image


def add_pseudo_labels(
    data: DataConfig, paths: Sequence[str], labels: np.ndarray, class_names: Sequence[str]
) -> tuple[list[str], np.ndarray, list[str]]:
    """Return the training images together with those of `data.pseudo_labels`.

    Args:
        data: The section `data` of the configuration, which names the file.
        paths: Path of each training image.
        labels: Class of each, int32 [N].
        class_names: Names of the classes.

    Returns:
        The paths of all images; the probabilities of the classes, float32 [M, classes], which are 1 for the class of an
        image that has a label; and sentences that the user should read.

    Raises:
        UserError: If the file is damaged or of other classes, too many of its images are missing, or none is left.
    """
    name = str(data.pseudo_labels)
    found, probabilities = _read(name, class_names)
    labeled = {os.path.realpath(path) for path in paths}
    is_new = np.array([os.path.realpath(path) not in labeled for path in found])
    remarks = []
    if not is_new.all():
        images = count(int((~is_new).sum()), "image")
        remarks.append(f"{escape(name)}: {images} left out because the training images have labels for them.")
    _check_files(name, found, data.max_bad_fraction)
    rows = np.flatnonzero(is_new)
    chosen = rows[choose_rows(probabilities[rows], data.pseudo_confidence, data.pseudo_per_class)]
    if not len(chosen):
        raise UserError(
            f"{escape(name)}: no image is left. Of its {len(found):,} images, none is new and has a class with a "
            f"probability of at least data.pseudo_confidence={data.pseudo_confidence:g}."
        )
    without = sorted(set(range(len(class_names))) - set(probabilities[chosen].argmax(axis=1).tolist()))
    if without:
        remarks.append(
            f"{escape(name)}: {count(len(without), 'class has', 'classes have')} no image: "
            f"{show([class_names[number] for number in without])}."
        )
    different = len(set(chosen.tolist()))
    repeated = f", some of them several times, {len(chosen):,} in all" if different < len(chosen) else ""
    remarks.append(
        f"{escape(name)}: {different:,} of {len(found):,} images are added to {len(paths):,} with labels{repeated}."
    )
    known = np.eye(len(class_names), dtype=np.float32)[labels]
    return [*paths, *(found[row] for row in chosen)], np.concatenate([known, probabilities[chosen]]), remarks


def choose_rows(probabilities: np.ndarray, confidence: float, per_class: int | None) -> np.ndarray:
    """Return the images to train on.

    Args:
        probabilities: Of each class, float32 [N, classes].
        confidence: Images whose most likely class has a lower probability are left out, from 0 to 1.
        per_class: How many images of each class to take, or None for all: those with the highest probability. If there
            are fewer, they are repeated.

    Returns:
        Rows, int64 [M].

    Source: Xie et al., "Self-training with Noisy Student improves ImageNet classification", 2020, section 4.1:
    confidence 0.3 and 130,000 images of each class.
    Deviates: They repeat images at random. Here each is repeated equally often, or once more.
    """
    classes, highest = probabilities.argmax(axis=1), probabilities.max(axis=1)
    rows = np.flatnonzero(highest >= confidence)
    if per_class is None:
        return rows
    chosen = [np.zeros(0, np.int64)]
    for number in range(probabilities.shape[1]):
        of_class = rows[classes[rows] == number]
        of_class = of_class[np.argsort(-highest[of_class], kind="stable")]
        if len(of_class):
            chosen.append(np.resize(of_class, per_class))
    return np.concatenate(chosen)


def _read(name, class_names):
    """Return the paths and the probabilities, float32 [N, classes], in the order of `class_names`."""
    file = open_parquet(name)
    notes = file.schema_arrow.metadata or {}
    try:
        names = json.loads(notes[CLASS_NAMES.encode()])
        missing = [column for column in COLUMNS if column not in file.schema_arrow.names]
        if missing or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("another layout")
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{escape(name)} is not a file that `predict --soft` writes.") from None
    if sorted(names) != sorted(class_names):
        odd = sorted(set(names) ^ set(class_names))
        raise UserError(
            f"{escape(name)} has other classes than the training images. Only one of the two has {show(odd)}."
        )
    paths = read_column(file, "path", name).to_pylist()
    lists = read_column(file, "probabilities", name).to_pylist()
    if not all(isinstance(path, str) and path for path in paths) or not paths:
        raise UserError(f"{escape(name)} has a row without a path, or no row.")
    for path in paths:
        if "\0" in path:
            check_path(f"{escape(name)}: path", path)
    try:
        probabilities = np.array(lists, np.float32)
        is_valid = probabilities.shape == (len(paths), len(names))
        is_valid = is_valid and bool(
            (abs(probabilities.sum(axis=1) - 1) < _TOLERANCE).all() and probabilities.min() >= 0
        )
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise UserError(
            f"{escape(name)}: each row must have {len(names)} probabilities with a sum of 1, one for each class."
        )
    return paths, probabilities[:, [names.index(wanted) for wanted in class_names]]


def _check_files(name, paths, max_bad_fraction):
    """Raise UserError if too many images are missing."""
    missing = [path for path in paths if not is_remote(path) and not os.path.isfile(path)]
    if len(missing) > max_bad_fraction * len(paths):
        raise UserError(
            f"{escape(name)}: {len(missing):,} of {len(paths):,} images are missing, for example {escape(missing[0])}."
        )

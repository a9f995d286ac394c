"""Open the dataset that a configuration names."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.arrays import list_arrays
from efficientnet_tf.data.cache import cache_in_memory, cache_on_disk
from efficientnet_tf.data.containers import open_parquet_source, open_webdataset
from efficientnet_tf.data.folders import open_files
from efficientnet_tf.data.listing import check_classes, check_split, check_task
from efficientnet_tf.data.sampling import balance_classes
from efficientnet_tf.data.source import (
    Order,
    Source,
    source_from_bytes,
    source_from_pixels,
)
from efficientnet_tf.data.tfrecord import open_records, open_tfds

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

__all__ = ["Order", "Source", "open_source", "open_splits"]

_logger = logging.getLogger(__name__)


def open_source(data: DataConfig, split: str, training: bool) -> Source:
    """Open a split of the configured dataset.

    Args:
        data: The section `data` of the configuration.
        split: Name of the split.
        training: Which part of a folder to open if `data.val_fraction` is set, and whether `data.sampling` and
            `data.weight_column` apply.

    Returns:
        A source with at least two classes and one image.

    Raises:
        UserError: If the dataset is missing, empty or malformed, or if it has only one class.
    """
    check_task(data)
    if not training:
        data = data.model_copy(update={"weight_column": None})
    kind, _, name = data.source.partition(":")
    if kind == "digits":
        source = _open_digits(split)
    elif kind == "synthetic":
        source = _make_synthetic(data, split)
    elif kind == "arrays":
        source = _open_arrays(data, split, training)
    elif kind in ("folder", "table"):
        source = open_files(data, split, training)
    elif kind == "records":
        source = open_records(data, split)
    elif kind == "parquet":
        source = open_parquet_source(data, split)
    elif kind == "webdataset":
        source = open_webdataset(data, split)
    else:
        source = open_tfds(name, data, split)
    check_classes(data, source.class_names)
    what = f"{data.source} {split}"
    if data.cache == "memory":
        source = cache_in_memory(source, what)
    elif data.cache != "none":
        source = cache_on_disk(source, what, os.path.join(data.cache, split))
    return balance_classes(source, data.source) if training and data.sampling == "balanced" else source


def open_splits(data: DataConfig) -> tuple[Source, Source]:
    """Open the training and the evaluation split, and check that they have the same classes, labels or numbers.

    Raises:
        UserError: As `open_source`, or if they are different.
    """
    train = open_source(data, data.train_split, training=True)
    evaluation = open_source(data, data.eval_split, training=False)
    if evaluation.class_names != train.class_names:
        raise UserError("The training and the evaluation split have different classes.")
    return train, evaluation


def _open_digits(split):
    """Open scikit-learn's 1,797 handwritten digits of 8x8 pixels, split into 1,437 and 360 with equal class shares."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_split(split, ["train", "test"], "data.source=digits")
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    chosen = train if split == "train" else test
    pixels = np.round(images[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return source_from_pixels(pixels, labels[chosen], [str(digit) for digit in range(10)], f"digit {split}")


def _open_arrays(data, split, training):
    """Open the images and labels of a split that `arrays.list_arrays` lists. All of its pixels are kept in memory."""
    listing = list_arrays(data, split, training)
    for remark in listing.remarks:
        _logger.warning("%s", remark)
    rows, name = listing.rows, listing.images.name
    pixels = listing.images.read()
    if len(rows) < len(pixels):
        pixels = pixels[rows]
    pixels = pixels.reshape(*pixels.shape[:3], -1)
    digest = hashlib.sha256("\n".join(listing.class_names).encode())
    digest.update(listing.labels.tobytes())
    digest.update(pixels.data)
    source = source_from_pixels(pixels, listing.labels, listing.class_names, name)
    return dataclasses.replace(
        source, describe=lambda index: f"{name}, image {rows[index]}", fingerprint=digest.hexdigest()
    )


def _make_synthetic(data, split):
    """Make JPEG images of 64x64 pixels: noise around a color that depends on the class. They are easy to learn."""
    check_split(split, ["train", "val"], "data.source=synthetic")
    rng = np.random.default_rng(0 if split == "train" else 1)
    classes, count = data.synthetic_classes, data.synthetic_examples
    labels = np.arange(count) % classes
    colors = np.random.default_rng(2).uniform(64, 192, (classes, 1, 1, 3))
    noise = rng.normal(0, 32, (count, 64, 64, 3))
    images = np.clip(colors[labels] + noise, 0, 255).astype(np.uint8)
    encoded = [tf.io.encode_jpeg(image).numpy() for image in images]
    return source_from_bytes(encoded, labels, [f"class{i}" for i in range(classes)], f"synthetic {split}")

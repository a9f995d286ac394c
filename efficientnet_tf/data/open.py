"""Where images come from: every kind of data set, opened by what `data.source` says."""

import os

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.folders import open_folder, open_table
from efficientnet_tf.data.source import Order, Source, cache_in_memory, cache_on_disk, check_split, source_from_bytes
from efficientnet_tf.data.tfrecord import open_records, open_tfds

__all__ = ["Order", "Source", "open_source"]


def open_source(data, split, training):
    """Open a split of the configured data set.

    Args:
        data: schema.DataConfig.
        split: str, the split's name.
        training: bool; with `data.val_fraction` it tells the two parts of a folder apart.

    Returns:
        A Source with at least two classes and one example.

    Raises:
        UserError: for data that is not there, is empty, or has one class only.
    """
    kind, _, name = data.source.partition(":")
    if kind == "digits":
        source = _digits(split)
    elif kind == "synthetic":
        source = _synthetic(data, split)
    elif kind == "folder":
        source = open_folder(data, split, training)
    elif kind == "table":
        source = open_table(data, split)
    elif kind == "records":
        source = open_records(data, split)
    else:
        source = open_tfds(name, data, split)
    if len(source.class_names) < 2:
        raise UserError(
            f"data.source={data.source}: found one class only, {source.class_names[0]!r}; "
            "a classifier needs two or more"
        )
    what = f"{data.source} {split}"
    if data.cache == "none":
        return source
    return (
        cache_in_memory(source, what)
        if data.cache == "memory"
        else cache_on_disk(source, what, os.path.join(data.cache, split))
    )


def _digits(split):
    """1,797 handwritten digits, 8x8 pixels, shipped with scikit-learn: 1,437 to train on, 360 to test, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_split(split, ["train", "test"], "data.source=digits")
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    chosen = train if split == "train" else test
    pixels = np.round(images[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    encoded = [tf.io.encode_png(image).numpy() for image in pixels]
    return source_from_bytes(encoded, labels[chosen], [str(digit) for digit in range(10)], f"digit {split}")


def _synthetic(data, split):
    """Noise of 64x64 pixels around a colour that tells the class: learnable, made in a moment, JPEG like photos."""
    check_split(split, ["train", "val"], "data.source=synthetic")
    rng = np.random.default_rng(0 if split == "train" else 1)
    classes, count = data.synthetic_classes, data.synthetic_examples
    labels = np.arange(count) % classes
    colours = np.random.default_rng(2).uniform(64, 192, (classes, 1, 1, 3))
    noise = rng.normal(0, 32, (count, 64, 64, 3))
    images = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)
    encoded = [tf.io.encode_jpeg(image).numpy() for image in images]
    return source_from_bytes(encoded, labels, [f"class{i}" for i in range(classes)], f"synthetic {split}")

"""Random orders that are computed by index, so that they can be entered anywhere."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def shuffle_index(index: tf.Tensor, size: int | tf.Tensor, seed: Sequence[int | tf.Tensor]) -> tf.Tensor:
    """Return the image at a place of a random order of `size` images, int64 scalar.

    Args:
        index: The place, int64 scalar in [0, size).
        size: Number of images.
        seed: Two integers that determine the order.
    """
    # The shuffle uses a few low bits of its key, only 8 for small sizes. Mix the seed into all bits.
    bounds: Any = {"minval": None, "maxval": None}  # all integers
    whole = tf.stack([tf.cast(part, tf.int64) for part in seed])
    key = tf.random.stateless_uniform([2], whole, dtype=tf.int32, **bounds)
    last = tf.cast(size, tf.int64) - 1
    return tf.random.experimental.index_shuffle(index, seed=key, max_index=last)  # pyright: ignore[reportAttributeAccessIssue]

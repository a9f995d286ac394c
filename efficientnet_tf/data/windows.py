"""Choose the window of an image that evaluation or training uses, before the image is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import AugmentConfig


def whole_window(shape: tf.Tensor) -> tf.Tensor:
    """Return the window of a whole image of a shape, int32 [3], as (y, x, height, width), int32 [4]."""
    return tf.stack([0, 0, shape[0], shape[1]])


def center_window(shape: tf.Tensor, image_size: int, padding: int) -> tf.Tensor:
    """Return the evaluation crop: a centered square.

    Args:
        shape: Height, width and channels of the image, int32 [3].
        image_size: Side of the network's input in pixels.
        padding: The crop covers image_size / (image_size + padding) of the shorter side, >= 0.

    Returns:
        The window (y, x, height, width) in pixels, int32 [4].

    Source: official code, `_decode_and_center_crop`. The fraction is 0.875 for 224 pixels and a padding of 32.
    """
    height, width = shape[0], shape[1]
    # Integers only: a float product can fall just short of an integer and make the crop one pixel too small.
    side = tf.maximum(tf.minimum(height, width) * image_size // (image_size + padding), 1)
    return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def random_window(shape: tf.Tensor, seed: tf.Tensor, augment: AugmentConfig, fallback: tf.Tensor) -> tf.Tensor:
    """Return a training crop of random area and aspect ratio, or `fallback` after ten failed attempts.

    Args:
        shape: Height, width and channels of the image, int32 [3].
        seed: int64 [2].
        augment: The ranges of the area and of the aspect ratio.
        fallback: A window, int32 [4].

    Returns:
        The window (y, x, height, width) in pixels, int32 [4].

    Source: official code, `distorted_bounding_box_crop` with the whole image as the object.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=augment.crop_aspect,
        area_range=augment.crop_area,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    failed = tf.reduce_all(size[:2] == shape[:2])  # In this case the operation returns the whole image.
    return tf.where(failed & (augment.crop_area[0] < 1), fallback, window)

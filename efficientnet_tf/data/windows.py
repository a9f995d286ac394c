"""Choose the window of an image that evaluation or training uses, before the image is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import AugmentConfig


def whole_window(shape: tf.Tensor) -> tf.Tensor:
    """Return the window of a whole image of a shape, int32 [3], as (y, x, height, width), int32 [4]."""
    return tf.stack([0, 0, shape[0], shape[1]])


def center_window(shape: tf.Tensor, image_shape: Sequence[int], padding: int) -> tf.Tensor:
    """Return the evaluation crop, which is in the center.

    If the image were resized until it just covers H + padding rows and W + padding columns, the crop would be the
    central H x W pixels. For squares, it covers H / (H + padding) of the shorter side.

    Args:
        shape: Height, width and channels of the image, int32 [3].
        image_shape: Height H and width W of the network's input in pixels.
        padding: Pixels that the crop leaves out of each side at the size of the network's input, >= 0.

    Returns:
        The window (y, x, height, width) in pixels, int32 [4].

    Source: official code, `_decode_and_center_crop`, which has squares only. The fraction is 0.875 for 224 pixels and a
    padding of 32.
    """
    height, width = tf.unstack(tf.cast(shape[:2], tf.int64))  # Products of long sides do not fit in 32 bits.
    covered = [side + padding for side in image_shape]
    height_decides = height * covered[1] <= width * covered[0]
    side, whole = tf.where(height_decides, height, width), tf.where(height_decides, covered[0], covered[1])
    # Integers only: a float product can fall just short of an integer and make the crop one pixel too small.
    rows, columns = (tf.maximum(each * side // tf.cast(whole, tf.int64), 1) for each in image_shape)
    return tf.cast(tf.stack([(height - rows + 1) // 2, (width - columns + 1) // 2, rows, columns]), tf.int32)


def random_window(
    shape: tf.Tensor, seed: tf.Tensor, augment: AugmentConfig, fallback: tf.Tensor, aspect: float = 1.0
) -> tf.Tensor:
    """Return a training crop of random area and aspect ratio, or `fallback` after ten failed attempts.

    Args:
        shape: Height, width and channels of the image, int32 [3].
        seed: int64 [2].
        augment: The ranges of the area and of the aspect ratio.
        fallback: A window, int32 [4].
        aspect: Width of the network's input divided by its height. The aspect ratio of a crop is in the range of
            `augment` times this, so that objects are not distorted more than with squares.

    Returns:
        The window (y, x, height, width) in pixels, int32 [4].

    Source: official code, `distorted_bounding_box_crop` with the whole image as the object.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=[aspect * bound for bound in augment.crop_aspect],
        area_range=augment.crop_area,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    failed = tf.reduce_all(size[:2] == shape[:2])  # In this case the operation returns the whole image.
    return tf.where(failed & (augment.crop_area[0] < 1), fallback, window)

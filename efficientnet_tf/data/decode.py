"""Decode the part of an image that a crop needs. Of a JPEG, nothing else is decoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import AugmentConfig

_EXIF_SEGMENTS = 3  # how many segments of a JPEG are searched for Exif data
_ORIENTATION_TAG = 0x0112


def decode_center_crop(
    encoded: tf.Tensor, image_size: int, channels: int, crop_padding: int, interpolation: str
) -> tf.Tensor:
    """Decode the center crop of an image and resize it, as for evaluation.

    Args:
        encoded: Bytes of an image file, string scalar.
        image_size: Side S of the result in pixels.
        channels: 1 or 3.
        crop_padding: The crop covers image_size / (image_size + crop_padding) of the shorter side.
        interpolation: "bicubic" or "bilinear".

    Returns:
        float32 [S, S, channels], in about [0, 255]. Bicubic interpolation overshoots this range at edges.

    Source: official code, `preprocess_for_eval`.
    """
    image = decode_window(encoded, channels, lambda shape: center_window(shape, image_size, crop_padding))
    image = tf.image.resize(image, [image_size, image_size], interpolation)
    return tf.ensure_shape(image, [image_size, image_size, channels])


def decode_window(encoded: tf.Tensor, channels: int, choose_window: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Decode the window of an image that `choose_window` returns.

    Args:
        encoded: Bytes of a JPEG, PNG, BMP, GIF (first frame) or, since TensorFlow 2.20, WebP file, string scalar.
        channels: 1 or 3. Gray, palette, CMYK and 16-bit images are converted. Transparency is ignored.
        choose_window: Function of the shape of the upright image, int32 [3], that returns a window (y, x, height,
            width), int32 [4].

    Returns:
        uint8 [height, width, channels]. A JPEG is rotated as its Exif orientation says.
    """

    def decode_other():
        with tf.control_dependencies([check_bitmap(encoded)]):
            image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        y, x, height, width = tf.unstack(choose_window(tf.shape(image)))
        return image[y : y + height, x : x + width]

    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    image = tf.cond(is_jpeg, lambda: _decode_jpeg_window(encoded, choose_window), decode_other)
    image = tf.ensure_shape(image, [None, None, 3])
    return tf.image.rgb_to_grayscale(image) if channels == 1 else image  # Not every decoder can return gray.


def _decode_jpeg_window(encoded, choose_window):
    """Decode a window of a JPEG, uint8 [height, width, 3]."""
    orientation = _read_exif_orientation(encoded)
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    transposed = orientation >= 5
    stored_shape = tf.io.extract_jpeg_shape(encoded)
    upright_shape = tf.where(transposed, tf.gather(stored_shape, [1, 0, 2]), stored_shape)
    height, width, depth = tf.unstack(upright_shape)
    y, x, tall, wide = tf.unstack(choose_window(tf.stack([height, width, depth])))
    y, x = tf.where(upside_down, height - y - tall, y), tf.where(mirrored, width - x - wide, x)
    window = tf.stack([y, x, tall, wide])
    window = tf.where(transposed, tf.gather(window, [1, 0, 3, 2]), window)
    # TensorFlow's default method differs from other decoders by up to 9 gray levels, this one by 0. Both are equally
    # fast, within 1%.
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_ACCURATE")

    def turn_upright():
        turned = tf.cond(transposed, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        turned = tf.cond(mirrored, lambda: turned[:, ::-1], lambda: turned)
        return tf.cond(upside_down, lambda: turned[::-1], lambda: turned)

    return tf.cond(orientation > 1, turn_upright, lambda: image)


def _read_exif_orientation(encoded):
    """Return the Exif orientation of a JPEG, int32 scalar from 1 (upright, or not recorded) to 8."""
    length = tf.strings.length(encoded)

    def segment_length(position):
        position = tf.clip_by_value(position, 0, length - 2)  # A broken header may point anywhere.
        two = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, position, 2), tf.uint8), tf.int32)
        return two[0] * 256 + two[1]

    position, exif = tf.constant(2), tf.constant(-1)
    for _ in range(_EXIF_SEGMENTS):
        is_exif = tf.strings.substr(encoded, tf.minimum(position + 4, length), 6) == b"Exif\0\0"
        exif = tf.where((exif < 0) & is_exif, position + 10, exif)
        position += 2 + segment_length(position + 2)
    return tf.cond(exif > 0, lambda: _parse_exif_orientation(encoded, exif), lambda: tf.constant(1))


def _parse_exif_orientation(encoded, start):
    """Return the orientation in the Exif data at position `start`, int32 scalar. It is 1 if the data are invalid."""
    header = tf.io.decode_raw(tf.strings.substr(encoded, start, 2**16) + b"\0", tf.uint8)
    little_endian = header[0] == 0x49  # "II" for Intel, otherwise "MM" for Motorola

    def read_shorts(positions):
        last = tf.size(header) - 1
        first, second = (tf.cast(tf.gather(header, tf.clip_by_value(positions + k, 0, last)), tf.int32) for k in (0, 1))
        return tf.where(little_endian, second * 256 + first, first * 256 + second)

    # The position of the directory has four bytes. The upper two must be zero.
    directory, upper_half = read_shorts(tf.where(little_endian, 4, 6)), read_shorts(tf.where(little_endian, 6, 4))
    entries = directory + 2 + 12 * tf.range(tf.minimum(read_shorts(directory), 64))
    values = tf.boolean_mask(read_shorts(entries + 8), read_shorts(entries) == _ORIENTATION_TAG)
    value = tf.reduce_max(tf.concat([values[:1], [1]], axis=0))
    return tf.where((value >= 1) & (value <= 8) & (upper_half == 0), value, 1)


def check_bitmap(encoded: tf.Tensor | bytes) -> tf.Operation:
    """Fail for a BMP with a palette or compression. TensorFlow supports neither, and would decode it to wrong pixels.

    Args:
        encoded: Bytes of an image file of any format, string scalar.

    Returns:
        An operation that raises `tf.errors.InvalidArgumentError` for such a file.
    """

    def check():
        header = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, 34), tf.uint8), tf.int32)
        depth, is_uncompressed = header[28], tf.reduce_all(header[30:34] == 0)
        # The palette is between the headers and the pixels, four bytes per color: blue, green, red, zero.
        first, end = 14 + header[14], header[10] + 256 * header[11]
        size = tf.where(depth == 8, tf.clip_by_value(end - first, 0, 1024) // 4 * 4, 0)
        palette = tf.io.decode_raw(tf.strings.substr(encoded, first, size), tf.uint8)
        levels = tf.cast(tf.reshape(palette, [-1, 4])[:, :3], tf.int32)
        is_gray = tf.reduce_all(levels == tf.range(size // 4)[:, None])
        return tf.debugging.Assert(
            is_uncompressed & is_gray, ["a BMP with a palette or compression cannot be read, convert it to PNG"]
        )

    return tf.cond(tf.strings.substr(encoded, 0, 2) == b"BM", check, tf.no_op)


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

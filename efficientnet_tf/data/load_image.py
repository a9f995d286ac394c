"""Load single image files as the pixels that a network gets in evaluation."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

import tensorflow as tf

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.data.decode import decode_center_crop

if TYPE_CHECKING:
    import numpy as np

_INTERPOLATIONS = ("bicubic", "bilinear")


def load_image(
    source: str | os.PathLike[str] | bytes,
    image_size: int = 224,
    *,
    channels: int = 3,
    crop_padding: int = 32,
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Load an image as the pixels that a network gets in evaluation: the center crop, resized.

    Args:
        source: Path of an image file, local or gs://, or the bytes of an image file. JPEG, PNG, BMP, GIF (first frame)
            and, since TensorFlow 2.20, WebP are supported.
        image_size: Side S of the network's input in pixels.
        channels: 3 for color, 1 for gray.
        crop_padding: The crop covers image_size / (image_size + crop_padding) of the shorter side.
        interpolation: "bicubic" or "bilinear".

    Returns:
        float32 [S, S, channels], in about [0, 255]. Bicubic interpolation overshoots this range at edges. Normalization
        is part of the network.

    Raises:
        UserError: If the file cannot be read or decoded, or if an argument is out of range.

    Example:
        >>> import tensorflow as tf
        >>> from efficientnet_tf import load_image
        >>> encoded = tf.io.encode_png(tf.zeros([300, 400, 3], tf.uint8)).numpy()
        >>> load_image(encoded, image_size=224).shape
        (224, 224, 3)
    """
    _check_arguments(image_size, channels, crop_padding, interpolation)
    if isinstance(source, bytes):
        encoded, name = source, f"source (image of {len(source)} bytes)"
    else:
        name = os.fspath(source)
        encoded = _read_bytes(name)
    try:
        return _make_decoder(image_size, channels, crop_padding, interpolation)(encoded).numpy()
    except tf.errors.OpError as error:
        raise UserError(f"{name} cannot be decoded: {shorten_error(error)}") from None


def shorten_error(error: tf.errors.OpError) -> str:
    """Return the reason from a TensorFlow error message, without its locations in the code and the graph."""
    lines = error.message.partition("\n\t [[")[0].splitlines()
    return lines[-1] if lines else type(error).__name__


def _check_arguments(image_size, channels, crop_padding, interpolation):
    if image_size < 1:
        raise UserError(f"image_size={image_size} is not positive. Use the image size of the network, for example 224.")
    if channels not in (1, 3):
        raise UserError(f"channels={channels} is not supported. Use 3 for color or 1 for gray.")
    if crop_padding < 0:
        raise UserError(f"crop_padding={crop_padding} is negative. Use 0 for the largest crop.")
    if interpolation not in _INTERPOLATIONS:
        hint = suggest(interpolation, _INTERPOLATIONS)
        raise UserError(f"interpolation={interpolation!r} is not one of {', '.join(_INTERPOLATIONS)}.{hint}")


def _read_bytes(path):
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.NotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except tf.errors.OpError as error:
        raise UserError(f"{path} cannot be read: {shorten_error(error)}") from None


@functools.lru_cache(maxsize=32)
def _make_decoder(image_size, channels, crop_padding, interpolation):
    """Return a traced function of the bytes of an image file. It is cached because tracing takes most of the time."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(encoded):
        return decode_center_crop(encoded, image_size, channels, crop_padding, interpolation)

    return decode

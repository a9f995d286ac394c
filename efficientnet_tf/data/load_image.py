"""Load single image files as the pixels that a network gets in evaluation."""

from __future__ import annotations

import functools
import itertools
import numbers
import os
import threading
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.schema import default_crop_padding
from efficientnet_tf.config.text import escape
from efficientnet_tf.data import evaluation_crop
from efficientnet_tf.data.image_formats import LARGEST_FILE_BYTES, find_cause
from efficientnet_tf.data.pillow_decoder import explain_failure
from efficientnet_tf.runtime.files import check_path, read_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

_INTERPOLATIONS = ("bicubic", "bilinear")
_LARGEST_SIDE = 2**13  # pixels. The result then has 800 MB.
_FEW_IMAGES = 8  # Up to this many images, decoding without a graph is faster than tracing one.
_lock = threading.Lock()


def load_image(
    source: str | os.PathLike[str] | bytes,
    image_size: int = 224,
    *,
    channels: int = 3,
    crop_padding: int | None = None,
    interpolation: str = "bicubic",
    background: Sequence[int] = (255,),
) -> np.ndarray:
    """Load an image as the pixels that a network gets in evaluation: the center crop, resized.

    Args:
        source: Path of an image file, local or gs://, or the bytes of an image file. JPEG, PNG, BMP, GIF (first frame),
            WebP (first frame) and TIFF (first page) are supported; TIFF and a few other forms need Pillow.
        image_size: Side S of the network's input in pixels.
        channels: 3 for color, 1 for gray.
        crop_padding: The crop covers image_size / (image_size + crop_padding) of the shorter side. The default is 32,
            or a seventh of the image size below 224 pixels.
        interpolation: "bicubic" or "bilinear".
        background: Color behind transparent pixels, in [0, 255]: one gray level, or red, green and blue.

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
    return _load(_decode_by_tensorflow, source, image_size, channels, crop_padding, interpolation, background)


def load_image_by_pillow(
    source: str | os.PathLike[str] | bytes,
    image_size: int,
    *,
    channels: int,
    crop_padding: int,
    interpolation: str,
    background: Sequence[int],
) -> np.ndarray:
    """Return what `load_image` does, up to the differences that `evaluation_crop` lists, without importing TensorFlow.

    Pillow must be installed. Arguments and errors are those of `load_image`.
    """
    return _load(_decode_by_pillow, source, image_size, channels, crop_padding, interpolation, background)


def _load(decode, source, image_size, channels, crop_padding, interpolation, background):
    """Check the arguments of `load_image`, read the file and decode it."""
    _check_arguments(image_size, channels, crop_padding, interpolation, background)
    if crop_padding is None:
        crop_padding = default_crop_padding(image_size)
    if isinstance(source, bytes | bytearray | memoryview):
        encoded = bytes(source)
        name = f"The image of {len(encoded):,} bytes"
    elif isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        check_path("source", path)
        encoded, name = read_bytes(path, LARGEST_FILE_BYTES), escape(path)
    else:
        raise UserError(
            f"source is of type {type(source).__name__}. Pass the path of an image file, or its content as bytes."
        )
    settings = int(image_size), channels, int(crop_padding), interpolation, tuple(map(int, background))
    try:
        return decode(encoded, settings)
    except UserError as error:
        raise UserError(f"{name} cannot be decoded: {error}.") from None


def _decode_by_tensorflow(encoded, settings):
    import tensorflow as tf

    with _lock:  # Otherwise several threads that begin at the same time would all trace the same decoder.
        decode = _make_decoder(*settings) if next(_count(*settings)) >= _FEW_IMAGES else _make_eager_decoder(*settings)
    try:
        return decode(encoded).numpy()
    except (tf.errors.OpError, UnicodeDecodeError):  # the latter for an error that quotes the file
        raise UserError(explain_failure(encoded)) from None


def _decode_by_pillow(encoded, settings):
    try:
        return evaluation_crop.decode_center_crop(encoded, *settings)
    except (UserError, MemoryError):
        raise
    except Exception:  # Pillow has many types for damaged files.
        raise UserError(find_cause(encoded)) from None


def _check_arguments(image_size, channels, crop_padding, interpolation, background):
    crop_padding = 0 if crop_padding is None else crop_padding  # The default is always allowed.
    for name, value in (("image_size", image_size), ("crop_padding", crop_padding)):
        if not isinstance(value, numbers.Integral):
            raise UserError(f"{name}={value!r} is not a whole number.")
    if not 1 <= image_size <= _LARGEST_SIDE:
        raise UserError(
            f"image_size={image_size} is not between 1 and {_LARGEST_SIDE:,}. Use the image size of the network, for "
            "example 224."
        )
    levels = np.asarray(background)
    if levels.shape not in ((1,), (3,)) or levels.dtype.kind not in "iu" or levels.min() < 0 or levels.max() > 255:
        raise UserError(f"background={background!r} is not a list of one or three levels from 0 to 255.")
    if channels not in (1, 3):
        raise UserError(f"channels={channels} is not supported. Use 3 for color or 1 for gray.")
    if crop_padding < 0:
        raise UserError(f"crop_padding={crop_padding} is negative. Use 0 for the largest crop.")
    if interpolation not in _INTERPOLATIONS:
        hint = suggest(interpolation, _INTERPOLATIONS)
        raise UserError(f"interpolation={interpolation!r} is not one of {', '.join(_INTERPOLATIONS)}.{hint}")


@functools.lru_cache(maxsize=32)
def _count(*settings):
    """Return the counter of the images that were decoded with the same settings."""
    return itertools.count()


@functools.lru_cache(maxsize=32)
def _make_decoder(*settings):
    """Return a traced function of the bytes of an image file. It is cached because tracing takes most of the time."""
    import tensorflow as tf

    signature = [tf.TensorSpec([], tf.string)]
    return tf.function(_make_eager_decoder(*settings), input_signature=signature, autograph=False)


def _make_eager_decoder(*settings):
    from efficientnet_tf.data.decode import decode_center_crop

    return lambda encoded: decode_center_crop(encoded, *settings)

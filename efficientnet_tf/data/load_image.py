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
from efficientnet_tf.config.fields import MOST_CHANNELS
from efficientnet_tf.config.image_size import ImageSize, as_shape
from efficientnet_tf.config.preprocessing import Preprocessing
from efficientnet_tf.config.schema import default_crop_padding
from efficientnet_tf.config.text import escape
from efficientnet_tf.data import evaluation_crop
from efficientnet_tf.data.image_formats import LARGEST_FILE_BYTES
from efficientnet_tf.data.pillow_decoder import explain_failure, find_cause_in_pillow
from efficientnet_tf.runtime.files import check_path, read_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

_CROPS = ("center", "squash", "pad")
_INTERPOLATIONS = ("bicubic", "bilinear")
_LARGEST_SIDE = 2**13  # pixels. The result then has 800 MB.
_FEW_IMAGES = 8  # Up to this many images, decoding without a graph is faster than tracing one.
_lock = threading.Lock()


def load_image(
    source: str | os.PathLike[str] | bytes,
    image_size: ImageSize = 224,
    *,
    channels: int = 3,
    crop: str = "center",
    crop_padding: int | None = None,
    interpolation: str = "bicubic",
    background: Sequence[int] = (255,),
) -> np.ndarray:
    """Load an image as the pixels that a network gets in evaluation: by default the center crop, resized.

    Args:
        source: Path of an image file, local or gs://, or the bytes of an image file. JPEG, PNG, BMP, GIF (first frame),
            WebP (first frame) and TIFF (first page) are supported; TIFF and a few other forms need Pillow.
        image_size: Size of the network's input in pixels: the side of a square, or height H and width W.
        channels: 3 for color, 1 for gray.
        crop: "center" for the center, "squash" for the whole image, which distorts it, or "pad" for the whole image
            with a border.
        crop_padding: The center crop covers image_size / (image_size + crop_padding) of the shorter side. If height and
            width differ, the image is resized until it covers both of them with crop_padding more pixels each, and the
            center is cut out of that. The default is 32, or a seventh of the shorter side below 224 pixels. Leave it
            out with other crops.
        interpolation: "bicubic" or "bilinear".
        background: Color behind transparent pixels and of the border, in [0, 255]: one gray level, or red, green and
            blue.

    Returns:
        float32 [H, W, channels], in about [0, 255]. Bicubic interpolation overshoots this range at edges. Normalization
        is part of the network.

    Raises:
        UserError: If the file cannot be read or decoded, or if an argument is out of range.

    Example:
        >>> import tensorflow as tf
        >>> from efficientnet_tf import load_image
        >>> encoded = tf.io.encode_png(tf.zeros([300, 400, 3], tf.uint8)).numpy()
        >>> load_image(encoded, image_size=224).shape
        (224, 224, 3)
        >>> load_image(encoded, image_size=(192, 320)).shape
        (192, 320, 3)
    """
    _check_arguments(image_size, channels, crop, crop_padding, interpolation, background)
    if crop_padding is None:
        crop_padding = default_crop_padding(image_size)
    (height, width), color = as_shape(image_size), tuple(map(int, background))
    shape = int(height), int(width)
    preprocessing = Preprocessing(shape, channels, crop, int(crop_padding), interpolation, color)
    return load_image_by_tensorflow(source, preprocessing)


def load_image_by_tensorflow(source: str | os.PathLike[str] | bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Load an image as the pixels that a network gets in evaluation. Result and errors are those of `load_image`."""
    return _load(_decode_by_tensorflow, source, preprocessing)


def load_image_by_pillow(source: str | os.PathLike[str] | bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Return what `load_image` does, up to the differences that `evaluation_crop` lists, without importing TensorFlow.

    Pillow must be installed. Errors are those of `load_image`.
    """
    return _load(_decode_by_pillow, source, preprocessing)


def _load(decode, source, preprocessing):
    """Read a file and decode it."""
    _check_size(preprocessing.image_shape)
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
    try:
        return decode(encoded, preprocessing)
    except UserError as error:
        raise UserError(f"{name} cannot be decoded: {error}.") from None


def _decode_by_tensorflow(encoded, preprocessing):
    import tensorflow as tf

    with _lock:  # Otherwise several threads that begin at the same time would all trace the same decoder.
        is_rare = next(_count(preprocessing)) < _FEW_IMAGES
        decode = (_make_eager_decoder if is_rare else _make_decoder)(preprocessing)
    try:
        return decode(encoded).numpy()
    except (tf.errors.OpError, UnicodeDecodeError):  # the latter for an error that quotes the file
        raise UserError(explain_failure(encoded, preprocessing.channels)) from None


def _decode_by_pillow(encoded, preprocessing):
    try:
        return evaluation_crop.decode_evaluation(encoded, preprocessing)
    except (UserError, MemoryError):
        raise
    except Exception:  # Pillow has many types for damaged files.
        raise UserError(find_cause_in_pillow(encoded)) from None


def _check_size(shape):
    for side in shape:
        if not 1 <= side <= _LARGEST_SIDE:
            raise UserError(
                f"image_size={side} is not between 1 and {_LARGEST_SIDE:,}. Use the image size of the network, for "
                "example 224."
            )


def _check_arguments(image_size, channels, crop, crop_padding, interpolation, background):
    padding = 0 if crop_padding is None else crop_padding  # The default is always allowed.
    sides = tuple(image_size) if isinstance(image_size, list | tuple) else (image_size,) * 2
    if len(sides) != 2 or not all(isinstance(side, numbers.Integral) for side in sides):
        raise UserError(f"image_size={image_size!r} is not a whole number, or a height and a width.")
    if not isinstance(padding, numbers.Integral):
        raise UserError(f"crop_padding={padding!r} is not a whole number.")
    _check_size(sides)
    levels = np.asarray(background)
    if levels.shape not in ((1,), (3,)) or levels.dtype.kind not in "iu" or levels.min() < 0 or levels.max() > 255:
        raise UserError(f"background={background!r} is not a list of one or three levels from 0 to 255.")
    if channels not in (1, *range(3, MOST_CHANNELS + 1)):
        raise UserError(
            f"channels={channels} is not supported. Use 3 for color, 1 for gray, or the number of channels of an image "
            f"that has from 4 to {MOST_CHANNELS}."
        )
    for name, value, allowed in (("crop", crop, _CROPS), ("interpolation", interpolation, _INTERPOLATIONS)):
        if value not in allowed:
            raise UserError(f"{name}={value!r} is not one of {', '.join(allowed)}.{suggest(value, allowed)}")
    if padding < 0:
        raise UserError(f"crop_padding={padding} is negative. Use 0 for the largest crop.")
    if crop_padding is not None and crop != "center":
        raise UserError(
            f"crop_padding={crop_padding} is only for crop='center', received crop={crop!r}, which uses the whole "
            "image. Leave crop_padding out."
        )


@functools.lru_cache(maxsize=32)
def _count(preprocessing):
    """Return the counter of the images that were decoded with the same settings."""
    return itertools.count()


@functools.lru_cache(maxsize=32)
def _make_decoder(preprocessing):
    """Return a traced function of the bytes of an image file. It is cached because tracing takes most of the time."""
    import tensorflow as tf

    signature = [tf.TensorSpec([], tf.string)]
    return tf.function(_make_eager_decoder(preprocessing), input_signature=signature, autograph=False)


def _make_eager_decoder(preprocessing):
    from efficientnet_tf.data.decode import decode_evaluation

    return lambda encoded: decode_evaluation(encoded, preprocessing)

"""Checks the arrays that users pass as images, because numbers in another range give wrong answers without an error."""

import itertools
import logging
import operator
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape

# Bicubic resizing leaves [0, 255] at edges, in two directions by at most (1.25**2 - 1) / 2 of the range.
_LOWEST, _HIGHEST = -72.0, 327.0
_LOGGER = logging.getLogger(__name__)
_warned: set[str] = set()


def check_pixels(argument: str, pixels: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return images as float32, or raise UserError if they cannot be pixels of a model.

    Args:
        argument: Name of the argument that holds the images, for error messages.
        pixels: An array or what NumPy makes an array of, uint8 or float, with values in [0, 255].
        shape: The expected shape. None in it means any number.

    Returns:
        The pixels, float32 of this shape.

    Raises:
        UserError: If the type, the shape or the values are wrong. A warning is logged, once in a process, if the values
            seem to be in [0, 1].
    """
    try:
        array = np.asarray(pixels)
    except Exception as error:  # of ragged lists, and of other libraries' arrays
        raise UserError(f"{argument} cannot be made an array: {escape(str(error))[:200]}.") from None
    if array.dtype.kind not in "uif" and array.dtype.name != "bfloat16":
        raise UserError(
            f"{argument} holds {_describe(pixels, array)}, which is no image. Pass pixels as uint8 or float in "
            "[0, 255], or the path or the bytes of an image file."
        )
    if array.ndim != len(shape) or any(s not in (None, a) for s, a in zip(shape, array.shape, strict=True)):
        raise UserError(_explain_shape(argument, array.shape, shape))
    array = array.astype(np.float32)
    if not array.size:
        return array
    lowest, highest = float(array.min()), float(array.max())
    if not np.isfinite([lowest, highest]).all():
        raise UserError(f"{argument} contains NaN or infinity. Pixels are numbers in [0, 255].")
    if lowest < _LOWEST or highest > _HIGHEST:
        raise UserError(
            f"{argument} has values from {lowest:.6g} to {highest:.6g}, but pixels are in [0, 255]. Scale the images, "
            "for example divide 16-bit images by 257."
        )
    if np.asarray(pixels).dtype.kind == "f" and lowest < highest and max(-lowest, highest) <= 4:
        _warn_once(
            "range",
            f"{argument} has values from {lowest:.3g} to {highest:.3g}. The model takes pixels in [0, 255] and "
            "normalizes them itself. Multiply images in [0, 1] by 255.",
        )
    return array


def batches(images: Any, batch_size: int) -> Iterator[list]:
    """Yield what `predict_images` takes as lists of at most `batch_size` images.

    Raises:
        UserError: If the argument holds no images.
    """
    if isinstance(images, str | bytes | bytearray | memoryview) or hasattr(images, "__fspath__"):
        images = [images]
    if isinstance(images, Mapping | Set) or not isinstance(images, Iterable):
        raise UserError(
            f"images is of type {type(images).__name__}. Pass a list of paths, of file contents or of arrays, or an "
            "array [N, H, W, C]."
        )
    iterator = iter(images)
    while batch := list(itertools.islice(iterator, min(batch_size, 2**31))):
        yield batch


def check_count(argument: str, value: Any) -> int:
    """Return a value as int, or raise UserError unless it is a whole number from 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool | np.bool_):
        raise UserError(f"{argument}={escape(str(value))[:100]} must be at least 1, and a whole number.")
    return number


def _describe(pixels, array):
    if array.dtype.kind in "OSU" and array.ndim == 0:
        return f"a value of type {type(pixels).__name__}"
    return {"O": "objects", "U": "text", "S": "bytes", "b": "bool", "c": "complex numbers"}.get(
        array.dtype.kind, f"values of type {array.dtype}"
    )


def _explain_shape(argument, received, expected):
    takes = [("N" if side is None else side) for side in expected]
    shown = f"[{', '.join(map(str, takes))}]"
    message = f"{argument} has an array of shape {list(received)}, but the model takes {shown}. "
    size, channels = expected[-2:]
    if len(received) >= 3 and tuple(received[-3:]) == (channels, size, size) and len(received) == len(expected):
        order = "1, 2, 0" if len(received) == 3 else "0, 2, 3, 1"
        return message + f"The channels come last: pass np.transpose({argument}, ({order}))."
    if len(received) == len(expected) - 1 and tuple(received) == tuple(expected[1:]):
        return message + f"Pass {argument}[None] for a single image."
    return message + "Pass the path or the bytes of an image file to have it cropped and resized, or use load_image."


def _warn_once(key, message):
    if key not in _warned:
        _warned.add(key)
        _LOGGER.warning("%s", message)

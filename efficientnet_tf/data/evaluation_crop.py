"""The center crop of evaluation without TensorFlow: Pillow decodes the image, and NumPy resizes it.

`decode.decode_center_crop` does the same in input pipelines. TensorFlow takes seconds to import, and a model that runs
without it does not need to wait for this. The pixels are equal, with two exceptions. In a JPEG with color at half the
size, the outermost columns of the crop differ by a few gray levels (at most 7 in photographs), because TensorFlow
decodes the crop alone, and libjpeg smooths colors less at its edges. In a CMYK JPEG, colors are rounded differently, by
one gray level.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from efficientnet_tf.data import pillow_decoder

_TABLE_SIZE = 1024  # steps between two pixels at which TensorFlow evaluates the cubic kernel
_CUBIC = -0.5  # the free parameter of the cubic kernel
_GRAY_WEIGHTS = np.array([0.2989, 0.587, 0.114], np.float32)
_ROWS = 256


def decode_center_crop(
    encoded: bytes,
    image_size: int,
    channels: int,
    crop_padding: int,
    interpolation: str,
    background: Sequence[int] = (255,),
) -> np.ndarray:
    """Decode the center crop of an image and resize it. Arguments and result are those of `decode.decode_center_crop`.

    Raises:
        UserError: If the file is no image or has too many pixels.
        Exception: If the file is damaged. Pillow has many types for this.
    """
    image = pillow_decoder.decode(encoded, tuple(background) * (3 if len(background) == 1 else 1))
    height, width = image.shape[:2]
    y, x, side, _ = center_window(height, width, image_size, crop_padding)
    image = image[y : y + side, x : x + side]
    if channels == 1:
        image = _to_gray(image)
    return resize(image, image_size, interpolation)


def center_window(height: int, width: int, image_size: int, padding: int) -> tuple[int, int, int, int]:
    """Return the evaluation crop (y, x, height, width) of an image, as `decode.center_window` does."""
    side = max(min(height, width) * image_size // (image_size + padding), 1)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def resize(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Resize an image as `tf.image.resize` does without antialiasing, with the same rounding.

    Pillow's own filters always smooth when they shrink an image, so they give other pixels.

    Args:
        image: uint8 or float32 [H, W, C].
        size: Side S of the result in pixels.
        interpolation: "bicubic" or "bilinear".

    Returns:
        float32 [S, S, C].
    """
    if interpolation == "bilinear":
        return _resize_bilinear(image, size)
    for axis in (0, 1):
        indices, weights = _cubic_taps(image.shape[axis], size)
        shape = [-1 if each == axis else 1 for each in range(3)]
        taps = zip(indices, weights, strict=True)
        # From the first to the last, in float32, because rounding depends on the order.
        image = functools.reduce(np.add, (image.take(index, axis) * weight.reshape(shape) for index, weight in taps))
    return image


def _resize_bilinear(image, size):
    """Interpolate along rows, then along columns."""
    for axis in (1, 0):
        where = _source_positions(image.shape[axis], size)
        first = np.floor(where)
        share = (where - first).reshape([-1 if each == axis else 1 for each in range(3)])
        last = image.shape[axis] - 1
        low = image.take(np.maximum(first, 0).astype(int), axis).astype(np.float32)
        high = image.take(np.minimum(np.ceil(where), last).astype(int), axis).astype(np.float32)
        image = low + (high - low) * share
    return image


def _source_positions(length, size):
    """Return where the centers of the new pixels are among the old ones, float32 [size]."""
    scale = np.float32(length) / np.float32(size)
    return (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)


def _cubic_taps(length, size):
    """Return which four old pixels each new pixel is made of, int [4, size], and their weights, float32 [4, size]."""
    where = _source_positions(length, size)
    start = np.floor(where)
    step = np.rint((where - start) * np.float32(_TABLE_SIZE)).astype(int)
    near, far = _cubic_kernel()
    weights = np.stack([far[step], near[step], near[_TABLE_SIZE - step], far[_TABLE_SIZE - step]])
    indices = start.astype(int) + np.arange(-1, 3)[:, None]
    bounded = np.clip(indices, 0, length - 1)
    weights[indices != bounded] = 0
    total = functools.reduce(np.add, weights)
    return bounded, weights * (1 / total)


@functools.cache
def _cubic_kernel():
    """Return the kernel at distances from 0 to 1 and from 1 to 2, float32 [1025] each.

    Source: Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711, equation 4.
    """
    near = np.arange(_TABLE_SIZE + 1) / _TABLE_SIZE
    far, a = near + 1, _CUBIC
    inner = ((a + 2) * near - (a + 3)) * near * near + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return inner.astype(np.float32), outer.astype(np.float32)


def _to_gray(image):
    """Return the gray levels of an image, uint8 [H, W, 1], as `tf.image.rgb_to_grayscale` computes them."""
    gray = np.empty([*image.shape[:2], 1], np.uint8)
    for top in range(0, len(image), _ROWS):  # in parts, because floats take four times the memory
        red, green, blue = np.moveaxis(image[top : top + _ROWS].astype(np.float32) * np.float32(1 / 255), -1, 0)
        levels = red * _GRAY_WEIGHTS[0] + green * _GRAY_WEIGHTS[1] + blue * _GRAY_WEIGHTS[2]
        gray[top : top + _ROWS, :, 0] = levels * np.float32(255.5)
    return gray

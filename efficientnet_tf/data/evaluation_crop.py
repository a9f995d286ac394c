"""The pixels that a network sees in evaluation without TensorFlow: Pillow decodes the image, and NumPy resizes it.

`decode.decode_evaluation` does the same in input pipelines. TensorFlow takes seconds to import, and a model that runs
without it does not need to wait for this. The pixels are equal, with two exceptions. In a JPEG with color at half the
size, the outermost columns of a center crop differ by a few gray levels (at most 7 in photographs), because TensorFlow
decodes the crop alone, and libjpeg smooths colors less at its edges. In a CMYK JPEG, colors are rounded differently, by
one gray level.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from efficientnet_tf.config.preprocessing import Preprocessing, as_rgb
from efficientnet_tf.data import pillow_decoder
from efficientnet_tf.data.stacks import decode_stack

_TABLE_SIZE = 1024  # steps between two pixels at which TensorFlow evaluates the cubic kernel
_CUBIC = -0.5  # the free parameter of the cubic kernel
_GRAY_WEIGHTS = np.array([0.2989, 0.587, 0.114], np.float32)
_ROWS = 256


def decode_evaluation(encoded: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Decode an image and bring it to a size. Arguments and result are those of `decode.decode_evaluation`.

    Raises:
        UserError: If the file is no image or has too many pixels.
        Exception: If the file is damaged. Pillow has many types for this.
    """
    shape, color = preprocessing.image_shape, as_rgb(preprocessing.background)
    if preprocessing.channels > 3:
        image, color = decode_stack(encoded, preprocessing.channels), color[:1] * preprocessing.channels
    else:
        image = pillow_decoder.decode(encoded, color)
    height, width = image.shape[:2]
    if preprocessing.crop == "center":
        y, x, rows, columns = center_window(height, width, shape, preprocessing.crop_padding)
        image = image[y : y + rows, x : x + columns]
    convert = _to_gray if preprocessing.channels == 1 else np.asarray
    image, level = convert(image), convert(np.array([[color]], np.uint8))
    if preprocessing.crop != "pad":
        return resize(image, *shape, preprocessing.interpolation)
    top, left, rows, columns = padded_window(height, width, shape)
    padded = np.empty([*shape, preprocessing.channels], np.float32)
    padded[:] = level
    padded[top : top + rows, left : left + columns] = resize(image, rows, columns, preprocessing.interpolation)
    return padded


def center_window(height: int, width: int, shape: Sequence[int], padding: int) -> tuple[int, int, int, int]:
    """Return the center crop (y, x, height, width) of an image, as `windows.center_window` does."""
    covered = [side + padding for side in shape]
    # The image is resized until it just covers this height and width, so one side decides.
    side, whole = (height, covered[0]) if height * covered[1] <= width * covered[0] else (width, covered[1])
    rows, columns = (max(each * side // whole, 1) for each in shape)
    return (height - rows + 1) // 2, (width - columns + 1) // 2, rows, columns


def padded_window(height: int, width: int, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return where a padded image is in its frame (y, x, height, width), as in `decode.pad`."""
    # The image is resized until one side, which decides, is that of the frame.
    side, whole = (width, shape[1]) if height * shape[1] <= width * shape[0] else (height, shape[0])
    rows, columns = (max((each * whole + side // 2) // side, 1) for each in (height, width))
    return (shape[0] - rows) // 2, (shape[1] - columns) // 2, rows, columns


def resize(image: np.ndarray, rows: int, columns: int, interpolation: str) -> np.ndarray:
    """Resize an image as `tf.image.resize` does without antialiasing, with the same rounding.

    Pillow's own filters always smooth when they shrink an image, so they give other pixels.

    Args:
        image: uint8 or float32 [H, W, C].
        rows: Height R of the result in pixels.
        columns: Width S of the result in pixels.
        interpolation: "bicubic" or "bilinear".

    Returns:
        float32 [R, S, C].
    """
    is_cubic = interpolation == "bicubic"
    taps = []
    for axis, size in enumerate((rows, columns)):
        indices, weights = (_cubic_taps if is_cubic else _linear_taps)(image.shape[axis], size)
        used, places = np.unique(indices, return_inverse=True)
        image = image.take(used, axis)  # Otherwise an image of one row or column could take any amount of memory.
        taps.append((places.reshape(indices.shape), weights.reshape([len(weights), *_column(axis)])))
    if is_cubic:
        for axis, (indices, weights) in enumerate(taps):
            # From the first to the last, in float32, because rounding depends on the order.
            parts = (image.take(index, axis) * weight for index, weight in zip(indices, weights, strict=True))
            image = functools.reduce(np.add, parts)
        return image
    for axis in (1, 0):
        (low, high), [share] = taps[axis]
        first, second = (image.take(index, axis).astype(np.float32) for index in (low, high))
        image = first + (second - first) * share
    return image


def _column(axis):
    return [-1 if each == axis else 1 for each in range(3)]


def _linear_taps(length, size):
    """Return which two old pixels each new pixel is between, int [2, size], and the share of the second, [1, size]."""
    where = _source_positions(length, size)
    first = np.floor(where)
    indices = np.stack([np.maximum(first, 0), np.minimum(np.ceil(where), length - 1)])
    return indices.astype(int), (where - first)[None]


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

"""Image operations with exactly the results of Pillow, on uint8 tensors [H, W, C].

Elementwise work is compiled for the CPU by XLA, two to six times faster than separate TensorFlow kernels. If this build
of TensorFlow has no such compiler, the results are the same.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from efficientnet_tf.ops.xla import compile_for_cpu

FILL = 128  # gray value of areas that an operation uncovers


# ---------------------------------------------------------------------------------------------------- elementwise


def _rows(image):
    """Reshape an image to [H, W * C]. Loops over a last axis of 1 or 3 would be slow."""
    return tf.reshape(image, [tf.shape(image)[0], -1])


def _bins(image):
    """Return 256 c + v for each value v of channel c, int32 [H, W * C], so that every channel has its own bins."""
    return tf.cast(_rows(image), tf.int32) + tf.tile(256 * tf.range(image.shape[-1]), tf.shape(image)[1:2])


@compile_for_cpu
def _look_up(image, table):
    """Replace each value v of channel c by table[c, v]. The table is uint8 [C, 256]."""
    return tf.reshape(tf.gather(tf.reshape(table, [-1]), _bins(image)), tf.shape(image))


_compiled_bins = compile_for_cpu(_bins)


@compile_for_cpu
def _extremes(image):
    """Return the minimum and the maximum of each channel, uint8 [C] each."""
    rows, channels = _rows(image), image.shape[-1]
    return tuple(
        reduce(tf.reshape(reduce(rows, axis=0), [-1, channels]), axis=0) for reduce in (tf.reduce_min, tf.reduce_max)
    )


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretch each channel to the full range (Pillow: ImageOps.autocontrast)."""
    low, high = (tf.cast(extreme, tf.float64)[:, None] for extreme in _extremes(image))
    scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1)
    offset = tf.where(high > low, -low * scale, 0)
    table = tf.range(256, dtype=tf.float64) * scale + offset  # Pillow computes in float64 and truncates.
    return _look_up(image, tf.saturate_cast(table, tf.uint8))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Flatten the histogram of each channel (Pillow: ImageOps.equalize)."""
    channels: Any = image.shape[-1]
    bins = _compiled_bins(image)
    counts = tf.histogram_fixed_width(bins, [0, channels * 256], channels * 256)  # faster than tf.math.bincount
    counts = tf.reshape(counts, [channels, 256])
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1)
    step = (tf.reduce_sum(counts, axis=1) - tf.gather(counts, last, batch_dims=1))[:, None] // 255
    flat = (tf.cumsum(counts, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    return _look_up(image, tf.saturate_cast(tf.where(step > 0, flat, tf.range(256)), tf.uint8))


def invert(image: tf.Tensor) -> tf.Tensor:
    """Return the negative of an image (Pillow: ImageOps.invert)."""
    return 255 - image


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keep the highest `bits` of each value, int32 scalar in [0, 8] (Pillow: ImageOps.posterize)."""
    mask = tf.bitwise.left_shift(255, 8 - bits) & 255
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


@compile_for_cpu
def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Invert all values of at least `threshold`, int32 scalar in [0, 256] (Pillow: ImageOps.solarize)."""
    return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


@compile_for_cpu
def solarize_add(image: tf.Tensor, addition: tf.Tensor) -> tf.Tensor:
    """Add `addition`, int32 scalar in [0, 128), to all values below 128."""
    return tf.where(image < 128, image + tf.cast(addition, tf.uint8), image)


# ----------------------------------------------------------------------------------------------------------- blends


def _round_product(product):
    """Keep XLA from fusing a product with the sum that uses it: Pillow rounds both, a fused operation rounds once."""
    return tf.maximum(product, -(2.0**30))


def _blend(degenerate, image, factor):
    """Interpolate from `degenerate`, int32, at factor 0 to the image at factor 1 and beyond, truncating as Pillow."""
    difference = tf.cast(tf.cast(image, tf.int32) - degenerate, tf.float32)
    return tf.saturate_cast(tf.cast(degenerate, tf.float32) + _round_product(factor * difference), tf.uint8)


def _luma(image):
    """Return the luma of an image, int32 [H, W] (Pillow: conversion to "L")."""
    planes = tf.unstack(tf.cast(image, tf.int32), axis=-1)
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    return tf.bitwise.right_shift(red * 19595 + green * 38470 + blue * 7471 + 2**15, 16)


@compile_for_cpu
def color(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Change the saturation by `factor`, float32 scalar (Pillow: ImageEnhance.Color)."""
    gray = tf.repeat(_luma(image), image.shape[-1], axis=1)
    return tf.reshape(_blend(gray, _rows(image), factor), tf.shape(image))


@compile_for_cpu
def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Change the contrast by `factor`, float32 scalar (Pillow: ImageEnhance.Contrast).

    Deviates: The official code computes a wrong mean. This is Pillow's.
    """
    gray = tf.cast(_luma(image), tf.int64)
    pixels = tf.size(gray, tf.int64)
    mean = (2 * tf.reduce_sum(gray) + pixels) // (2 * pixels)
    return _blend(tf.cast(mean, tf.int32), image, factor)


@compile_for_cpu
def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Change the brightness by `factor`, float32 scalar (Pillow: ImageEnhance.Brightness)."""
    return _blend(0, image, factor)


@compile_for_cpu
def _sharpen(rows, factor, channels):
    wide = tf.cast(rows, tf.int32)
    column = wide[:-2] + wide[1:-1] + wide[2:]
    center = wide[1:-1, channels:-channels]
    box = column[:, : -2 * channels] + column[:, channels:-channels] + column[:, 2 * channels :]
    total = 2 * (box + 4 * center) + 13
    smooth = tf.bitwise.right_shift(total * 20165, 19)  # total // 26, which has no vector instruction
    return _blend(smooth, center, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Change the sharpness by `factor`, float32 scalar (Pillow: ImageEnhance.Sharpness).

    The outermost pixels keep their values, as in Pillow.
    """
    channels: Any = image.shape[-1]
    rows = _rows(image)
    inner = _sharpen(rows, factor, channels)
    middle = tf.concat([rows[1:-1, :channels], inner, rows[1:-1, -channels:]], axis=1)
    return tf.reshape(tf.concat([rows[:1], middle, rows[-1:]], axis=0), tf.shape(image))


def color_jitter(image: tf.Tensor, seed: tf.Tensor, strength: float) -> tf.Tensor:
    """Change the brightness, the contrast and the saturation of an image by random factors, in random order.

    Args:
        image: uint8 [H, W, C] with C = 1 or 3.
        seed: Two integers, int64 [2]. The same seed always gives the same result.
        strength: The factors are uniform between 1 - strength, but at least 0, and 1 + strength. float >= 0.

    Returns:
        uint8 [H, W, C].

    Source: torchvision, `ColorJitter`, with one value for the three, as timm's `color_jitter` gives it.
    Deviates: `ColorJitter` can also shift the hue, which timm does not do with one value.
    """
    numbers = tf.random.stateless_uniform([6], seed)
    low = max(1 - strength, 0)
    factors, order = low + (1 + strength - low) * numbers[:3], tf.argsort(numbers[3:])
    for i in tf.unstack(order):
        branches = [functools.partial(operation, image, factors[i]) for operation in (brightness, contrast, color)]
        image = tf.ensure_shape(tf.switch_case(i, branches), image.shape)
    return image


# --------------------------------------------------------------------------------------------------------- geometry


def affine(image: tf.Tensor, matrix: Sequence) -> tf.Tensor:
    """Apply an affine transform with nearest-neighbor lookup (Pillow: Image.transform with AFFINE).

    Args:
        image: uint8 [H, W, C].
        matrix: Six float scalars (a, b, c, d, e, f). The pixel centered at (x, y) takes the value at
            (a x + b y + c, d x + e y + f).

    Returns:
        uint8 [H, W, C]. Pixels that come from outside the image are 128.
    """
    a, b, c, d, e, f = (tf.cast(value, tf.float64) for value in matrix)
    # Pillow computes in fixed point, with steps of 1/65536 from the center of a pixel, and truncates.
    steps = tf.stack([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2]) * 65536
    a, b, c, d, e, f = tf.unstack(tf.cast(tf.floor(steps + 0.5), tf.int32))
    height, width = tf.unstack(tf.shape(image)[:2])
    columns, rows = tf.range(width), tf.range(height)[:, None]
    x = tf.bitwise.right_shift(a * columns + (b * rows + c), 16)
    y = tf.bitwise.right_shift(d * columns + (e * rows + f), 16)
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    pixels = tf.reshape(image, [-1, image.shape[-1]])
    with_fill = tf.concat([pixels, tf.fill([1, image.shape[-1]], tf.constant(FILL, tf.uint8))], axis=0)
    return tf.gather(with_fill, tf.where(inside, y * width + x, height * width))


@compile_for_cpu
def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Rotate counterclockwise around the center by `degrees`, float scalar (Pillow: Image.rotate)."""
    size = tf.cast(tf.shape(image), tf.float64)
    x, y = size[1] / 2, size[0] / 2
    angle = -tf.cast(degrees, tf.float64) * math.pi / 180
    cos, sin = tf.cos(angle), tf.sin(angle)
    return affine(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


@compile_for_cpu
def shear_x(image: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Shift row y to the left by `amount` * y pixels. `amount` is a float scalar."""
    return affine(image, (1.0, amount, 0.0, 0.0, 1.0, 0.0))


@compile_for_cpu
def shear_y(image: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Shift column x up by `amount` * x pixels. `amount` is a float scalar."""
    return affine(image, (1.0, 0.0, 0.0, amount, 1.0, 0.0))


def random_shift(image: tf.Tensor, seed: tf.Tensor, most: int) -> tf.Tensor:
    """Move an image by random numbers of pixels, down or up and right or left.

    Args:
        image: uint8 [H, W, C].
        seed: Two integers, int64 [2]. The same seed always gives the same result.
        most: The largest number of pixels in each direction, int >= 0. All numbers up to it are equally likely.

    Returns:
        uint8 [H, W, C]. Pixels that come from outside the image are 0.

    Source: torchvision, `RandomCrop` with `padding`, which He et al. 2016 (https://arxiv.org/abs/1512.03385, section
    4.2) use for CIFAR-10.
    """
    padded = tf.pad(image, [[most, most], [most, most], [0, 0]])
    start = tf.random.stateless_uniform([2], seed, 0, 2 * most + 1, tf.int32)
    return tf.ensure_shape(tf.slice(padded, [start[0], start[1], 0], tf.shape(image)), image.shape)


@compile_for_cpu
def translate_x(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Shift an image to the left by `pixels`, float scalar."""
    return affine(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


@compile_for_cpu
def translate_y(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Shift an image up by `pixels`, float scalar."""
    return affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


# ------------------------------------------------------------------------------------------------------- rectangles


@compile_for_cpu
def _paste(image, patch, window):
    """Paste `patch`, uint8 [H, W * C] or [1, 1], into a window, int32 [4], which may extend beyond the image."""
    top, left, height, width = tf.unstack(window)
    rows = tf.range(tf.shape(image)[0])[:, None]
    columns = tf.repeat(tf.range(tf.shape(image)[1]), image.shape[-1])
    inside = (rows >= top) & (rows < top + height) & ((columns >= left) & (columns < left + width))
    return tf.reshape(tf.where(inside, patch, _rows(image)), tf.shape(image))


def cutout(image: tf.Tensor, half: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Cover a square with gray. Its side is 2 * `half` pixels, its center is uniform over the image."""
    center = tf.random.stateless_uniform([2], seed) * tf.cast(tf.shape(image)[:2], tf.float32)
    y, x = tf.unstack(tf.cast(center, tf.int32))
    return _paste(image, tf.constant([[FILL]], tf.uint8), tf.stack([y - half, x - half, 2 * half, 2 * half]))


def random_erase(image: tf.Tensor, seed: tf.Tensor, probability: float = 0.5) -> tf.Tensor:
    """Replace a random rectangle of an image with noise.

    Args:
        image: uint8 [H, W, C] with C = 1 or 3.
        seed: Two integers, int64 [2]. The same seed always gives the same result.
        probability: Probability that the image is changed, in [0, 1].

    Returns:
        uint8 [H, W, C]. The rectangle has 2% to 33% of the area and an aspect ratio of 0.3 to 3.3.

    Source: Zhong et al., "Random Erasing Data Augmentation", with separate noise for each pixel.

    Example:
        >>> import tensorflow as tf
        >>> from efficientnet_tf.ops.image import random_erase
        >>> image = tf.zeros([64, 64, 3], tf.uint8)
        >>> erased = random_erase(image, seed=(0, 1), probability=1.0)
        >>> erased.shape, bool(tf.reduce_any(erased != image))
        (TensorShape([64, 64, 3]), True)
    """
    image, seed = tf.convert_to_tensor(image), tf.cast(seed, tf.int64)
    seeds = tf.unstack(tf.random.split(seed, 2))
    chance, area, aspect, y, x = tf.unstack(tf.random.stateless_uniform([5], seeds[0]))
    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(image)[:2]))

    def erase():
        pixels = (0.02 + 0.31 * area) * height * width
        ratio = tf.exp(math.log(0.3) + math.log(3.3 / 0.3) * aspect)
        tall, wide = tf.minimum(tf.sqrt(pixels * ratio), height), tf.minimum(tf.sqrt(pixels / ratio), width)
        window = tf.cast(tf.stack([y * (height - tall), x * (width - wide), tall, wide]), tf.int32)
        noise = tf.random.stateless_uniform(tf.shape(_rows(image)), seeds[1], 0, 256, tf.int32)
        return _paste(image, tf.cast(noise, tf.uint8), window)

    return tf.ensure_shape(tf.cond(chance < probability, erase, lambda: image), image.shape)

"""Operations on one image, each with Pillow's result: uint8 [H, W, C] in and out.

What is done to every pixel is compiled by XLA for the processor: two to six times as fast as TensorFlow's kernels one
after the other. Uncompiled, where a TensorFlow has no such compiler, the results are the same.
"""

import math

import tensorflow as tf

from efficientnet_tf.ops.xla import compile_for_cpu

FILL = 128  # grey, where an operation uncovers what the image does not have


# -------------------------------------------------------------------------------------------------- value by value


def _rows(image):
    """View an image as [H, W * C]: loops over a last axis of 1 or 3 would be slow."""
    return tf.reshape(image, [tf.shape(image)[0], -1])


def _bins(image):
    """Number the values so that every channel has its own: 256 c + v, int32 [H, W * C]."""
    return tf.cast(_rows(image), tf.int32) + tf.tile(256 * tf.range(image.shape[-1]), [tf.shape(image)[1]])


@compile_for_cpu
def _look_up(image, table):
    """Replace each value v of channel c by table[c, v]; uint8 [C, 256]."""
    return tf.reshape(tf.gather(tf.reshape(table, [-1]), _bins(image)), tf.shape(image))


compiled_bins = compile_for_cpu(_bins)


@compile_for_cpu
def _extremes(image):
    """Return the least and the greatest value of each channel, uint8 [C] both."""
    rows, channels = _rows(image), image.shape[-1]
    return tuple(
        reduce(tf.reshape(reduce(rows, axis=0), [-1, channels]), axis=0) for reduce in (tf.reduce_min, tf.reduce_max)
    )


def autocontrast(image):
    """Stretch each channel to the full range (ImageOps.autocontrast)."""
    low, high = (tf.cast(extreme, tf.float64)[:, None] for extreme in _extremes(image))
    scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1)
    offset = tf.where(high > low, -low * scale, 0)
    table = tf.range(256, dtype=tf.float64) * scale + offset  # rounded as Pillow rounds, then the fraction is cut off
    return _look_up(image, tf.saturate_cast(table, tf.uint8))


def equalize(image):
    """Flatten each channel's histogram (ImageOps.equalize)."""
    channels = image.shape[-1]
    counts = tf.histogram_fixed_width(compiled_bins(image), [0, channels * 256], channels * 256)  # faster than bincount
    counts = tf.reshape(counts, [channels, 256])
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1)
    step = (tf.reduce_sum(counts, axis=1) - tf.gather(counts, last, batch_dims=1))[:, None] // 255
    flat = (tf.cumsum(counts, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    return _look_up(image, tf.saturate_cast(tf.where(step > 0, flat, tf.range(256)), tf.uint8))


def invert(image):
    """Return the negative (ImageOps.invert)."""
    return 255 - image


def posterize(image, bits):
    """Keep the highest bits of each value (ImageOps.posterize); `bits` int32 scalar in [0, 8]."""
    mask = tf.bitwise.left_shift(255, 8 - bits) & 255
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


@compile_for_cpu
def solarize(image, threshold):
    """Invert the values from `threshold`, int32 scalar in [0, 256], upwards (ImageOps.solarize)."""
    return tf.where(tf.cast(image, tf.int32) < threshold, image, 255 - image)


@compile_for_cpu
def solarize_add(image, addition):
    """Add `addition`, int32 scalar in [0, 128), to the values below 128."""
    return tf.where(image < 128, image + tf.cast(addition, tf.uint8), image)


# ----------------------------------------------------------------------------------------- blends with another image


def _rounded(product):
    """Keep a product from being fused with the sum it goes into: that would round once where Pillow rounds twice."""
    return tf.maximum(product, -(2.0**30))


def _blend(degenerate, image, factor):
    """Go from `degenerate`, int32, at factor 0 to the image at 1 and beyond, cutting fractions off as Pillow does."""
    difference = tf.cast(tf.cast(image, tf.int32) - degenerate, tf.float32)
    return tf.saturate_cast(tf.cast(degenerate, tf.float32) + _rounded(factor * difference), tf.uint8)


def _grey(image):
    """Return the luma of an image, int32 [H, W] (Pillow's conversion to "L")."""
    planes = tf.unstack(tf.cast(image, tf.int32), axis=-1)
    if len(planes) == 1:
        return planes[0]
    red, green, blue = planes
    return tf.bitwise.right_shift(red * 19595 + green * 38470 + blue * 7471 + 2**15, 16)


@compile_for_cpu
def color(image, factor):
    """Less or more colour (ImageEnhance.Color); `factor` float32 scalar, as of the next three."""
    grey = tf.repeat(_grey(image), image.shape[-1], axis=1)
    return tf.reshape(_blend(grey, _rows(image), factor), tf.shape(image))


@compile_for_cpu
def contrast(image, factor):
    """Less or more contrast (ImageEnhance.Contrast). The official code takes a wrong mean; Pillow's is right."""
    grey = tf.cast(_grey(image), tf.int64)
    pixels = tf.size(grey, tf.int64)
    mean = (2 * tf.reduce_sum(grey) + pixels) // (2 * pixels)
    return _blend(tf.cast(mean, tf.int32), image, factor)


@compile_for_cpu
def brightness(image, factor):
    """Darker or brighter (ImageEnhance.Brightness)."""
    return _blend(0, image, factor)


@compile_for_cpu
def _sharpen(rows, factor, channels):
    wide = tf.cast(rows, tf.int32)
    column = wide[:-2] + wide[1:-1] + wide[2:]
    centre = wide[1:-1, channels:-channels]
    box = column[:, : -2 * channels] + column[:, channels:-channels] + column[:, 2 * channels :]
    total = 2 * (box + 4 * centre) + 13
    smooth = tf.bitwise.right_shift(total * 20165, 19)  # total // 26; a division is no vector instruction
    return _blend(smooth, centre, factor)


def sharpness(image, factor):
    """Softer or sharper (ImageEnhance.Sharpness); the outermost pixels keep their values, as in Pillow."""
    rows, channels = _rows(image), image.shape[-1]
    inner = _sharpen(rows, factor, channels)
    middle = tf.concat([rows[1:-1, :channels], inner, rows[1:-1, -channels:]], axis=1)
    return tf.reshape(tf.concat([rows[:1], middle, rows[-1:]], axis=0), tf.shape(image))


# ------------------------------------------------------------------------------------------------------ geometry


def affine(image, matrix):
    """Look each pixel up at the place that `matrix` maps it to, nearest neighbour (Image.transform, AFFINE).

    Args:
        image: uint8 [H, W, C].
        matrix: six float scalars (a, b, c, d, e, f): the pixel whose centre is (x, y) takes the value at
            (a x + b y + c, d x + e y + f).

    Returns:
        uint8 [H, W, C], 128 where the place is outside the image.
    """
    a, b, c, d, e, f = (tf.cast(value, tf.float64) for value in matrix)
    # Pillow's own arithmetic: whole steps of 1/65536 from a pixel's centre, cut off.
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
def rotate(image, degrees):
    """Turn anticlockwise about the centre (Image.rotate)."""
    size = tf.cast(tf.shape(image), tf.float64)
    x, y = size[1] / 2, size[0] / 2
    angle = -tf.cast(degrees, tf.float64) * math.pi / 180
    cos, sin = tf.cos(angle), tf.sin(angle)
    return affine(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


@compile_for_cpu
def shear_x(image, amount):
    """Shift each row by `amount` of its height above the lower one's."""
    return affine(image, (1.0, amount, 0.0, 0.0, 1.0, 0.0))


@compile_for_cpu
def shear_y(image, amount):
    """Shift each column by `amount` of its distance from the left."""
    return affine(image, (1.0, 0.0, 0.0, amount, 1.0, 0.0))


@compile_for_cpu
def translate_x(image, pixels):
    """Shift to the left by `pixels`."""
    return affine(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


@compile_for_cpu
def translate_y(image, pixels):
    """Shift upwards by `pixels`."""
    return affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


# ------------------------------------------------------------------------------------------------------ rectangles


@compile_for_cpu
def _paste(image, patch, window):
    """Put `patch`, uint8 [H, W * C] or [1, 1], into a window, int32 [4], which may reach beyond the image."""
    top, left, height, width = tf.unstack(window)
    rows = tf.range(tf.shape(image)[0])[:, None]
    columns = tf.repeat(tf.range(tf.shape(image)[1]), image.shape[-1])
    inside = (rows >= top) & (rows < top + height) & ((columns >= left) & (columns < left + width))
    return tf.reshape(tf.where(inside, patch, _rows(image)), tf.shape(image))


def cutout(image, half, seed):
    """Cover a square of side 2 * `half` pixels, its centre anywhere in the image, with grey."""
    centre = tf.random.stateless_uniform([2], seed) * tf.cast(tf.shape(image)[:2], tf.float32)
    y, x = tf.unstack(tf.cast(centre, tf.int32))
    return _paste(image, tf.constant([[FILL]], tf.uint8), tf.stack([y - half, x - half, 2 * half, 2 * half]))


def erase(image, probability, seed):
    """Turn a random rectangle of an image into noise.

    Args:
        image: uint8 [H, W, C].
        probability: float in [0, 1].
        seed: int64 [2].

    Returns:
        uint8 [H, W, C]. The rectangle has 2 to 33 % of the area and an aspect of 0.3 to 3.3.

    Source: Zhong et al., "Random Erasing Data Augmentation", with a noise of its own for each pixel.
    """
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    chance, area, aspect, y, x = tf.unstack(tf.random.stateless_uniform([5], seeds[0]))
    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(image)[:2]))

    def erased():
        pixels = (0.02 + 0.31 * area) * height * width
        ratio = tf.exp(math.log(0.3) + math.log(3.3 / 0.3) * aspect)
        tall, wide = tf.minimum(tf.sqrt(pixels * ratio), height), tf.minimum(tf.sqrt(pixels / ratio), width)
        window = tf.cast(tf.stack([y * (height - tall), x * (width - wide), tall, wide]), tf.int32)
        noise = tf.random.stateless_uniform(tf.shape(_rows(image)), seeds[1], 0, 256, tf.int32)
        return _paste(image, tf.cast(noise, tf.uint8), window)

    return tf.ensure_shape(tf.cond(chance < probability, erased, lambda: image), image.shape)

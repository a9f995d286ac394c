"""Image operations and the policies made of them: AutoAugment, RandAugment, random erasing.

Images are uint8 [H, W, C]; every operation gives Pillow's result. Nothing is drawn from hidden state: a seed decides.
A policy first draws which operations to apply, then applies them one after the other, a branch each, so that an image
pays for what it gets alone.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.special
import tensorflow as tf

FILL = 128  # grey, where an operation uncovers what the image does not have


# -------------------------------------------------------------------------------------- from a look at the pixels


def _rows(image):
    """View an image as [H, W * C]: kernels that combine it with something of fewer axes are slow on short last ones."""
    return tf.reshape(image, [tf.shape(image)[0], -1])


def _per_value(image, channels):
    """Lay a value a channel, [C], out as the rows of `_rows(image)`, [W * C]."""
    return tf.tile(channels, [tf.shape(image)[1]])


def autocontrast(image):
    """Stretch each channel to the full range (ImageOps.autocontrast)."""
    pixels = tf.reshape(image, [-1, image.shape[-1]])
    low = tf.cast(tf.reduce_min(pixels, axis=0), tf.float64)
    high = tf.cast(tf.reduce_max(pixels, axis=0), tf.float64)
    scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1)
    offset = tf.where(high > low, -low * scale, 0)
    # Rounded as Pillow rounds its table, in float64: the product first, then the offset; then the fraction is cut off.
    product = tf.cast(_rows(image), tf.float64) * _per_value(image, scale)
    return tf.reshape(tf.cast(product + _per_value(image, offset), tf.uint8), tf.shape(image))


def equalize(image):
    """Flatten each channel's histogram (ImageOps.equalize)."""
    channels = image.shape[-1]
    index = tf.cast(_rows(image), tf.int32) + _per_value(image, tf.range(channels) * 256)
    counts = tf.histogram_fixed_width(index, [0, channels * 256], channels * 256)  # faster than bincount
    counts = tf.reshape(counts, [channels, 256])
    last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), axis=1)
    step = (tf.reduce_sum(counts, axis=1) - tf.gather(counts, last, batch_dims=1))[:, None] // 255
    flat = (tf.cumsum(counts, axis=1, exclusive=True) + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.saturate_cast(flat, tf.uint8), tf.cast(tf.range(256), tf.uint8))
    return tf.reshape(tf.gather_nd(tf.reshape(table, [-1]), index[..., None]), tf.shape(image))


def _blend(degenerate, image, factor):
    """Go from `degenerate`, float32, at factor 0 to the image at 1 and beyond, cutting fractions off as Pillow does."""
    image = tf.cast(image, tf.float32)
    return tf.saturate_cast(degenerate + factor * (image - degenerate), tf.uint8)


def _grey(image):
    """Return the luma of an image, float32 [H, W, 1], whole numbers (Pillow's conversion to "L")."""
    image = tf.cast(image, tf.float32)
    if image.shape[-1] == 1:
        return image
    red, green, blue = tf.unstack(image, axis=-1)  # plane by plane: faster than a matrix product
    return tf.floor(red * (19595 / 65536) + green * (38470 / 65536) + blue * (7471 / 65536) + 0.5)[..., None]


def color(image, factor):
    """Less or more colour (ImageEnhance.Color)."""
    return _blend(tf.broadcast_to(_grey(image), tf.shape(image)), image, factor)


def contrast(image, factor):
    """Less or more contrast (ImageEnhance.Contrast). The official code takes a wrong mean; Pillow's is right."""
    mean = tf.reduce_mean(tf.cast(_grey(image), tf.float64))  # a sum of many pixels is inexact in float32
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), image, factor)


def brightness(image, factor):
    """Darker or brighter (ImageEnhance.Brightness)."""
    return _blend(0.0, image, factor)


def sharpness(image, factor):
    """Softer or sharper (ImageEnhance.Sharpness); the outermost pixels keep their values, as in Pillow."""
    wide = tf.cast(image, tf.float32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    centre = wide[1:-1, 1:-1]
    inner = _blend(tf.floor((box + 4 * centre) / 13 + 0.5), centre, factor)
    middle = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], middle, image[-1:]], axis=0)


def invert(image):
    """Return the negative (ImageOps.invert)."""
    return 255 - image


def posterize(image, bits):
    """Keep the highest bits of each value (ImageOps.posterize); `bits` int32 scalar in [0, 8]."""
    mask = tf.bitwise.left_shift(255, 8 - bits) & 255
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image, threshold):
    """Invert the values from `threshold`, int32 scalar in [0, 256], upwards (ImageOps.solarize)."""
    # Compared as value > threshold - 1, for 256 is no uint8.
    above = (image > tf.cast(tf.maximum(threshold - 1, 0), tf.uint8)) | (threshold < 1)
    return tf.bitwise.bitwise_xor(image, tf.cast(above, tf.uint8) * 255)


def solarize_add(image, addition):
    """Add `addition`, int32 scalar in [0, 128), to the values below 128."""
    return image + tf.cast(image < 128, tf.uint8) * tf.cast(addition, tf.uint8)


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
    inside = (tf.minimum(x, y) >= 0) & (x < width) & (y < height)
    pixels = tf.reshape(image, [-1, image.shape[-1]])
    with_fill = tf.concat([pixels, tf.fill([1, image.shape[-1]], tf.constant(FILL, tf.uint8))], axis=0)
    return tf.gather_nd(with_fill, tf.where(inside, y * width + x, height * width)[..., None])


def rotate(image, degrees):
    """Turn anticlockwise about the centre (Image.rotate)."""
    size = tf.cast(tf.shape(image), tf.float64)
    x, y = size[1] / 2, size[0] / 2
    angle = -tf.cast(degrees, tf.float64) * math.pi / 180
    cos, sin = tf.cos(angle), tf.sin(angle)
    return affine(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


def shear_x(image, amount):
    """Shift each row by `amount` of its height above the lower one's."""
    return affine(image, (1.0, amount, 0.0, 0.0, 1.0, 0.0))


def shear_y(image, amount):
    """Shift each column by `amount` of its distance from the left."""
    return affine(image, (1.0, 0.0, 0.0, amount, 1.0, 0.0))


def translate_x(image, pixels):
    """Shift to the left by `pixels`."""
    return affine(image, (1.0, 0.0, pixels, 0.0, 1.0, 0.0))


def translate_y(image, pixels):
    """Shift upwards by `pixels`."""
    return affine(image, (1.0, 0.0, 0.0, 0.0, 1.0, pixels))


def _paste(image, patch, top, left, height, width):
    """Put `patch`, uint8 [H, W * C] or a scalar, into a window, which may reach beyond the image."""
    rows = tf.range(tf.shape(image)[0])[:, None]
    columns = tf.repeat(tf.range(tf.shape(image)[1]), image.shape[-1])
    inside = (rows >= top) & (rows < top + height) & ((columns >= left) & (columns < left + width))
    return tf.reshape(tf.where(inside, patch, _rows(image)), tf.shape(image))


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
        corner_and_size = (y * (height - tall), x * (width - wide), tall, wide)
        noise = tf.random.stateless_uniform(tf.shape(_rows(image)), seeds[1], 0, 256, tf.int32)
        return _paste(image, tf.cast(noise, tf.uint8), *(tf.cast(value, tf.int32) for value in corner_and_size))

    return tf.ensure_shape(tf.cond(chance < probability, erased, lambda: image), image.shape)


def cutout(image, half, seed):
    """Cover a square of side 2 * `half` pixels, its centre anywhere in the image, with grey."""
    shape = tf.shape(image)
    centre = tf.random.stateless_uniform([2], seed) * tf.cast(shape[:2], tf.float32)
    y, x = tf.unstack(tf.cast(centre, tf.int32))
    return _paste(image, tf.constant(FILL, tf.uint8), y - half, x - half, 2 * half, 2 * half)


# ------------------------------------------------------------------------------------------------------ policies


def _factor(level):
    return tf.cast(level / 10 * 1.8 + 0.1, tf.float32)


def _whole_number(level, at_ten, most=10**6):
    return tf.minimum(tf.cast(level / 10 * at_ten, tf.int32), most)


# What a level means for each operation (official code, `level_to_arg`): from (image, level 0 to 10 and beyond, sign -1
# or 1, both float64 as there, seed, the policy's translate and cutout) to the image.
OPERATIONS = {
    "AutoContrast": lambda image, *rest: autocontrast(image),
    "Equalize": lambda image, *rest: equalize(image),
    "Invert": lambda image, *rest: invert(image),
    "Rotate": lambda image, level, sign, *rest: rotate(image, sign * level / 10 * 30),
    "Posterize": lambda image, level, *rest: posterize(image, _whole_number(level, 4, most=8)),
    "Solarize": lambda image, level, *rest: solarize(image, _whole_number(level, 256, most=256)),
    "Color": lambda image, level, *rest: color(image, _factor(level)),
    "Contrast": lambda image, level, *rest: contrast(image, _factor(level)),
    "Brightness": lambda image, level, *rest: brightness(image, _factor(level)),
    "Sharpness": lambda image, level, *rest: sharpness(image, _factor(level)),
    "ShearX": lambda image, level, sign, *rest: shear_x(image, sign * level / 10 * 0.3),
    "ShearY": lambda image, level, sign, *rest: shear_y(image, sign * level / 10 * 0.3),
    "TranslateX": lambda image, level, sign, seed, translate, half: translate_x(image, sign * level / 10 * translate),
    "TranslateY": lambda image, level, sign, seed, translate, half: translate_y(image, sign * level / 10 * translate),
    "Cutout": lambda image, level, sign, seed, translate, half: cutout(image, _whole_number(level, half), seed),
    "SolarizeAdd": lambda image, level, *rest: solarize_add(image, _whole_number(level, 110, most=127)),
    "-": lambda image, *rest: image,  # nothing: an operation of AutoAugment's that its probability left out
}
NAMES = tuple(OPERATIONS)
NOTHING = NAMES.index("-")

# AutoAugment's policy v0: 25 pairs of (operation, probability, level). Source: official code, `policy_v0`.
AUTOAUGMENT_V0 = """
Equalize .8 1, ShearY .8 4 | Color .4 9, Equalize .6 3 | Color .4 1, Rotate .6 8 | Solarize .8 3, Equalize .4 7
Solarize .4 2, Solarize .6 2 | Color .2 0, Equalize .8 8 | Equalize .4 8, SolarizeAdd .8 3 | ShearX .2 9, Rotate .6 8
Color .6 1, Equalize 1 2 | Invert .4 9, Rotate .6 0 | Equalize 1 9, ShearY .6 3 | Color .4 7, Equalize .6 0
Posterize .4 6, AutoContrast .4 7 | Solarize .6 8, Color .6 9 | Solarize .2 4, Rotate .8 9 | Rotate 1 7, TranslateY .8 9
ShearX 0 0, Solarize .8 4 | ShearY .8 0, Color .6 4 | Color 1 0, Rotate .6 2 | Equalize .8 4, Equalize 0 8
Equalize 1 4, AutoContrast .6 2 | ShearY .4 7, SolarizeAdd .6 7 | Posterize .8 2, Solarize .6 10
Solarize .6 8, Equalize .6 1 | Color .8 6, Rotate .4 5
"""


@dataclass(frozen=True)
class Policy:
    """Which operations an image may get.

    Attributes:
        draw: from a seed, int64 [2], to (operations int32 [N], indices into NAMES; levels float32 [N]).
        translate: pixels that level 10 of TranslateX and TranslateY moves the image.
        cutout: half the side, in pixels, of the square that level 10 of Cutout covers.
    """

    draw: Callable
    translate: int
    cutout: int


def autoaugment():
    """AutoAugment v0: one of 25 pairs, each operation with its own probability and level."""
    pairs = [pair.split(",") for line in AUTOAUGMENT_V0.split("\n") for pair in line.split("|") if pair.strip()]
    names, probabilities, levels = np.array([[op.split() for op in pair] for pair in pairs]).transpose(2, 0, 1)
    operations = np.vectorize(NAMES.index)(names).astype(np.int32)
    probabilities, levels = probabilities.astype(np.float32), levels.astype(np.float32)

    def draw(seed):
        numbers = tf.random.stateless_uniform([3], seed)
        pair = tf.cast(numbers[0] * len(pairs), tf.int32)
        chosen = numbers[1:] < tf.gather(probabilities, pair)
        return tf.where(chosen, tf.gather(operations, pair), NOTHING), tf.gather(levels, pair)

    return Policy(draw, translate=250, cutout=100)


def randaugment(count, level):
    """RandAugment: `count` operations out of 16, equally likely, all at `level` (0 to 10 and beyond)."""

    def draw(seed):
        operations = tf.random.stateless_uniform([count], seed, 0, NOTHING, tf.int32)
        return operations, tf.fill([count], float(level))

    return Policy(draw, translate=100, cutout=40)


def draw_policy(policy, seed):
    """Return what `apply_policy` does with a seed: operations int32 [N], indices into NAMES, and levels float32 [N]."""
    return policy.draw(tf.random.experimental.stateless_split(seed, 2)[0])


@functools.cache
def _whole(operation):
    """Keep an operation a function: once inlined, each of its nodes would cost something where it is not taken."""
    return tf.function(operation, autograph=False, experimental_attributes={"_noinline": True})


def apply_policy(policy, image, seed):
    """Vary an image.

    Args:
        policy: Policy.
        image: uint8 [H, W, C].
        seed: int64 [2]; with the policy it decides everything.

    Returns:
        uint8 [H, W, C].
    """
    operations, levels = draw_policy(policy, seed)
    count = operations.shape[0]
    seed = tf.random.experimental.stateless_split(seed, 2)[1]
    signs = tf.random.stateless_uniform([count], seed, 0, 2, tf.int32) * 2 - 1
    for i in range(count):
        level, sign = tf.cast(levels[i], tf.float64), tf.cast(signs[i], tf.float64)
        arguments = image, level, sign, seed + [i, 1], policy.translate, policy.cutout
        branches = [functools.partial(_whole(operation), *arguments) for operation in OPERATIONS.values()]
        image = tf.ensure_shape(tf.switch_case(operations[i], branches), image.shape)
    return image


def make_policy(settings):
    """Return the Policy that a schema.AugmentConfig asks for, or None."""
    if settings.policy == "autoaugment":
        return autoaugment()
    if settings.policy == "randaugment":
        return randaugment(settings.randaugment_count, settings.randaugment_level)
    return None


# ------------------------------------------------------------------------------------------------ pairs of images


def _sample_beta(alpha, count, seed):
    """Draw from Beta(alpha, alpha), float32 [count]: a look into its quantiles, for TPUs have no sampler of it."""
    quantiles = scipy.special.betaincinv(alpha, alpha, (np.arange(4096) + 0.5) / 4096).astype(np.float32)
    return tf.gather(quantiles, tf.random.stateless_uniform([count], seed, 0, len(quantiles), tf.int32))


def mix(images, targets, seed, settings):
    """Mix every image of a batch with its partner, the batch read backwards; on the device.

    Args:
        images: float32 [B, H, W, C].
        targets: float32 [B, classes], a distribution an image.
        seed: int64 [2], another one for each step and replica.
        settings: schema.AugmentConfig: alpha of mixup and of cutmix; where both are on, each gets half of the batches.

    Returns:
        (images, targets), of the same shapes: blended, or with a rectangle of the partner pasted in, and the targets
        in the same proportion.

    Source: Zhang et al., "mixup"; Yun et al., "CutMix". As in EfficientNetV2's code the weights are drawn an image.
    """
    if not settings.mixup and not settings.cutmix:
        return images, targets
    batch, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 4))

    def blend():
        return tf.broadcast_to(_sample_beta(settings.mixup, batch, seeds[0])[:, None, None, None], share_shape)

    def paste():
        cut = tf.sqrt(1 - _sample_beta(settings.cutmix, batch, seeds[1]))
        centre = tf.random.stateless_uniform([2, batch], seeds[2])

        def outside(length, where):
            positions = tf.range(length, dtype=tf.float32) + 0.5
            distance = tf.abs(positions[None] - where[:, None] * length)
            return distance > cut[:, None] * length / 2

        rows, columns = outside(height, centre[0]), outside(width, centre[1])
        return tf.cast(rows[:, :, None] | columns[:, None, :], tf.float32)[..., None]

    share_shape = tf.stack([batch, height, width, 1])
    if settings.mixup and settings.cutmix:
        share = tf.where(tf.random.stateless_uniform([], seeds[3]) < 0.5, blend(), paste())
    else:
        share = blend() if settings.mixup else paste()
    weight = tf.reduce_mean(share, axis=(1, 2))
    return share * images + (1 - share) * images[::-1], weight * targets + (1 - weight) * targets[::-1]

"""How training images are varied: the policies AutoAugment and RandAugment, and mixtures of pairs of images.

Nothing is drawn from hidden state: a seed decides. A policy first draws which operations to apply, then applies them
one after the other, a branch each, so that an image pays for what it gets alone.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from efficientnet_tf.ops import image as image_ops

# ------------------------------------------------------------------------------------------------------ policies


def _factor(level):
    return tf.cast(level / 10 * 1.8 + 0.1, tf.float32)


def _whole_number(level, at_ten, most=10**6):
    return tf.minimum(tf.cast(level / 10 * at_ten, tf.int32), most)


# What a level means for each operation (official code, `level_to_arg`): from (image, level 0 to 10 and beyond, sign -1
# or 1, both float64 as there, seed, the policy's translate and cutout) to the image.
OPERATIONS = {
    "AutoContrast": lambda image, *rest: image_ops.autocontrast(image),
    "Equalize": lambda image, *rest: image_ops.equalize(image),
    "Invert": lambda image, *rest: image_ops.invert(image),
    "Rotate": lambda image, level, sign, *rest: image_ops.rotate(image, sign * level / 10 * 30),
    "Posterize": lambda image, level, *rest: image_ops.posterize(image, _whole_number(level, 4, most=8)),
    "Solarize": lambda image, level, *rest: image_ops.solarize(image, _whole_number(level, 256, most=256)),
    "Color": lambda image, level, *rest: image_ops.color(image, _factor(level)),
    "Contrast": lambda image, level, *rest: image_ops.contrast(image, _factor(level)),
    "Brightness": lambda image, level, *rest: image_ops.brightness(image, _factor(level)),
    "Sharpness": lambda image, level, *rest: image_ops.sharpness(image, _factor(level)),
    "ShearX": lambda image, level, sign, *rest: image_ops.shear_x(image, sign * level / 10 * 0.3),
    "ShearY": lambda image, level, sign, *rest: image_ops.shear_y(image, sign * level / 10 * 0.3),
    "TranslateX": lambda image, level, sign, seed, translate, half: image_ops.translate_x(
        image, sign * level / 10 * translate
    ),
    "TranslateY": lambda image, level, sign, seed, translate, half: image_ops.translate_y(
        image, sign * level / 10 * translate
    ),
    "Cutout": lambda image, level, sign, seed, translate, half: image_ops.cutout(
        image, _whole_number(level, half), seed
    ),
    "SolarizeAdd": lambda image, level, *rest: image_ops.solarize_add(image, _whole_number(level, 110, most=127)),
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
        branches = [functools.partial(operation, *arguments) for operation in OPERATIONS.values()]
        image = tf.ensure_shape(tf.switch_case(operations[i], branches), image.shape)
    return image


def make_policy(settings):
    """Return the Policy that a schema.AugmentConfig asks for, or None."""
    if settings.policy == "autoaugment":
        return autoaugment()
    if settings.policy == "randaugment":
        return randaugment(settings.randaugment_count, settings.randaugment_level)
    return None

"""The augmentation policies AutoAugment and RandAugment.

A seed decides everything, there is no hidden state. A policy first chooses operations, then applies one after the other
through a switch, so that an image only pays for its own operations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from efficientnet_tf.ops import image as image_ops

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import AugmentConfig

# ------------------------------------------------------------------------------------------------------ operations


class Arguments(NamedTuple):
    """What the effect of an operation may depend on.

    Attributes:
        level: Strength in [0, 10] or more, float64 scalar, as in the official code.
        sign: Direction, -1 or 1, float64 scalar.
        seed: int64 [2].
        policy: The policy that applies the operation.
    """

    level: tf.Tensor
    sign: tf.Tensor
    seed: tf.Tensor
    policy: Policy


def _to_integer(level, at_ten, maximum=10**6):
    return tf.minimum(tf.cast(level / 10 * at_ten, tf.int32), maximum)


def _make_enhancements(factor):
    """Return the operations that enhance an image by a factor, given as a function of Arguments."""

    def make(operation):
        return lambda image, a: operation(image, tf.cast(factor(a), tf.float32))

    return {
        "Color": make(image_ops.color),
        "Contrast": make(image_ops.contrast),
        "Brightness": make(image_ops.brightness),
        "Sharpness": make(image_ops.sharpness),
    }


# The meaning of a level for each operation (official code, `level_to_arg`), as functions of an image and Arguments.
OPERATIONS = {
    "AutoContrast": lambda image, a: image_ops.autocontrast(image),
    "Equalize": lambda image, a: image_ops.equalize(image),
    "Invert": lambda image, a: image_ops.invert(image),
    "Rotate": lambda image, a: image_ops.rotate(image, a.sign * a.level / 10 * 30),
    "Posterize": lambda image, a: image_ops.posterize(image, _to_integer(a.level, 4, maximum=8)),
    "Solarize": lambda image, a: image_ops.solarize(image, _to_integer(a.level, 256, maximum=256)),
    **_make_enhancements(lambda a: a.level / 10 * 1.8 + 0.1),
    "ShearX": lambda image, a: image_ops.shear_x(image, a.sign * a.level / 10 * 0.3),
    "ShearY": lambda image, a: image_ops.shear_y(image, a.sign * a.level / 10 * 0.3),
    "TranslateX": lambda image, a: image_ops.translate_x(image, a.sign * a.level / 10 * a.policy.translate),
    "TranslateY": lambda image, a: image_ops.translate_y(image, a.sign * a.level / 10 * a.policy.translate),
    "Cutout": lambda image, a: image_ops.cutout(image, _to_integer(a.level, a.policy.cutout), a.seed),
    "SolarizeAdd": lambda image, a: image_ops.solarize_add(image, _to_integer(a.level, 110, maximum=127)),
    "Identity": lambda image, a: image,  # an operation that was skipped by its probability
}
OPERATION_NAMES = tuple(OPERATIONS)
IDENTITY = OPERATION_NAMES.index("Identity")

# The same operations, but a higher level always changes the image more (timm, RandAugment with `inc1`).
INCREASING_OPERATIONS = OPERATIONS | {
    "Posterize": lambda image, a: image_ops.posterize(image, 4 - _to_integer(a.level, 4, maximum=4)),
    "Solarize": lambda image, a: image_ops.solarize(image, 256 - _to_integer(a.level, 256, maximum=256)),
    **_make_enhancements(lambda a: tf.maximum(1 + a.sign * a.level / 10 * 0.9, 0.1)),
}
UNIFORM_STD = 100  # RandAugment: the standard deviation from which on a level is uniform instead of normal

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

# -------------------------------------------------------------------------------------------------------- policies


@dataclass(frozen=True)
class Policy:
    """A distribution over sequences of operations.

    Attributes:
        choose: Function of a seed, int64 [2], that returns the operations, int32 [N] indices into OPERATION_NAMES, and
            their levels, float32 [N].
        translate: Shift of TranslateX and TranslateY at level 10, in pixels.
        cutout: Half the side of Cutout's square at level 10, in pixels.
        increasing: Whether the operations are those of INCREASING_OPERATIONS instead of OPERATIONS.
    """

    choose: Callable
    translate: int
    cutout: int
    increasing: bool = False


def autoaugment(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Augment an image by AutoAugment's ImageNet policy v0.

    One of 25 pairs of operations is chosen at random. Each operation has its own probability and level.

    Args:
        image: uint8 [H, W, C] with C = 1 or 3.
        seed: Two integers, int64 [2]. The same seed always gives the same result.

    Returns:
        uint8 [H, W, C].

    Source: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data"; official code, `policy_v0`.

    Example:
        >>> import tensorflow as tf
        >>> from efficientnet_tf import autoaugment
        >>> image = tf.zeros([32, 32, 3], tf.uint8)
        >>> augmented = autoaugment(image, seed=(0, 1))
        >>> augmented.shape, augmented.dtype
        (TensorShape([32, 32, 3]), tf.uint8)
    """
    return apply_policy(autoaugment_policy(), tf.convert_to_tensor(image), tf.cast(seed, tf.int64))


def randaugment(
    image: tf.Tensor,
    seed: tf.Tensor,
    count: int = 2,
    level: float = 10.0,
    std: float = 0.0,
    increasing: bool = False,
    probability: float = 1.0,
) -> tf.Tensor:
    """Augment an image by RandAugment: a few random operations of about the same strength.

    Args:
        image: uint8 [H, W, C] with C = 1 or 3.
        seed: Two integers, int64 [2]. The same seed always gives the same result.
        count: Number of operations, chosen independently out of 16, >= 1.
        level: Strength of the operations, 0 to 10 or more.
        std: Standard deviation of the strength, >= 0. With 100 or more, the strength is uniform between 0 and `level`.
        increasing: Whether a higher strength always changes the image more.
        probability: Probability that an operation is applied, in [0, 1].

    Returns:
        uint8 [H, W, C].

    Source: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space"; official
    code, `distort_image_with_randaugment`; timm, `rand_augment_transform`, for the last three arguments.
    Deviates: timm's `rand-m9-mstd0.5-inc1` is level=9, std=0.5, increasing=True, probability=0.5. It has no Cutout,
    translates by a share of the side instead of pixels, fills with the mean color instead of gray, and limits every
    strength to 10. Here a strength that varies is limited to 10 or to `level`, whichever is larger.

    Example:
        >>> import tensorflow as tf
        >>> from efficientnet_tf import randaugment
        >>> image = tf.zeros([32, 32, 3], tf.uint8)
        >>> augmented = randaugment(image, seed=(0, 1), count=2, level=9)
        >>> augmented.shape, augmented.dtype
        (TensorShape([32, 32, 3]), tf.uint8)
    """
    policy = randaugment_policy(count, level, std, increasing, probability)
    return apply_policy(policy, tf.convert_to_tensor(image), tf.cast(seed, tf.int64))


def autoaugment_policy() -> Policy:
    """Return AutoAugment v0: one of 25 pairs of operations, each with its own probability and level."""
    pairs = [pair.split(",") for line in AUTOAUGMENT_V0.split("\n") for pair in line.split("|") if pair.strip()]
    names, probabilities, levels = np.array([[op.split() for op in pair] for pair in pairs]).transpose(2, 0, 1)
    operations = np.vectorize(OPERATION_NAMES.index)(names).astype(np.int32)
    probabilities, levels = probabilities.astype(np.float32), levels.astype(np.float32)

    def choose(seed):
        numbers = tf.random.stateless_uniform([3], seed)
        pair = tf.cast(numbers[0] * len(pairs), tf.int32)
        applied = numbers[1:] < tf.gather(probabilities, pair)
        return tf.where(applied, tf.gather(operations, pair), IDENTITY), tf.gather(levels, pair)

    return Policy(choose, translate=250, cutout=100)


def randaugment_policy(
    count: int, level: float, std: float = 0.0, increasing: bool = False, probability: float = 1.0
) -> Policy:
    """Return RandAugment: `count` operations out of 16 with equal probability. See `randaugment` for the arguments."""

    def choose(seed):
        operations = tf.random.stateless_uniform([count], seed, 0, IDENTITY, tf.int32)
        level_seed, chance_seed = tf.unstack(tf.random.split(seed, 2))
        if std >= UNIFORM_STD:
            levels = tf.random.stateless_uniform([count], level_seed, 0, float(level))
        else:
            levels = tf.random.stateless_normal([count], level_seed, float(level), std)
            levels = tf.clip_by_value(levels, 0, max(10, level))
        applied = tf.random.stateless_uniform([count], chance_seed) < probability
        return tf.where(applied, operations, IDENTITY), levels

    return Policy(choose, translate=100, cutout=40, increasing=increasing)


def make_policy(settings: AugmentConfig) -> Policy | None:
    """Return the policy of a configuration, or None if it has none."""
    if settings.policy == "autoaugment":
        return autoaugment_policy()
    if settings.policy == "randaugment":
        return randaugment_policy(
            settings.randaugment_count,
            settings.randaugment_level,
            settings.randaugment_std,
            settings.randaugment_increasing,
            settings.randaugment_probability,
        )
    return None


def choose_operations(policy: Policy, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the operations that `apply_policy` applies for a seed.

    Args:
        policy: A policy.
        seed: int64 [2].

    Returns:
        The operations, int32 [N] indices into OPERATION_NAMES, and their levels, float32 [N].
    """
    return policy.choose(tf.random.split(seed, 2)[0])


def apply_policy(policy: Policy, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Augment an image.

    Args:
        policy: A policy.
        image: uint8 [H, W, C].
        seed: int64 [2]. The seed and the policy determine the result.

    Returns:
        uint8 [H, W, C].
    """
    operations, levels = choose_operations(policy, seed)
    count: Any = operations.shape[0]
    table = INCREASING_OPERATIONS if policy.increasing else OPERATIONS
    seed = tf.random.split(seed, 2)[1]
    signs = tf.random.stateless_uniform([count], seed, 0, 2, tf.int32) * 2 - 1
    for i in range(count):
        level, sign = tf.cast(levels[i], tf.float64), tf.cast(signs[i], tf.float64)
        arguments = Arguments(level, sign, seed + [i, 1], policy)
        branches = [functools.partial(operation, image, arguments) for operation in table.values()]
        image = tf.ensure_shape(tf.switch_case(operations[i], branches), image.shape)
    return image

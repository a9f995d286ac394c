"""Mixup and CutMix: mix pairs of images of a batch on the training device.

Tensors are those of Keras's backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import scipy.special

from efficientnet_tf.ops import random

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import AugmentConfig

ops: Any = keras.ops  # whose types are too loose
Tensor = Any  # of Keras's backend

_FIRST_PURPOSE = 2**20  # for `random.derive_seed`; smaller numbers belong to the layers of the network
_QUANTILES = 4096


def mixup(images: Tensor, targets: Tensor, alpha: float, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Blend each image of a batch with its neighbor.

    Images 0 and 1 are a pair, as are 2 and 3, and so on. The last image of an odd batch is not changed.

    Args:
        images: float32 [B, H, W, C] with a static shape.
        targets: Class probabilities, float32 [B, classes].
        alpha: Parameter of the Beta(alpha, alpha) distribution of the weights, > 0. Each image has its own weight.
        seed: Two integers: the seed of the run, in [0, 2**31), and the training step, in [0, 2**32).

    Returns:
        The blended images and targets, with the shapes of the arguments.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization".

    Example:
        >>> import tensorflow as tf
        >>> from efficientnet_tf import mixup
        >>> images, targets = tf.random.uniform([4, 8, 8, 3]), tf.eye(4)
        >>> mixed, mixed_targets = mixup(images, targets, alpha=0.2, seed=(0, 1))
        >>> mixed.shape, tf.reduce_sum(mixed_targets, axis=1).numpy().round(3).tolist()
        (TensorShape([4, 8, 8, 3]), [1.0, 1.0, 1.0, 1.0])
    """
    images, targets = ops.convert_to_tensor(images), ops.convert_to_tensor(targets)
    seeds = _split_seed(random.make_seed(seed[0], seed[1], 0))
    return _mix_pairs(images, targets, _mixup_weights(images.shape, alpha, seeds))


def cutmix(images: Tensor, targets: Tensor, alpha: float, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of its neighbor into each image of a batch.

    Images 0 and 1 are a pair, as are 2 and 3, and so on. The last image of an odd batch is not changed. The rectangle
    has the aspect ratio of the image and a uniform center. The targets are mixed in proportion to the visible area.

    Args:
        images: float32 [B, H, W, C] with a static shape.
        targets: Class probabilities, float32 [B, classes].
        alpha: Parameter of the Beta(alpha, alpha) distribution of the area that is kept, > 0.
        seed: Two integers: the seed of the run, in [0, 2**31), and the training step, in [0, 2**32).

    Returns:
        The mixed images and targets, with the shapes of the arguments.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers".

    Example:
        >>> import tensorflow as tf
        >>> from efficientnet_tf import cutmix
        >>> images, targets = tf.random.uniform([4, 8, 8, 3]), tf.eye(4)
        >>> mixed, mixed_targets = cutmix(images, targets, alpha=1.0, seed=(0, 1))
        >>> mixed.shape, tf.reduce_sum(mixed_targets, axis=1).numpy().round(3).tolist()
        (TensorShape([4, 8, 8, 3]), [1.0, 1.0, 1.0, 1.0])
    """
    images, targets = ops.convert_to_tensor(images), ops.convert_to_tensor(targets)
    seeds = _split_seed(random.make_seed(seed[0], seed[1], 0))
    return _mix_pairs(images, targets, _cutmix_weights(images.shape, alpha, seeds))


def mix_images(images: Tensor, targets: Tensor, seed: Tensor, settings: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Apply mixup, CutMix, or one of both at random to a batch, as the configuration says.

    Args:
        images: float32 [B, H, W, C] with a static shape.
        targets: Class probabilities, float32 [B, classes].
        seed: Seed from `ops.random.make_seed`.
        settings: The alphas of mixup and CutMix. If both are set, each is applied to half of the batches.

    Returns:
        The mixed images and targets, with the shapes of the arguments.

    Source: As in the code of EfficientNetV2, each image has its own weight.
    Deviates: That code pairs a batch with its reverse. Here neighbors are pairs, so that the pairs do not depend on how
    many replicas share the batch. With both alphas it mixes one half of each batch by mixup and the other by CutMix.
    Its mixup gives the larger weight to the image itself. Here either image of a pair can have it.
    """
    if not settings.mixup and not settings.cutmix:
        return images, targets
    seeds = _split_seed(seed)
    if settings.mixup and settings.cutmix:
        use_mixup = random.uniform_shared(seeds[3]) < 0.5
        weights = ops.where(
            use_mixup,
            _mixup_weights(images.shape, settings.mixup, seeds),
            _cutmix_weights(images.shape, settings.cutmix, seeds),
        )
    elif settings.mixup:
        weights = _mixup_weights(images.shape, settings.mixup, seeds)
    else:
        weights = _cutmix_weights(images.shape, settings.cutmix, seeds)
    return _mix_pairs(images, targets, weights)


def _split_seed(seed):
    """Return the seeds of: weights of mixup, areas of CutMix, centers of CutMix, choice between the two."""
    return [random.derive_seed(seed, _FIRST_PURPOSE + i) for i in range(4)]


def _mixup_weights(shape, alpha, seeds):
    """Return the weight of each pixel of the first image, one value per image: float32 [B, H, W, 1]."""
    batch, height, width = shape[:3]
    weights = _sample_beta(alpha, batch, seeds[0])[:, None, None, None]
    return ops.broadcast_to(weights, [batch, height, width, 1])


def _cutmix_weights(shape, alpha, seeds):
    """Return 0 for the pixels inside a random rectangle and 1 elsewhere: float32 [B, H, W, 1]."""
    batch, height, width = shape[:3]
    side = ops.sqrt(1 - _sample_beta(alpha, batch, seeds[1]))
    centers = ops.transpose(random.uniform(seeds[2], batch, 2))

    def is_outside(length, center):
        positions = ops.arange(length, dtype="float32") + 0.5
        distance = ops.abs(positions[None] - center[:, None] * length)
        return distance > side[:, None] * length / 2

    rows, columns = is_outside(height, centers[0]), is_outside(width, centers[1])
    return ops.cast(rows[:, :, None] | columns[:, None, :], "float32")[..., None]


def _sample_beta(alpha, count, seed):
    """Sample from Beta(alpha, alpha), float32 [count], by looking up quantiles: TPUs have no sampler for it."""
    probabilities = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    quantiles = scipy.special.betaincinv(alpha, alpha, probabilities).astype(np.float32)
    return ops.take(quantiles, ops.cast(random.uniform(seed, count, 1)[:, 0] * len(quantiles), "int32"))


def _mix_pairs(images, targets, weights):
    """Mix each image and its target with those of its neighbor, by the weights of the pixels, [B, H, W, 1]."""
    share = ops.mean(weights, axis=(1, 2))
    mixed_images = weights * images + (1 - weights) * _swap_pairs(images)
    return mixed_images, share * targets + (1 - share) * _swap_pairs(targets)


def _swap_pairs(batch):
    """Swap elements 0 and 1 of a batch, 2 and 3, and so on. The last element of an odd batch stays."""
    pairs = batch.shape[0] // 2
    swapped = ops.flip(ops.reshape(batch[: 2 * pairs], [pairs, 2, *batch.shape[1:]]), axis=1)
    return ops.concatenate([ops.reshape(swapped, [2 * pairs, *batch.shape[1:]]), batch[2 * pairs :]], axis=0)

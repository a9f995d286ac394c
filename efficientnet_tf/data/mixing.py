"""TODO docstring (from augment)."""

import numpy as np
import scipy.special
import tensorflow as tf

from efficientnet_tf.ops import random

# ------------------------------------------------------------------------------------------------ pairs of images


def _sample_beta(alpha, images, seed):
    """Draw from Beta(alpha, alpha), float32 [images]: a look into its quantiles, for TPUs have no sampler of it."""
    quantiles = scipy.special.betaincinv(alpha, alpha, (np.arange(4096) + 0.5) / 4096).astype(np.float32)
    return tf.gather(quantiles, tf.cast(random.uniform(seed, images, 1)[:, 0] * len(quantiles), tf.int32))


def _partners(batch):
    """Exchange the first and the second of a batch, the third and the fourth, ...; an odd one out stays."""
    pairs = batch.shape[0] // 2
    swapped = tf.reverse(tf.reshape(batch[: 2 * pairs], [pairs, 2, *batch.shape[1:]]), [1])
    return tf.concat([tf.reshape(swapped, [2 * pairs, *batch.shape[1:]]), batch[2 * pairs :]], axis=0)


def mix_images(images, targets, seed, settings):
    """Mix every image of a batch with its neighbour, two and two; on the device.

    Args:
        images: float32 [B, H, W, C].
        targets: float32 [B, classes], a distribution an image.
        seed: int64 [2], of `draws`.
        settings: schema.AugmentConfig: alpha of mixup and of cutmix; where both are on, each gets half of the batches.

    Returns:
        (images, targets), of the same shapes: blended, or with a rectangle of the partner pasted in, and the targets
        in the same proportion.

    Source: Zhang et al., "mixup"; Yun et al., "CutMix". As in EfficientNetV2's code the weights are drawn an image.
    Deviates from it in the partners, there the batch read backwards: a pair stays one however many replicas there are.
    """
    if not settings.mixup and not settings.cutmix:
        return images, targets
    batch, height, width = images.shape[:3]
    seeds = [random.derive_seed(seed, 2**20 + i) for i in range(4)]  # behind those of layers

    def blend():
        share = _sample_beta(settings.mixup, batch, seeds[0])[:, None, None, None]
        return tf.broadcast_to(share, [batch, height, width, 1])

    def paste():
        cut = tf.sqrt(1 - _sample_beta(settings.cutmix, batch, seeds[1]))
        centre = tf.transpose(random.uniform(seeds[2], batch, 2))

        def outside(length, where):
            positions = tf.range(length, dtype=tf.float32) + 0.5
            distance = tf.abs(positions[None] - where[:, None] * length)
            return distance > cut[:, None] * length / 2

        rows, columns = outside(height, centre[0]), outside(width, centre[1])
        return tf.cast(rows[:, :, None] | columns[:, None, :], tf.float32)[..., None]

    if settings.mixup and settings.cutmix:
        share = tf.where(random.uniform_shared(seeds[3]) < 0.5, blend(), paste())
    else:
        share = blend() if settings.mixup else paste()
    weight = tf.reduce_mean(share, axis=(1, 2))
    return share * images + (1 - share) * _partners(images), weight * targets + (1 - weight) * _partners(targets)

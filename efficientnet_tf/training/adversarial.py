"""The attack of AdvProp: adversarial copies of training images, from which a network learns besides the images.

Tensors are those of Keras's backend.
"""

import math
from collections.abc import Callable
from typing import Any

import keras

from efficientnet_tf.config.schema import TrainConfig
from efficientnet_tf.ops import random
from efficientnet_tf.runtime.backend import uses_jax

ops: Any = keras.ops  # whose types are too loose
Tensor = Any  # of Keras's backend

# For `random.derive_seed`. Smaller numbers belong to the layers of the network and to `data.mixing`.
_START_PURPOSE, _DROPOUT_PURPOSE = 2**21, 2**22
_BRIGHTEST = 255.0


def attack_images(
    images: Tensor, compute_loss: Callable[[Tensor], Tensor], seed: Tensor, settings: TrainConfig
) -> Tensor:
    """Change images within small limits so that their loss grows: projected gradient descent (PGD).

    It starts at a random point within the limits. Each step moves every pixel by `train.adversarial_step_size` in the
    direction in which the loss grows, and back to the nearest allowed value.

    Args:
        images: float32 [B, H, W, C], pixels in [0, 255].
        compute_loss: Function from images to a loss, float32 scalar.
        seed: Seed from `ops.random.make_seed`. An image starts at the same point for any number of replicas.
        settings: `adversarial_steps`, `adversarial_epsilon` and `adversarial_step_size`.

    Returns:
        The adversarial images, float32 [B, H, W, C]. No pixel is outside of [0, 255] or differs by more than
        `adversarial_epsilon`. They have no gradient.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, section 2.1, with
    the settings of Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020, section 5.1.
    """
    epsilon = settings.adversarial_epsilon
    low, high = ops.maximum(images - epsilon, 0.0), ops.minimum(images + epsilon, _BRIGHTEST)
    numbers = random.uniform(random.derive_seed(seed, _START_PURPOSE), images.shape[0], math.prod(images.shape[1:]))
    start = images + epsilon * (2 * ops.reshape(numbers, images.shape) - 1)

    def ascend(_, adversarial):
        change = settings.adversarial_step_size * ops.sign(_differentiate(compute_loss, adversarial))
        return _project(adversarial + change, low, high)

    # A loop instead of copies of the network, which would take long to compile.
    return ops.stop_gradient(ops.fori_loop(0, settings.adversarial_steps, ascend, _project(start, low, high)))


def make_dropout_seed(seed: Tensor) -> Tensor:
    """Return the seed of the dropout masks for adversarial images, which are not those of the clean images."""
    return random.derive_seed(seed, _DROPOUT_PURPOSE)


def _project(images, low, high):
    return ops.minimum(ops.maximum(images, low), high)


def _differentiate(function, x):
    """Return the gradient of a scalar function."""
    if uses_jax():
        import jax

        return jax.grad(function)(x)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x)

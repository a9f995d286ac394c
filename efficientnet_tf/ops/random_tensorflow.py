"""Computes the random numbers of `ops.random` with TensorFlow. A seed is int64 [2], with two numbers per element."""

import tensorflow as tf

SEED_SHAPE, SEED_DTYPE = (2,), "int64"
_PHILOX = 1  # TensorFlow's id of the generator
_NUMBERS_PER_COUNT = 4  # how many numbers Philox generates per increment of its counter


def make_seed(number: int | tf.Tensor, step: int | tf.Tensor, first: int | tf.Tensor) -> tf.Tensor:
    """Return the seed for consecutive images of one training step.

    Args:
        number: Seed of the run, in [0, 2**31).
        step: Training step, int64 scalar in [0, 2**32).
        first: Position of the first image in the global batch, int64 scalar in [0, 2**31).

    Returns:
        A seed, int64 [2], for `derive_seed`, `uniform` and `uniform_shared`.
    """
    return tf.stack([tf.cast(number, tf.int64), tf.cast(step, tf.int64) + first * 2**32])


def derive_seed(seed: tf.Tensor, purpose: int) -> tf.Tensor:
    """Return an independent seed, int64 [2], for one of several uses of random numbers.

    Args:
        seed: Seed from `make_seed`, int64 [2].
        purpose: Number of the use, in [0, 2**31).
    """
    return seed + tf.constant([purpose * 2**32, 0], tf.int64)


def uniform(seed: tf.Tensor, images: int, count: int) -> tf.Tensor:
    """Return uniform random numbers in [0, 1) for each image.

    Args:
        seed: Seed from `make_seed`, int64 [2].
        images: Number of images, >= 1.
        count: Numbers per image, >= 1.

    Returns:
        float32 [images, count].

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The counter of their generator,
    Philox, can be set.
    """
    first, step = seed[1] // 2**32, tf.math.floormod(seed[1], 2**32)
    counts_per_image = -(-count // _NUMBERS_PER_COUNT)
    numbers = tf.raw_ops.StatelessRandomUniformV2(
        shape=[images, counts_per_image * _NUMBERS_PER_COUNT],
        key=tf.cast(seed[:1], tf.uint64),
        counter=tf.cast(tf.stack([first * counts_per_image, step]), tf.uint64),
        alg=_PHILOX,
    )
    return numbers[:, :count]


def uniform_shared(seed: tf.Tensor) -> tf.Tensor:
    """Return one random number in [0, 1) for the whole global batch, float32 scalar."""
    return uniform(tf.stack([seed[0], tf.math.floormod(seed[1], 2**32)]), 1, 1)[0, 0]

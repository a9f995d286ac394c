"""Random numbers for the images of a batch, each by its place in the whole batch.

So an image gets the same however many replicas share the batch, and into however many parts theirs is split.
"""

import tensorflow as tf

_PHILOX, _NUMBERS = 1, 4  # the generator, and how many numbers it makes at each count of its counter


def make_seed(number, step, first):
    """Return the seed, int64 [2], for a step's images from the `first` of the batch on; see `fork` and `uniform`.

    Args:
        number: int in [0, 2**31), the run's seed.
        step: int64 scalar in [0, 2**32).
        first: int64 scalar in [0, 2**31).
    """
    return tf.stack([tf.constant(number, tf.int64), step + first * 2**32])


def derive_seed(seed, purpose):
    """Return the seed for one of the purposes, int in [0, 2**31), that numbers are drawn for."""
    return seed + tf.constant([purpose * 2**32, 0], tf.int64)


def uniform(seed, images, count):
    """Draw from [0, 1).

    Args:
        seed: int64 [2], from `make_seed`.
        images: int >= 1, how many images there are.
        count: int >= 1, numbers an image.

    Returns:
        float32 [images, count].

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: Philox, whose counter may be set.
    """
    first, step = seed[1] // 2**32, seed[1] % 2**32
    turns = -(-count // _NUMBERS)
    numbers = tf.raw_ops.StatelessRandomUniformV2(
        shape=[images, turns * _NUMBERS],
        key=tf.cast(seed[:1], tf.uint64),
        counter=tf.cast(tf.stack([first * turns, step]), tf.uint64),
        alg=_PHILOX,
    )
    return numbers[:, :count]


def uniform_shared(seed):
    """Draw from [0, 1) one number for the whole batch: float32 scalar."""
    return uniform(tf.stack([seed[0], seed[1] % 2**32]), 1, 1)[0, 0]

"""Stateless random numbers for the images of a batch, chosen by the position of each image in the global batch.

An image therefore gets the same numbers for any number of devices, and for any number of parts that a device's share is
split into. They are also the same with TensorFlow and with JAX, which differ only in how they hold a seed: see
`random_tensorflow` and `random_jax`.
"""

import keras

if keras.backend.backend() == "jax":
    from efficientnet_tf.ops.random_jax import SEED_DTYPE, SEED_SHAPE, derive_seed, make_seed, uniform, uniform_shared
else:
    from efficientnet_tf.ops.random_tensorflow import (
        SEED_DTYPE,
        SEED_SHAPE,
        derive_seed,
        make_seed,
        uniform,
        uniform_shared,
    )

__all__ = ["SEED_DTYPE", "SEED_SHAPE", "derive_seed", "make_seed", "uniform", "uniform_shared"]

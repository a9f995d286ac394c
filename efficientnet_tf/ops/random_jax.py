"""Computes the random numbers of `ops.random` with JAX, which has no 64-bit integers by default.

A seed is uint32 [4]: the seed of the run, the purpose, the step, and the position of the first image.
"""

import jax
import jax.numpy as jnp

SEED_SHAPE, SEED_DTYPE = (4,), "uint32"
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_NUMBERS_PER_COUNT = 4  # how many numbers Philox generates per increment of its counter


def make_seed(number, step, first) -> jax.Array:
    """Return the seed for consecutive images of one training step, uint32 [4]. As `ops.random.make_seed`."""
    return jnp.stack([jnp.asarray(word).astype(jnp.uint32) for word in (number, 0, step, first)])


def derive_seed(seed: jax.Array, purpose: int) -> jax.Array:
    """Return an independent seed for one of several uses of random numbers. As `ops.random.derive_seed`."""
    return seed.at[1].add(jnp.uint32(purpose))


def uniform(seed: jax.Array, images: int, count: int) -> jax.Array:
    """Return uniform random numbers in [0, 1) for each image, float32 [images, count]. As `ops.random.uniform`."""
    number, purpose, step, first = seed
    counts_per_image = -(-count // _NUMBERS_PER_COUNT)
    index = jnp.arange(images * counts_per_image, dtype=jnp.uint32)
    high, low = _multiply(first, jnp.uint32(counts_per_image))
    low = low + index
    high = high + (low < index)  # the carry
    words = _philox((number, purpose), (low, high, jnp.full_like(low, step), jnp.zeros_like(low)))
    bits = jnp.stack(words, axis=-1).reshape(images, -1)[:, :count]
    # The lower 23 bits are the fraction of a number in [1, 2), as in TensorFlow.
    return jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32) - 1


def uniform_shared(seed: jax.Array) -> jax.Array:
    """Return one random number in [0, 1) for the whole global batch, float32 scalar."""
    return uniform(seed.at[3].set(0), 1, 1)[0, 0]


def _philox(key, counter):
    """Return the four words of each counter, uint32. Source: Salmon et al., SC 2011, figure 2."""
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(counter[0], jnp.uint32(_MULTIPLIERS[0]))
        high1, low1 = _multiply(counter[2], jnp.uint32(_MULTIPLIERS[1]))
        counter = high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0
        key = tuple(word + jnp.uint32(increment) for word, increment in zip(key, _KEY_INCREMENTS, strict=True))
    return counter


def _multiply(a, b):
    """Return the upper and the lower 32 bits of a product, uint32."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    low, middle, other = a_low * b_low, a_low * b_high, a_high * b_low
    carry = ((low >> 16) + (middle & 0xFFFF) + (other & 0xFFFF)) >> 16
    return a_high * b_high + (middle >> 16) + (other >> 16) + carry, a * b

"""Test that random numbers are independent, uniform, and the same however a batch is divided."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.ops import random, random_jax


@given(
    number=st.integers(0, 2**31 - 1),
    step=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**31 - 17),
    count=st.integers(1, 9),
    cut=st.integers(1, 15),
)
@settings(max_examples=100, deadline=None)
def test_numbers_depend_on_the_position_of_an_image(number, step, first, count, cut):
    def sample(position, images):
        return random.uniform(random.make_seed(number, step, position), images, count).numpy()

    whole = sample(first, 16)
    np.testing.assert_array_equal(np.concatenate([sample(first, cut), sample(first + cut, 16 - cut)]), whole)
    assert ((whole >= 0) & (whole < 1)).all() and len(np.unique(whole)) > 0.9 * whole.size


def philox(key, counter):
    """Return the four numbers of Philox4x32-10 for a key and a counter, as the paper defines them."""
    keys, words = [key % 2**32, key >> 32], [counter >> 32 * i & (2**32 - 1) for i in range(4)]
    for _ in range(10):
        (high0, low0), (high1, low1) = divmod(0xD2511F53 * words[0], 2**32), divmod(0xCD9E8D57 * words[2], 2**32)
        words = [high1 ^ words[1] ^ keys[0], low1, high0 ^ words[3] ^ keys[1], low0]
        keys = [(keys[0] + 0x9E3779B9) % 2**32, (keys[1] + 0xBB67AE85) % 2**32]
    return words


def test_numbers_are_those_of_philox():
    """A float has the lower 23 bits of a number. Seven numbers per image take two counts."""
    seed = random.derive_seed(random.make_seed(5, 9, 17), 3)
    words = [philox(5 + 3 * 2**32, 2 * (17 + image) + i + (9 << 64)) for image in range(4) for i in (0, 1)]
    expected = np.array(words).reshape(4, 8)[:, :7] % 2**23 / 2**23
    np.testing.assert_allclose(random.uniform(seed, 4, 7), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("number", "step", "first", "count", "purpose"),
    [(5, 9, 17, 7, 3), (2**31 - 1, 2**32 - 1, 2**31 - 17, 9, 2**20 + 1), (0, 0, 0, 1, 0), (1, 2, 2**30, 1279, 5)],
)
def test_jax_has_the_same_numbers(number, step, first, count, purpose):
    seeds = [made.derive_seed(made.make_seed(number, np.uint32(step), first), purpose) for made in (random, random_jax)]
    expected, received = (made.uniform(seed, 16, count) for made, seed in zip((random, random_jax), seeds, strict=True))
    np.testing.assert_array_equal(received, expected)
    assert random_jax.uniform_shared(seeds[1]) == random.uniform_shared(seeds[0]).numpy()


def sample_before_and_after(change, images=64, count=64):
    """Return numbers before and after a change to (number, step, first, purpose)."""
    return [
        random.uniform(random.derive_seed(random.make_seed(*arguments[:3]), arguments[3]), images, count)
        .numpy()
        .ravel()
        for arguments in ((4, 100, 0, 2), np.add((4, 100, 0, 2), change))
    ]


@pytest.mark.parametrize("change", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 64, 0), (0, 0, 0, 1), (0, -1, 0, 1)])
def test_other_seeds_steps_positions_and_purposes_are_independent(change):
    one, other = sample_before_and_after(change)
    assert scipy.stats.kstest(one, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06  # four standard deviations


def test_the_shared_number_is_the_same_for_every_part_of_a_batch():
    numbers = [
        float(random.uniform_shared(random.make_seed(0, step, first))) for step in range(50) for first in (0, 8, 99)
    ]
    assert len(set(numbers)) == 50 and numbers[::3] == numbers[1::3] == numbers[2::3]
    assert scipy.stats.kstest(numbers[::3], "uniform").pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 5, 192])
def test_numbers_depend_on_the_position_of_an_image_under_xla(count):
    """XLA converts Philox's numbers to floats in another way."""

    def make_sampler(images):
        numbers = tf.function(
            lambda first: random.uniform(random.make_seed(1, 3, first), images, count),
            jit_compile=True,
            autograph=False,
        )
        return lambda first: numbers(tf.constant(first, tf.int64))

    whole, half = make_sampler(8), make_sampler(4)
    np.testing.assert_array_equal(np.concatenate([half(16), half(20)]), whole(16))
    assert len(np.unique(whole(16))) == 8 * count

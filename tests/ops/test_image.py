"""Compare every operation with Pillow, and the random ones with their distributions."""

import itertools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from pillow import (
    GRAY,
    OPERATIONS,
    as_tensors,
    call_many,
    check_frequencies,
    make_images,
    make_seeds,
    run_pillow,
    sample_arguments,
)

from efficientnet_tf.ops import image as image_ops
from efficientnet_tf.ops import xla

SIZES = [(5, 70), (33, 6), (31, 46), (64, 64)]  # Each size is compiled separately, so there are few.


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_matches_pillow(name, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(xla, "has_xla", lambda: False)
    ours, pillows, bounds = OPERATIONS[name]
    rng = np.random.default_rng(len(name))
    sizes = itertools.cycle(SIZES if compiled else rng.integers(5, 71, (13, 2)))
    images = [make_images(rng, 1, 3 if i < 90 else 1, next(sizes), first=i)[0] for i in range(120)]
    for image, arguments in zip(images, sample_arguments(rng, bounds, len(images)), strict=True):
        expected = run_pillow(pillows, image, *arguments)
        np.testing.assert_array_equal(ours(tf.constant(image), *as_tensors(arguments)), expected, str(arguments))


def test_tensorflow_can_compile():
    """Otherwise the test above would compare the uncompiled operations with Pillow twice."""
    assert xla.has_xla()


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_matches_pillow_inside_tf_data(name, channels):
    ours, pillows, bounds = OPERATIONS[name]
    rng = np.random.default_rng(len(name))
    images = np.stack(make_images(rng, 100 * channels, channels, size=(31, 46)))
    arguments = sample_arguments(rng, bounds, len(images))
    columns = [np.array(c, np.int32 if isinstance(c[0], int) else np.float32) for c in zip(*arguments, strict=True)]
    expected = [run_pillow(pillows, image, *row) for image, row in zip(images, arguments, strict=True)]
    np.testing.assert_array_equal(call_many(ours, images, *columns), expected)


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "Contrast"])
def test_large_images_do_not_lose_precision(name):
    ours, pillows, bounds = OPERATIONS[name]
    rng = np.random.default_rng(0)
    image = np.concatenate([np.full((300, 601, 3), 254, np.uint8), make_images(rng, 1, 3, (301, 601))[0]])
    arguments = () if bounds is None else (1.7,)
    np.testing.assert_array_equal(ours(tf.constant(image), *arguments), run_pillow(pillows, image, *arguments))


def test_posterize_to_no_bits_is_black():
    image = tf.cast(tf.reshape(tf.range(256), [16, 16, 1]), tf.uint8)
    assert not image_ops.posterize(image, tf.constant(0)).numpy().any()


@pytest.mark.parametrize("half", [1, 7, 50])
def test_cutout_covers_a_square_with_a_uniform_center(half):
    height, width, count = 20, 30, 3000
    seeds = make_seeds(count)
    image = np.zeros((height, width, 3), np.uint8)
    covered = call_many(lambda seed: image_ops.cutout(tf.constant(image), half, seed), seeds)
    assert set(np.unique(covered)) <= {0, GRAY}
    # The last row and column of a square with half side 1 are its center.
    dots = call_many(lambda seed: image_ops.cutout(tf.constant(image[..., :1]), 1, seed)[..., 0], seeds) > 0
    y = height - 1 - dots.any(axis=2)[:, ::-1].argmax(axis=1)
    x = width - 1 - dots.any(axis=1)[:, ::-1].argmax(axis=1)
    check_frequencies(np.bincount(y, minlength=height), np.full(height, 1 / height))
    check_frequencies(np.bincount(x, minlength=width), np.full(width, 1 / width))
    rows = np.abs(np.arange(height) + 0.5 - y[:, None]) < half
    columns = np.abs(np.arange(width) + 0.5 - x[:, None]) < half
    np.testing.assert_array_equal(covered > 0, (rows[:, :, None] & columns[:, None, :])[..., None].repeat(3, axis=3))


def test_color_jitter_is_a_chain_of_pillow_operations_in_random_order():
    image, seeds = make_images(np.random.default_rng(0), 1, 3, (20, 30))[0], make_seeds(150)
    numbers = call_many(lambda seed: tf.random.stateless_uniform([6], seed), seeds)
    names = "Brightness", "Contrast", "Color"
    orders = {order: 0 for order in itertools.permutations(names)}
    jittered = call_many(lambda seed: image_ops.color_jitter(tf.constant(image), seed, 0.4), seeds)
    for result, row in zip(jittered, numbers, strict=True):
        factors = dict(zip(names, np.float32(0.6) + np.float32(0.8) * row[:3], strict=True))
        for order in orders:
            expected = image
            for name in order:
                expected = run_pillow(OPERATIONS[name][1], expected, float(factors[name]))
            if np.array_equal(result, expected):
                orders[order] += 1
                break
        else:
            raise AssertionError(f"no order gives the result for {factors}")
    check_frequencies(list(orders.values()), np.full(6, 1 / 6))


def test_factors_of_color_jitter_are_uniform_and_not_negative():
    """Of a uniform gray image only the brightness changes."""
    gray = tf.fill([4, 4, 3], tf.constant(80, tf.uint8))
    for strength, low, high in ((0.4, 0.6, 1.4), (2.0, 0.0, 3.0)):
        values = call_many(lambda seed, s=strength: image_ops.color_jitter(gray, seed, s), make_seeds(2000))[:, 0, 0, 0]
        assert scipy.stats.kstest((values + 0.5) / 80, scipy.stats.uniform(low, high - low).cdf).statistic < 0.05


def test_random_erase_fills_a_rectangle_with_noise():
    size, count = 256, 600
    image = np.full((size, size, 1), 7, np.uint8)
    erased = call_many(lambda seed: image_ops.random_erase(tf.constant(image), seed, 1.0), make_seeds(count))
    changed = (erased != 7).any(axis=3)
    tall, wide = changed.any(axis=2).sum(axis=1), changed.any(axis=1).sum(axis=1)
    assert (changed.sum(axis=(1, 2)) > 0.98 * tall * wide).all()  # Noise can be 7 by chance.
    area, aspect = tall * wide / size**2, tall / wide
    assert area.min() > 0.02 - 0.01 and area.max() < 0.33 + 0.01
    uncut = (tall < size) & (wide < size)
    assert aspect[uncut].min() > 0.3 * 0.85 and aspect[uncut].max() < 3.3 / 0.85
    assert scipy.stats.kstest(area, scipy.stats.uniform(0.02, 0.31).cdf).statistic < 0.07
    assert (
        scipy.stats.kstest(np.log(aspect[area < 0.25]), scipy.stats.uniform(np.log(0.3), np.log(11)).cdf).pvalue > 1e-4
    )
    tops = changed.any(axis=2).argmax(axis=1) / np.maximum(size - tall, 1)
    assert abs(tops[uncut].mean() - 0.5) < 0.06
    noise = erased[changed].ravel()
    values = np.delete(np.bincount(noise, minlength=256), 7)
    check_frequencies(values, np.full(255, 1 / 255))


def test_random_erase_has_its_probability():
    image = tf.zeros([32, 32, 1], tf.uint8)
    for probability, low, high in ((0.0, 0, 0), (0.25, 0.21, 0.29), (1.0, 1, 1)):
        erased = call_many(lambda seed, p=probability: image_ops.random_erase(image, seed, p), make_seeds(1500))
        assert low <= (erased != 0).any(axis=(1, 2, 3)).mean() <= high

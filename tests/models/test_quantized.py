"""Networks that compute as if in int8. The reference is NumPy, written here without the package."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.models.folding import fold_batch_norm
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.quantized import (
    MOMENTUM,
    FixedRounding,
    LearnedRounding,
    QuantizedNetwork,
    copy_for_int8,
    find_float_region,
    round_kernel,
    round_tensor,
)

RNG = np.random.default_rng(0)


def int8(x, low, high, levels=255):
    """Return a tensor rounded between limits that are moved until zero is one of the values, and where it is inside."""
    step = (high - low) / levels
    zero = np.clip(np.round(-low / step), 0, levels)
    bottom, top = -zero * step, (levels - zero) * step
    return np.round(np.clip(x, bottom, top) / step) * step, (x >= bottom) & (x <= top)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 6.0), (-3.0, 0.0), (-0.3, 0.9)])
def test_tensors_are_rounded_and_gradients_pass_between_the_limits(low, high):
    x = tf.constant(RNG.normal(0, 2, 1000).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = round_tensor(x, low, high)
    expected, inside = int8(x.numpy().astype(np.float64), low, high)
    step = (high - low) / 255
    different = np.abs(y.numpy() - expected) > 1e-5
    assert different.mean() < 0.01 and np.abs(y.numpy() - expected).max() < 1.01 * step  # halves may round either way
    np.testing.assert_array_equal(tape.gradient(y, x), inside)


@pytest.mark.parametrize("kind", [keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense])
def test_kernels_are_rounded_per_output_channel(kind):
    shape, axis = {keras.layers.DepthwiseConv2D: ((3, 3, 5, 1), 2), keras.layers.Dense: ((7, 4), 1)}.get(
        kind, ((3, 3, 2, 5), 3)
    )
    layer = kind(*((5, 3) if kind is keras.layers.Conv2D else (3,)))
    kernel = RNG.normal(size=shape).astype(np.float32)
    others = tuple(other for other in range(len(shape)) if other != axis)
    step = np.abs(kernel).max(others, keepdims=True) / 127
    rounded = round_kernel(layer, tf.constant(kernel)).numpy()
    np.testing.assert_allclose(rounded, np.round(kernel / step) * step, atol=1e-6)
    np.testing.assert_allclose(round_kernel(layer, tf.constant(rounded)), rounded, atol=1e-6)


def test_limits_are_moving_averages_from_the_first_batch_on():
    layer, frozen = LearnedRounding(), LearnedRounding(learns=False)
    first, second = (RNG.normal(size=(2, 5)).astype(np.float32) * scale for scale in (1, 3))
    np.testing.assert_array_equal(layer(first), first)  # Nothing is known yet.
    layer(first, training=True)
    ends = np.array([first.min(), first.max()])
    np.testing.assert_allclose(layer.limits, ends, rtol=1e-6)
    layer(second, training=True)
    ends = MOMENTUM * ends + (1 - MOMENTUM) * np.array([second.min(), second.max()])
    np.testing.assert_allclose(layer.limits, ends, rtol=1e-6)
    layer(10 * first)
    np.testing.assert_allclose(layer.limits, ends, rtol=1e-6)  # Only training moves them.
    frozen(first, training=True)
    np.testing.assert_array_equal(frozen.limits, [0, 0])


def test_limits_always_include_zero():
    layer = LearnedRounding()
    layer(np.full([1, 3], 2.0, np.float32), training=True)
    np.testing.assert_array_equal(layer.limits, [0, 2])
    np.testing.assert_allclose(layer(np.full([1, 3], 2.0, np.float32)), 2.0, rtol=1e-6)


def test_outputs_and_gradients_are_those_of_numpy():
    """A 1x1 convolution with batch norm, ReLU, pooling and a classifier, forward and backward by hand."""
    inputs = keras.Input([2, 2, 3])
    x = keras.layers.Conv2D(4, 1, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(epsilon=0.0, name="bn")(x)
    x = keras.layers.Activation("relu", name="relu")(x)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="predictions")(x))
    kernel, dense = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2))
    gamma, beta, mean, variance = RNG.uniform(0.5, 2, (4, 4))
    bias = RNG.normal(size=2)
    model.get_layer("conv").set_weights([kernel.reshape(1, 1, 3, 4)])
    model.get_layer("bn").set_weights([gamma, beta, mean, variance])
    model.get_layer("predictions").set_weights([dense, bias])
    images = RNG.normal(size=(5, 2, 2, 3))

    # Forward. The largest value of each tensor is its upper limit, because no batch came before.
    scale = gamma / np.sqrt(variance)
    folded, shift = kernel * scale, beta - mean * scale
    step = np.abs(folded).max(0) / 127
    rounded = np.round(folded / step) * step
    sums = images @ rounded + shift
    active = np.maximum(sums, 0)
    active_8, _ = int8(active, 0, active.max())
    pooled = active_8.mean((1, 2))
    pooled_8, _ = int8(pooled, 0, pooled.max())
    dense_step = np.abs(dense).max(0) / 127
    dense_8 = np.round(dense / dense_step) * dense_step
    logits = pooled_8 @ dense_8 + bias
    logits_8, inside = int8(logits, min(logits.min(), 0), max(logits.max(), 0))

    network = QuantizedNetwork(model)
    assert [v.path for v in network.limits] == [f"{name}_limits/limits" for name in ("relu", "avg_pool", "predictions")]
    trainable = [tf.convert_to_tensor(v.value) for v in network.trainable_variables]
    others = [tf.convert_to_tensor(v.value) for v in network.non_trainable_variables]
    weights = RNG.normal(size=logits.shape)
    with tf.GradientTape() as tape:
        tape.watch(trainable)
        got, updated = network.stateless_call(trainable, others, tf.constant(images, tf.float32), training=True)
        loss = tf.reduce_sum(got * tf.constant(weights, tf.float32))
    gradients = tape.gradient(loss, trainable)
    np.testing.assert_allclose(got, logits_8, atol=1.01 * (logits.max() - logits.min()) / 255)
    np.testing.assert_allclose(updated[-3], [0, active.max()], rtol=1e-5)
    np.testing.assert_allclose(updated[-1], [min(logits.min(), 0), max(logits.max(), 0)], rtol=1e-4)

    # Backward: rounding passes gradients between the limits.
    of_logits = weights * inside
    of_pooled = of_logits @ dense_8.T
    of_sums = np.broadcast_to(of_pooled[:, None, None] / 4, sums.shape) * (sums > 0)
    of_folded = np.einsum("nhwi,nhwo->io", images, of_sums)
    of_scale = (of_folded * kernel).sum(0) - of_sums.sum((0, 1, 2)) * mean
    expected = [of_folded * scale, of_scale / np.sqrt(variance), of_sums.sum((0, 1, 2))]
    expected += [pooled_8.T @ of_logits, of_logits.sum(0)]
    for gradient, reference, variable in zip(gradients, expected, network.trainable_variables, strict=True):
        np.testing.assert_allclose(tf.reshape(gradient, reference.shape), reference, 1e-4, 1e-4, err_msg=variable.path)


@pytest.mark.parametrize("settings", [[], ["model.activation=relu6"]])
def test_a_quantized_network_is_close_to_its_model(settings):
    model = build_from_config(tiny.load_config(*settings), 10)
    size = model.input_shape[1]
    images = tf.constant(RNG.integers(0, 256, [8, size, size, 3]), tf.float32)
    network = QuantizedNetwork(model)
    trainable = [tf.convert_to_tensor(v.value) for v in network.trainable_variables]
    others = [tf.convert_to_tensor(v.value) for v in network.non_trainable_variables]
    unknown, _ = network.stateless_call(trainable, others, images)
    _, learned = network.stateless_call(trainable, others, images, training=True)
    rounded, same = network.stateless_call(trainable, learned, images)
    exact = model(images, training=False).numpy()
    spread = exact.std()
    assert np.abs(unknown - exact).max() < 0.5 * spread  # only the kernels are rounded
    assert 1e-4 * spread < np.abs(rounded - exact).max() < spread
    for before, after in zip(learned, same, strict=True):
        np.testing.assert_array_equal(before, after)
    for variable, value in zip(model.non_trainable_variables, learned, strict=False):
        np.testing.assert_array_equal(variable, value)  # Batch norm keeps its statistics.


# ------------------------------------------------------------------------------------------------- layers in float


@pytest.fixture
def branches():
    """A graph a -> b -> (h; c, d -> e -> f -> g), in which a, d and f have kernels, and c and e are added for f."""
    inputs = keras.Input([4, 4, 3], name="pixels")
    b = keras.layers.Activation("relu6", name="b")(keras.layers.Conv2D(3, 1, name="a")(inputs))
    c = keras.layers.Activation("sigmoid", name="c")(b)
    e = keras.layers.Activation(keras.activations.silu, name="e")(keras.layers.Conv2D(3, 1, name="d")(b))
    f = keras.layers.Conv2D(3, 1, name="f")(keras.layers.Add(name="sum")([c, e]))
    h = keras.layers.ZeroPadding2D(0, name="h")(b)
    return keras.Model(inputs, keras.layers.Add(name="g")([f, h]))


def test_float_region(branches):
    assert find_float_region(branches, ["d"]) == {"b", "d", "e", "sum"}
    assert find_float_region(branches, ["a"]) == {"pixels", "a", "b", "c", "h", "sum", "g"}
    assert find_float_region(branches, ["f"]) == {"b", "c", "e", "sum", "f", "g"}
    assert find_float_region(branches, []) == set()


def test_no_tensor_is_rounded_around_a_layer_in_float(branches):
    """d and f are in int8 and round what they read: in f, the sum that was computed in float."""

    def list_rounded(keep_float):
        names = []

        def make_rounding(name):
            names.append(name)
            return FixedRounding(0.0, 1.0, name=f"{name}_limits")

        copy, _ = copy_for_int8(branches, make_rounding, keep_float=keep_float)
        assert len(names) == len(set(names)) and copy.output_shape == branches.output_shape
        return set(names)

    assert list_rounded([]) == {"b", "c", "d", "e", "sum", "f", "g"}
    assert list_rounded(["a"]) == {"b", "d", "e", "sum", "f"}
    assert list_rounded(["d"]) == {"a", "b", "c", "sum", "f", "g"}
    assert list_rounded(["a", "d", "f"]) == set()


def test_a_network_that_is_float_throughout_is_exact_and_one_layer_in_float_is_not_rounded():
    model = build_from_config(tiny.load_config(), 10)
    size = model.input_shape[1]
    images = RNG.integers(0, 256, [2, size, size, 3]).astype(np.float32)
    folded = fold_batch_norm(model)
    every = [layer.name for layer in folded.layers if hasattr(layer, "kernel")]

    def copy_and_compute(keep_float):
        def make_rounding(name):
            return FixedRounding(-8.0, 8.0, name=f"{name}_limits")

        copy, _ = copy_for_int8(folded, make_rounding, keep_float=keep_float)
        for layer in (layer for layer in copy.layers if layer.weights):
            layer.set_weights(folded.get_layer(layer.name).get_weights())
        return {layer.name for layer in copy.layers}, copy(images).numpy()

    exact = folded(images).numpy()
    np.testing.assert_array_equal(copy_and_compute(every)[1], exact)
    names, logits = copy_and_compute(["block2a_se_reduce"])
    assert np.abs(logits - exact).max() > 0
    assert {"block2a_se_squeeze_limits", "block2a_se_reduce_sum_limits"}.isdisjoint(names)
    assert {"block2a_se_reduce_limits", "block2a_se_expand_sum_limits"} <= names  # se_expand reads int8

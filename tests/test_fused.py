"""The operations that replace Keras's on a processor, against float64, and against TensorFlow's own gradients."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf import fused

EPSILON = 1e-3


def reference(x, gamma, beta, swish, weight):
    """Return outputs, mean, variance and the gradients of sum(outputs * weight): TensorFlow's own, in float64."""
    x, gamma, beta, weight = (tf.cast(t, tf.float64) for t in (x, gamma, beta, weight))
    with tf.GradientTape() as tape:
        tape.watch((x, gamma, beta))
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)
        y = y * tf.sigmoid(y) if swish else y
    return y, mean, variance, *tape.gradient(y, (x, gamma, beta), output_gradients=weight)


def ours(x, gamma, beta, swish, weight):
    with tf.GradientTape() as tape:
        tape.watch((x, gamma, beta))
        y, mean, variance = fused.batch_norm(x, gamma, beta, EPSILON, swish)
    return y, mean, variance, *tape.gradient(y, (x, gamma, beta), output_gradients=weight)


def draw(shape, seed=0, dtype=tf.float32):
    rng = np.random.default_rng(seed)
    channels = shape[-1:]
    x = rng.normal(rng.normal(0, 3, channels), rng.uniform(0.1, 4, channels), shape)
    vectors = (tf.constant(rng.normal(1, 0.5, channels), tf.float32) for _ in range(2))
    return tf.cast(x, dtype), *vectors, tf.cast(rng.normal(size=shape), dtype)


@given(
    shape=st.tuples(*(st.integers(1, 5) for _ in range(3)), st.integers(1, 9)).filter(lambda s: np.prod(s[:3]) > 3),
    swish=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_batch_norm_and_its_gradients(shape, swish, seed):
    x, gamma, beta, weight = draw(shape, seed)
    for got, want in zip(ours(x, gamma, beta, swish, weight), reference(x, gamma, beta, swish, weight), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("swish", [True, False])
def test_batch_norm_in_bfloat16(swish):
    x, gamma, beta, weight = draw((4, 7, 7, 16), dtype=tf.bfloat16)
    got, want = ours(x, gamma, beta, swish, weight), reference(x, gamma, beta, swish, weight)
    assert [t.dtype for t in got] == [tf.bfloat16, *[tf.float32] * 2, tf.bfloat16, *[tf.float32] * 2]
    for ours_, wanted in zip(got, want, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(tf.cast(ours_, tf.float64) / scale, wanted / scale, rtol=0.02, atol=0.02)


def test_batch_norm_keeps_its_input_alone():
    """Of the forward pass neither the normalised values nor the gate are read by the backward pass."""
    x, gamma, beta, weight = draw((2, 6, 6, 8))
    graph = tf.function(lambda: ours(x, gamma, beta, True, weight), autograph=False).get_concrete_function().graph
    (norm,) = (op for op in graph.get_operations() if op.type == "FusedBatchNormV3")
    assert sorted(op.type for op in norm.outputs[0].consumers()) == ["Mul", "Sigmoid"]
    (gate,) = (op for op in norm.outputs[0].consumers() if op.type == "Sigmoid")
    assert [op.type for op in gate.outputs[0].consumers()] == ["Mul"]
    assert [op.type for op in graph.get_operations()].count("FusedBatchNormGradV3") == 1


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.sampled_from([1, 2, 3, 4, 5, 7]),
    stride=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_depthwise_convolution_and_its_gradients(height, width, size, stride, seed):
    rng = np.random.default_rng(seed)
    x = tf.constant(rng.normal(size=(2, height, width, 3)), tf.float32)
    kernel = tf.constant(rng.normal(size=(size, size, 3, 1)), tf.float32)
    results = []
    for convolve in (
        lambda x, k: fused.depthwise_conv(x, k, stride),
        lambda x, k: tf.nn.depthwise_conv2d(x, k, [1, stride, stride, 1], "SAME"),
    ):
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            y = convolve(x, kernel)
        weight = tf.cos(tf.range(tf.size(y), dtype=tf.float32))
        results.append((y, *tape.gradient(y, (x, kernel), output_gradients=tf.reshape(weight, y.shape))))
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)

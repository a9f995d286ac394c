"""Compare the fused operations and their gradients with TensorFlow's own in float64."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.ops import convolutions_cpu, fused_cpu

EPSILON = 1e-3


REFERENCES = {None: lambda z: z, "swish": lambda z: z * tf.sigmoid(z), "relu": tf.nn.relu, "relu6": tf.nn.relu6}


def reference(x, gamma, beta, activation, weight):
    """Return outputs, mean, variance and the gradients of sum(outputs * weight) by TensorFlow in float64."""
    x, gamma, beta, weight = (tf.cast(t, tf.float64) for t in (x, gamma, beta, weight))
    with tf.GradientTape() as tape:
        tape.watch((x, gamma, beta))
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)
        y = REFERENCES[activation](y)
    return y, mean, variance, *tape.gradient(y, (x, gamma, beta), output_gradients=weight)


def fused(x, gamma, beta, activation, weight):
    with tf.GradientTape() as tape:
        tape.watch((x, gamma, beta))
        y, mean, variance = fused_cpu.batch_norm(x, gamma, beta, EPSILON, activation)
    return y, mean, variance, *tape.gradient(y, (x, gamma, beta), output_gradients=weight)


def make_inputs(shape, seed=0, dtype=tf.float32):
    """Return random x, gamma, beta and the weights of the outputs."""
    rng = np.random.default_rng(seed)
    channels = shape[-1:]
    x = rng.normal(rng.normal(0, 3, channels), rng.uniform(0.1, 4, channels), shape)
    vectors = (tf.constant(rng.normal(1, 0.5, channels), tf.float32) for _ in range(2))
    return tf.cast(x, dtype), *vectors, tf.cast(rng.normal(size=shape), dtype)


# XLA compiles for each shape, so there are few.
@given(
    shape=st.sampled_from([(1, 2, 2, 1), (4, 1, 1, 9), (2, 3, 5, 4), (5, 5, 4, 7), (3, 1, 4, 2)]),
    activation=st.sampled_from(list(REFERENCES)),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_batch_norm_and_its_gradients(shape, activation, seed):
    arguments = [*make_inputs(shape, seed)]
    arguments.insert(3, activation)
    for got, want in zip(fused(*arguments), reference(*arguments), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("activation", ["swish", "relu6", None])
def test_batch_norm_in_bfloat16(activation):
    x, gamma, beta, weight = make_inputs((4, 7, 7, 16), dtype=tf.bfloat16)
    got, want = fused(x, gamma, beta, activation, weight), reference(x, gamma, beta, activation, weight)
    assert [t.dtype for t in got] == [tf.bfloat16, *[tf.float32] * 2, tf.bfloat16, *[tf.float32] * 2]
    for actual, wanted in zip(got, want, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(tf.cast(actual, tf.float64) / scale, wanted / scale, rtol=0.02, atol=0.02)


def squeeze_excite(x, w1, b1, w2, b2):
    """Apply squeeze-and-excitation by separate operations."""
    means = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
    inner = tf.nn.conv2d(means, w1, 1, "SAME") + b1
    return x * tf.sigmoid(tf.nn.conv2d(inner * tf.sigmoid(inner), w2, 1, "SAME") + b2)


def gradients(function, arguments, weight):
    """Return the outputs of a function, and the gradients of sum(first output * weight)."""
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        y, *more = function(*arguments)
    return y, *more, *tape.gradient(y, arguments, output_gradients=weight)


def compute_gate(means, weights):
    inner = tf.nn.conv2d(means, weights[0], 1, "SAME") + weights[1]
    return tf.sigmoid(tf.nn.conv2d(inner * tf.sigmoid(inner), weights[2], 1, "SAME") + weights[3])


# XLA compiles for each shape, so there are few. They have fewer and more rows than PARTS.
@given(
    shape=st.sampled_from([(3, 2, 3, 1), (2, 5, 7, 9)]),
    activation=st.sampled_from(["swish", "relu"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=8)
def test_squeeze_and_excite_and_its_gradients(shape, activation, seed):
    x, gamma, beta, weight = make_inputs(shape, seed)
    rng, channels, inner = np.random.default_rng(seed), shape[-1], 2
    shapes = (1, 1, channels, inner), (inner,), (1, 1, inner, channels), (channels,)
    arguments = x, gamma, beta, *(tf.constant(rng.normal(0, 0.7, shape), tf.float32) for shape in shapes)

    def expected(x, gamma, beta, *weights):
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)
        return squeeze_excite(REFERENCES[activation](y), *weights), mean, variance

    def got(x, gamma, beta, *weights):
        return fused_cpu.batch_norm_squeeze_excite(x, gamma, beta, EPSILON, activation, compute_gate, weights)

    wide = [tf.cast(t, tf.float64) for t in arguments]
    wanted = gradients(expected, wide, tf.cast(weight, tf.float64))
    for actual, want in zip(gradients(got, arguments, weight), wanted, strict=True):
        np.testing.assert_allclose(actual, want, rtol=1e-3, atol=3e-4)


@given(
    sizes=st.sampled_from([((2, 2, 3), 1, 2), ((3, 5, 4), 4, 12), ((4, 1, 2), 6, 3), ((2, 9, 9), 5, 20)]),
    offset=st.sampled_from([0.0, 3.0, 100.0]),
    activation=st.sampled_from(["swish", "relu6"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_convolution_with_batch_norm_and_its_gradients(sizes, offset, activation, seed):
    """Also far from zero, where computing the variance from sums of squares would lose all precision."""
    (shape, narrow, wide), rng = sizes, np.random.default_rng(seed)
    x = tf.constant(rng.normal(offset, 1, (*shape, narrow)), tf.float32)
    kernel = tf.constant(rng.normal(0, narrow**-0.5, (1, 1, narrow, wide)), tf.float32)
    gamma, beta = (tf.constant(rng.normal(1, 0.5, wide), tf.float32) for _ in range(2))
    weight = rng.normal(size=(*shape, wide))

    def expected(x, kernel, gamma, beta):
        x = tf.nn.conv2d(x, kernel, 1, "SAME")
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, EPSILON)
        return REFERENCES[activation](y), mean, variance

    def fuse(*arguments):
        return fused_cpu.conv_batch_norm(*arguments, EPSILON, activation)

    arguments = x, kernel, gamma, beta
    got = gradients(fuse, arguments, tf.constant(weight, tf.float32))
    wanted = gradients(expected, [tf.cast(t, tf.float64) for t in arguments], tf.constant(weight))
    for actual, want in zip(got, wanted, strict=True):
        scale = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(actual / scale, want / scale, rtol=1e-3, atol=2e-4)


def test_sigmoid_and_swish_are_exact():
    z = np.concatenate([np.linspace(-200, 200, 4001), np.linspace(-20, 20, 40001)]).astype(np.float32)
    gate = 1 / (1 + np.exp(-z.astype(float)))
    np.testing.assert_allclose(fused_cpu.sigmoid(tf.constant(z)), gate, rtol=0, atol=3e-7)
    slope = fused_cpu.activation_gradient(tf.constant(z), 1.0, 0.0, tf.ones_like(z), "swish")
    # The relative precision of swish is that of z.
    for got, wanted in (
        (fused_cpu.apply_activation(tf.constant(z), "swish"), z * gate),
        (slope, gate * (1 + z * (1 - gate))),
    ):
        assert np.all(abs(got.numpy() - wanted) < 4e-7 * np.maximum(1, abs(z)))


@pytest.mark.parametrize("activation", fused_cpu.ACTIVATIONS)
def test_nan_and_infinity_are_kept(activation):
    x = tf.constant([[[[np.nan, np.inf, 1.0]]]])
    y = fused_cpu.apply_activation(x, activation).numpy().ravel()
    assert np.isnan(y[0]) and y[1] == (6 if activation == "relu6" else np.inf)
    if activation == "swish":
        assert np.isnan(fused_cpu.activation_gradient(x, 1.0, 0.0, tf.ones_like(x), activation)[0, 0, 0, 0])


def test_coefficients_of_the_sigmoid_are_those_of_the_script():
    script = Path(__file__).parents[2] / "scripts" / "fit_sigmoid.py"
    numerator, denominator, error = runpy.run_path(script)["fit"]()
    assert error < 1e-7
    np.testing.assert_allclose(fused_cpu.SIGMOID_P, numerator, rtol=1e-3)
    np.testing.assert_allclose(fused_cpu.SIGMOID_Q, denominator, rtol=1e-3)


def test_normalized_values_after_a_convolution_are_never_written():
    """The graph has no other tensors of that size than those that are needed."""
    x, kernel = tf.ones([2, 6, 6, 4]), tf.ones([1, 1, 4, 8])
    vector = tf.ones([8])
    graph = (
        tf.function(
            lambda: gradients(
                lambda *a: fused_cpu.conv_batch_norm(*a, EPSILON, "swish"),
                (x, kernel, vector, vector),
                tf.ones([2, 6, 6, 8]),
            ),
            autograph=False,
        )
        .get_concrete_function()
        .graph
    )
    wide = [op for op in graph.get_operations() if any(o.shape.num_elements() == 2 * 6 * 6 * 8 for o in op.outputs)]
    # Forward: the convolution with the scale of the batch norm, the offset, swish. Backward: the gradient of swish.
    assert sorted(op.type for op in wide if op.type not in ("Const", "Identity", "IdentityN", "Reshape")) == [
        *("BiasAdd", "MatMul", "PartitionedCall", "PartitionedCall")
    ]


def test_batch_norm_keeps_only_its_input():
    """The backward pass does not read the normalized values of the forward pass."""
    x, gamma, beta, weight = make_inputs((2, 6, 6, 8))
    graph = tf.function(lambda: fused(x, gamma, beta, "swish", weight), autograph=False).get_concrete_function().graph
    (norm,) = (op for op in graph.get_operations() if op.type == "FusedBatchNormV3")
    assert [op.type for op in norm.outputs[0].consumers()] == ["PartitionedCall"]
    assert [op.type for op in graph.get_operations()].count("FusedBatchNormGradV3") == 1


@given(
    shape=st.tuples(*(st.integers(1, 6) for _ in range(4))),
    filters=st.integers(1, 40),
    dtype=st.sampled_from([tf.float32, tf.bfloat16]),
    known=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_pointwise_convolution_and_its_gradients(shape, filters, dtype, known):
    rng = np.random.default_rng(0)
    arguments = [tf.constant(rng.normal(size=s), dtype) for s in (shape, (1, 1, shape[-1], filters))]
    weight = tf.constant(rng.normal(size=(*shape[:3], filters)), dtype)
    signature = [tf.TensorSpec(shape if known else (None, None, None, shape[3]), dtype), tf.TensorSpec(None, dtype)]

    @tf.function(input_signature=signature)
    def got(x, kernel):
        kernel = tf.ensure_shape(kernel, arguments[1].shape)
        return gradients(lambda *a: [convolutions_cpu.pointwise_conv(*a)], (x, kernel), weight)

    wide = [tf.cast(t, tf.float64) for t in arguments]
    wanted = gradients(lambda *a: [tf.nn.conv2d(*a, 1, "SAME")], wide, tf.cast(weight, tf.float64))
    tolerance = 1e-5 if dtype == tf.float32 else 0.02
    for actual, want in zip(got(*arguments), wanted, strict=True):
        scale = np.abs(want).max()
        np.testing.assert_allclose(tf.cast(actual, tf.float64) / scale, want / scale, rtol=tolerance, atol=tolerance)


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.sampled_from([1, 2, 3, 4, 5, 7]),
    stride=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([tf.float32, tf.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_depthwise_convolution_and_its_gradients(height, width, size, stride, seed, dtype):
    rng = np.random.default_rng(seed)
    arguments = [tf.constant(rng.normal(size=s), dtype) for s in ((2, height, width, 3), (size, size, 3, 1))]
    weight = tf.constant(rng.normal(size=(2, -(-height // stride), -(-width // stride), 3)), dtype)
    strides = [1, stride, stride, 1]
    got = gradients(lambda *a: [convolutions_cpu.depthwise_conv(*a, stride)], arguments, weight)
    assert {t.dtype for t in got} == {dtype}
    wide = [tf.cast(t, tf.float32) for t in arguments]
    wanted = gradients(lambda *a: [tf.nn.depthwise_conv2d(*a, strides, "SAME")], wide, tf.cast(weight, tf.float32))
    relative, absolute = (1e-4, 1e-4) if dtype == tf.float32 else (0.02, 0.05)
    for actual, want in zip(got, wanted, strict=True):
        np.testing.assert_allclose(tf.cast(actual, tf.float32), want, rtol=relative, atol=absolute)


def test_gradient_of_a_large_depthwise_kernel_accumulates_in_float32():
    """It is a sum of many ones, which bfloat16 cannot count beyond 256."""
    x, kernel = tf.ones([4, 20, 20, 2], tf.bfloat16), tf.ones([5, 5, 2, 1], tf.bfloat16)
    _, _, kernel_gradient = gradients(lambda *a: [convolutions_cpu.depthwise_conv(*a, 1)], [x, kernel], tf.ones_like(x))
    assert np.all(tf.cast(kernel_gradient[2, 2], tf.float32) == 1600)

"""Sequences of layers fused into single operations that train faster on a CPU.

Training on a CPU is limited by passes over memory, and Keras's layers make dozens of them. These operations need fewer:
the gradient recomputes elementwise values from a layer's input in one kernel compiled by XLA, squeeze-and-excite is
fused with the batch norm before it, and the statistics of a batch norm after a 1x1 convolution are computed from the
convolution's input, which is smaller than its output.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from efficientnet_tf.ops.convolutions_cpu import multiply_channels
from efficientnet_tf.ops.xla import compile_for_cpu

# sigmoid(z) = 1/2 + z P(z^2) / Q(z^2) on [-16, 16], in ascending powers. `scripts/fit_sigmoid.py` computes these.
SIGMOID_P = (0.249999766, 0.00793736395, 4.19452461e-05, 2.76697369e-08, -5.87890312e-12)
SIGMOID_Q = (1.0, 0.115081938, 0.00142483705, 3.05154901e-06)
PARTS = 8  # XLA sums rows two to three times faster when it adds this many parts of them first.


def batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, activation: str | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalize by the mean and variance of the batch, scale, shift, and optionally apply an activation.

    Args:
        x: Input, float32 or bfloat16 [B, H, W, C], with a static shape.
        gamma: Scale, float32 [C].
        beta: Offset, float32 [C].
        epsilon: Added to the variance, > 0.
        activation: A key of `ACTIVATIONS` to apply to the normalized values, or None.

    Returns:
        The outputs with the shape and dtype of `x`, and the mean and variance of the batch, float32 [C]. The mean and
        the variance have no gradient.
    """

    @tf.custom_gradient
    def run(x, gamma, beta):
        y, mean, variance, normalize_gradient = _normalize(x, gamma, beta, epsilon)

        def backward(gradient, *_):
            if activation:
                affine = _scale_and_shift(mean, variance, gamma, beta, epsilon)
                gradient = activation_gradient(x, *affine, gradient, activation)
            return normalize_gradient(gradient)

        return (apply_activation(y, activation) if activation else y, mean, variance), backward

    return run(x, gamma, beta)  # pyright: ignore[reportReturnType] - The decorator returns only the outputs.


def batch_norm_squeeze_excite(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    activation: str,
    compute_gate: Callable,
    weights: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Apply `batch_norm` with an activation, then scale each channel by a gate that is computed from the channel means.

    Args:
        x: Input, float32 or bfloat16 [B, H, W, C], with a static shape.
        gamma: Scale, float32 [C].
        beta: Offset, float32 [C].
        epsilon: Added to the variance, > 0.
        activation: A key of `ACTIVATIONS`.
        compute_gate: Function of the channel means [B, 1, 1, C] and `weights` that returns the gates [B, 1, 1, C]. Both
            have the dtype of `x`.
        weights: The variables that `compute_gate` reads, for their gradients.

    Returns:
        The same as `batch_norm`.
    """
    shape: Any = x.shape
    pixels = shape[1] * shape[2]

    @tf.custom_gradient
    def run(x, gamma, beta, *weights):
        normalized, mean, variance, normalize_gradient = _normalize(x, gamma, beta, epsilon)
        with tf.GradientTape() as tape:
            squeezed = _squeeze(normalized, activation)
            tape.watch((squeezed, *weights))
            gate = compute_gate(squeezed, weights)

        def backward(gradient, *_):
            affine = _scale_and_shift(mean, variance, gamma, beta, epsilon)
            gate_gradient = _gate_gradient(x, *affine, gradient, activation)
            gradients: Any = tape.gradient(gate, (squeezed, *weights), output_gradients=gate_gradient)
            squeezed_gradient, *weight_gradients = gradients
            gradient = _gated_gradient(x, *affine, gradient, gate, squeezed_gradient / pixels, activation)
            return *normalize_gradient(gradient), *weight_gradients

        return (_excite(normalized, gate, activation), mean, variance), backward

    return run(x, gamma, beta, *weights)  # pyright: ignore[reportReturnType] - The decorator returns only the outputs.


def conv_batch_norm(
    x: tf.Tensor, kernel: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, activation: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Apply a 1x1 convolution, `batch_norm` and an activation.

    The convolution W is linear, so the mean and variance of its outputs follow from the mean m and the covariance K of
    `x`: they are W'm and diag(W'KW). Batch norm then becomes part of the kernel, and its gradient comes from sums that
    the kernel's gradient needs anyway. The normalized values are never written to memory. This is faster than separate
    layers if O is larger than I.

    Args:
        x: Input, float32 [B, H, W, I], with a static shape.
        kernel: Kernel of the convolution, float32 [1, 1, I, O].
        gamma: Scale, float32 [O].
        beta: Offset, float32 [O].
        epsilon: Added to the variance, > 0.
        activation: A key of `ACTIVATIONS`.

    Returns:
        The outputs, float32 [B, H, W, O], and the mean and variance of the convolution's outputs, float32 [O], without
        a gradient.
    """

    @tf.custom_gradient
    def run(x, kernel, gamma, beta):
        weights, count = tf.reshape(kernel, kernel.shape[2:]), _row_count(x)
        center = _sum_rows(x) / count
        centered = x - center
        spread = tf.matmul(_sum_products(centered, centered) / count, weights)
        mean, variance = tf.linalg.matvec(weights, center, transpose_a=True), tf.reduce_sum(weights * spread, axis=0)
        inverse = tf.math.rsqrt(variance + epsilon)
        z = multiply_channels(centered, weights * (gamma * inverse), beta)

        def backward(gradient, *_):
            gradient = activation_gradient(z, 1.0, 0.0, gradient, activation)
            products = _sum_products(centered, gradient)
            beta_gradient = _sum_rows(gradient)
            gamma_gradient = inverse * tf.reduce_sum(weights * products, axis=0)
            scale = gamma * inverse
            weight_gradient = scale * (products - spread * (inverse * gamma_gradient))
            back = tf.matmul(weights * (-scale * inverse * gamma_gradient / count), weights, transpose_b=True)
            shift = tf.linalg.matvec(weights, -scale * beta_gradient / count)
            x_gradient = multiply_channels(gradient, tf.transpose(weights * scale), shift) + multiply_channels(
                centered, back
            )
            return x_gradient, weight_gradient[None, None], gamma_gradient, beta_gradient

        return (apply_activation(z, activation), mean, variance), backward

    return run(x, kernel, gamma, beta)  # pyright: ignore[reportReturnType] - The decorator returns only the outputs.


def _normalize(x, gamma, beta, epsilon):
    """Apply TensorFlow's batch norm kernel and return the outputs, mean, variance, and the gradient function."""
    y, mean, unbiased_variance, *reserved = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = _row_count(x)

    def backward(gradient):
        spaces = {f"reserve_space_{i}": value for i, value in enumerate(reserved, 1)}
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=gradient, x=x, scale=gamma, epsilon=epsilon, is_training=True, **spaces
        )[:3]

    return y, mean, unbiased_variance * (count - 1) / count, backward


def _scale_and_shift(mean, variance, gamma, beta, epsilon):
    """Return the scale and shift, float32 [C], for which batch norm equals x * scale + shift."""
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    return scale, beta - mean * scale


def _sum_products(x, y):
    """Return the products of the channels of [B, H, W, I] and [B, H, W, O], summed over rows: [I, O]."""
    return tf.matmul(*(tf.reshape(t, [-1, t.shape[3]]) for t in (x, y)), transpose_a=True)


def _row_count(x):
    """Return the number of rows of length C in [B, H, W, C]."""
    return math.prod(x.shape[:3])


def _sum_rows(x):
    """Return the sum over all axes but the channels, [C]. A matrix product is several times faster than a reduction."""
    rows = tf.reshape(x, [_row_count(x), x.shape[3]])
    return tf.reshape(tf.matmul(tf.ones([1, rows.shape[0]]), rows), [-1])


# ------------------------------------------------------------------------- elementwise functions, compiled by XLA


def sigmoid(z):
    """Return the sigmoid of z, float32, with an error of at most 3e-7."""
    # XLA's own sigmoid is slower. XLA also ignores an exponential in its cost estimate, and runs kernels that it takes
    # for cheap on fewer cores.
    z = tf.clip_by_value(z, -16.0, 16.0)
    square = z * z
    return 0.5 + z * _polynomial(square, SIGMOID_P) / _polynomial(square, SIGMOID_Q)


def _polynomial(x, coefficients):
    return functools.reduce(lambda sum_, c: sum_ * x + c, reversed(coefficients))


def _swish(z):
    return z * sigmoid(z)


def _swish_slope(z):
    gate = sigmoid(z)
    return gate * (1 + z * (1 - gate))


def _ones_between(z, low, high):
    return tf.cast((z > low) & (z < high), z.dtype)


# The function and its derivative. That of ReLU is 0 where it has none, as in TensorFlow.
ACTIVATIONS = {
    "swish": (_swish, _swish_slope),
    "relu": (tf.nn.relu, lambda z: _ones_between(z, 0, math.inf)),
    "relu6": (tf.nn.relu6, lambda z: _ones_between(z, 0, 6)),
}


def _sum_pixels(function, *images):
    """Apply an elementwise function to images, [B, H, W, C], and return the sums over pixels, [B, 1, 1, C]."""
    pixels = images[0].shape[1] * images[0].shape[2]
    rows = [tf.cast(tf.reshape(image, [-1, pixels, image.shape[3]]), tf.float32) for image in images]
    size, function = pixels // PARTS, tf.function(function, autograph=False)  # Trace once, not per part.
    parts = sum(function(*(r[:, i * size : (i + 1) * size] for r in rows)) for i in range(PARTS))
    remainder = function(*(r[:, PARTS * size :] for r in rows))
    return sum(tf.reduce_sum(value, axis=1)[:, None, None] for value in (parts, remainder))


@compile_for_cpu
def apply_activation(z, activation):
    """Return the activation of z with the shape and dtype of z."""
    function, _ = ACTIVATIONS[activation]
    return tf.cast(function(tf.cast(z, tf.float32)), z.dtype)


@compile_for_cpu
def activation_gradient(x, scale, shift, gradient, activation):
    """Return `gradient` times the derivative of the activation at x * scale + shift."""
    _, derivative = ACTIVATIONS[activation]
    slope = derivative(tf.cast(x, tf.float32) * scale + shift)
    return tf.cast(tf.cast(gradient, tf.float32) * slope, x.dtype)


@compile_for_cpu
def _gated_gradient(x, scale, shift, gradient, gate, squeezed_gradient, activation):
    """Return the gradient of values whose activation is gated and averaged over pixels.

    The gate and the gradient of the averages are [B, 1, 1, C].
    """
    _, derivative = ACTIVATIONS[activation]
    gradient, gate, squeezed_gradient = (tf.cast(t, tf.float32) for t in (gradient, gate, squeezed_gradient))
    slope = derivative(tf.cast(x, tf.float32) * scale + shift)
    return tf.cast((gradient * gate + squeezed_gradient) * slope, x.dtype)


@compile_for_cpu
def _squeeze(z, activation):
    """Return the mean over pixels of the activation of z, [B, 1, 1, C]."""
    function, _ = ACTIVATIONS[activation]
    return tf.cast(_sum_pixels(function, z) / (z.shape[1] * z.shape[2]), z.dtype)


@compile_for_cpu
def _excite(z, gate, activation):
    """Return the activation of z times the gate, [B, 1, 1, C]."""
    function, _ = ACTIVATIONS[activation]
    return tf.cast(function(tf.cast(z, tf.float32)) * tf.cast(gate, tf.float32), z.dtype)


@compile_for_cpu
def _gate_gradient(x, scale, shift, gradient, activation):
    """Return the gradient of a gate that multiplies the activation of x * scale + shift, [B, 1, 1, C]."""
    function, _ = ACTIVATIONS[activation]
    return tf.cast(_sum_pixels(lambda x, g: function(x * scale + shift) * g, x, gradient), x.dtype)

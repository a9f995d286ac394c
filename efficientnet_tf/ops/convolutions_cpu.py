"""Convolutions that train faster on a CPU than TensorFlow's own."""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf


def multiply_channels(x: Any, weights: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """Multiply the channels by a matrix.

    Args:
        x: Input [B, H, W, I].
        weights: The matrix [I, O].
        bias: Added to the products, [O], or None.

    Returns:
        The products [B, H, W, O].
    """
    y = tf.matmul(tf.reshape(x, [-1, x.shape[3]]), weights)
    if bias is not None:
        y = tf.nn.bias_add(y, bias)
    sizes = x.shape[:3] if x.shape.is_fully_defined() else tf.unstack(tf.shape(x)[:3])
    return tf.reshape(y, [*sizes, weights.shape[1]])


def pointwise_conv(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Apply a 1x1 convolution as a matrix product, which is up to 1.5 times faster than TensorFlow's convolution.

    Args:
        x: Input [B, H, W, I].
        kernel: Kernel [1, 1, I, O] with the dtype of `x`.

    Returns:
        The outputs [B, H, W, O].
    """
    return multiply_channels(x, tf.reshape(kernel, kernel.shape[2:]))


def depthwise_conv(x: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """Apply a depthwise convolution with "SAME" padding and a faster gradient of the kernel.

    Args:
        x: Input [B, H, W, C].
        kernel: Kernel [K, K, C, 1] with the dtype of `x`.
        stride: Stride in pixels, >= 1.

    Returns:
        The outputs [B, ceil(H / stride), ceil(W / stride), C].
    """
    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def convolve(x, kernel):
        def backward(gradient):
            input_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=gradient, strides=strides, padding="SAME"
            )
            return input_gradient, _kernel_gradient(x, gradient, kernel.shape, strides)

        return tf.nn.depthwise_conv2d(x, kernel, strides, "SAME"), backward

    return convolve(x, kernel)  # pyright: ignore[reportReturnType] - The decorator returns only the outputs.


def _kernel_gradient(x, gradient, shape, strides):
    """Return the gradient of a depthwise kernel, [K, K, C, 1], with the dtype of x."""
    dtype, padding = x.dtype, {"padding": "SAME"}
    if shape[0] > 3 or strides[1] > 1:
        # oneDNN is slow for these kernels and does not support explicit padding. With explicit padding TensorFlow uses
        # its own code, which is up to four times faster (TensorFlow 2.21). It accumulates in the dtype of its inputs.
        x, gradient = (tf.cast(t, tf.float32) for t in (x, gradient))
        sides = (_same_padding(x.shape[i], gradient.shape[i], shape[0], strides[i]) for i in (1, 2))
        padding = {"padding": "EXPLICIT", "explicit_paddings": [0, 0, *itertools.chain(*sides), 0, 0]}
    kernel_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=x, filter_sizes=shape, out_backprop=gradient, strides=strides, **padding
    )
    return tf.cast(kernel_gradient, dtype)


def _same_padding(input_size, output_size, kernel_size, stride):
    """Return the numbers of zeros that "SAME" padding adds before and after an axis."""
    total = max(0, (output_size - 1) * stride + kernel_size - input_size)
    return total // 2, total - total // 2

"""Layers that are fast with JAX. They compute what Keras's layers compute, up to rounding."""

from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax


class FastConv2D(keras.layers.Conv2D):
    """Keras's convolution, computed as a matrix product where it is one.

    It was measured on a GPU only together with `moments`: see docs/guides/benchmark.md.
    """

    def convolution_op(self, inputs, kernel):
        """Convolve."""
        is_product = (self.kernel_size, self.strides, self.groups) == ((1, 1), (1, 1), 1)
        if not is_product or self.data_format != "channels_last":
            return super().convolution_op(inputs, kernel)
        return lax.dot_general(inputs, jnp.asarray(kernel)[0, 0], (((3,), (0,)), ((), ())))


class FastDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's depthwise convolution with bias and activation, computed as a sum of products with shifted images.

    On a CPU, XLA's own convolution takes 10 to 100 times as long. On a GPU it is the faster one.
    """

    def call(self, inputs):
        """Convolve."""
        if self.data_format != "channels_last" or self.depth_multiplier > 1 or self.dilation_rate != (1, 1):
            return super().call(inputs)
        kernel, sides = jnp.asarray(self.kernel, inputs.dtype), inputs.shape[1:3]
        padding = lax.padtype_to_pads(sides, self.kernel_size, self.strides, self.padding.upper())
        padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
        height, width = (
            (side + sum(pad) - size) // stride + 1
            for side, pad, size, stride in zip(sides, padding, self.kernel_size, self.strides, strict=True)
        )
        down, right = self.strides
        total: Any = 0.0
        for i in range(self.kernel_size[0]):
            for j in range(self.kernel_size[1]):
                shifted = padded[:, i : i + down * height : down, j : j + right * width : right]
                total += shifted.astype("float32") * kernel[i, j, :, 0].astype("float32")
        total = total.astype(inputs.dtype)
        if self.use_bias:
            total += jnp.asarray(self.bias, total.dtype)
        return self.activation(total)


@jax.custom_vjp
def moments(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and variance of each channel in one pass over the values, where Keras takes two.

    Args:
        x: float32 [..., C].
        shift: float32 [C], any estimate of the means. The closer it is, the less the variance loses by rounding.
    """
    centered = x - shift
    axes = tuple(range(x.ndim - 1))
    mean, square = jnp.mean(centered, axes), jnp.mean(centered**2, axes)
    return shift + mean, jnp.maximum(square - mean**2, 0.0)


def _moments_forward(x, shift):
    mean, variance = moments(x, shift)
    return (mean, variance), (x, mean)


def _moments_backward(saved, gradients):
    # Autodiff would also sum x - mean, which is zero, in another pass over the values.
    x, mean = saved
    of_mean, of_variance = gradients
    size = x.size // x.shape[-1]
    return (of_mean + 2 * of_variance * (x - mean)) / size, jnp.zeros_like(mean)


moments.defvjp(_moments_forward, _moments_backward)

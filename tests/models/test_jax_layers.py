"""The layers for training with JAX compute what Keras's layers compute."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from efficientnet_tf.models.jax_layers import FastConv2D, FastDepthwiseConv2D, moments

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_moments_are_those_of_numpy(offset):
    x = (RNG.normal(size=(4, 5, 6, 7)) + offset).astype(np.float32)
    mean, variance = moments(x, jnp.full(7, offset))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)


def test_the_gradient_of_moments_is_that_of_two_passes():
    x = jnp.asarray(RNG.normal(size=(4, 5, 6, 7)), jnp.float32)
    of_mean, of_variance = jnp.asarray(RNG.normal(size=(2, 7)), jnp.float32)

    def combine(compute):
        return jax.grad(lambda x: sum(jnp.sum(a * b) for a, b in zip(compute(x), (of_mean, of_variance), strict=True)))

    got = combine(lambda x: moments(x, jnp.full(7, 0.5)))(x)
    expected = combine(lambda x: (x.mean((0, 1, 2)), x.var((0, 1, 2))))(x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_equal_values_have_no_variance():
    mean, variance = moments(jnp.full((2, 3, 3, 1), 0.1), jnp.zeros(1))
    np.testing.assert_allclose([mean[0], variance[0]], [0.1, 0.0], atol=1e-8)


@pytest.mark.parametrize("settings", [{}, {"strides": 2}, {"kernel_size": 3, "padding": "same"}, {"groups": 2}])
def test_convolutions_are_those_of_keras(settings):
    layer = FastConv2D(**{"filters": 6, "kernel_size": 1, "use_bias": False} | settings)
    x = RNG.normal(size=(2, 5, 5, 4)).astype(np.float32)
    layer.build(x.shape)
    kernel = np.asarray(layer.kernel)
    expected = keras.layers.Conv2D.convolution_op(layer, x, kernel)
    np.testing.assert_allclose(layer.convolution_op(x, kernel), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [5, 6])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, (3, 5)])
def test_depthwise_convolutions_are_those_of_keras(kernel_size, strides, padding, size):
    layer = FastDepthwiseConv2D(kernel_size, strides=strides, padding=padding, bias_initializer="ones")
    x = RNG.normal(size=(2, size, size + 2, 4)).astype(np.float32)
    layer.build(x.shape)
    expected = keras.layers.DepthwiseConv2D.call(layer, x)
    np.testing.assert_allclose(layer.call(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-6)

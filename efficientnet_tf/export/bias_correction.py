"""Makes the layers of an int8 network compute, on average, what those of the float network compute."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from efficientnet_tf.runtime.terminal import track

BATCH_SIZE = 16


def correct_biases(network: keras.Model, model: keras.Model, calibration: np.ndarray) -> None:
    """Change the biases of an int8 network in place, if that brings its logits closer to those of the float network.

    Rounded tensors shift the mean of what the next layer computes, and these shifts add up on the way through the
    network. The bias of each layer takes the difference to the float network, layer after layer, so that a layer sees
    inputs that have been corrected already. Each batch changes what the batches before it have left by its share. This
    helps networks with ReLU6 a lot. With swish, it can do more harm than good.

    Args:
        network: A model of `int8_network.make_int8_network`.
        model: The folded float32 model that it was made from.
        calibration: Calibration images, float32 [N, H, W, C], pixels in [0, 255].

    Source: Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019, appendix D.
    """
    names = [layer.name for layer in network.layers if _is_corrected(layer, model)]
    measure_means = keras.Model(model.input, [_mean(_compute_sum(model.get_layer(name))) for name in names])
    shifts = {name: _Shift(name=f"{name}_shift") for name in names}

    def call(layer, x, **options):
        y = layer(x, **options)
        return shifts[layer.name](y) if layer.name in shifts else y

    shifted = keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)
    changes = [ops.subtract(shift.output, shift.input) for shift in shifts.values()]
    measure_shifts = keras.Model(shifted.input, list(map(_mean, changes)))

    @tf.function(autograph=False)
    def measure(images):
        for shift, mean in zip(shifts.values(), measure_means(images, training=False), strict=True):
            shift.mean.assign(mean)
        return measure_shifts(images, training=False)

    @tf.function(autograph=False)
    def measure_error(images):
        return tf.reduce_mean(tf.square(model(images, training=False) - network(images, training=False)))

    batches = [calibration[start : start + BATCH_SIZE] for start in range(0, len(calibration), BATCH_SIZE)]
    layers: list[Any] = [network.get_layer(name) for name in names]
    before, error = [layer.bias.numpy() for layer in layers], sum(map(measure_error, batches))
    for count, images in enumerate(track(batches, len(batches), "Correcting biases", "batches"), 1):
        for layer, shift in zip(layers, measure(images), strict=True):
            layer.bias.assign_add(shift / count)
    if sum(map(measure_error, batches)) >= error:
        for layer, bias in zip(layers, before, strict=True):
            layer.bias.assign(bias)


class _Shift(keras.layers.Layer):
    """Adds a constant to each channel, so that its mean over a batch is a given one."""

    def build(self, input_shape):
        self.mean = self.add_weight(shape=input_shape[-1:], initializer="zeros", trainable=False, name="mean")

    def call(self, x):
        return x + (ops.convert_to_tensor(self.mean) - _mean(x))


def _is_corrected(layer, model):
    """Return whether a layer of the int8 network has a kernel, and computes nothing but a sum."""
    is_linear = getattr(layer, "activation", None) is keras.activations.linear
    return hasattr(layer, "kernel") and is_linear and hasattr(model.get_layer(layer.name), "kernel")


def _compute_sum(layer):
    """Return what a layer of the float network computes before its activation."""
    copy = type(layer).from_config(layer.get_config() | {"activation": "linear", "name": f"{layer.name}_sum"})
    result = copy(layer.input)
    copy.set_weights(layer.get_weights())
    return result


def _mean(x) -> Any:
    """Return the mean of each channel."""
    return ops.mean(x, list(range(len(x.shape) - 1)))

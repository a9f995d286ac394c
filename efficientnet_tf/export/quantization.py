"""Measures what int8 does to each layer of a network."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

BATCH_SIZE = 32


class _FakeQuantization(keras.layers.Layer):
    """While `enabled` is 1, rounds a tensor to 256 evenly spaced values between `low` and `high`."""

    def build(self, input_shape):
        self.low, self.high, self.enabled = (
            self.add_weight(shape=(), initializer="zeros", trainable=False, name=name)
            for name in ("low", "high", "enabled")
        )

    def call(self, inputs):
        step: Any = ops.maximum((self.high - self.low) / 255, 1e-12)
        rounded = self.low + step * ops.round((ops.clip(inputs, self.low, self.high) - self.low) / step)
        return ops.where(self.enabled > 0, rounded, inputs)


def list_kernel_layers(model: keras.Model) -> list[str]:
    """Return the names of a model's convolutions and dense layers, in the order in which the data passes them."""
    return [layer.name for layer in model.layers if hasattr(layer, "kernel")]


def measure_quantization_errors(
    model: keras.Model, calibration: Iterable[np.ndarray], images: np.ndarray
) -> dict[str, float]:
    """Return the error that each convolution and dense layer causes if it alone computes in int8.

    The input and the output of the layer are rounded to 256 values over the range of the calibration images, and its
    weights to 255 values per output channel. This is the simplest form of quantization. Runtimes fuse and clip
    differently, but the same layers suffer.

    Args:
        model: A model of `models.folding.fold_batch_norm`.
        calibration: Batches of one image, float32 [1, H, W, C], pixels in [0, 255].
        images: Images to measure on, float32 [N, H, W, C].

    Returns:
        The error of each layer, by name, the largest first: the root mean square error of the logits divided by the
        standard deviation of the logits.
    """
    names = list_kernel_layers(model)

    def call(layer, x, **options):
        if layer.name not in names:
            return layer(x, **options)
        before, after = (_FakeQuantization(name=f"{layer.name}_{end}") for end in ("in", "out"))
        return after(layer(before(x), **options))

    probe = keras.models.clone_model(model, call_function=call)
    for layer in model.layers:
        probe.get_layer(layer.name).set_weights(layer.get_weights())
    roundings = {name: [probe.get_layer(f"{name}_{end}") for end in ("in", "out")] for name in names}
    _calibrate(probe, [rounding for both in roundings.values() for rounding in both], calibration)

    forward = tf.function(lambda batch: probe(batch, training=False), autograph=False)

    def compute_logits():
        starts = range(0, len(images), BATCH_SIZE)
        return np.concatenate([forward(images[i : i + BATCH_SIZE]).numpy() for i in starts])

    exact, errors = compute_logits(), {}
    for name in names:
        layer = probe.get_layer(name)
        kernel = layer.kernel.numpy()
        step = kernel_step(layer)
        layer.kernel.assign(np.round(kernel / step) * step)
        for rounding in roundings[name]:
            rounding.enabled.assign(1.0)
        errors[name] = float(np.sqrt(np.mean((compute_logits() - exact) ** 2)) / exact.std())
        layer.kernel.assign(kernel)
        for rounding in roundings[name]:
            rounding.enabled.assign(0.0)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _calibrate(probe, roundings, calibration):
    """Set the range of each rounding to the range of its input over the calibration images."""
    tensors = keras.Model(probe.inputs, [rounding.input for rounding in roundings])

    @tf.function(autograph=False)
    def ranges(image):
        return tf.stack([[tf.reduce_min(x), tf.reduce_max(x)] for x in tensors(image, training=False)])

    measured = np.stack([ranges(image).numpy() for image in calibration])
    for rounding, low, high in zip(roundings, measured[..., 0].min(axis=0), measured[..., 1].max(axis=0), strict=True):
        rounding.low.assign(low)
        rounding.high.assign(high)


def kernel_step(layer: keras.layers.Layer) -> np.ndarray:
    """Return the distance between two int8 values of a kernel, per output channel. The shape broadcasts to the kernel.

    The 255 values are evenly spaced around zero, and the largest weight of a channel is one of them.
    """
    kernel = layer.kernel.numpy()
    channel = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else kernel.ndim - 1
    others = tuple(axis for axis in range(kernel.ndim) if axis != channel)
    return np.maximum(np.abs(kernel).max(axis=others, keepdims=True) / 127, 1e-12)

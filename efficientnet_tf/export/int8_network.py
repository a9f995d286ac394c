"""Builds the network in int8 that the writers of exported files write, and finds limits for one without training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from efficientnet_tf.models.folding import fold_weights
from efficientnet_tf.models.quantized import (
    PIXEL_LIMITS,
    PIXELS,
    FixedRounding,
    LearnedRounding,
    QuantizedInference,
    QuantizedNetwork,
    copy_for_int8,
    round_kernel,
)


class _RoundedConv2D(keras.layers.Conv2D):
    """A convolution that rounds its kernel, so that runtimes know its scales."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, round_kernel(self, ops.convert_to_tensor(kernel)))


class _RoundedDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A depthwise convolution that rounds its kernel."""

    def call(self, inputs):
        kernel: Any = round_kernel(self, ops.convert_to_tensor(self.kernel))
        return ops.add(ops.depthwise_conv(inputs, kernel, self.strides[0], self.padding), self.bias)


class _RoundedDense(keras.layers.Dense):
    """A dense layer that rounds its kernel."""

    def call(self, inputs, training=None):
        return ops.add(ops.matmul(inputs, round_kernel(self, ops.convert_to_tensor(self.kernel))), self.bias)


_ROUNDED: dict[type, Any] = {
    keras.layers.Conv2D: _RoundedConv2D,
    keras.layers.DepthwiseConv2D: _RoundedDepthwiseConv2D,
    keras.layers.Dense: _RoundedDense,
}


def compute_quantized_logits(model: keras.Model, limits: Mapping[str, tuple[float, float]]) -> Callable[[Any], Any]:
    """Return the function from images to logits that training has evaluated. The arguments are those below."""
    network = QuantizedNetwork(model, learns=False)
    for variable in network.limits:
        variable.assign(limits[variable.path.partition("_limits/")[0]])
    return QuantizedInference(model, network.limits)


def measure_limits(
    model: keras.Model, calibration: Iterable[np.ndarray], keep_float: Sequence[str] = ()
) -> dict[str, tuple[float, float]]:
    """Return the limits of each tensor that a runtime would store in int8: its range over the calibration images.

    Args:
        model: A model of `models.folding.fold_batch_norm`.
        calibration: Batches of one image, float32 [1, H, W, C], pixels in [0, 255].
        keep_float: Names of convolutions and dense layers that compute in float.

    Returns:
        The smallest and the largest value by the name of the tensor, as `make_int8_network` takes them. Zero is always
        between them. Those of the pixels are 0 and 255 or further apart, because bicubic resizing overshoots.
    """
    copy, _ = copy_for_int8(model, lambda name: LearnedRounding(name=f"{name}_limits"), keep_float=keep_float)
    roundings = [layer for layer in copy.layers if isinstance(layer, LearnedRounding)]
    for layer in (layer for layer in copy.layers if layer.weights and layer not in roundings):
        layer.set_weights(model.get_layer(layer.name).get_weights())
    # Roundings that have seen no batch change nothing, so these are the tensors of the network in float.
    tensors = keras.Model(copy.inputs, [rounding.input for rounding in roundings])

    @tf.function(autograph=False)
    def measure(image):
        return tf.stack([[tf.reduce_min(x), tf.reduce_max(x)] for x in tensors(image, training=False)])

    measured = np.stack([measure(image).numpy() for image in calibration])
    names = [rounding.name.removesuffix("_limits") for rounding in roundings]
    lows = np.minimum(measured[..., 0].min(0), 0)
    highs = np.maximum(measured[..., 1].max(0), [PIXEL_LIMITS[1] if name == PIXELS else 1e-6 for name in names])
    return {name: (float(low), float(high)) for name, low, high in zip(names, lows, highs, strict=True)}


def make_int8_network(
    model: keras.Model, limits: Mapping[str, tuple[float, float]], rounds_dense: bool, keep_float: Sequence[str] = ()
) -> Any:
    """Return a network in which every tensor and every kernel is rounded to the values that int8 has.

    Args:
        model: A float32 model of `build_model` or of `models.folding.fold_batch_norm`.
        limits: The limits of each tensor, by name: those that training has learned, or those of `measure_limits`.
            Without those of the pixels, they are 0 and 255.
        rounds_dense: Whether the dense layer rounds its kernel. LiteRT's converter does that by itself, and refuses
            a dense layer that does.
        keep_float: Names of convolutions and dense layers that compute in float.

    Returns:
        A Keras model of the same input and output. The pixels are normalized by a convolution, for which every
        runtime has an operation in int8.
    """

    def make_layer(layer):
        settings = layer.get_config()
        if isinstance(layer, keras.layers.Rescaling):
            return _RoundedDepthwiseConv2D(1, name=layer.name, dtype="float32")
        if isinstance(layer, keras.layers.Dense) and not rounds_dense:
            return type(layer).from_config(settings)
        kind: Any = _ROUNDED.get(type(layer), type(layer))
        return kind.from_config(settings)

    limits = {PIXELS: PIXEL_LIMITS} | dict(limits)
    copy, norms = copy_for_int8(
        model, lambda name: FixedRounding(*limits[name], name=f"{name}_limits", dtype="float32"), make_layer, keep_float
    )
    channels = model.input_shape[-1]
    for layer in (layer for layer in copy.layers if layer.weights):
        old = model.get_layer(layer.name)
        if isinstance(old, keras.layers.Normalization | keras.layers.Rescaling):
            scale, offset = (np.broadcast_to(v, [channels]) for v in _read_normalization(old))
            layer.set_weights([scale.reshape(1, 1, -1, 1), offset])
            continue
        layer.set_weights(fold_weights(old, norms.get(layer.name), lambda v: np.asarray(v, np.float64)))
    return copy


def _read_normalization(layer):
    """Return what the layer that normalizes the pixels multiplies them by, and then adds."""
    if isinstance(layer, keras.layers.Rescaling):
        return (np.asarray(value, np.float64).reshape(-1) for value in (layer.scale, layer.offset))
    # The layer is inverted: it multiplies by the standard deviation and adds the mean.
    variance, mean = (np.asarray(v, np.float64).reshape(-1) for v in (layer.input_variance, layer.input_mean))
    return np.sqrt(variance), mean

"""Builds the network that a run has trained for int8, for the writers of exported files."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from efficientnet_tf.models.folding import fold_weights
from efficientnet_tf.models.quantized import (
    FixedRounding,
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


def make_int8_network(model: keras.Model, limits: Mapping[str, tuple[float, float]], rounds_dense: bool) -> Any:
    """Return a network in which every tensor and every kernel is rounded to the values that int8 has.

    Args:
        model: A float32 model of `build_model`.
        limits: The limits of each tensor that training has learned, by name.
        rounds_dense: Whether the dense layer rounds its kernel. LiteRT's converter does that by itself, and refuses
            a dense layer that does.

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

    copy, norms = copy_for_int8(
        model, lambda name: FixedRounding(*limits[name], name=f"{name}_limits", dtype="float32"), make_layer
    )
    channels = model.input_shape[-1]
    for layer in (layer for layer in copy.layers if layer.weights):
        old = model.get_layer(layer.name)
        if isinstance(old, keras.layers.Normalization):
            variance, mean = (np.asarray(v, np.float64).reshape(-1) for v in (old.input_variance, old.input_mean))
            # The layer is inverted: it multiplies by the standard deviation and adds the mean.
            scale, offset = (np.broadcast_to(v, [channels]) for v in (np.sqrt(variance), mean))
            layer.set_weights([scale.reshape(1, 1, -1, 1), offset])
            continue
        layer.set_weights(fold_weights(old, norms.get(layer.name), lambda v: np.asarray(v, np.float64)))
    return copy

"""Layers that train fast on a CPU: several of a model's layers as one operation of `ops.fused_cpu`.

They compute what the layers compute, with fewer passes over memory. This module reads a few private attributes of
Keras (`_outbound_nodes`, `_keras_history`), which Keras 3.13 to 3.15 have. Nothing else of the package does.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from efficientnet_tf.ops import convolutions_cpu, fused_cpu

# Tensors with fewer values stay in the caches, so that fusing does not pay for the tenth of a second that XLA takes to
# compile a shape.
FUSE_FROM_VALUES = 2**20


def find_fusible(model: keras.Model) -> list[list[keras.layers.Layer]]:
    """Return the lists of consecutive layers that `FusedLayers` can replace.

    Each list holds a batch norm that is trained, and what can be fused with it: the activation after it, and either the
    1x1 convolution before it or the four layers of squeeze-and-excite after it.
    """
    readers = {layer.name: [node.operation for node in layer._outbound_nodes] for layer in model.layers}

    found = []
    for norm in model.layers:
        if not isinstance(norm, keras.layers.BatchNormalization) or not norm.trainable or len(norm.input.shape) != 4:
            continue
        before, after = norm.input._keras_history.operation, readers[norm.name]
        layers = [norm]
        if len(after) == 1 and _find_activation(after[0]):
            layers += after
            excite = [layer for layer in readers[after[0].name] if isinstance(layer, keras.layers.Multiply)]
            if excite:
                expand = excite[0].input[1]._keras_history.operation
                reduce = expand.input._keras_history.operation
                layers += [reduce.input._keras_history.operation, reduce, expand, *excite]
            elif _is_widening(before):
                layers = [before, *layers]
        found.append(layers)
    return found


def _find_activation(layer: Any) -> str | None:
    """Return the key of `fused_cpu.ACTIVATIONS` for a layer that is one of them, else None."""
    functions = keras.activations
    names = {functions.silu: "swish", functions.relu: "relu", functions.relu6: "relu6"}
    return names.get(layer.activation) if isinstance(layer, keras.layers.Activation) else None


def _is_matrix_product(conv: keras.layers.Conv2D) -> bool:
    """Return whether a convolution is a matrix product and faster as one. In bfloat16 it is not faster."""
    return (conv.kernel_size, conv.strides, conv.groups) == ((1, 1), (1, 1), 1) and conv.compute_dtype == "float32"


def _is_widening(layer: Any) -> bool:
    """Return whether a layer is a plain 1x1 convolution with more channels after it than before."""
    return (
        isinstance(layer, keras.layers.Conv2D)
        and _is_matrix_product(layer)
        and not layer.use_bias
        and layer.activation is keras.activations.linear
        and layer.input.shape[-1] < layer.filters
    )


class FusedLayers(keras.layers.Layer):
    """Consecutive layers of `find_fusible`, trained as one operation.

    Args:
        layers: The layers, in their order.
        fuse_from: Tensors with fewer values are computed layer by layer, except for the batch norm.
    """

    def __init__(self, layers: list[keras.layers.Layer], fuse_from: int = FUSE_FROM_VALUES):
        super().__init__(name=f"{layers[0].name}_to_{layers[-1].name}", dtype=layers[0].dtype_policy)
        self.fuse_from = fuse_from
        self.conv = layers[0] if isinstance(layers[0], keras.layers.Conv2D) else None
        self.norm, *rest = layers[1:] if self.conv else layers
        self.activation, self.squeeze_excite = rest[:1], rest[1:]

    def call(self, x, training=None):
        """Compute the layers. In training, also update the moving statistics of the batch norm."""
        norm, epsilon = self.norm, self.norm.epsilon
        if not training:
            return self._after_norm(norm(self._before_norm(x), training=False))
        gamma, beta = tf.cast(norm.gamma, tf.float32), tf.cast(norm.beta, tf.float32)
        activation = _find_activation(self.activation[0]) if self.activation else None
        channels = self.conv.filters if self.conv else x.shape[-1]
        if math.prod([*x.shape[:-1], channels]) < self.fuse_from:
            x, *moments = fused_cpu.batch_norm(self._before_norm(x), gamma, beta, epsilon, None)
            x = self._after_norm(x)
        elif self.conv:
            kernel = tf.cast(self.conv.kernel, x.dtype)
            x, *moments = fused_cpu.conv_batch_norm(x, kernel, gamma, beta, epsilon, activation)
        elif self.squeeze_excite:
            x, *moments = self._fuse_squeeze_excite(x, gamma, beta, epsilon, activation)
        else:
            x, *moments = fused_cpu.batch_norm(x, gamma, beta, epsilon, activation)
        for moving, new in zip((norm.moving_mean, norm.moving_variance), moments, strict=True):
            moving.assign(moving * norm.momentum + new * (1 - norm.momentum))
        return x

    def _fuse_squeeze_excite(self, x, gamma, beta, epsilon, activation):
        _, reduce, expand, _ = self.squeeze_excite

        def gate_of(means, weights):
            inner, _ = reduce.stateless_call(weights[:2], [], means)
            return expand.stateless_call(weights[2:], [], inner)[0]

        weights = [tf.cast(v, x.dtype) for v in (*reduce.weights, *expand.weights)]
        return fused_cpu.batch_norm_squeeze_excite(x, gamma, beta, epsilon, activation, gate_of, weights)

    def _before_norm(self, x):
        return self.conv(x) if self.conv else x

    def _after_norm(self, x):
        for activation in self.activation:
            x = activation(x)
        if self.squeeze_excite:
            squeeze, reduce, expand, excite = self.squeeze_excite
            x = excite([x, expand(reduce(squeeze(x)))])
        return x


class FastConv2D(keras.layers.Conv2D):
    """Keras's convolution, computed as a matrix product where it is one."""

    def convolution_op(self, inputs, kernel):
        """Convolve."""
        if not _is_matrix_product(self):
            return super().convolution_op(inputs, kernel)
        return convolutions_cpu.pointwise_conv(inputs, tf.convert_to_tensor(kernel))


class FastDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's depthwise convolution, with a faster gradient."""

    def call(self, inputs):
        """Convolve each channel."""
        if self.padding != "same":
            return super().call(inputs)
        return convolutions_cpu.depthwise_conv(inputs, tf.cast(self.kernel, inputs.dtype), self.strides[0])

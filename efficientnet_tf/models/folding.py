"""Inference with batch norm folded into the convolutions: for exports, and for fast answers on a CPU."""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.strategy import on_host
from efficientnet_tf.runtime.variables import read_values


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return a copy of a model for inference, with each batch norm folded into the convolution before it.

    What is left has only layers that every exporter can write. Exporters differ in what they fold. TensorFlow's, for
    example, leaves the batch norm of depthwise convolutions to the runtime.

    Args:
        model: A float32 model of `models.builder.build_model`.

    Returns:
        A model with the same input, output and layer names, without dropout. It computes the same function up to
        rounding: its weights are computed in float64 and rounded once. A batch norm is kept if it does not
        follow a convolution, or if another layer reads the convolution, too.
    """
    folded, norms = copy_without_norms(model, for_export=True)
    for layer in (layer for layer in folded.layers if layer.weights):
        old = model.get_layer(layer.name)
        layer.set_weights(fold_weights(old, norms.get(layer.name), lambda v: np.asarray(v, np.float64)))
    return folded


class Inference:
    """Computes a model's logits in inference: call it in a replica on images, float [B, H, W, C] in [0, 255].

    On a CPU, each batch norm is folded into the convolution before it. TensorFlow then computes a convolution, its bias
    and its activation in one pass, so that B0 takes about two thirds of the time. With JAX, depthwise convolutions are
    those of `jax_layers`. The folded weights are computed in each call, from the variables of the model. Other devices
    compute the model's own layers.

    Args:
        model: A model of `build_model`.
        device: The kind of device that computes, as `runtime.strategy.device_type` returns it.
    """

    def __init__(self, model: keras.Model, device: str):
        self._model, self._folded, self._norms = model, None, {}
        if device == "CPU" and _can_fold(model):
            with on_host():
                self._folded, self._norms = copy_without_norms(model)

    def __call__(self, images: Any) -> Any:
        """Return the logits of images, [B, classes]."""
        return self._compute(images, _read_value)

    def with_values(self, stands_for: Mapping[int, keras.Variable]) -> Callable[[Any], Any]:
        """Return a function like this one that reads other variables: {id(variable): the one to read instead}."""
        return lambda images: self._compute(images, lambda v: _read_value(stands_for.get(id(v), v)))

    def compute(self, images: Any, values: Mapping[int, Any]) -> Any:
        """Return the logits of images with other values of the variables: {id(variable): value}."""
        return self._compute(images, lambda v: values[id(v)])

    def _compute(self, images, read):
        if self._folded is None:
            values = {id(variable): read(variable) for variable in self._model.variables}
        else:
            values = {}
            for layer in (layer for layer in self._folded.layers if layer.weights):
                new = fold_weights(self._model.get_layer(layer.name), self._norms.get(layer.name), read)
                values |= zip(map(id, layer.weights), new, strict=True)
        graph = self._folded or self._model
        groups = ([values[id(v)] for v in each] for each in (graph.trainable_variables, graph.non_trainable_variables))
        return graph.stateless_call(*groups, images, training=False)[0]


def _read_value(variable):
    """Return the current value of a variable, as this replica sees it."""
    return read_values([variable])[0]


def _can_fold(model):
    """Return whether a model is a graph of layers in float32, of which each is used once."""
    if not hasattr(model, "operations") or model.compute_dtype != "float32":
        return False
    uses = [len(layer.get("inbound_nodes", ())) for layer in model.get_config()["layers"]]
    return max(uses) == 1 and not any(isinstance(layer, keras.Model) for layer in model.layers)


def copy_without_norms(model, for_export=False):
    """Return a copy of a model without dropout and foldable batch norms, and the batch norms by convolution.

    The weights of the copy are not set. For an export, the layer that normalizes pixels is replaced, because some
    exporters lose its numbers.
    """
    read = [tensor for layer in model.layers for tensor in keras.tree.flatten(layer.input)] + model.outputs
    readers = collections.Counter(map(id, read))
    convolutions = {
        id(layer.output): layer for layer in model.layers if _can_absorb(layer) and readers[id(layer.output)] == 1
    }
    norms = {
        convolutions[id(layer.input)].name: layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization) and id(layer.input) in convolutions
    }
    removed = {layer.name for layer in norms.values()}
    removed |= {layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)}

    def copy(layer):
        if for_export and isinstance(layer, keras.layers.Normalization):
            return _rescale(layer)
        changes = {"use_bias": True} if layer.name in norms else {}
        new = _fast_type(layer).from_config(layer.get_config() | changes)
        if getattr(new, "activation", None) is keras.activations.silu:
            new.activation = _swish
        return new

    def call(layer, x, **options):
        return x if layer.name in removed else layer(x, **options)

    return keras.models.clone_model(model, clone_function=copy, call_function=call), norms


def _fast_type(layer):
    """Return the class of a layer, or one that computes the same in less time on a CPU."""
    if uses_jax() and type(layer) is keras.layers.DepthwiseConv2D:
        from efficientnet_tf.models.jax_layers import FastDepthwiseConv2D

        return FastDepthwiseConv2D
    return type(layer)


def _rescale(layer):
    """Return a layer that computes the same as an inverted Normalization layer."""
    scale = np.sqrt(np.asarray(layer.input_variance, np.float32)).tolist()
    offset = np.asarray(layer.input_mean, np.float32).tolist()
    return keras.layers.Rescaling(scale, offset, dtype="float32", name=layer.name)


@keras.saving.register_keras_serializable("efficientnet_tf")
def _swish(x):
    """Return x * sigmoid(x), without the custom gradient of TensorFlow's swish.

    OpenVINO's converter takes that gradient for an output of the network.
    """
    return x * keras.ops.sigmoid(x)


def _can_absorb(layer):
    """Return whether a batch norm that follows the layer can become part of it."""
    is_convolution = isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
    return is_convolution and layer.activation is keras.activations.linear


def fold_weights(layer, norm, read):
    """Return the weights of a layer, or the [kernel, bias] that compute a convolution and the batch norm after it."""
    if norm is None:
        return [read(variable) for variable in layer.weights]
    scale = read(norm.gamma) / (read(norm.moving_variance) + norm.epsilon) ** 0.5
    bias = read(layer.bias) if layer.use_bias else 0.0
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)  # kernel [k, k, C, 1], not [k, k, C, out]
    kernel = read(layer.kernel) * (scale[:, None] if is_depthwise else scale)
    return [kernel, read(norm.beta) + (bias - read(norm.moving_mean)) * scale]

"""Prepares a network for deployment: batch norm is folded into the convolutions, and dropout is removed.

What is left has only layers that every exporter can write.
"""

import keras
import numpy as np


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """Return a copy of a model for inference, with each batch norm folded into the convolution before it.

    Exporters differ in what they fold. TensorFlow's, for example, leaves the batch norm of depthwise convolutions to
    the runtime.

    Args:
        model: A float32 model of `models.builder.build_model`.

    Returns:
        A model with the same input, output and layer names, without dropout. It computes the same function up to
        rounding: its weights are computed in float64 and rounded once. A batch norm that does not follow a convolution
        is kept.
    """
    convolutions = {id(layer.output): layer for layer in model.layers if _can_absorb(layer)}
    norms = {
        convolutions[id(layer.input)].name: layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization) and id(layer.input) in convolutions
    }
    removed = {layer.name for layer in norms.values()}
    removed |= {layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)}

    def copy(layer):
        if isinstance(layer, keras.layers.Normalization):
            return _rescale(layer)
        changes = {"use_bias": True} if layer.name in norms else {}
        new = type(layer).from_config(layer.get_config() | changes)
        if getattr(new, "activation", None) is keras.activations.silu:
            new.activation = _swish
        return new

    def call(layer, x, **options):
        return x if layer.name in removed else layer(x, **options)

    folded = keras.models.clone_model(model, clone_function=copy, call_function=call)
    for layer in folded.layers:
        old = model.get_layer(layer.name)
        layer.set_weights(_fold_weights(old, norms[layer.name]) if layer.name in norms else old.get_weights())
    return folded


def _rescale(layer):
    """Return a layer that computes the same as an inverted Normalization layer, whose numbers some exporters lose."""
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


def _fold_weights(convolution, norm):
    """Return the [kernel, bias] that compute a convolution and the batch norm that follows it."""

    def array(variable):
        return np.asarray(variable, np.float64)

    scale = array(norm.gamma) / np.sqrt(array(norm.moving_variance) + norm.epsilon)
    bias = array(convolution.bias) if convolution.use_bias else 0.0
    is_depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)  # kernel [k, k, C, 1], not [k, k, C, out]
    kernel = array(convolution.kernel) * (scale[:, None] if is_depthwise else scale)
    return [kernel, array(norm.beta) + (bias - array(norm.moving_mean)) * scale]

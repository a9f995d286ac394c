"""The network as it is deployed: batch norm inside the convolutions, and nothing that only training needs."""

import keras
import numpy as np


def fold_batch_norm(model):
    """Copy a model for inference: each convolution carries the batch norm that follows it, dropout is left out.

    Exporters differ in what they fold: TensorFlow's leaves the batch norm of depthwise convolutions to the runtime.

    Args:
        model: keras.Model of `models.build_model`, in float32.

    Returns:
        keras.Model with the same input, output and layer names: the same function but for rounding, its weights
        computed in float64 and rounded once. A batch norm that follows no convolution stays.
    """
    convolutions = {id(layer.output): layer for layer in model.layers if _carries(layer)}
    norms = {
        convolutions[id(layer.input)].name: layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization) and id(layer.input) in convolutions
    }
    left_out = {layer.name for layer in norms.values()}
    left_out |= {layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)}

    def copy(layer):
        changes = {"use_bias": True} if layer.name in norms else {}
        new = type(layer).from_config(layer.get_config() | changes)
        if getattr(new, "activation", None) is keras.activations.silu:
            new.activation = _swish
        return new

    def call(layer, x, **options):
        return x if layer.name in left_out else layer(x, **options)

    folded = keras.models.clone_model(model, clone_function=copy, call_function=call)
    for layer in folded.layers:
        old = model.get_layer(layer.name)
        layer.set_weights(_folded(old, norms[layer.name]) if layer.name in norms else old.get_weights())
    return folded


@keras.saving.register_keras_serializable("efficientnet_tf")
def _swish(x):
    """Return x * sigmoid(x). TensorFlow's has a gradient of its own, which OpenVINO's converter takes for an output."""
    return x * keras.ops.sigmoid(x)


def _carries(layer):
    """Tell whether a batch norm behind the layer can become part of it."""
    convolution = isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
    return convolution and layer.activation is keras.activations.linear


def _folded(convolution, norm):
    """Return [kernel, bias] that do what a convolution and the batch norm behind it do."""

    def array(variable):
        return np.asarray(variable, np.float64)

    scale = array(norm.gamma) / np.sqrt(array(norm.moving_variance) + norm.epsilon)
    bias = array(convolution.bias) if convolution.use_bias else 0.0
    depthwise = isinstance(convolution, keras.layers.DepthwiseConv2D)  # kernels [k, k, C, 1], not [k, k, C, out]
    kernel = array(convolution.kernel) * (scale[:, None] if depthwise else scale)
    return [kernel, array(norm.beta) + (bias - array(norm.moving_mean)) * scale]

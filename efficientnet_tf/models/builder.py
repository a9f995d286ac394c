"""Builds a plain Keras model from a variant: stem, blocks and head, in the order of the network.

This module uses Keras only, so the same model builds on every Keras backend, and a saved model loads without this
package.
"""

import functools
import re
import sys
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor, layers

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.models.blocks import BLOCKS, batch_norm, conv, mbconv, pad, pass_through
from efficientnet_tf.models.data_format import image_shape, is_channels_first
from efficientnet_tf.models.normalization import normalize_pixels
from efficientnet_tf.scaling.compound import Network, scale_network


def build_model(
    variant: str | ModelSpec = "b0",
    classes: int = 1000,
    input_shape: Sequence[int | None] | None = None,
    *,
    channels: int = 3,
    input_tensor: KerasTensor | None = None,
    include_top: bool = True,
    pooling: str | None = None,
    classifier_activation: Any = None,
    endpoints: Sequence[int] | None = None,
    name: str | None = None,
    keras_layers: bool = False,
) -> keras.Model:
    """Build a network with random weights.

    The arguments are those of `efficientnet_tf.build_model`, which can load weights, too. `keras_layers=True` adds
    layers that pass their input through, so that every layer name of `keras.applications` exists. It changes neither
    outputs nor variables.

    Returns:
        A model from pixels [B, H, W, C] in [0, 255], or [B, C, H, W] if Keras is set to channels first, to logits
        [B, classes], float32.

    Raises:
        UserError: If the variant is unknown or an argument is out of range.

    Source: paper, section 4; official code for padding ("same") and initial weights.
    """
    spec = load_variant(variant)
    _check_arguments(classes, input_shape, channels, pooling, input_tensor)
    network = scale_network(spec)
    _raise_recursion_limit(len(network.blocks))

    inputs: Any = input_tensor
    if input_tensor is None:
        shape = input_shape or image_shape(spec.resolution, spec.resolution, channels)
        inputs = layers.Input(shape, name="input_layer" if keras_layers else "image")
    x = pass_through(inputs, "rescaling", "float32") if keras_layers else inputs
    x = normalize_pixels(x, spec)
    x = pass_through(x, "rescaling_1", "float32") if keras_layers and not spec.has_fused_blocks else x
    x, by_stride = _stem_and_blocks(x, spec, network, keras_layers)
    if endpoints is not None:
        x = _select_endpoints(by_stride, endpoints)
    else:
        if network.head_channels:
            x = conv(x, network.head_channels, 1, "top_conv")
            x = batch_norm(x, spec, "top_bn")
        x = _classify(x, spec, classes, classifier_activation) if include_top else _pool(x, pooling)

    if input_tensor is not None:
        sources = keras.utils.get_source_inputs(input_tensor)
        inputs = sources[0] if len(sources) == 1 else sources
    return keras.Model(inputs, x, name=name or _model_name(spec))


def _stem_and_blocks(x, spec: ModelSpec, network: Network, keras_layers: bool):
    """Return the last features, and {stride: the last features with this stride}."""
    by_stride, stride = {}, spec.stem_stride
    x, padding = pad(x, spec.stem_kernel, stride, spec, "stem_conv", keras_layers)
    x = conv(x, network.stem_channels, spec.stem_kernel, "stem_conv", stride=stride, padding=padding)
    x = batch_norm(x, spec, "stem_bn")
    if spec.stem_pool:
        by_stride[stride], stride = x, stride * 2
        x, padding = pad(x, 3, 2, spec, "stem_pool")
        x = layers.MaxPooling2D(3, strides=2, padding=padding, name="stem_pool")(x)
    functions = BLOCKS | {"mbconv": functools.partial(mbconv, keras_layers=keras_layers)}
    for block in network.blocks:
        if block.stride == 2:
            by_stride[stride], stride = x, stride * 2
        x = functions[block.kind](x, block, spec)
    by_stride[stride] = x
    return x, by_stride


def _select_endpoints(by_stride, endpoints):
    """Return {"stride4": features, ...} for the strides that were asked for."""
    if not isinstance(endpoints, list | tuple) or not endpoints or set(endpoints) - set(by_stride):
        raise UserError(f"endpoints must be a list of strides out of {sorted(by_stride)}, received {endpoints!r}.")
    return {f"stride{stride}": by_stride[stride] for stride in endpoints}


def _classify(x, spec, classes, activation):
    """Pool the features over height and width and classify them: [B, classes]."""
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if spec.dropout:
        x = layers.Dropout(spec.dropout, name="top_dropout")(x)
    # U(-1/sqrt(classes), 1/sqrt(classes)), as in the official code. For ten classes and the 1280 features of B0 this
    # would start with logits of several units and a loss far above that of a guess, so the range of a classifier with
    # few classes is 1/sqrt(features). No variant reaches the limit with ImageNet's 1000 classes.
    fan = "fan_in" if x.shape[-1] > 6 * classes else "fan_out"
    initializer: Any = keras.initializers.VarianceScaling(1 / 3, fan, "uniform")
    return layers.Dense(
        classes, activation=activation, kernel_initializer=initializer, dtype="float32", name="predictions"
    )(x)


def _pool(x, pooling):
    if pooling is None:
        return x
    layer = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}[pooling]
    return layer(name=f"{pooling}_pool")(x)


def _model_name(spec):
    """Return "efficientnetb0" for b0 and "efficientnetv2-s" for v2-s, as `keras.applications` does.

    Networks of other families keep their name.
    """
    if re.fullmatch(r"b\d|l2|lite\d|(v2|edgetpu)-\w+", spec.name):
        return f"efficientnet{spec.name}"
    # A variant is named after its file. TensorFlow allows few characters, and no underscore or dash at the start.
    name = re.sub(r"[^A-Za-z0-9_.>-]", "_", spec.name)
    return name if re.match("[A-Za-z0-9.]", name) else f"n{name}"


def _raise_recursion_limit(blocks):
    """Allow Keras to build, save and clone a deep network: it recurses once per layer, and L2 has 950 in a row."""
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 20 * blocks))


def _check_arguments(classes, input_shape, channels, pooling, input_tensor):
    if not _is_positive(classes):
        raise UserError(f"classes must be an int >= 1, received {classes!r}.")
    if not _is_positive(channels):
        raise UserError(f"channels must be an int >= 1, received {channels!r}.")
    if pooling not in (None, "avg", "max"):
        raise UserError(f"pooling must be None, 'avg' or 'max', received {pooling!r}.")
    if input_tensor is not None and not keras.backend.is_keras_tensor(input_tensor):
        raise UserError(f"input_tensor must be a Keras tensor, received {type(input_tensor).__name__}.")
    if input_shape is not None:
        _check_shape("input_shape", input_shape)
    if input_tensor is not None:
        _check_shape("the shape of input_tensor", input_tensor.shape[1:])


def _check_shape(name, shape):
    is_first = is_channels_first()
    order = "(channels, height, width)" if is_first else "(height, width, channels)"
    reason = f"because Keras is set to image_data_format={keras.config.image_data_format()!r}"
    error = UserError(f"{name} must be {order}, {reason}, where height and width may be None, received {shape!r}.")
    if not isinstance(shape, list | tuple) or len(shape) != 3:
        raise error
    *sides, channels = (*shape[1:], shape[0]) if is_first else shape
    if not _is_positive(channels) or not all(s is None or _is_positive(s) for s in sides):
        raise error
    if channels > 4 and shape[2 if is_first else 0] in (1, 3) and sides[0] != sides[1]:
        raise error  # (3, 224, 224) would give a network for 224 channels, but (3, 3, 5) can only mean 5 channels.


def _is_positive(value):
    return hasattr(value, "__index__") and not isinstance(value, bool) and value >= 1

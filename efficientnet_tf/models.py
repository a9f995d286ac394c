"""The functional builder: a stage table and a function for each kind of block make a plain Keras model.

Imports Keras alone, so the same model is built on each of Keras's backends, and a saved model needs nothing of
this package to load. A block reads as its own diagram; layer names are those of `keras.applications`.
"""

import re
import sys

import keras
from keras import layers

from efficientnet_tf import config
from efficientnet_tf.scaling import scale_network


def _conv_initializer():
    """N(0, sqrt(2 / (k*k*out))), not truncated; a depthwise kernel counts as out = 1 (official code)."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def _dense_initializer():
    """U(-1/sqrt(classes), 1/sqrt(classes)) (official code)."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_out", "uniform")


def _pad(x, kernel, stride, spec, name):
    """Return the input of a convolution and how it shall pad: symmetric padding is a layer of its own."""
    if stride == 1 or spec.padding == "same":
        return x, "same"
    return layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x), "valid"


def _conv(x, filters, kernel, name, stride=1, padding="same", use_bias=False, activation=None):
    return layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        padding=padding,
        use_bias=use_bias,
        activation=activation,
        kernel_initializer=_conv_initializer(),
        name=name,
    )(x)


def _batch_norm(x, spec, name, activation=True):
    x = layers.BatchNormalization(momentum=spec.batch_norm_momentum, epsilon=spec.batch_norm_epsilon, name=name)(x)
    return _activation(x, spec, name.removesuffix("bn") + "activation") if activation else x


def _activation(x, spec, name):
    return layers.Activation(spec.activation, name=name)(x)


def _depthwise(x, block, spec):
    x, padding = _pad(x, block.kernel, block.stride, spec, f"{block.name}_dwconv")
    x = layers.DepthwiseConv2D(
        block.kernel,
        strides=block.stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer=_conv_initializer(),
        name=f"{block.name}_dwconv",
    )(x)
    return _batch_norm(x, spec, f"{block.name}_bn")


def _residual(x, shortcut, block):
    """Add a block's input, or its projection, to what the block has made of it."""
    if block.drop_rate:
        # One number an image: the whole branch is dropped, the rest scaled up (stochastic depth).
        x = layers.Dropout(block.drop_rate, noise_shape=(None, 1, 1, 1), name=f"{block.name}_drop")(x)
    return layers.Add(name=f"{block.name}_add")([x, shortcut])


def squeeze_excite(x, block, activation):
    """Scale each channel by a gate computed from the channels' means. [B, H, W, C] -> [B, H, W, C]."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{block.name}_se_squeeze")(x)
    gate = _conv(gate, block.se_channels, 1, f"{block.name}_se_reduce", use_bias=True, activation=activation)
    gate = _conv(gate, block.inner_channels, 1, f"{block.name}_se_expand", use_bias=True, activation="sigmoid")
    return layers.Multiply(name=f"{block.name}_se_excite")([x, gate])


def mbconv(x, block, spec):
    """Mobile inverted bottleneck. [B, H, W, in] -> [B, ceil(H/stride), ceil(W/stride), out].

    Args:
        x: tensor [B, H, W, block.in_channels].
        block: scaling.Block.
        spec: schema.ModelSpec, for batch norm.

    Source: paper, section 4 and Table 1; official code for the order of the layers.
    """
    inputs, name = x, block.name
    if block.expand != 1:
        x = _conv(x, block.inner_channels, 1, f"{name}_expand_conv")
        x = _batch_norm(x, spec, f"{name}_expand_bn")
    x = _depthwise(x, block, spec)
    if block.se_channels:
        x = squeeze_excite(x, block, spec.activation)
    x = _conv(x, block.out_channels, 1, f"{name}_project_conv")
    x = _batch_norm(x, spec, f"{name}_project_bn", activation=False)
    return _residual(x, inputs, block) if block.has_residual else x


def separable(x, block, spec):
    """Depthwise separable convolution. Shapes and arguments as `mbconv`. Source: MobileNetV1 (Howard et al. 2017)."""
    x = _depthwise(x, block, spec)
    x = _conv(x, block.out_channels, 1, f"{block.name}_project_conv")
    return _batch_norm(x, spec, f"{block.name}_project_bn")


def bottleneck(x, block, spec):
    """Residual bottleneck, its stride on the inner convolution. Shapes and arguments as `mbconv`.

    Source: He et al. 2016, Figure 5; the stride's place as in the networks that are compared with today ("v1.5").
    """
    shortcut, name = x, block.name
    if not block.keeps_shape:
        shortcut = _conv(x, block.out_channels, 1, f"{name}_shortcut_conv", block.stride)
        shortcut = _batch_norm(shortcut, spec, f"{name}_shortcut_bn", activation=False)
    x = _conv(x, block.inner_channels, 1, f"{name}_reduce_conv")
    x = _batch_norm(x, spec, f"{name}_reduce_bn")
    x, padding = _pad(x, block.kernel, block.stride, spec, f"{name}_conv")
    x = _conv(x, block.inner_channels, block.kernel, f"{name}_conv", block.stride, padding)
    x = _batch_norm(x, spec, f"{name}_bn")
    x = _conv(x, block.out_channels, 1, f"{name}_project_conv")
    x = _batch_norm(x, spec, f"{name}_project_bn", activation=False)
    return _activation(_residual(x, shortcut, block), spec, f"{name}_output")


BLOCKS = {"mbconv": mbconv, "separable": separable, "bottleneck": bottleneck}


def _normalization(spec, channels):
    """(pixels - mean) / std, in float32 whatever the precision of the rest."""
    mean, std = spec.mean, spec.std
    if len(mean) != channels:  # an image that is not RGB: the average serves every channel
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return layers.Rescaling(
        scale=[1 / s for s in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        dtype="float32",
        name="normalization",
    )


def build_model(
    variant="b0",
    classes=1000,
    input_shape=None,
    *,
    channels=3,
    input_tensor=None,
    include_top=True,
    pooling=None,
    classifier_activation=None,
    endpoints=None,
    name=None,
):
    """Build an EfficientNet.

    Args:
        variant: str, "b0" ... "b8", "l2", another name in `configs/` or the path of a variant's YAML; or a
            schema.ModelSpec.
        classes: int >= 1, width of the classifier.
        input_shape: (height, width, channels), ints >= 1; None for height and width takes images of any size.
            By default the variant's resolution and `channels`.
        channels: int >= 1, of the images where `input_shape` does not say. For other than as many as the spec's
            `mean` has, the average of `mean` and of `std` normalises every channel.
        input_tensor: a Keras tensor to build on, instead of `input_shape`.
        include_top: bool; False leaves dropout and classifier out.
        pooling: None, "avg" or "max": what follows the last activation where `include_top` is False.
        classifier_activation: None for logits, or a Keras activation such as "softmax".
        endpoints: sequence of strides out of 2, 4, 8, 16, 32: the model then returns a dict
            {"stride4": features [B, H/4, W/4, C], ...}, each the last features at that stride, without the head.
        name: str; by default the variant's name, with "efficientnet" before "b0" ... "l2".

    Returns:
        A `keras.Model` from pixels [B, H, W, C], in [0, 255], float or uint8, to logits [B, classes] in float32.
        Normalisation is inside. Without the top: features [B, H/32, W/32, head channels], or [B, head channels]
        when pooled, in the compute precision. Activations follow `keras.config.dtype_policy()`.

    Raises:
        UserError: for an unknown variant, or for arguments out of range.

    Source: paper, section 4; official code for padding ("same") and initial weights.
    """
    spec = config.load_variant(variant)
    _check_arguments(classes, input_shape, channels, pooling, input_tensor)
    network = scale_network(spec)
    # Keras walks a model recursively, a frame a layer, when it builds, saves and clones it: L2 has 950 in a row.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 20 * len(network.blocks)))
    inputs = x = input_tensor
    if input_tensor is None:
        inputs = x = layers.Input(input_shape or (spec.resolution, spec.resolution, channels), name="image")
    by_stride, stride = {}, 2

    x = _normalization(spec, x.shape[-1])(x)
    x, padding = _pad(x, spec.stem_kernel, 2, spec, "stem_conv")
    x = _conv(x, network.stem_channels, spec.stem_kernel, "stem_conv", stride=2, padding=padding)
    x = _batch_norm(x, spec, "stem_bn")
    if spec.stem_pool:
        by_stride[stride], stride = x, stride * 2
        x, padding = _pad(x, 3, 2, spec, "stem_pool")
        x = layers.MaxPooling2D(3, strides=2, padding=padding, name="stem_pool")(x)
    for block in network.blocks:
        if block.stride == 2:
            by_stride[stride], stride = x, stride * 2
        x = BLOCKS[block.kind](x, block, spec)
    by_stride[stride] = x

    if endpoints is not None:
        if not isinstance(endpoints, list | tuple) or not endpoints or set(endpoints) - set(by_stride):
            raise config.UserError(f"endpoints={endpoints!r}: allowed are strides out of {sorted(by_stride)}")
        x = {f"stride{s}": by_stride[s] for s in endpoints}
    else:
        if network.head_channels:
            x = _conv(x, network.head_channels, 1, "top_conv")
            x = _batch_norm(x, spec, "top_bn")
        x = _top(x, spec, classes, classifier_activation) if include_top else _pool(x, pooling)
    if input_tensor is not None:
        sources = keras.utils.get_source_inputs(input_tensor)
        inputs = sources[0] if len(sources) == 1 else sources
    is_published = re.fullmatch(r"[bl]\d", spec.name)
    return keras.Model(inputs, x, name=name or ("efficientnet" * bool(is_published) + spec.name))


def _top(x, spec, classes, activation):
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if spec.dropout:
        x = layers.Dropout(spec.dropout, name="top_dropout")(x)
    initializer = _dense_initializer()
    return layers.Dense(
        classes, activation=activation, kernel_initializer=initializer, dtype="float32", name="predictions"
    )(x)


def _pool(x, pooling):
    if pooling is None:
        return x
    layer = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}[pooling]
    return layer(name=f"{pooling}_pool")(x)


def _check_arguments(classes, input_shape, channels, pooling, input_tensor):
    def positive(value):
        return hasattr(value, "__index__") and not isinstance(value, bool) and value >= 1

    if keras.config.image_data_format() != "channels_last":
        raise config.UserError("Keras is set to image_data_format='channels_first'; allowed is 'channels_last'")
    if not positive(classes):
        raise config.UserError(f"classes must be an int >= 1, received {classes!r}")
    if not positive(channels):
        raise config.UserError(f"channels must be an int >= 1, received {channels!r}")
    if pooling not in (None, "avg", "max"):
        raise config.UserError(f"pooling must be None, 'avg' or 'max', received {pooling!r}")
    if input_tensor is not None and not keras.backend.is_keras_tensor(input_tensor):
        raise config.UserError(f"input_tensor must be a Keras tensor, received {type(input_tensor).__name__}")
    if input_shape is not None:
        shape = tuple(input_shape) if isinstance(input_shape, list | tuple) else ()
        if len(shape) != 3 or not positive(shape[2]) or not all(s is None or positive(s) for s in shape[:2]):
            raise config.UserError(
                f"input_shape must be (height, width, channels), height and width may be None, received {input_shape!r}"
            )

"""TODO docstring (from models)."""

import keras
from keras import layers


def _conv_initializer():
    """N(0, sqrt(2 / (k*k*out))), not truncated; a depthwise kernel counts as out = 1 (official code)."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def pad(x, kernel, stride, spec, name):
    """Return the input of a convolution and how it shall pad: symmetric padding is a layer of its own."""
    if stride == 1 or spec.padding == "same":
        return x, "same"
    return layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x), "valid"


def conv(x, filters, kernel, name, stride=1, padding="same", use_bias=False, activation=None):
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


def batch_norm(x, spec, name, activation=True):
    x = layers.BatchNormalization(momentum=spec.batch_norm_momentum, epsilon=spec.batch_norm_epsilon, name=name)(x)
    return _activation(x, spec, name.removesuffix("bn") + "activation") if activation else x


def _activation(x, spec, name):
    return layers.Activation(spec.activation, name=name)(x)


def _depthwise(x, block, spec):
    x, padding = pad(x, block.kernel, block.stride, spec, f"{block.name}_dwconv")
    x = layers.DepthwiseConv2D(
        block.kernel,
        strides=block.stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer=_conv_initializer(),
        name=f"{block.name}_dwconv",
    )(x)
    return batch_norm(x, spec, f"{block.name}_bn")


def _residual(x, shortcut, block):
    """Add a block's input, or its projection, to what the block has made of it."""
    if block.drop_rate:
        # One number an image: the whole branch is dropped, the rest scaled up (stochastic depth).
        x = layers.Dropout(block.drop_rate, noise_shape=(None, 1, 1, 1), name=f"{block.name}_drop")(x)
    return layers.Add(name=f"{block.name}_add")([x, shortcut])


def squeeze_excite(x, block, activation):
    """Scale each channel by a gate computed from the channels' means. [B, H, W, C] -> [B, H, W, C]."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{block.name}_se_squeeze")(x)
    gate = conv(gate, block.se_channels, 1, f"{block.name}_se_reduce", use_bias=True, activation=activation)
    gate = conv(gate, block.inner_channels, 1, f"{block.name}_se_expand", use_bias=True, activation="sigmoid")
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
        x = conv(x, block.inner_channels, 1, f"{name}_expand_conv")
        x = batch_norm(x, spec, f"{name}_expand_bn")
    x = _depthwise(x, block, spec)
    if block.se_channels:
        x = squeeze_excite(x, block, spec.activation)
    x = conv(x, block.out_channels, 1, f"{name}_project_conv")
    x = batch_norm(x, spec, f"{name}_project_bn", activation=False)
    return _residual(x, inputs, block) if block.has_residual else x


def separable(x, block, spec):
    """Depthwise separable convolution. Shapes and arguments as `mbconv`. Source: MobileNetV1 (Howard et al. 2017)."""
    x = _depthwise(x, block, spec)
    x = conv(x, block.out_channels, 1, f"{block.name}_project_conv")
    return batch_norm(x, spec, f"{block.name}_project_bn")


def bottleneck(x, block, spec):
    """Residual bottleneck, its stride on the inner convolution. Shapes and arguments as `mbconv`.

    Source: He et al. 2016, Figure 5; the stride's place as in the networks that are compared with today ("v1.5").
    """
    shortcut, name = x, block.name
    if not block.keeps_shape:
        shortcut = conv(x, block.out_channels, 1, f"{name}_shortcut_conv", block.stride)
        shortcut = batch_norm(shortcut, spec, f"{name}_shortcut_bn", activation=False)
    x = conv(x, block.inner_channels, 1, f"{name}_reduce_conv")
    x = batch_norm(x, spec, f"{name}_reduce_bn")
    x, padding = pad(x, block.kernel, block.stride, spec, f"{name}_conv")
    x = conv(x, block.inner_channels, block.kernel, f"{name}_conv", block.stride, padding)
    x = batch_norm(x, spec, f"{name}_bn")
    x = conv(x, block.out_channels, 1, f"{name}_project_conv")
    x = batch_norm(x, spec, f"{name}_project_bn", activation=False)
    return _activation(_residual(x, shortcut, block), spec, f"{name}_output")


BLOCKS = {"mbconv": mbconv, "separable": separable, "bottleneck": bottleneck}

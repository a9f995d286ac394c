"""The building blocks of a network. Each function reads like the diagram of its block.

Layer names are those of `keras.applications`.
"""

from typing import Any

import keras
from keras import KerasTensor, layers

from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.models.data_format import channel_axis
from efficientnet_tf.scaling.compound import Block


def _conv_initializer() -> Any:
    """Return N(0, sqrt(2 / (k*k*out))), not truncated; for a depthwise kernel, out is 1. Source: official code."""
    return keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")


def pass_through(x: KerasTensor, name: str, dtype: str | None = None) -> KerasTensor:
    """Return `x` unchanged, from a layer with this name. Compiled graphs spend no time on it."""
    return layers.Identity(dtype=dtype, name=name)(x)


def pad(
    x: KerasTensor, kernel: int, stride: int, spec: ModelSpec, name: str, keras_layers: bool = False
) -> tuple[KerasTensor, str]:
    """Pad the input of a convolution or pooling of stride 2 if the variant pads symmetrically.

    Args:
        x: Features [B, H, W, C].
        kernel: Kernel size in pixels.
        stride: 1 or 2.
        spec: The variant.
        name: Name of the convolution. The name of the new layer ends in `_pad`.
        keras_layers: True adds a layer that passes its input through if the convolution itself pads and the network of
            `keras.applications` has a layer that pads.

    Returns:
        The input of the convolution, and its `padding` argument.
    """
    if stride == 1:
        return x, "same"
    if spec.padding == "same":
        return pass_through(x, f"{name}_pad") if keras_layers and not spec.has_fused_blocks else x, "same"
    return layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x), "valid"


def conv(
    x: KerasTensor,
    filters: int,
    kernel: int,
    name: str,
    stride: int = 1,
    padding: str = "same",
    use_bias: bool = False,
    activation: str | None = None,
) -> KerasTensor:
    """Apply a convolution. [B, H, W, C] -> [B, H/stride, W/stride, filters]."""
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


def batch_norm(x: KerasTensor, spec: ModelSpec, name: str, activation: bool = True) -> KerasTensor:
    """Apply batch norm and, if `activation` is True, the activation of the variant. Keeps the shape."""
    x = layers.BatchNormalization(channel_axis(), spec.batch_norm_momentum, spec.batch_norm_epsilon, name=name)(x)
    return _activation(x, spec, name.removesuffix("bn") + "activation") if activation else x


def _activation(x, spec, name):
    return layers.Activation(spec.activation, name=name)(x)


def _depthwise(x, block, spec, keras_layers=False):
    name = block.depthwise_name
    x, padding = pad(x, block.kernel, block.stride, spec, name, keras_layers)
    x = layers.DepthwiseConv2D(
        block.kernel,
        strides=block.stride,
        padding=padding,
        use_bias=False,
        depthwise_initializer=_conv_initializer(),
        name=name,
    )(x)
    return batch_norm(x, spec, f"{block.name}_bn")


def _full_conv(x, filters, block, spec, name):
    x, padding = pad(x, block.kernel, block.stride, spec, name)
    return conv(x, filters, block.kernel, name, block.stride, padding)


def _residual(x, shortcut, block):
    """Add the shortcut to the output of a block, which stochastic depth may drop."""
    if block.drop_rate:
        # One random number per image: either the whole branch is dropped, or all of it is scaled up.
        x = layers.Dropout(block.drop_rate, noise_shape=(None, 1, 1, 1), name=f"{block.name}_drop")(x)
    return layers.Add(name=f"{block.name}_add")([x, shortcut])


def squeeze_excite(x: KerasTensor, block: Block, activation: str, keras_layers: bool = False) -> KerasTensor:
    """Scale each channel by a gate that is computed from the means of all channels. Keeps the shape [B, H, W, C]."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{block.name}_se_squeeze")(x)
    if keras_layers:
        gate = pass_through(gate, f"{block.name}_se_reshape")
    gate = conv(gate, block.se_channels, 1, f"{block.name}_se_reduce", use_bias=True, activation=activation)
    gate = conv(gate, block.inner_channels, 1, f"{block.name}_se_expand", use_bias=True, activation="sigmoid")
    return layers.Multiply(name=f"{block.name}_se_excite")([x, gate])


def mbconv(x: KerasTensor, block: Block, spec: ModelSpec, keras_layers: bool = False) -> KerasTensor:
    """Apply a mobile inverted bottleneck.

    Args:
        x: Features [B, H, W, block.in_channels].
        block: The block, from `scale_network`.
        spec: The variant, for its activation, batch norm and padding.
        keras_layers: True adds layers that pass their input through, so that every layer name of
            `keras.applications` exists.

    Returns:
        Features [B, ceil(H/stride), ceil(W/stride), block.out_channels].

    Source: paper, section 4 and Table 1; official code for the order of the layers.
    """
    inputs, name = x, block.name
    if block.expand != 1:
        x = conv(x, block.inner_channels, 1, f"{name}_expand_conv")
        x = batch_norm(x, spec, f"{name}_expand_bn")
    x = _depthwise(x, block, spec, keras_layers)
    if block.se_channels:
        x = squeeze_excite(x, block, spec.activation, keras_layers)
    x = conv(x, block.out_channels, 1, f"{name}_project_conv")
    x = batch_norm(x, spec, f"{name}_project_bn", activation=False)
    return _residual(x, inputs, block) if block.has_residual else x


def fused_mbconv(x: KerasTensor, block: Block, spec: ModelSpec) -> KerasTensor:
    """Apply an inverted bottleneck with one full convolution in place of the expansion and the depthwise convolution.

    Shapes and arguments are those of `mbconv`. With expansion 1, the full convolution is the only one.

    Source: EfficientNetV2 (Tan & Le 2021), Figure 2 and Table 4; google/automl for expansion 1.
    Deviates: squeeze-and-excitation is left out, because no published network has it in these blocks. The official code
        of EfficientNet-EdgeTPU has the stride in the projection. Here, as in timm, the full convolution has it.
    """
    inputs, name = x, block.name
    if block.expand != 1:
        x = _full_conv(x, block.inner_channels, block, spec, f"{name}_expand_conv")
        x = batch_norm(x, spec, f"{name}_expand_bn")
        x = conv(x, block.out_channels, 1, f"{name}_project_conv")
        x = batch_norm(x, spec, f"{name}_project_bn", activation=False)
    else:
        x = _full_conv(x, block.out_channels, block, spec, f"{name}_project_conv")
        x = batch_norm(x, spec, f"{name}_project_bn")
    return _residual(x, inputs, block) if block.has_residual else x


def separable(x: KerasTensor, block: Block, spec: ModelSpec) -> KerasTensor:
    """Apply a depthwise separable convolution. Shapes and arguments are those of `mbconv`.

    Source: MobileNetV1 (Howard et al. 2017).
    """
    x = _depthwise(x, block, spec)
    x = conv(x, block.out_channels, 1, f"{block.name}_project_conv")
    return batch_norm(x, spec, f"{block.name}_project_bn")


def bottleneck(x: KerasTensor, block: Block, spec: ModelSpec) -> KerasTensor:
    """Apply a residual bottleneck with its stride on the inner convolution. Shapes and arguments are those of `mbconv`.

    Source: He et al. 2016, Figure 5.
    Deviates: the stride is on the 3x3 convolution, as in today's implementations ("ResNet v1.5").
    """
    shortcut, name = x, block.name
    if not block.keeps_shape:
        shortcut = conv(x, block.out_channels, 1, f"{name}_shortcut_conv", block.stride)
        shortcut = batch_norm(shortcut, spec, f"{name}_shortcut_bn", activation=False)
    x = conv(x, block.inner_channels, 1, f"{name}_reduce_conv")
    x = batch_norm(x, spec, f"{name}_reduce_bn")
    x = _full_conv(x, block.inner_channels, block, spec, f"{name}_conv")
    x = batch_norm(x, spec, f"{name}_bn")
    x = conv(x, block.out_channels, 1, f"{name}_project_conv")
    x = batch_norm(x, spec, f"{name}_project_bn", activation=False)
    return _activation(_residual(x, shortcut, block), spec, f"{name}_output")


BLOCKS = {"mbconv": mbconv, "fused_mbconv": fused_mbconv, "separable": separable, "bottleneck": bottleneck}

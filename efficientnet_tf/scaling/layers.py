"""The layers of a network with their shapes, parameters and multiply-adds, listed without building it."""

import math
import re
from typing import NamedTuple

from efficientnet_tf.config.image_size import ImageSize, as_shape
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.scaling.compound import Block, scale_network

NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")


class Layer(NamedTuple):
    """A layer of a network: its variables, its multiply-adds and its output for one image."""

    part: str  # "stem", "stage1", ... or "head"
    name: str  # as in the built model
    kind: str  # "convolution", "depthwise", "squeeze_excite", "batch_norm", "activation", "add", "dense", ...
    kernel: int
    stride: int
    height: int  # of the output, whose shape is [height, width, channels]
    width: int
    channels: int
    variables: tuple[str, ...] = ()
    params: int = 0  # trainable
    statistics: int = 0  # moving means and variances of batch norm
    macs: int = 0  # multiply-adds
    kept: bool = True  # whether the output is kept for the backward pass

    @property
    def elements(self) -> int:
        """Number of values in the output."""
        return self.height * self.width * self.channels


def find_block(name: str) -> str:
    """Return what a layer belongs to, given its name: "stem", a block such as "block2a", or "head"."""
    block = re.match(r"block\d+[a-z]+(?=_)", name)
    return block[0] if block else "head" if name.startswith(("top_", "avg_pool", "predictions")) else "stem"


def _output_shape(shape: tuple[int, int], stride: int = 2) -> tuple[int, int]:
    """Return the height and the width of a feature map after a padded convolution: ceil(side / stride)."""
    height, width = shape
    return -(-height // stride), -(-width // stride)


class _Trace:
    """Follows one image through a network and records each layer with the shape of its output."""

    def __init__(self, spec: ModelSpec, shape: tuple[int, int], channels: int):
        self.layers: list[Layer] = []
        self.part, self.shape, self.channels = "stem", shape, channels
        # The gradient of swish needs its input. That of relu needs only its output.
        self.sum_is_kept = spec.activation == "swish"

    def add(
        self,
        name: str,
        kind: str,
        variables: tuple[str, ...] = (),
        params: int = 0,
        statistics: int = 0,
        macs: int = 0,
        kernel: int = 1,
        stride: int = 1,
        kept: bool = True,
    ) -> None:
        """Record a layer whose output has the current `shape` and `channels`."""
        part, (height, width), channels = self.part, self.shape, self.channels
        self.layers.append(
            Layer(part, name, kind, kernel, stride, height, width, channels, variables, params, statistics, macs, kept)
        )

    def conv(self, name: str, channels: int, kernel: int = 1, stride: int = 1) -> None:
        weights = kernel * kernel * self.channels * channels
        self.shape, self.channels = _output_shape(self.shape, stride), channels
        macs = weights * math.prod(self.shape)
        self.add(name, "convolution", ("kernel",), weights, 0, macs, kernel, stride)

    def depthwise(self, name: str, kernel: int, stride: int) -> None:
        weights = kernel * kernel * self.channels
        self.shape = _output_shape(self.shape, stride)
        self.add(name, "depthwise", ("kernel",), weights, 0, weights * math.prod(self.shape), kernel, stride)

    def batch_norm(self, name: str, activation: bool = True) -> None:
        """Record batch norm and the activation after it. Its own output is recomputed or kept by the next layer."""
        self.add(name, "batch_norm", NORM_VARIABLES, 2 * self.channels, 2 * self.channels, kept=False)
        if activation:
            self.add(name.removesuffix("bn") + "activation", "activation")

    def squeeze_excite(self, name: str, squeezed: int) -> None:
        shape, channels, weights = self.shape, self.channels, self.channels * squeezed
        self.shape = 1, 1
        self.add(f"{name}_squeeze", "squeeze_excite")
        self.channels = squeezed
        self.add(f"{name}_reduce", "squeeze_excite", ("kernel", "bias"), weights + squeezed, 0, weights)
        self.channels = channels
        self.add(f"{name}_expand", "squeeze_excite", ("kernel", "bias"), weights + channels, 0, weights)
        self.shape = shape
        self.add(f"{name}_excite", "squeeze_excite")


def _mbconv(trace: _Trace, block: Block) -> None:
    name = block.name
    if block.expand != 1:
        trace.conv(f"{name}_expand_conv", block.inner_channels)
        trace.batch_norm(f"{name}_expand_bn")
    trace.depthwise(block.depthwise_name, block.kernel, block.stride)
    trace.batch_norm(f"{name}_bn")
    if block.se_channels:
        trace.squeeze_excite(f"{name}_se", block.se_channels)
    trace.conv(f"{name}_project_conv", block.out_channels)
    trace.batch_norm(f"{name}_project_bn", activation=False)
    trace.add(f"{name}_add" if block.has_residual else f"{name}_output", "add")


def _fused_mbconv(trace: _Trace, block: Block) -> None:
    name = block.name
    if block.expand != 1:
        trace.conv(f"{name}_expand_conv", block.inner_channels, block.kernel, block.stride)
        trace.batch_norm(f"{name}_expand_bn")
        trace.conv(f"{name}_project_conv", block.out_channels)
        trace.batch_norm(f"{name}_project_bn", activation=False)
    else:
        trace.conv(f"{name}_project_conv", block.out_channels, block.kernel, block.stride)
        trace.batch_norm(f"{name}_project_bn")
    # Without a projection and a residual, the block ends with the output of its activation, which is listed already.
    is_listed = block.expand == 1 and not block.has_residual
    trace.add(f"{name}_add" if block.has_residual else f"{name}_output", "add", kept=not is_listed)


def _separable(trace: _Trace, block: Block) -> None:
    trace.depthwise(block.depthwise_name, block.kernel, block.stride)
    trace.batch_norm(f"{block.name}_bn")
    trace.conv(f"{block.name}_project_conv", block.out_channels)
    trace.batch_norm(f"{block.name}_project_bn")


def _bottleneck(trace: _Trace, block: Block) -> None:
    name, shape, channels = block.name, trace.shape, trace.channels
    if not block.keeps_shape:
        trace.conv(f"{name}_shortcut_conv", block.out_channels, stride=block.stride)
        trace.batch_norm(f"{name}_shortcut_bn", activation=False)
        trace.shape, trace.channels = shape, channels
    trace.conv(f"{name}_reduce_conv", block.inner_channels)
    trace.batch_norm(f"{name}_reduce_bn")
    trace.conv(f"{name}_conv", block.inner_channels, block.kernel, block.stride)
    trace.batch_norm(f"{name}_bn")
    trace.conv(f"{name}_project_conv", block.out_channels)
    trace.batch_norm(f"{name}_project_bn", activation=False)
    trace.add(f"{name}_add", "add", kept=trace.sum_is_kept)
    trace.add(f"{name}_output", "activation")


_BLOCKS = {"mbconv": _mbconv, "fused_mbconv": _fused_mbconv, "separable": _separable, "bottleneck": _bottleneck}


def list_layers(
    spec: ModelSpec, resolution: ImageSize | None = None, classes: int = 1000, channels: int = 3
) -> list[Layer]:
    """Return the layers of a network without building it.

    Args:
        spec: The network.
        resolution: Size of the images in pixels, at least 1: the side of squares, or (height, width). Defaults to that
            of the network.
        classes: Number of classes, at least 1.
        channels: Channels of the images, at least 1.

    Returns:
        The layers from the input to the output. Layers with variables are those of the built model, name by name.
        Of the other layers, only those whose output is a tensor of its own are listed. A block without a residual ends
        with an entry "..._output". It is not a layer but the output of the last layer, which the next block reads.
    """
    network = scale_network(spec)
    trace = _Trace(spec, as_shape(resolution or spec.resolution), channels)
    trace.add("normalization", "normalization")
    trace.conv("stem_conv", network.stem_channels, spec.stem_kernel, spec.stem_stride)
    trace.batch_norm("stem_bn")
    if spec.stem_pool:
        trace.shape = _output_shape(trace.shape)
        trace.add("stem_pool", "pooling", kernel=3, stride=2)
    for number, stage in enumerate(network.stages, 1):
        trace.part = f"stage{number}"
        for block in stage:
            _BLOCKS[block.kind](trace, block)
    trace.part = "head"
    if network.head_channels:
        trace.conv("top_conv", network.head_channels)
        trace.batch_norm("top_bn")
    weights, trace.shape = trace.channels * classes, (1, 1)
    trace.add("avg_pool", "pooling")
    trace.channels = classes
    trace.add("predictions", "dense", ("kernel", "bias"), weights + classes, 0, weights)
    return trace.layers

"""What a network costs, counted from its numbers alone, layer by layer: nothing is built."""

from dataclasses import dataclass
from typing import NamedTuple

from efficientnet_tf.scaling.compound import scale_network

NORM_VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")


class Layer(NamedTuple):
    """A layer of the network: its variables, its work and its output, for one image."""

    part: str  # "stem", "stage1", ..., "head"
    name: str  # as in the built model
    kind: str  # "convolution", "depthwise", "squeeze_excite", "batch_norm", "activation", "add", "dense", ...
    kernel: int
    stride: int
    side: int  # of the output, which is [side, side, channels]
    channels: int
    variables: tuple[str, ...] = ()
    params: int = 0  # trainable
    statistics: int = 0  # batch norm's moving means and variances
    macs: int = 0
    kept: bool = True  # whether the backward pass needs the output

    @property
    def elements(self):
        """Number of values of the output."""
        return self.side * self.side * self.channels


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds (for one image) of a part of a network."""

    trainable_params: int = 0
    statistics: int = 0  # batch norm's moving means and variances
    macs: int = 0  # convolutions, squeeze-excite included, and dense layers

    def __add__(self, other):
        """Return the cost of two parts together."""
        return Cost(
            self.trainable_params + other.trainable_params,
            self.statistics + other.statistics,
            self.macs + other.macs,
        )

    @property
    def total_params(self):
        """Trainable parameters and batch-norm statistics."""
        return self.trainable_params + self.statistics


def halve(side, stride=2):
    """Return the side of a feature map after a convolution with padding: ceil(side / stride)."""
    return -(-side // stride)


class _Trace:
    """Follows one image through a network: notes each layer, and the shape that it leaves."""

    def __init__(self, spec, side, channels):
        self.layers = []
        self.part, self.side, self.channels = "stem", side, channels
        # The gradient of swish needs its input, that of relu its own output.
        self.sum_is_kept = spec.activation == "swish"

    def note(self, name, kind, variables=(), params=0, statistics=0, macs=0, kernel=1, stride=1, kept=True):
        """Add a layer that leaves what `side` and `channels` say now."""
        part, side, channels = self.part, self.side, self.channels
        self.layers.append(
            Layer(part, name, kind, kernel, stride, side, channels, variables, params, statistics, macs, kept)
        )

    def conv(self, name, channels, kernel=1, stride=1):
        weights = kernel * kernel * self.channels * channels
        self.side, self.channels = halve(self.side, stride), channels
        macs = weights * self.side * self.side
        self.note(name, "convolution", ("kernel",), weights, 0, macs, kernel, stride)

    def depthwise(self, name, kernel, stride):
        weights = kernel * kernel * self.channels
        self.side = halve(self.side, stride)
        self.note(name, "depthwise", ("kernel",), weights, 0, weights * self.side * self.side, kernel, stride)

    def batch_norm(self, name, activation=True):
        """Batch norm, whose output is computed again or kept by what follows, and what acts on it."""
        self.note(name, "batch_norm", NORM_VARIABLES, 2 * self.channels, 2 * self.channels, kept=False)
        if activation:
            self.note(name.removesuffix("bn") + "activation", "activation")

    def squeeze_excite(self, name, squeezed):
        side, channels, weights = self.side, self.channels, self.channels * squeezed
        self.side = 1
        self.note(f"{name}_squeeze", "squeeze_excite")
        self.channels = squeezed
        self.note(f"{name}_reduce", "squeeze_excite", ("kernel", "bias"), weights + squeezed, 0, weights)
        self.channels = channels
        self.note(f"{name}_expand", "squeeze_excite", ("kernel", "bias"), weights + channels, 0, weights)
        self.side = side
        self.note(f"{name}_excite", "squeeze_excite")


def _mbconv(trace, block):
    name = block.name
    if block.expand != 1:
        trace.conv(f"{name}_expand_conv", block.inner_channels)
        trace.batch_norm(f"{name}_expand_bn")
    trace.depthwise(f"{name}_dwconv", block.kernel, block.stride)
    trace.batch_norm(f"{name}_bn")
    if block.se_channels:
        trace.squeeze_excite(f"{name}_se", block.se_channels)
    trace.conv(f"{name}_project_conv", block.out_channels)
    trace.batch_norm(f"{name}_project_bn", activation=False)
    trace.note(f"{name}_add" if block.has_residual else f"{name}_output", "add")


def _separable(trace, block):
    trace.depthwise(f"{block.name}_dwconv", block.kernel, block.stride)
    trace.batch_norm(f"{block.name}_bn")
    trace.conv(f"{block.name}_project_conv", block.out_channels)
    trace.batch_norm(f"{block.name}_project_bn")


def _bottleneck(trace, block):
    name, side, channels = block.name, trace.side, trace.channels
    if not block.keeps_shape:
        trace.conv(f"{name}_shortcut_conv", block.out_channels, stride=block.stride)
        trace.batch_norm(f"{name}_shortcut_bn", activation=False)
        trace.side, trace.channels = side, channels
    trace.conv(f"{name}_reduce_conv", block.inner_channels)
    trace.batch_norm(f"{name}_reduce_bn")
    trace.conv(f"{name}_conv", block.inner_channels, block.kernel, block.stride)
    trace.batch_norm(f"{name}_bn")
    trace.conv(f"{name}_project_conv", block.out_channels)
    trace.batch_norm(f"{name}_project_bn", activation=False)
    trace.note(f"{name}_add", "add", kept=trace.sum_is_kept)
    trace.note(f"{name}_output", "activation")


_BLOCKS = {"mbconv": _mbconv, "separable": _separable, "bottleneck": _bottleneck}


def list_layers(spec, resolution=None, classes=1000, channels=3):
    """List the layers of a spec without building it.

    Args:
        spec: schema.ModelSpec.
        resolution: int >= 1, image side in pixels; the spec's by default.
        classes: int >= 1.
        channels: int >= 1, of the images.

    Returns:
        list of Layer, in the order of the network. Layers with variables are those of the built model, name by name.
        Of the others there are those that leave an output of their own; a block without a residual ends with
        "..._output", which is no layer but its last batch norm's output, the next block's input.
    """
    network = scale_network(spec)
    trace = _Trace(spec, resolution or spec.resolution, channels)
    trace.note("normalization", "normalization")
    trace.conv("stem_conv", network.stem_channels, spec.stem_kernel, 2)
    trace.batch_norm("stem_bn")
    if spec.stem_pool:
        trace.side = halve(trace.side)
        trace.note("stem_pool", "pooling", kernel=3, stride=2)
    for number, stage in enumerate(network.stages, 1):
        trace.part = f"stage{number}"
        for block in stage:
            _BLOCKS[block.kind](trace, block)
    trace.part = "head"
    if network.head_channels:
        trace.conv("top_conv", network.head_channels)
        trace.batch_norm("top_bn")
    weights, trace.side = trace.channels * classes, 1
    trace.note("avg_pool", "pooling")
    trace.channels = classes
    trace.note("predictions", "dense", ("kernel", "bias"), weights + classes, 0, weights)
    return trace.layers


def sum_by(layers, key):
    """Add up layers by one of their fields.

    Args:
        layers: sequence of Layer.
        key: str, "part" or "kind".

    Returns:
        dict of Cost, in the order of the network, and "total".
    """
    sums = {}
    for layer in layers:
        cost = sums.setdefault(getattr(layer, key), [0, 0, 0])
        cost[0] += layer.params
        cost[1] += layer.statistics
        cost[2] += layer.macs
    parts = {name: Cost(*cost) for name, cost in sums.items()}
    return parts | {"total": sum(parts.values(), Cost())}


def count_cost(spec, resolution=None, classes=1000, channels=3):
    """Count parameters and multiply-adds of a spec without building it.

    Args:
        spec: schema.ModelSpec.
        resolution: int >= 1, image side in pixels; the spec's by default.
        classes: int >= 1.
        channels: int >= 1, of the images.

    Returns:
        dict of Cost, in the order of the network: "stem", "stage1" ..., "head", and "total".

    Source: multiply-adds as the paper prints them under the name FLOPS: convolutions and dense layers.
    """
    return sum_by(list_layers(spec, resolution, classes, channels), "part")


def receptive_fields(spec):
    """Return how far each part's outputs look and stand apart on the image, squeeze-excite left aside.

    Args:
        spec: schema.ModelSpec.

    Returns:
        dict, {"stem": (side of the receptive field, stride), "stage1": ...}, both in pixels.
    """
    network = scale_network(spec)
    kernels = {"stem": [(spec.stem_kernel, 2)] + [(3, 2)] * spec.stem_pool}
    for number, stage in enumerate(network.stages, 1):
        kernels[f"stage{number}"] = [(block.kernel, block.stride) for block in stage]
    field, apart, fields = 1, 1, {}
    for part, pairs in kernels.items():
        for kernel, stride in pairs:
            field += (kernel - 1) * apart
            apart *= stride
        fields[part] = field, apart
    return fields

"""What a network costs, counted from its numbers alone: parameters and multiply-adds, nothing is built."""

from dataclasses import dataclass

from efficientnet_tf.scaling import scale_network


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
    """Return the side of a feature map after a convolution with "same" padding: ceil(side / stride)."""
    return -(-side // stride)


def _conv(kernel, inputs, outputs, positions, bias=False):
    """Cost of a convolution over `positions` output pixels; a depthwise one has inputs=1."""
    weights = kernel * kernel * inputs * outputs
    return Cost(weights + outputs * bias, 0, weights * positions)


def _batch_norm(channels):
    return Cost(2 * channels, 2 * channels)


def _block(block, side):
    expanded, positions = block.expanded_channels, halve(side, block.stride) ** 2
    cost = Cost()
    if block.expand != 1:
        cost += _conv(1, block.in_channels, expanded, side * side) + _batch_norm(expanded)
    cost += _conv(block.kernel, 1, expanded, positions) + _batch_norm(expanded)
    if block.se_channels:
        cost += _conv(1, expanded, block.se_channels, 1, bias=True)
        cost += _conv(1, block.se_channels, expanded, 1, bias=True)
    return cost + _conv(1, expanded, block.out_channels, positions) + _batch_norm(block.out_channels)


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
    network = scale_network(spec)
    side = halve(resolution or spec.resolution)
    stem = network.stem_channels
    parts = {"stem": _conv(3, channels, stem, side * side) + _batch_norm(stem)}
    for number, stage in enumerate(network.stages, 1):
        cost = Cost()
        for block in stage:
            cost += _block(block, side)
            side = halve(side, block.stride)
        parts[f"stage{number}"] = cost
    head, last = network.head_channels, network.stages[-1][-1].out_channels
    parts["head"] = _conv(1, last, head, side * side) + _batch_norm(head) + _conv(1, head, classes, 1, bias=True)
    return parts | {"total": sum(parts.values(), Cost())}

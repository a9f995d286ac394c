"""Compound scaling: from a baseline's stage table and its coefficients to the concrete blocks of a network."""

import math
import string
from dataclasses import dataclass
from typing import NamedTuple


def round_channels(channels, width, divisor=8):
    """Scale a channel count and round it to a multiple of `divisor`, never more than 10 % below.

    Args:
        channels: int >= 1, channels at width 1.
        width: float > 0, the multiplier.
        divisor: int >= 1.

    Returns:
        int, a multiple of `divisor`.

    Source: MobileNet's rule as the official EfficientNet code applies it (`round_filters`).
    """
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def round_repeats(repeats, depth):
    """Scale a repeat count, rounding up. Source: official code, `round_repeats`."""
    return math.ceil(depth * repeats)


@dataclass(frozen=True)
class Coefficients:
    """By what depth, width and resolution grow with each unit of phi. Source: paper, equation 3 and section 4."""

    alpha: float = 1.2
    beta: float = 1.1
    gamma: float = 1.15

    @property
    def growth(self):
        """By what multiply-adds grow with each unit of phi, about: alpha * beta^2 * gamma^2."""
        return self.alpha * self.beta**2 * self.gamma**2


PAPER = Coefficients()


def compound(phi, coefficients=PAPER):
    """Return the multipliers (depth, width, resolution) of a compound coefficient (paper, equation 3)."""
    return coefficients.alpha**phi, coefficients.beta**phi, coefficients.gamma**phi


def implied_phi(multiplier, base):
    """Return the phi with base^phi = multiplier."""
    return math.log(multiplier) / math.log(base)


def round_resolution(side):
    """Round an image side to a multiple of 4 pixels, as those of B0 to B8 are."""
    return max(4, round(side / 4) * 4)


def multiply(spec, depth=1.0, width=1.0, resolution=1.0):
    """Return a schema.ModelSpec with its multipliers multiplied, rounded as a variant's YAML has them.

    Args:
        spec: schema.ModelSpec.
        depth: float > 0, for repeats.
        width: float > 0, for channels.
        resolution: float > 0; the side becomes a multiple of 4 pixels, unless it stays.
    """
    side = spec.resolution if resolution == 1 else round_resolution(spec.resolution * resolution)
    scaled = {"depth": round(spec.depth * depth, 4), "width": round(spec.width * width, 4), "resolution": side}
    return spec.model_copy(update=scaled)


class Block(NamedTuple):
    """One block with every number decided; `models` has a function for each kind."""

    name: str  # "block2a": stage 2, first block; weight files address layers by it
    kind: str  # "mbconv", "separable" or "bottleneck", as in schema.Stage
    kernel: int
    stride: int
    expand: int
    in_channels: int
    inner_channels: int  # of the convolution that looks at neighbours
    out_channels: int
    se_channels: int  # squeeze-excite bottleneck; 0 for none
    drop_rate: float  # probability that the block is skipped in training

    @property
    def keeps_shape(self):
        """Whether input and output have the same shape."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def has_residual(self):
        """Whether the input is added to the output: a bottleneck projects it where shapes differ."""
        return self.kind == "bottleneck" or (self.kind == "mbconv" and self.keeps_shape)


@dataclass(frozen=True)
class Network:
    """A scaled network: what the builder builds and the accounting counts."""

    stem_channels: int
    stages: tuple[tuple[Block, ...], ...]
    head_channels: int  # 0 for no convolution before the pooling

    @property
    def blocks(self):
        """All blocks, from the input to the output."""
        return tuple(block for stage in self.stages for block in stage)


def _letter(index):
    """Return a, b, ..., z, aa, ab, ...: the name of a stage's block number `index`."""
    head, tail = divmod(index, 26)
    return (_letter(head - 1) if head else "") + string.ascii_lowercase[tail]


def scale_network(spec):
    """Apply width and depth of a spec to its stage table.

    Args:
        spec: schema.ModelSpec.

    Returns:
        A Network. Its squeeze-excite widths follow each block's *input* channels, and the drop rate of block i
        of N is `drop_connect * i / N` with N counted after scaling.

    Source: paper, Table 1, section 5.1 (other families) and 5.2; official code for the two rules above.
    """

    def channels(count):
        return round_channels(count, spec.width, spec.channel_divisor)

    repeats = [round_repeats(stage.repeats, spec.depth) for stage in spec.stages]
    total, done = sum(repeats), 0
    in_channels = channels(spec.stem_channels)
    stages = []
    for number, (stage, count) in enumerate(zip(spec.stages, repeats, strict=True), 1):
        # A bottleneck states its output's channels; it is its inner ones that are rounded.
        inner = channels(stage.channels / stage.expand) if stage.block == "bottleneck" else 0
        blocks = []
        for index in range(count):
            blocks.append(
                Block(
                    name=f"block{number}{_letter(index)}",
                    kind=stage.block,
                    kernel=stage.kernel,
                    stride=stage.stride if index == 0 else 1,
                    expand=stage.expand,
                    in_channels=in_channels,
                    inner_channels=inner or in_channels * stage.expand,
                    out_channels=inner * stage.expand or channels(stage.channels),
                    se_channels=max(1, int(in_channels * stage.se_ratio)) if stage.se_ratio else 0,
                    drop_rate=spec.drop_connect * done / total,
                )
            )
            in_channels = blocks[-1].out_channels
            done += 1
        stages.append(tuple(blocks))
    head_channels = channels(spec.head_channels) if spec.head_channels else 0
    return Network(channels(spec.stem_channels), tuple(stages), head_channels)

"""Compound scaling: from a baseline network to a larger or rounded one.

There is one function per step:

compound       phi -> multipliers                  (how much deeper, wider and finer is phi = 1?)
scale_spec     multipliers -> a `ModelSpec`        (the numbers of a variant file)
scale_by_phi   phi -> a `ModelSpec`                (both at once)
scale_network  a `ModelSpec` -> a `Network`        (the channels and repeats of every block)
"""

import math
import string
from dataclasses import dataclass
from typing import NamedTuple

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import change_spec, load_variant
from efficientnet_tf.config.schema import ModelSpec

# ------------------------------------------------------------------------------------------- rules of rounding


def round_channels(channels: float, width: float, divisor: int = 8, rounding: str = "at_least_90_percent") -> int:
    """Return scaled channels, rounded to a multiple of `divisor`.

    Args:
        channels: Channels at width 1, at least 1.
        width: Multiplier, greater than 0.
        divisor: The result is a multiple of this number, at least 1.
        rounding: "nearest" multiple, or "at_least_90_percent": the multiple after it if it is more than 10 % too low.

    Source: MobileNet's rule as the official EfficientNet code applies it (`round_filters`). That of EfficientNetV2
        (google/automl and `keras.applications`) has no lower bound.
    """
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounding != "nearest" and rounded < 0.9 * scaled else rounded


def round_resolution(side: float) -> int:
    """Return an image side rounded to a multiple of 4 pixels, as those of B0 to B8 are."""
    return max(4, round(side / 4) * 4)


# ------------------------------------------------------------------------------------------- coefficients


@dataclass(frozen=True)
class Coefficients:
    """The scaling coefficients: growth of depth, width and resolution per unit of phi.

    Attributes:
        alpha: Growth of the depth.
        beta: Growth of the width.
        gamma: Growth of the resolution.

    Source: paper, equation 3 and section 4.

    Example:
        >>> from efficientnet_tf import Coefficients
        >>> paper = Coefficients()
        >>> paper.alpha, paper.beta, paper.gamma
        (1.2, 1.1, 1.15)
        >>> round(paper.growth, 2)
        1.92
    """

    alpha: float = 1.2
    beta: float = 1.1
    gamma: float = 1.15

    @property
    def growth(self) -> float:
        """Approximate growth of the multiply-adds per unit of phi: alpha * beta^2 * gamma^2."""
        return self.alpha * self.beta**2 * self.gamma**2


PAPER = Coefficients()


class Multipliers(NamedTuple):
    """Factors by which a network is made deeper, wider and finer."""

    depth: float
    width: float
    resolution: float


def compound(phi: float, coefficients: Coefficients = PAPER) -> Multipliers:
    """Return the multipliers of depth, width and resolution for a compound coefficient.

    Args:
        phi: Compound coefficient. 0 is the baseline. Each unit costs about twice as many multiply-adds.
        coefficients: Growth per unit of phi.

    Returns:
        A named tuple `(depth, width, resolution)`.

    Raises:
        UserError: If phi is no finite number, or the multipliers exceed what a float can hold.

    Source: paper, equation 3.

    Example:
        >>> from efficientnet_tf import compound
        >>> [round(multiplier, 2) for multiplier in compound(2)]
        [1.44, 1.21, 1.32]
    """
    return Multipliers(_power(coefficients.alpha, phi), _power(coefficients.beta, phi), _power(coefficients.gamma, phi))


def _power(base: float, phi: float) -> float:
    try:
        value = float(base) ** phi
    except OverflowError:
        value = math.inf
    if not 0 < value < math.inf:
        raise UserError(f"phi={phi:g} is out of range: {base:g} to the power of phi must be a positive, finite number.")
    return value


def solve_phi(multiplier: float, base: float) -> float:
    """Return the phi for which `base ** phi` equals the multiplier. Both must be greater than 0, and base not 1."""
    return math.log(multiplier) / math.log(base)


# ------------------------------------------------------------------------------------------- scaling


def scale_by_phi(
    baseline: str | ModelSpec, phi: float | tuple[float, float, float], coefficients: Coefficients = PAPER
) -> ModelSpec:
    """Return the network that is `phi` units larger than a baseline.

    Args:
        baseline: The network to scale, a variant or a `ModelSpec`.
        phi: Compound coefficient, or one for each of depth, width and resolution.
        coefficients: Growth per unit of phi.

    Raises:
        UserError: If phi is no finite number, or the network is larger or rounded than the schema allows.

    Returns:
        A `ModelSpec` with numbers rounded as in a variant file. Its dropout is 0.05 higher per unit of the mean phi, up
        to 0.5, which follows the trend from B0 to B7.

    Example:
        >>> from efficientnet_tf import scale_by_phi
        >>> network = scale_by_phi("b0", 1.0)
        >>> network.depth, network.width, network.resolution
        (1.2, 1.1, 256)
    """
    baseline = load_variant(baseline)
    depth_phi, width_phi, resolution_phi = phi if isinstance(phi, tuple) else (phi, phi, phi)
    mean_phi = (depth_phi + width_phi + resolution_phi) / 3
    alpha, beta, gamma = coefficients.alpha, coefficients.beta, coefficients.gamma
    spec = scale_spec(baseline, _power(alpha, depth_phi), _power(beta, width_phi), _power(gamma, resolution_phi))
    dropout = min(max(baseline.dropout + 0.05 * mean_phi, baseline.dropout / 2), 0.5)
    return spec.model_copy(update={"dropout": round(dropout, 2)})


def scale_spec(spec: ModelSpec, depth: float = 1.0, width: float = 1.0, resolution: float = 1.0) -> ModelSpec:
    """Return a network that is larger by the given multipliers.

    Args:
        spec: The network to scale.
        depth: Multiplier of the repeats, greater than 0.
        width: Multiplier of the channels, greater than 0.
        resolution: Multiplier of the image side, greater than 0. Unless it is 1, the side becomes a multiple of 4
            pixels.

    Returns:
        A `ModelSpec` with numbers rounded as in a variant file. Dropout stays the same.

    Raises:
        UserError: If the network is larger or rounded than the schema allows.
    """
    for name, multiplier in (("depth", depth), ("width", width), ("resolution", resolution)):
        if not 0 < multiplier < math.inf:
            raise UserError(f"the multiplier {name}={multiplier:g} must be a positive, finite number.")
    side = spec.resolution if resolution == 1 else round_resolution(min(spec.resolution * resolution, 1e9))
    rounded = [max(round(value, 4), 1e-4) for value in (spec.depth * depth, spec.width * width)]
    scaled = {"depth": rounded[0], "width": rounded[1], "resolution": side}
    return change_spec(spec, scaled)


class Block(NamedTuple):
    """One block of a network with all its numbers. The models and the cost accounting have a function per kind."""

    name: str  # "block2a" is the first block of stage 2. Weight files address layers by this name.
    kind: str  # "mbconv", "fused_mbconv", "separable" or "bottleneck", as in a `Stage`
    kernel: int  # in pixels
    stride: int
    expand: int
    in_channels: int
    inner_channels: int  # of the depthwise convolution, or of the full one of a fused block and of a bottleneck
    out_channels: int
    se_channels: int  # of the squeeze-and-excitation bottleneck, 0 if there is none
    drop_rate: float  # probability that the block is skipped in training
    residual: bool  # whether the input is added to the output if both have the same shape
    depthwise_name: str  # of the layer. `keras.applications` has another name for it in networks with fused blocks.

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def has_residual(self) -> bool:
        """Whether the input is added to the output. A bottleneck projects its input if the shapes differ."""
        return self.kind == "bottleneck" or (self.kind != "separable" and self.residual and self.keeps_shape)


@dataclass(frozen=True)
class Network:
    """A scaled network. The models build it, and the cost accounting counts it."""

    stem_channels: int
    stages: tuple[tuple[Block, ...], ...]
    head_channels: int  # 0 if there is no convolution before the pooling

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks, from the input to the output."""
        return tuple(block for stage in self.stages for block in stage)


def _letter(index: int) -> str:
    """Return a, b, ..., z, aa, ab, ... for 0, 1, ...: the letters that name a block within its stage."""
    head, tail = divmod(index, 26)
    return (_letter(head - 1) if head else "") + string.ascii_lowercase[tail]


def scale_network(spec: ModelSpec) -> Network:
    """Return every block of a network, after applying its width and depth to its stage table.

    Args:
        spec: The network.

    Returns:
        A `Network`. Squeeze-and-excitation widths follow the input channels of a block, before expansion. The drop rate
        of block i of N is `drop_connect * i / N`, where N counts the blocks after scaling.

    Source: paper, Table 1, section 5.1 (other networks) and 5.2. Official code for the two rules above.
    Deviates: for EfficientNetV2, `keras.applications` counts the blocks before scaling, so that its drop rates end
        above `drop_connect` in B1 to B3. google/automl counts them after scaling.
    """

    def channels(count: float) -> int:
        return round_channels(count, spec.width, spec.channel_divisor, spec.channel_rounding)

    total, done = sum(spec.repeats), 0
    stem_channels = spec.stem_channels if "stem" in spec.unscaled else channels(spec.stem_channels)
    in_channels = stem_channels
    stages = []
    for number, (stage, count) in enumerate(zip(spec.stages, spec.repeats, strict=True), 1):
        # The table states a bottleneck's output channels, but the rule of rounding applies to its inner channels.
        inner = channels(stage.channels / stage.expand) if stage.block == "bottleneck" else 0
        blocks = []
        for index in range(count):
            expand_from = channels(stage.expand_from) if stage.expand_from and index == 0 else in_channels
            name = f"block{number}{_letter(index)}"
            blocks.append(
                Block(
                    name=name,
                    kind=stage.block,
                    kernel=stage.kernel,
                    stride=stage.stride if index == 0 else 1,
                    expand=stage.expand,
                    in_channels=in_channels,
                    inner_channels=inner or expand_from * stage.expand,
                    out_channels=inner * stage.expand or channels(stage.channels),
                    se_channels=max(1, int(in_channels * stage.se_ratio)) if stage.se_ratio else 0,
                    drop_rate=spec.drop_connect * done / total,
                    residual=stage.residual,
                    depthwise_name=f"{name}_{'dwconv2' if spec.has_fused_blocks else 'dwconv'}",
                )
            )
            in_channels = blocks[-1].out_channels
            done += 1
        stages.append(tuple(blocks))
    is_head_scaled = spec.head_channels and "head" not in spec.unscaled
    return Network(stem_channels, tuple(stages), channels(spec.head_channels) if is_head_scaled else spec.head_channels)

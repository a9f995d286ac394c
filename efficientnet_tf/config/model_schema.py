"""The schema of a network: every key that a variant may set. `schema` explains how it is written."""

import math
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from efficientnet_tf.config.fields import (
    MOST_BLOCKS,
    Channels,
    Floats,
    Fraction,
    Positive,
    Positives,
    Scale,
    Section,
    Side,
)


class Stage(Section):
    """One row of a stage table (paper, Table 1), before scaling.

    Example:
        >>> from efficientnet_tf import load_variant
        >>> stage = load_variant("b0").stages[2]
        >>> stage.kernel, stage.stride, stage.channels, stage.repeats
        (5, 2, 40, 2)
    """

    block: Literal["mbconv", "fused_mbconv", "separable", "bottleneck"] = "mbconv"
    """Kind of block. `mbconv` is an inverted bottleneck with squeeze-and-excitation (EfficientNet, MobileNetV2).
    `fused_mbconv` has one full convolution in place of its expansion and depthwise convolution (EfficientNetV2,
    EdgeTPU). `separable` is a depthwise and a 1x1 convolution (MobileNetV1). `bottleneck` is a 1x1, a full and a 1x1
    convolution with a shortcut (ResNet)."""
    kernel: Literal[3, 5, 7]
    """Kernel size of the depthwise convolution, or of the full convolution of `fused_mbconv` and `bottleneck`, in
    pixels."""
    stride: Literal[1, 2]
    """Stride of the stage's first block. The other blocks have stride 1."""
    expand: Annotated[int, Field(ge=1, le=1000)]
    """`mbconv` and `fused_mbconv`: ratio of inner channels to input channels. 1 omits the expansion of `mbconv` and the
    1x1 projection of `fused_mbconv`. `bottleneck`: ratio of output channels to inner channels."""
    expand_from: Channels | None = None
    """`fused_mbconv`: channels at width 1 that are expanded in the first block, instead of its input channels
    (EdgeTPU)."""
    residual: bool = True
    """`mbconv` and `fused_mbconv`: whether a block adds its input to its output if both have the same shape. False is
    for the first stage of EdgeTPU."""
    channels: Channels
    """Output channels at width 1."""
    repeats: Annotated[int, Field(ge=1, le=MOST_BLOCKS)]
    """Number of blocks at depth 1."""
    se_ratio: Annotated[float, Field(ge=0, le=1)] = 0.25
    """`mbconv`: channels of the squeeze-and-excitation bottleneck, as a fraction of the block's input channels. 0 omits
    it."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Stage":
        if self.block != "mbconv" and self.se_ratio:
            raise ValueError(
                f"se_ratio={self.se_ratio:g} is only for block=mbconv, received {self.block}. Set it to 0."
            )
        if self.expand_from is not None and (self.block != "fused_mbconv" or self.expand == 1):
            raise ValueError(
                f"expand_from={self.expand_from} is only for block=fused_mbconv with expand above 1, received "
                f"{self.block} with expand={self.expand}. Leave it out."
            )
        if not self.residual and self.block in ("separable", "bottleneck"):
            raise ValueError(f"residual=false is only for mbconv and fused_mbconv, received block={self.block}.")
        if self.block == "separable" and self.expand != 1:
            raise ValueError(f"block=separable has no expansion, received expand={self.expand}. Set it to 1.")
        if self.block == "bottleneck" and self.channels % self.expand:
            raise ValueError(f"block=bottleneck: channels={self.channels} is not a multiple of expand={self.expand}")
        return self


class ModelSpec(Section):
    """A network: a stage table and the multipliers that scale it. Variants in `configs/` are written in these keys.

    Example:
        >>> from efficientnet_tf import load_variant
        >>> spec = load_variant("b4")
        >>> spec.depth, spec.width, spec.resolution
        (1.8, 1.4, 380)
        >>> spec.model_copy(update={"resolution": 300}).resolution
        300
    """

    name: str
    """Name of the variant. Defaults to the name of its file."""
    width: Scale
    """Multiplier of the channels (`w = beta^phi` in the paper)."""
    depth: Scale
    """Multiplier of the repeats (`d = alpha^phi` in the paper)."""
    resolution: Side
    """Side of the input images in pixels, in training and in evaluation."""
    dropout: Fraction
    """Dropout rate before the classifier."""
    drop_connect: Fraction = 0.2
    """Maximum stochastic-depth rate. The rate of a block grows linearly with its depth."""
    stem_channels: Channels = 32
    """Channels of the first convolution at width 1."""
    stem_kernel: Literal[3, 7] = 3
    """Kernel size of the first convolution."""
    stem_stride: Literal[1, 2] = 2
    """Stride of the first convolution. 1 keeps small images, of 32 pixels for example, large enough for the stages."""
    stem_pool: bool = False
    """Whether a 3x3 max pooling with stride 2 follows the first convolution (ResNet)."""
    head_channels: Annotated[int, Field(ge=0, le=10**6)] = 1280
    """Channels of the last convolution at width 1. 0 omits this convolution."""
    activation: Literal["swish", "relu", "relu6"] = "swish"
    """Activation function after batch norm."""
    channel_divisor: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Scaled channel counts are rounded to multiples of this number."""
    channel_rounding: Literal["at_least_90_percent", "nearest"] = "at_least_90_percent"
    """How scaled channel counts are rounded. `nearest` takes the nearest multiple of channel_divisor (EfficientNetV2).
    `at_least_90_percent` takes the next multiple if the nearest one is more than 10 % too low."""
    unscaled: Annotated[tuple[Literal["stem", "head", "first", "last"], ...], Field(strict=False, max_length=4)] = ()
    """Parts that keep their numbers at any width and depth (EfficientNet-Lite): the channels of the `stem` and of the
    `head`, and the repeats of the `first` and of the `last` stage."""
    batch_norm_momentum: Fraction = 0.99
    """Fraction of the moving mean and variance that is kept at each training step."""
    batch_norm_epsilon: Positive = 1e-3
    """Constant that batch norm adds to the variance."""
    padding: Literal["same", "symmetric"] = "same"
    """Padding of convolutions with stride 2. `same` is TensorFlow's rule. `symmetric` pads every side equally, as
    PyTorch does."""
    mean: Floats = (123.675, 116.28, 103.53)
    """Mean that is subtracted from the pixels, which are in [0, 255]: one value per channel, or one for all."""
    std: Positives = (58.395, 57.12, 57.375)
    """Standard deviation that the pixels are divided by: one value per channel, or one for all."""
    stages: Annotated[tuple[Stage, ...], Field(strict=False, min_length=1, max_length=100)]
    """The stage table: one row per stage, from the input to the output."""

    @property
    def repeats(self) -> tuple[int, ...]:
        """Number of blocks of each stage: the scaled repeats, rounded up (`round_repeats` in the official code)."""
        unscaled = {index for index, name in ((0, "first"), (len(self.stages) - 1, "last")) if name in self.unscaled}
        return tuple(
            stage.repeats if index in unscaled else math.ceil(self.depth * stage.repeats)
            for index, stage in enumerate(self.stages)
        )

    @property
    def has_fused_blocks(self) -> bool:
        """Whether the network has blocks of the kind `fused_mbconv`, as EfficientNetV2 has."""
        return any(stage.block == "fused_mbconv" for stage in self.stages)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ModelSpec":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values but std has {len(self.std)}. Give as many of each.")
        blocks = sum(self.repeats)
        if blocks > MOST_BLOCKS:
            raise ValueError(f"depth={self.depth:g} gives {blocks:,} blocks. A network has at most {MOST_BLOCKS:,}.")
        return self

"""The schema of a run: every key that a variant, a recipe or an override may set.

The text below a key says what the key means. It is written here only: the reference documentation is generated from it.
A section's checks reject values that contradict each other. Their messages name the keys in full, because `load` looks
for those names to find the file that a mistake comes from.
"""

import math
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field

from efficientnet_tf.config.paths import find_problem
from efficientnet_tf.config.text import escape, shorten


class Section(pydantic.BaseModel):
    """A part of a config: immutable, strict about types, and without unknown keys."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


MOST_BLOCKS = 2000  # of a network. EfficientNet-L2 has 87, and the deepest published ResNet 333
MOST_PIXELS = 2**16  # of an image's side


class FieldError(ValueError):
    """A mistake in one field alone, even if the message names other keys.

    Args:
        message: The message.
        key: The key of the field, unless the error is raised by a check of the field itself.
    """

    def __init__(self, message: str, key: tuple[str, ...] = ()):
        super().__init__(message)
        self.key = key


def _check_smallest(value: float) -> float:
    if 0 < value < 1e-30:  # float32 would make it 0
        raise FieldError(f"Input should be at least 1e-30, received {value!r}")
    return value


def _check_path(value: str) -> str:
    problem = find_problem(value)
    if problem is not None:
        raise FieldError(f"'{shorten(escape(value))}' {problem}")
    return value


def _check_address(value: str) -> str:
    if not 1 <= int(value.rpartition(":")[2]) <= 65535:
        raise FieldError(f"The port of an address must be from 1 to 65535, received {shorten(repr(value))}")
    return value


# The upper bounds are far above what anyone uses. They keep products of several values within what can be computed.
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e30), AfterValidator(_check_smallest)]
NonNegative = Annotated[float, Field(ge=0, le=1e30), AfterValidator(_check_smallest)]
Epochs = Annotated[float, Field(gt=0, le=1e7), AfterValidator(_check_smallest)]
Scale = Annotated[float, Field(gt=0, le=1000), AfterValidator(_check_smallest)]
Count = Annotated[int, Field(ge=1, le=10**8)]
Channels = Annotated[int, Field(ge=1, le=10**6)]
Side = Annotated[int, Field(ge=8, le=MOST_PIXELS)]
Path = Annotated[str, AfterValidator(_check_path)]
Address = Annotated[str, Field(pattern=r"^grpc://[^/\s]+:[0-9]{1,5}$"), AfterValidator(_check_address)]
# YAML has lists but no tuples, so tuple fields accept lists.
Pair = Annotated[tuple[Positive, Positive], Field(strict=False)]
Floats = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
Positives = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Levels = Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(strict=False, min_length=1, max_length=3)]


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
    """Kernel size of the first convolution, which has stride 2."""
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


class DataConfig(Section):
    """The images, and how they are read.

    Example:
        >>> from efficientnet_tf import load_config
        >>> load_config("b0", "imagenette").data.source
        'tfds:imagenette/320px-v2'
    """

    source: Annotated[str, Field(pattern=r"^(digits|folder|table|records|synthetic|tfds:[\w./:+-]+)$")] = "digits"
    """Where the images come from. `digits`: the handwritten digits of scikit-learn. `folder`: one folder per class.
    `table`: a file `<split>.csv` or `<split>.tsv` that lists paths and labels. `records`: TFRecord files named
    `<split>-00000-of-00128` and so on, in the format of the official tools. `synthetic`: generated images.
    `tfds:<name>`: a data set of TensorFlow Datasets."""
    dir: Path | None = None
    """Folder that holds the images, or the data directory of TensorFlow Datasets."""
    train_split: str = "train"
    """Name of the training split. For `folder` this is the name of a subfolder."""
    eval_split: str = "val"
    """Name of the evaluation split. For `folder` this is the name of a subfolder. If the default `val` is missing,
    `valid` or `validation` is used."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`folder` without split subfolders: fraction of every class that is held out for evaluation."""
    image_size: Side | None = None
    """Side of the images in pixels. The default is the resolution of the model."""
    channels: Literal[1, 3] = 3
    """Channels of the decoded images: 1 is grayscale, 3 is RGB."""
    crop_padding: Annotated[int, Field(ge=0, le=MOST_PIXELS)] = 32
    """The evaluation crop covers size / (size + crop_padding) of the shorter side."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation used for resizing, without antialiasing."""
    background: Levels = (255,)
    """Color behind transparent pixels, from 0 to 255: one gray level, or red, green and blue. The default is white."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Training stops if more than this fraction of the training or of the evaluation images cannot be decoded."""
    classes: Annotated[int, Field(ge=2, le=10**6)] | None = None
    """`records` without a `classes.txt` file: number of classes."""
    cache: Path = "none"
    """Where to keep a copy of the encoded images: `none`, `memory`, or a folder on a local disk."""
    service: Address | None = None
    """Address `grpc://address:port` of a tf.data service whose workers prepare the training batches. For an indexed
    source these are the same batches as in a local run, in the order in which the workers deliver them. A resumed run
    does not continue at the exact position."""
    shuffle_buffer: Count = 16384
    """Number of records that are shuffled together if the source cannot be indexed."""
    synthetic_examples: Count = 256
    """`synthetic`: number of images in each split."""
    synthetic_classes: Annotated[int, Field(ge=2, le=10**6)] = 10
    """`synthetic`: number of classes."""


class AugmentConfig(Section):
    """The random changes to a training image.

    Example:
        >>> from efficientnet_tf import AugmentConfig
        >>> AugmentConfig(policy="randaugment", mixup=0.2).crop_area
        (0.08, 1.0)
    """

    crop_area: Pair = (0.08, 1.0)
    """Range of the area of the random crop, as a fraction of the image."""
    crop_aspect: Pair = (3 / 4, 4 / 3)
    """Range of the aspect ratio (width / height) of the random crop."""
    flip: bool = True
    """Whether to mirror half of the images horizontally."""
    policy: Literal["none", "autoaugment", "randaugment"] = "none"
    """Augmentation policy that is applied after the crop."""
    randaugment_count: Annotated[int, Field(ge=1, le=16)] = 2
    """RandAugment: number of operations per image."""
    randaugment_level: Annotated[float, Field(ge=0, le=30)] = 10.0
    """RandAugment: strength of the operations."""
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a random rectangle of the image is replaced by noise."""
    mixup: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Blend pairs of images with a weight from Beta(mixup, mixup). 0 disables it."""
    cutmix: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Paste a part of one image into another, with an area from Beta(cutmix, cutmix). 0 disables it."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        for key, top in (("crop_area", 1.0), ("crop_aspect", 1e3)):
            low, high = getattr(self, key)
            if low > high or high > top:
                raise ValueError(f"{key} must be [low, high] with low <= high <= {top}, received [{low}, {high}]")
        return self


class OptimizerConfig(Section):
    """The optimizer and its settings.

    Example:
        >>> from efficientnet_tf import OptimizerConfig
        >>> OptimizerConfig(name="sgd", learning_rate=0.1).momentum
        0.9
    """

    name: Literal["rmsprop", "sgd", "adamw", "lamb"] = "rmsprop"
    """The optimizer."""
    learning_rate: Positive = 0.016
    """Peak learning rate for batches of 256 images. It is scaled in proportion to the batch size."""
    momentum: Fraction = 0.9
    """RMSProp and SGD: momentum. AdamW and LAMB: beta 1."""
    rho: Fraction = 0.9
    """RMSProp: decay of the mean square. AdamW and LAMB: beta 2."""
    epsilon: Positive = 1e-3
    """RMSProp, AdamW and LAMB: constant that avoids a division by zero. RMSProp adds it inside the square root."""
    weight_decay: NonNegative = 1e-5
    """RMSProp and SGD: factor of the penalty `sum(v^2) / 2` in the loss. AdamW and LAMB: decoupled weight decay. The
    variables of batch norm do not decay."""


class ScheduleConfig(Section):
    """The learning rate over time.

    Example:
        >>> from efficientnet_tf import ScheduleConfig
        >>> ScheduleConfig(name="cosine").warmup_epochs
        5.0
    """

    name: Literal["exponential", "cosine", "constant"] = "exponential"
    """Shape of the schedule after the warmup."""
    warmup_epochs: Annotated[float, Field(ge=0, le=1e7)] = 5.0
    """Length of the linear warmup from 0, in epochs."""
    decay_epochs: Epochs = 2.4
    """`exponential`: epochs between two decay steps, counted from the first training step."""
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.97
    """`exponential`: factor of each decay step."""


class Phase(Section):
    """A part of a training run in which some keys have other values.

    Phases describe progressive resizing and gradual unfreezing.

    Example:
        >>> from efficientnet_tf import Phase
        >>> Phase(until=0.5, set={"data.image_size": 128}).until
        0.5
    """

    until: Annotated[float, Field(gt=0, le=1)]
    """Fraction of `train.epochs` at which the phase ends."""
    set: dict[str, int | float | bool | str]
    """Values for this phase, as `section.key: value`. Allowed are data.image_size, train.batch_size, train.freeze,
    model.dropout, model.drop_connect, optimizer.learning_rate and every key of the section augment."""


class TrainConfig(Section):
    """The training run.

    Example:
        >>> from efficientnet_tf import TrainConfig
        >>> TrainConfig(epochs=10.0).batch_size
        2048
    """

    batch_size: Count = 2048
    """Images per step, summed over all replicas."""
    epochs: Epochs = 350.0
    """Passes over the training images."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the initial weights, the order of the images, the augmentation and dropout."""
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    """Precision of the activations. Variables are always float32. `auto` is mixed_bfloat16 on a TPU and float32
    elsewhere."""
    jit_compile: Literal["auto", "on", "off"] = "auto"
    """Whether XLA compiles the forward and the backward pass. `auto` is on for a GPU. A TPU always compiles."""
    accumulate: Count = 1
    """Split each replica's batch into this many parts and sum their gradients. This uses the memory of one part. Batch
    norm sees one part at a time. More than 1 requires batch_norm_group=1."""
    batch_norm_group: Literal["auto", "all"] | Count = "auto"
    """Number of replicas that share the batch-norm statistics in training: a divisor of the number of replicas, or
    `all`. `auto` is 1 for up to 8 replicas. For more it is an eighth of them, but at least 8. More than 1 cannot be
    combined with jit_compile=on."""
    init_from: Path | None = None
    """Weights to start from: a model directory, an export, or any file that the command `weights` reads. The default is
    a random initialization. The classifier is kept only if the classes are the same."""
    freeze: Literal["none", "batch_norm", "body"] = "none"
    """Weights that keep their values from init_from. `batch_norm`: scale, offset and statistics, which are also used as
    stored. `body`: everything except the classifier, with stochastic depth turned off."""
    label_smoothing: Fraction = 0.1
    """Fraction of the target probability that is spread over all classes."""
    ema_decay: Fraction = 0.9999
    """Maximum decay of the exponential moving average (EMA) of the weights. 0 disables it."""
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = ()
    """Phases of the run, in order. The last one must end at 1. The default is a single phase."""
    steps_per_loop: Count = 50
    """Training steps per host round trip."""
    checkpoint_every_epochs: Epochs = 1.0
    """Epochs between two checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=2, le=10**6)] = 3
    """Number of recent checkpoints to keep."""


class EvalConfig(Section):
    """Evaluation, during and after training.

    Example:
        >>> from efficientnet_tf import EvalConfig
        >>> EvalConfig(every_epochs=5.0).batch_size
        256
    """

    batch_size: Count = 256
    """Images per step, summed over all replicas."""
    every_epochs: Epochs = 1.0
    """Epochs between two evaluations during training."""


class Config(Section):
    """The complete configuration of a run.

    Example:
        >>> from efficientnet_tf import load_config
        >>> config = load_config("b0", "digits", ["train.epochs=2"])
        >>> config.train.epochs, config.image_size
        (2.0, 32)
    """

    model: ModelSpec
    """The network."""
    data: DataConfig = DataConfig()
    """The images, and how they are read."""
    augment: AugmentConfig = AugmentConfig()
    """The random changes to a training image."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its settings."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    train: TrainConfig = TrainConfig()
    """The training run."""
    eval: EvalConfig = EvalConfig()
    """Evaluation, during and after training."""

    @property
    def image_size(self) -> int:
        """Side of the images in pixels: `data.image_size`, or else the resolution of the model."""
        return self.data.image_size or self.model.resolution

    @property
    def phases(self) -> "list[tuple[float, Config]]":
        """Phases of the training run, as pairs of the epoch at which a phase ends and the config of that phase."""
        whole = merge(self.model_dump(), {"train": {"phases": ()}})
        return [
            (phase.until * self.train.epochs, Config.model_validate(merge(whole, nest(phase.set))))
            for phase in self.train.phases or (Phase(until=1.0, set={}),)
        ]

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Config":
        data, schedule, train = self.data, self.schedule, self.train
        self._check_phases()
        if train.freeze != "none" and train.init_from is None:
            raise ValueError(
                f"train.freeze={train.freeze} needs train.init_from, or it would keep random weights. "
                "Set train.init_from=PATH."
            )
        if data.source in ("folder", "table", "records") and data.dir is None:
            raise ValueError(f"data.source={data.source} needs data.dir, the folder of the images. Set data.dir=PATH.")
        if data.val_fraction is not None and data.source != "folder":
            raise ValueError(f"data.val_fraction is only for data.source=folder, received source {data.source!r}")
        if schedule.warmup_epochs > train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={schedule.warmup_epochs:g} is longer than train.epochs={train.epochs:g}"
            )
        if len(data.background) == 2:
            raise ValueError(f"data.background has one value or three, received {list(data.background)}")
        if len(self.model.mean) not in (1, 3, data.channels):
            raise ValueError(f"model.mean has {len(self.model.mean)} values for data.channels={data.channels}")
        return self

    def _check_phases(self) -> None:
        phases = self.train.phases
        ends = [phase.until for phase in phases]
        if ends and (ends[-1] != 1 or sorted(set(ends)) != ends):
            raise _phases_error(f"must end one after the other, the last at 1, received {ends}")
        allowed = {"data.image_size", "train.batch_size", "train.freeze", "model.dropout", "model.drop_connect"}
        allowed |= {"optimizer.learning_rate"}
        allowed |= {f"augment.{key}" for key in AugmentConfig.model_fields}
        for key in (key for phase in phases for key in phase.set):
            if key not in allowed:
                raise _phases_error(f"cannot set {shorten(repr(key))}. Allowed are {', '.join(sorted(allowed))}.")
        if phases:
            try:
                _ = self.phases
            except pydantic.ValidationError as error:
                item = error.errors(include_url=False)[0]
                key, message = ".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")
                raise _phases_error(f"cannot set {key}: {message}, received {shorten(repr(item['input']))}") from None


def _phases_error(problem: str) -> FieldError:
    return FieldError(f"train.phases {problem}", ("train", "phases"))


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`. Mappings are merged recursively. Anything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Return {"train": {"epochs": 5}} for {"train.epochs": 5}."""
    nested = {}
    for key, value in flat.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested

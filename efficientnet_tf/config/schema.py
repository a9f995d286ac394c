"""The schema of a run: what a variant and a recipe may say. Every key is documented on its field, and nowhere else."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field


def merge(base, over):
    """Return `base` with `over` laid upon it, mapping by mapping; everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def nest(flat):
    """Turn {"train.epochs": 5, ...} into {"train": {"epochs": 5}, ...}."""
    nested = {}
    for key, value in flat.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = merge(nested, value)
    return nested


class Section(pydantic.BaseModel):
    """A part of the config: immutable, strict about types, unknown keys forbidden."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# YAML has lists alone: a tuple field takes one.
Pair = Annotated[tuple[Positive, Positive], Field(strict=False)]
Floats = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]


class Stage(Section):
    """One row of the baseline's stage table (paper, Table 1), before scaling."""

    block: Literal["mbconv", "separable", "bottleneck"] = Field(
        "mbconv",
        description="mbconv: expansion, depthwise, squeeze-excite, projection; separable: depthwise and 1x1 "
        "(MobileNetV1); bottleneck: 1x1, full convolution, 1x1, and a projected shortcut (ResNet)",
    )
    kernel: Literal[3, 5, 7] = Field(description="size of the kernel that looks at neighbours, pixels")
    stride: Literal[1, 2] = Field(description="stride of the first block; the others have 1")
    expand: Count = Field(
        description="mbconv: inner channels for each of the input, 1 leaves the expansion out; bottleneck: output "
        "channels for each inner one"
    )
    channels: Count = Field(description="output channels at width 1")
    repeats: Count = Field(description="number of blocks at depth 1")
    se_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25, description="mbconv: squeeze-excite bottleneck as a share of the block's input channels; 0 for none"
    )

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.block != "mbconv" and self.se_ratio:
            raise ValueError(f"se_ratio is for block=mbconv, received {self.se_ratio:g} for {self.block}: give 0")
        if self.block == "separable" and self.expand != 1:
            raise ValueError(f"block=separable has no expansion, received expand={self.expand}: give 1")
        if self.block == "bottleneck" and self.channels % self.expand:
            raise ValueError(f"block=bottleneck: channels={self.channels} must be a multiple of expand={self.expand}")
        return self


class ModelSpec(Section):
    """What network: a baseline's stage table and the coefficients that scale it."""

    name: str = Field(description="name of the variant; the default is the name of its file")
    width: Positive = Field(description="multiplier of channels (paper: w = beta^phi)")
    depth: Positive = Field(description="multiplier of repeats (paper: d = alpha^phi)")
    resolution: Annotated[int, Field(ge=8)] = Field(description="image side, pixels, in training and evaluation")
    dropout: Fraction = Field(description="drop rate before the classifier")
    drop_connect: Fraction = Field(0.2, description="stochastic depth: drop rate that a block past the last would have")
    stem_channels: Count = Field(32, description="channels of the first convolution at width 1")
    stem_kernel: Literal[3, 7] = Field(3, description="kernel size of the first convolution, which has stride 2")
    stem_pool: bool = Field(False, description="3x3 max pooling of stride 2 after the first convolution (ResNet)")
    head_channels: Annotated[int, Field(ge=0)] = Field(
        1280, description="channels of the last convolution at width 1; 0 for none"
    )
    activation: Literal["swish", "relu", "relu6"] = Field("swish", description="after batch norm")
    channel_divisor: Count = Field(8, description="scaled channels are multiples of this")
    batch_norm_momentum: Fraction = Field(0.99, description="share of the moving statistics kept at each step")
    batch_norm_epsilon: Positive = Field(1e-3, description="added to the variance")
    padding: Literal["same", "symmetric"] = Field(
        "same", description="of convolutions of stride 2: TensorFlow's, or as much on each side, as torch pads"
    )
    mean: Floats = Field(
        (123.675, 116.28, 103.53), description="subtracted from the pixels, [0, 255], a channel or one for all"
    )
    std: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = Field(
        (58.395, 57.12, 57.375), description="divides the pixels, [0, 255], a channel or one for all"
    )
    stages: Annotated[tuple[Stage, ...], Field(strict=False, min_length=1)] = Field(description="the stage table")

    @pydantic.model_validator(mode="after")
    def _check(self):
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values but std has {len(self.std)}: give as many")
        return self


class DataConfig(Section):
    """Which images."""

    source: str = Field(
        "digits",
        pattern=r"^(digits|folder|table|records|synthetic|tfds:[\w./:+-]+)$",
        description="digits | folder (a folder a class) | table (<split>.csv or .tsv of paths and labels) | "
        "records (<split>-00000-of-00128 ..., the official tools' TFRecords) | synthetic | tfds:<name>, with <name> as "
        "TensorFlow Datasets spells it",
    )
    dir: str | None = Field(None, description="folder of images, or the data directory of TensorFlow Datasets")
    train_split: str = Field("train", description="name of the training split (folder: of the sub-folder)")
    eval_split: str = Field("val", description="name of the evaluation split (folder: of the sub-folder)")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="folder only: no split sub-folders; this share of every class is held out for evaluation"
    )
    image_size: Annotated[int, Field(ge=8)] | None = Field(None, description="pixels; none for the model's resolution")
    channels: Literal[1, 3] = Field(3, description="1 decodes to grey, 3 to RGB")
    crop_padding: Annotated[int, Field(ge=0)] = Field(
        32, description="evaluation crop is size/(size + padding) of the shorter side"
    )
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="resize method, no antialias")
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        1e-3, description="training stops when more than this share of its images cannot be decoded"
    )
    classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="records only: number of classes, where no classes.txt stands beside the files"
    )
    cache: str = Field(
        "none",
        description="memory: read all images, still encoded, once; or a folder on a local disk, to copy them to once",
    )
    service: Annotated[str, Field(pattern=r"^grpc://[^/\s]+:[0-9]{1,5}$")] | None = Field(
        None,
        description="grpc://address:port of a tf.data service whose workers make the training batches: of an indexed "
        "source the very batches of a local run, in the workers' order; a resumed run's place is not exact then",
    )
    shuffle_buffer: Count = Field(16384, description="records shuffled together, where a source cannot be indexed")
    synthetic_examples: Count = Field(256, description="synthetic only: images in each split")
    synthetic_classes: Annotated[int, Field(ge=2)] = Field(10, description="synthetic only: number of classes")


class AugmentConfig(Section):
    """How a training image is varied."""

    crop_area: Pair = Field((0.08, 1.0), description="range of the random crop's area, share of the image")
    crop_aspect: Pair = Field((3 / 4, 4 / 3), description="range of the random crop's width/height")
    flip: bool = Field(True, description="mirror left-right, half of the time")
    policy: Literal["none", "autoaugment", "randaugment"] = Field("none", description="what else is done to an image")
    randaugment_count: Annotated[int, Field(ge=1, le=16)] = Field(2, description="randaugment: operations an image")
    randaugment_level: Annotated[float, Field(ge=0, le=30)] = Field(10.0, description="randaugment: their strength")
    erase: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="probability that a rectangle becomes noise")
    mixup: NonNegative = Field(0.0, description="blend pairs of images, weight from Beta(a, a); 0 for none")
    cutmix: NonNegative = Field(0.0, description="paste pairs of images, area from Beta(a, a); 0 for none")

    @pydantic.model_validator(mode="after")
    def _check(self):
        for key, top in (("crop_area", 1.0), ("crop_aspect", float("inf"))):
            low, high = getattr(self, key)
            if low > high or high > top:
                raise ValueError(f"{key} must be [low, high] with low <= high <= {top}, received [{low}, {high}]")
        return self


class OptimizerConfig(Section):
    """What moves the weights."""

    name: Literal["rmsprop", "sgd", "adamw", "lamb"] = Field("rmsprop", description="the optimiser")
    learning_rate: Positive = Field(0.016, description="peak rate for 256 images a step; scaled with the batch")
    momentum: Fraction = Field(0.9, description="rmsprop, sgd: momentum; adamw, lamb: beta 1")
    rho: Fraction = Field(0.9, description="rmsprop: decay of the mean square; adamw, lamb: beta 2")
    epsilon: Positive = Field(1e-3, description="rmsprop (inside the root), adamw, lamb")
    weight_decay: NonNegative = Field(
        1e-5, description="rmsprop, sgd: factor of sum(v^2)/2 in the loss; adamw, lamb: decoupled. Not on batch norm"
    )


class ScheduleConfig(Section):
    """The learning rate over time."""

    name: Literal["exponential", "cosine", "constant"] = Field("exponential", description="shape after the warm-up")
    warmup_epochs: NonNegative = Field(5.0, description="linear from 0")
    decay_epochs: Positive = Field(2.4, description="exponential: length of a stair, counted from step 0")
    decay_rate: Annotated[float, Field(gt=0, le=1)] = Field(0.97, description="exponential: factor a stair")


class Phase(Section):
    """A part of the training in which some keys have other values: progressive resizing, gradual unfreezing."""

    until: Annotated[float, Field(gt=0, le=1)] = Field(description="share of train.epochs at which the phase ends")
    set: dict[str, int | float | bool | str] = Field(
        description="section.key: value; of the keys data.image_size, train.batch_size, train.freeze, model.dropout, "
        "model.drop_connect, optimizer.learning_rate and the augment section's"
    )


class TrainConfig(Section):
    """The training run."""

    batch_size: Count = Field(2048, description="images a step over all replicas")
    epochs: Positive = Field(350.0, description="passes over the training images")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="initial weights, order, crops, dropout")
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        "auto", description="of activations; variables are float32. auto: mixed_bfloat16 on TPU, else float32"
    )
    jit_compile: Literal["auto", "on", "off"] = Field(
        "auto", description="XLA for forward and backward pass. auto: on for GPU (TPU always compiles)"
    )
    accumulate: Count = Field(
        1,
        description="parts of a replica's batch that are computed one after the other, in the memory of one; batch "
        "norm takes each by itself. More than 1 needs batch_norm_group=1",
    )
    batch_norm_group: Literal["auto", "all"] | Count = Field(
        "auto",
        description="replicas whose images batch norm takes together in training, a divisor of their number, or all. "
        "auto: 1 up to 8 replicas; above, an eighth of them, 8 at least. More than 1 does without jit_compile",
    )
    init_from: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="weights that the run starts from: a model directory, an export, or a file as of the command "
        "weights; none for random ones. The classifier is kept only where the classes are the same",
    )
    freeze: Literal["none", "batch_norm", "body"] = Field(
        "none",
        description="what stays as init_from has it. batch_norm: scale, offset and statistics, which are used as they "
        "are stored; body: all but the classifier, no branch of it dropped",
    )
    label_smoothing: Fraction = Field(0.1, description="share of the target spread over all classes")
    ema_decay: Fraction = Field(0.9999, description="ceiling of the weights' moving average; 0 for none")
    phases: Annotated[tuple[Phase, ...], Field(strict=False)] = Field(
        (), description="parts of the training, in order, the last until 1; none for one alone"
    )
    steps_per_loop: Count = Field(50, description="steps on the device between two looks of the host")
    checkpoint_every_epochs: Positive = Field(1.0, description="time between two checkpoints")
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(3, description="newest checkpoints kept")


class EvalConfig(Section):
    """Evaluation, during training and after."""

    batch_size: Count = Field(256, description="images a step over all replicas")
    every_epochs: Positive = Field(1.0, description="time between two evaluations in training")


class Config(Section):
    """Everything that a run is."""

    model: ModelSpec
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @property
    def image_size(self):
        """Side of the images in pixels: the data's where it says one, else the model's resolution."""
        return self.data.image_size or self.model.resolution

    @property
    def phases(self):
        """The parts of the training: list of (epoch at which it ends, Config of the part)."""
        whole = merge(self.model_dump(), {"train": {"phases": ()}})
        return [
            (phase.until * self.train.epochs, Config.model_validate(merge(whole, nest(phase.set))))
            for phase in self.train.phases or (Phase(until=1.0, set={}),)
        ]

    @pydantic.model_validator(mode="after")
    def _check(self):
        data, schedule, train = self.data, self.schedule, self.train
        ends = [phase.until for phase in train.phases]
        if ends and (ends[-1] != 1 or sorted(set(ends)) != ends):
            raise ValueError(f"train.phases must end one after the other, the last at 1, received {ends}")
        allowed = {"data.image_size", "train.batch_size", "train.freeze", "model.dropout", "model.drop_connect"}
        allowed |= {"optimizer.learning_rate"}
        allowed |= {f"augment.{key}" for key in AugmentConfig.model_fields}
        for key in (key for phase in train.phases for key in phase.set):
            if key not in allowed:
                raise ValueError(f"train.phases cannot set {key!r}; allowed are {', '.join(sorted(allowed))}")
        if train.phases:
            _ = self.phases  # raises what is wrong with their values
        if train.freeze != "none" and train.init_from is None:
            raise ValueError(
                f"train.freeze={train.freeze} would keep random weights: needs train.init_from (--init_from=PATH)"
            )
        if data.source in ("folder", "table", "records") and data.dir is None:
            raise ValueError(f"data.source={data.source} needs data.dir: where the images are (--data_dir=PATH)")
        if data.val_fraction is not None and data.source != "folder":
            raise ValueError(f"data.val_fraction is for data.source=folder, received source {data.source!r}")
        if schedule.warmup_epochs > train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={schedule.warmup_epochs:g} is longer than train.epochs={train.epochs:g}"
            )
        if len(self.model.mean) not in (1, 3, data.channels):
            raise ValueError(f"model.mean has {len(self.model.mean)} values for data.channels={data.channels}")
        return self

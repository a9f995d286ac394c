"""The schema of a run: every key that a variant, a recipe or an override may set.

The text below a key says what the key means. It is written here only: the reference documentation is generated from it.
A section's checks reject values that contradict each other. Their messages name the keys in full, because `load` looks
for those names to find the file that a mistake comes from.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from efficientnet_tf.config.fields import (
    MOST_PIXELS,
    Address,
    Count,
    Epochs,
    FieldError,
    Levels,
    Pair,
    Path,
    Section,
    Side,
)
from efficientnet_tf.config.model_schema import ModelSpec, Stage
from efficientnet_tf.config.text import shorten
from efficientnet_tf.config.training_schema import OptimizerConfig, Phase, ScheduleConfig, TrainConfig

__all__ = [
    "MOST_PIXELS",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "FieldError",
    "ModelSpec",
    "OptimizerConfig",
    "Phase",
    "ScheduleConfig",
    "Section",
    "Stage",
    "TrainConfig",
    "default_crop_padding",
    "merge",
    "nest",
]


class DataConfig(Section):
    """The images, and how they are read.

    Example:
        >>> from efficientnet_tf import load_config
        >>> load_config("b0", "imagenette").data.source
        'tfds:imagenette/320px-v2'
    """

    source: Annotated[str, Field(pattern=r"^(digits|folder|table|records|arrays|synthetic|tfds:[\w./:+-]+)$")] = (
        "digits"
    )
    """Where the images come from. `digits`: the handwritten digits of scikit-learn. `folder`: one folder per class.
    `table`: a file `<split>.csv` or `<split>.tsv` that lists paths and labels. `records`: TFRecord files named
    `<split>-00000-of-00128` and so on, in the format of the official tools. `arrays`: `.npz` files of NumPy with images
    and labels, or the idx files of MNIST. `synthetic`: generated images. `tfds:<name>`: a data set of TensorFlow
    Datasets."""
    dir: Path | None = None
    """Folder that holds the images, or the data directory of TensorFlow Datasets. For `arrays`, this can also be the
    `.npz` file."""
    train_split: str = "train"
    """Name of the training split. For `folder` this is the name of a subfolder."""
    eval_split: str = "val"
    """Name of the evaluation split. For `folder` this is the name of a subfolder. If the default `val` is missing,
    `valid` or `validation` is used."""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`folder` without split subfolders, or `arrays`: fraction of every class that is held out for evaluation. Of
    `arrays`, the training split is divided, and others are not used."""
    image_size: Side | None = None
    """Side of the images in pixels. The default is the resolution of the model."""
    channels: Literal[1, 3] = 3
    """Channels of the decoded images: 1 is grayscale, 3 is RGB."""
    crop_padding: Annotated[int, Field(ge=0, le=MOST_PIXELS)] | None = None
    """The evaluation crop covers size / (size + crop_padding) of the shorter side. The default is 32 pixels, as
    published for images of 224 pixels and more. For smaller images it is a seventh of their size, which is 7/8 of the
    shorter side, as at 224 pixels."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Interpolation used for resizing, without antialiasing."""
    background: Levels = (255,)
    """Color behind transparent pixels, from 0 to 255: one gray level, or red, green and blue. The default is white."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Training stops if more than this fraction of the training or of the evaluation images cannot be decoded."""
    classes: Annotated[int, Field(ge=2, le=10**6)] | None = None
    """`records` without a `classes.txt` file: number of classes."""
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=2)] | None = None
    """`arrays` without names of the classes in `classes.txt` or in an array `classes`: the names of the labels 0, 1 and
    so on. The default is the numbers."""
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
    flip_vertical: bool = False
    """Whether to mirror half of the images vertically."""
    shift: Annotated[int, Field(ge=0, le=10**5)] = 0
    """Move the image by up to this many pixels in each direction after the crop. The border that becomes free is black.
    For small images this is usual instead of crops: with crop_area [1, 1] and crop_aspect [1, 1], square images keep
    their pixels."""
    policy: Literal["none", "autoaugment", "randaugment"] = "none"
    """Augmentation policy that is applied after the crop."""
    randaugment_count: Annotated[int, Field(ge=1, le=16)] = 2
    """RandAugment: number of operations per image."""
    randaugment_level: Annotated[float, Field(ge=0, le=30)] = 10.0
    """RandAugment: strength of the operations."""
    randaugment_std: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """RandAugment: standard deviation of the strength. Each operation then has a strength of its own, from a normal
    distribution around randaugment_level, limited to 0 and to the larger of 10 and randaugment_level. With 100 or more,
    the strength is uniform between 0 and randaugment_level."""
    randaugment_increasing: bool = False
    """RandAugment: whether a higher strength always changes an image more, as with timm's `inc1`. Color, contrast,
    brightness and sharpness are then raised or lowered at random. By default, as in the official code, strength 5 does
    not change these four, and Posterize and Solarize change least at strength 10."""
    randaugment_probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    """RandAugment: probability that an operation is applied. In timm it is 0.5."""
    color_jitter: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Change brightness, contrast and saturation after the policy, in random order, each by a factor between
    1 - color_jitter and 1 + color_jitter, but at least 0. 0 disables it."""
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
    best: Literal["none", "top1", "top5", "loss"] = "none"
    """Metric that chooses the best checkpoint. It is compared at each evaluation, that of the EMA if the run keeps one.
    The best checkpoint is kept along with the newest ones. `model.keras` holds its weights, and other commands use them
    unless `--checkpoint` names another one."""
    patience: Count | None = None
    """Number of evaluations in a row without a better value of `eval.best` after which the run ends. The default is to
    train for all of `train.epochs`."""


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
    def crop_padding(self) -> int:
        """Pixels around the evaluation crop: `data.crop_padding`, or else its default for the size of the images."""
        padding = self.data.crop_padding
        return default_crop_padding(self.image_size) if padding is None else padding

    def resolve(self) -> "Config":
        """Return the same config with values instead of the defaults that depend on other keys."""
        data = {"image_size": self.image_size, "crop_padding": self.crop_padding}
        return self.model_copy(update={"data": self.data.model_copy(update=data)})

    @property
    def phases(self) -> "list[tuple[float, Config]]":
        """Phases of the training run, as pairs of the epoch at which a phase ends and the config of that phase."""
        whole = merge(self.model_dump(), {"train": {"phases": ()}})
        return [
            (phase.until * self.train.epochs, Config.model_validate(merge(whole, nest(phase.set))))
            for phase in self.train.phases or (Phase(until=1.0, set={}),)
        ]

    @property
    def trains_for_int8(self) -> bool:
        """Whether a phase of the run has `train.quantize`."""
        return any(phase.train.quantize != "none" for _, phase in self.phases)

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Config":
        data, schedule, train = self.data, self.schedule, self.train
        self._check_phases()
        if train.freeze != "none" and train.init_from is None:
            raise ValueError(
                f"train.freeze={train.freeze} needs train.init_from, or it would keep random weights. "
                "Set train.init_from=PATH."
            )
        if data.source in ("folder", "table", "records", "arrays") and data.dir is None:
            raise ValueError(f"data.source={data.source} needs data.dir, the folder of the images. Set data.dir=PATH.")
        if data.val_fraction is not None and data.source not in ("folder", "arrays"):
            raise ValueError(
                "data.val_fraction is only for data.source=folder and data.source=arrays, received source "
                f"{data.source!r}"
            )
        if self.augment.shift >= self.image_size:
            raise ValueError(
                f"augment.shift={self.augment.shift} would move images of {self.image_size} pixels out of sight. Use a "
                "smaller one."
            )
        if schedule.warmup_epochs > train.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={schedule.warmup_epochs:g} is longer than train.epochs={train.epochs:g}"
            )
        if self.eval.patience is not None and self.eval.best == "none":
            raise ValueError(
                f"eval.patience={self.eval.patience} needs eval.best, the metric that must improve. Set eval.best=top1 "
                "or eval.best=loss."
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
        allowed = {"data.image_size", "model.dropout", "model.drop_connect"}
        allowed |= {f"train.{key}" for key in ("batch_size", "freeze", "quantize")}
        allowed |= {f"optimizer.{key}" for key in ("learning_rate", "clip_norm", "clip_value", "agc")}
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


def default_crop_padding(image_size: int) -> int:
    """Return the default of `data.crop_padding` for a size of images in pixels.

    Source: official code, `CROP_PADDING`, for images of at least 224 pixels.
    """
    return min(32, round(image_size / 7))


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

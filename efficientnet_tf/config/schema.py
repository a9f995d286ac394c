"""The schema of a run: every key that a variant, a recipe or an override may set.

The text below a key says what the key means. It is written here only: the reference documentation is generated from it.
A section's checks reject values that contradict each other. Their messages name the keys in full, because `load` looks
for those names to find the file that a mistake comes from.
"""

from typing import Any, Literal

import pydantic

from efficientnet_tf.config.data_schema import AugmentConfig, DataConfig
from efficientnet_tf.config.fields import MOST_PIXELS, Count, Epochs, FieldError, Section
from efficientnet_tf.config.image_size import ImageSize, as_shape, as_size, format_size
from efficientnet_tf.config.model_schema import ModelSpec, Stage
from efficientnet_tf.config.preprocessing import Preprocessing
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

LOSSES = {
    "classification": ("cross_entropy", "bce"),
    "multilabel": ("bce", "asymmetric"),
    "regression": ("mse", "mae", "huber"),
}
"""Values of `train.loss` by `data.task`, the default first."""
METRICS = {"classification": ("top1", "top5"), "multilabel": ("f1", "exact"), "regression": ("mae", "r2")}
"""Metrics of an evaluation by `data.task`, besides the loss. The first one is shown first."""


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
    best: Literal["none", "top1", "top5", "loss", "f1", "exact", "mae", "r2"] = "none"
    """Metric that chooses the best checkpoint: `top1`, `top5` or `loss`. With data.task=multilabel it is `f1`, the mean
    F1 score of the labels, `exact`, the share of images with all labels right, or `loss`; with data.task=regression
    `mae`, the mean absolute error, `r2`, the coefficient of determination, or `loss`. It is compared at each
    evaluation, that of the EMA if the run keeps one. The best checkpoint is kept along with the newest ones.
    `model.keras` holds its weights, and other commands use them
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
    def image_size(self) -> ImageSize:
        """Size of the images in pixels: `data.image_size`, or else the resolution of the model.

        It is the side of a square, or a pair (height, width).
        """
        return as_size(self.image_shape)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return as_shape(self.data.image_size or self.model.resolution)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images that the network takes."""
        return *self.image_shape, self.data.channels

    @property
    def crop_padding(self) -> int:
        """Pixels around the center crop: `data.crop_padding`, or else its default. It is 0 for other crops."""
        padding = self.data.crop_padding
        if self.data.crop != "center":
            return 0
        return default_crop_padding(self.image_size) if padding is None else padding

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the pixels that the network sees in evaluation."""
        data = self.data
        return Preprocessing(
            self.image_shape, data.channels, data.crop, self.crop_padding, data.interpolation, data.background
        )

    def resolve(self) -> "Config":
        """Return the same config with values instead of the defaults that depend on other keys."""
        padding = self.crop_padding if self.data.crop == "center" else None  # Nothing else reads it.
        data = {"image_size": self.image_size, "crop_padding": padding}
        train = self.train.model_copy(update={"loss": self.loss})
        return self.model_copy(update={"data": self.data.model_copy(update=data), "train": train})

    @property
    def loss(self) -> str:
        """Training loss: `train.loss`, or else the default of `data.task`."""
        return self.train.loss or LOSSES[self.data.task][0]

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
        data.check()
        self._check_task()
        if train.freeze != "none" and train.init_from is None:
            raise ValueError(
                f"train.freeze={train.freeze} needs train.init_from, or it would keep random weights. "
                "Set train.init_from=PATH."
            )
        self._check_adversarial()
        if train.teacher is not None and train.quantize != "none":
            raise ValueError(f"train.quantize={train.quantize} cannot be combined with train.teacher. Use one of them.")
        if train.teacher_features and train.teacher is None:
            raise ValueError(
                f"train.teacher_features={train.teacher_features:g} needs train.teacher. Set train.teacher=DIR."
            )
        if train.remat and train.quantize != "none":
            raise ValueError(f"train.quantize={train.quantize} cannot be combined with train.remat. Use one of them.")
        stages = len(self.model.stages)
        if train.freeze.startswith("stage") and int(train.freeze.removeprefix("stage")) > stages:
            raise ValueError(
                f"train.freeze={train.freeze} is not a stage of the network, which has stage1 to stage{stages}"
            )
        if data.source in ("folder", "table", "records", "arrays") and data.dir is None:
            raise ValueError(f"data.source={data.source} needs data.dir, the folder of the images. Set data.dir=PATH.")
        if data.val_fraction is not None and data.source not in ("folder", "arrays"):
            raise ValueError(
                "data.val_fraction is only for data.source=folder and data.source=arrays, received source "
                f"{data.source!r}"
            )
        if self.augment.shift >= min(self.image_shape):
            raise ValueError(
                f"augment.shift={self.augment.shift} would move images of {format_size(self.image_size)} pixels out of "
                "sight. Use a smaller one."
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
        if data.channels > 3 and (self.augment.policy != "none" or self.augment.color_jitter):
            raise ValueError(
                f"augment.policy and augment.color_jitter change colors, so they are not for data.channels="
                f"{data.channels}. Set augment.policy=none and augment.color_jitter=0."
            )
        if len(self.model.mean) not in (1, 3, data.channels):
            raise ValueError(f"model.mean has {len(self.model.mean)} values for data.channels={data.channels}")
        return self

    def _check_task(self) -> None:
        """Check what depends on the task."""
        task, loss, best = self.data.task, self.train.loss, self.eval.best
        if loss is not None and loss not in LOSSES[task]:
            raise ValueError(f"train.loss={loss} is not for data.task={task}. Use one of {', '.join(LOSSES[task])}.")
        if best not in ("none", "loss", *METRICS[task]):
            allowed = ", ".join((*METRICS[task], "loss"))
            raise ValueError(f"eval.best={best} is not for data.task={task}. Use one of {allowed}.")
        if task != "classification" and self.train.class_weights != "none":
            raise ValueError(f"train.class_weights is for data.task=classification, received data.task={task}")
        if self.data.sampling != "uniform" and task != "classification":
            raise ValueError(f"data.sampling={self.data.sampling} is for data.task=classification, received {task!r}")
        if self.data.sampling != "uniform" and self.train.class_weights == "balanced":
            raise ValueError(
                "data.sampling=balanced and train.class_weights=balanced would make up for the number of images twice. "
                "Use one of them."
            )

    def _check_adversarial(self) -> None:
        """Check what cannot be combined with adversarial images."""
        train = self.train
        for key, default in (("quantize", "none"), ("freeze", "none"), ("teacher", None)):
            value = getattr(train, key)
            if train.adversarial_steps and value != default:
                raise ValueError(
                    f"train.adversarial_steps={train.adversarial_steps} cannot be combined with train.{key}={value}. "
                    f"Set train.adversarial_steps=0, or leave out train.{key}."
                )

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
                if item["type"] != "value_error":  # whose messages say what was received
                    message += f", received {shorten(repr(item['input']))}"
                raise _phases_error(f"cannot set {key}: {message}") from None


def default_crop_padding(image_size: ImageSize) -> int:
    """Return the default of `data.crop_padding` for a size of images in pixels.

    Source: official code, `CROP_PADDING`, for images of at least 224 pixels.
    """
    return min(32, round(min(as_shape(image_size)) / 7))


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

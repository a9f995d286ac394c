"""The schema of a run: what a variant and a recipe may say, and how the two and overrides become one config.

    variant YAML (the `model` section) < recipe YAML (any section) < `key=value` overrides

Every key is documented on its field here and nowhere else. Nothing in this file touches a device.
"""

import difflib
import functools
import importlib.metadata
import itertools
import platform
import re
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import yaml
from pydantic import Field

PACKAGE_DIR = Path(__file__).resolve().parent

# In a wheel the configs lie inside the package, in a source tree or an editable install beside it.
CONFIG_DIR = next(
    (d for d in (PACKAGE_DIR / "configs", PACKAGE_DIR.parent / "configs") if d.is_dir()),
    PACKAGE_DIR / "configs",
)


class UserError(ValueError):
    """Something a user can mend: the message says what was wrong, what was received and what is allowed."""


def nearest(name, allowed):
    """Return ' Did you mean X?' for the name in `allowed` closest to `name`, or '' where none is close."""
    close = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


# --------------------------------------------------------------------------------------------------- schema


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

    kernel: Literal[3, 5, 7] = Field(description="depthwise kernel size, pixels")
    stride: Literal[1, 2] = Field(description="stride of the first block; the others have 1")
    expand: Count = Field(description="expansion ratio; 1 leaves the expansion out")
    channels: Count = Field(description="output channels at width 1")
    repeats: Count = Field(description="number of blocks at depth 1")
    se_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25, description="squeeze-excite bottleneck as a share of the block's input channels; 0 for none"
    )


class ModelSpec(Section):
    """What network: a baseline's stage table and the coefficients that scale it."""

    name: str = Field(description="name of the variant; the default is the name of its file")
    width: Positive = Field(description="multiplier of channels (paper: w = beta^phi)")
    depth: Positive = Field(description="multiplier of repeats (paper: d = alpha^phi)")
    resolution: Annotated[int, Field(ge=8)] = Field(description="image side, pixels, in training and evaluation")
    dropout: Fraction = Field(description="drop rate before the classifier")
    drop_connect: Fraction = Field(0.2, description="stochastic depth: drop rate that a block past the last would have")
    stem_channels: Count = Field(32, description="channels of the first convolution at width 1")
    head_channels: Count = Field(1280, description="channels of the last convolution at width 1")
    channel_divisor: Count = Field(8, description="scaled channels are multiples of this")
    batch_norm_momentum: Fraction = Field(0.99, description="share of the moving statistics kept at each step")
    batch_norm_epsilon: Positive = Field(1e-3, description="added to the variance")
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
        pattern=r"^(digits|folder|table|records|synthetic|tfds:[\w./+-]+)$",
        description="digits | folder (a folder a class) | table (<split>.csv or .tsv of paths and labels) | "
        "records (<split>-00000-of-00128 ..., the official tools' TFRecords) | synthetic | tfds:<name>, with <name> as "
        "TensorFlow Datasets spells it",
    )
    dir: str | None = Field(None, description="folder of images, or the data directory of TensorFlow Datasets")
    train_split: str = Field("train", description="name of the training split (folder: of the sub-folder)")
    eval_split: str = Field("val", description="name of the evaluation split (folder: of the sub-folder)")
    val_fraction: Fraction | None = Field(
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
    cache: Literal["none", "memory"] = Field("none", description="memory: read all images, still encoded, once")
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

    name: Literal["rmsprop", "sgd", "adamw"] = Field("rmsprop", description="the optimiser")
    learning_rate: Positive = Field(0.016, description="peak rate for 256 images a step; scaled with the batch")
    momentum: Fraction = Field(0.9, description="rmsprop, sgd: momentum; adamw: beta 1")
    rho: Fraction = Field(0.9, description="rmsprop: decay of the mean square; adamw: beta 2")
    epsilon: Positive = Field(1e-3, description="rmsprop (inside the root) and adamw")
    weight_decay: NonNegative = Field(
        1e-5, description="rmsprop, sgd: factor of sum(v^2)/2 in the loss; adamw: decoupled. Not on batch norm"
    )


class ScheduleConfig(Section):
    """The learning rate over time."""

    name: Literal["exponential", "cosine", "constant"] = Field("exponential", description="shape after the warm-up")
    warmup_epochs: NonNegative = Field(5.0, description="linear from 0")
    decay_epochs: Positive = Field(2.4, description="exponential: length of a stair, counted from step 0")
    decay_rate: Annotated[float, Field(gt=0, le=1)] = Field(0.97, description="exponential: factor a stair")


class Phase(Section):
    """A part of the training in which some keys have other values: progressive resizing, as EfficientNetV2 trains."""

    until: Annotated[float, Field(gt=0, le=1)] = Field(description="share of train.epochs at which the phase ends")
    set: dict[str, int | float | bool | str] = Field(
        description="section.key: value; of the keys data.image_size, train.batch_size, model.dropout, "
        "model.drop_connect and the augment section's"
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
        whole = _merge(self.model_dump(), {"train": {"phases": ()}})
        return [
            (phase.until * self.train.epochs, Config.model_validate(_merge(whole, _nested(phase.set))))
            for phase in self.train.phases or (Phase(until=1.0, set={}),)
        ]

    @pydantic.model_validator(mode="after")
    def _check(self):
        data, schedule, train = self.data, self.schedule, self.train
        ends = [phase.until for phase in train.phases]
        if ends and (ends[-1] != 1 or sorted(set(ends)) != ends):
            raise ValueError(f"train.phases must end one after the other, the last at 1, received {ends}")
        allowed = {"data.image_size", "train.batch_size", "model.dropout", "model.drop_connect"}
        allowed |= {f"augment.{key}" for key in AugmentConfig.model_fields}
        for key in (key for phase in train.phases for key in phase.set):
            if key not in allowed:
                raise ValueError(f"train.phases cannot set {key!r}; allowed are {', '.join(sorted(allowed))}")
        if train.phases:
            _ = self.phases  # raises what is wrong with their values
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


# --------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans (1e-5 is a number, `on` a string), and no key twice."""

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in rules if not tag.endswith((":bool", ":float", ":int", ":timestamp"))]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key_node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 010 is ten
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$"),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that _Loader would read as something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _parse_yaml(text, where):
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from None


def _read_mapping(path):
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    content = _parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, received {type(content).__name__}")
    return content


def _find(kind, folder, name):
    """Return the YAML file of a variant or recipe given its name or its path."""
    name = str(name)
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{kind} file {name!r} does not exist")
        return Path(name)
    path = folder / f"{name.lower()}.yaml"
    if not re.fullmatch(r"[\w.-]+", name) or not path.is_file():
        allowed = sorted(p.stem for p in folder.glob("*.yaml"))
        raise UserError(
            f"unknown {kind} {name!r}: allowed are {', '.join(allowed)}, or a path that ends in .yaml."
            + nearest(name, allowed)
        )
    return path


def _read_variant(variant):
    """Read a variant's YAML; where it names a `baseline`, what it leaves unsaid comes from there."""
    path = _find("variant", CONFIG_DIR, variant)
    content = _read_mapping(path)
    if "baseline" in content:
        baseline = content.pop("baseline")
        base = _read_mapping(_find(f"baseline of {path}:", CONFIG_DIR, baseline))
        if "baseline" in base:
            raise UserError(f"{path}: baseline {baseline!r} has a baseline itself: name one with a stage table")
        content = base | content
    return {"name": path.stem} | content, path


# --------------------------------------------------------------------------------------------------- checks


def _merge(base, over):
    """Return `base` with `over` laid upon it, mapping by mapping; everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _has(content, location):
    for key in location:
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _origin(layers, item, message):
    """Return the names of the layers that a mistake comes from: those that state the values it is about."""
    location = item["loc"]
    if item["type"] == "missing" and not any(isinstance(part, int) for part in location):
        return next(name for name, layer in layers if _has(layer, location[:-1]))
    if item["type"] == "value_error":  # a contradiction: its message names the keys
        keys = [location + tuple(word.split(".")) for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", message)]
    else:  # a list comes from one layer as a whole
        keys = [tuple(itertools.takewhile(lambda part: not isinstance(part, int), location))]
    said = [next((name for name, layer in reversed(layers) if _has(layer, key)), None) for key in keys]
    return ", ".join(name for name, _ in layers if name in said) or layers[-1][0]


def _section_at(model, location):
    """Return the names allowed where `location` ends: the fields of the section that holds it."""
    for key in location[:-1]:
        if isinstance(key, int):
            continue
        annotation = model.model_fields[key].annotation
        inner = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        model = next((a for a in inner if issubclass(a, Section)), model)
    return model.model_fields


def _elsewhere(key):
    """Return a hint where another section has the key."""
    for section, field in Config.model_fields.items():
        if key in field.annotation.model_fields:
            return f" Did you mean {section}.{key}?"
    return ""


def _validate(schema, content, layers):
    """Validate `content`; every mistake is reported in one error, with the layer (file, flag) it came from."""
    try:
        return schema.model_validate(content)
    except pydantic.ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            location = item["loc"]
            key = ".".join(str(part) for part in location)
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "too_short" and item["input"]:
                continue  # its items are wrong and reported themselves
            if item["type"] == "extra_forbidden":
                allowed = _section_at(schema, location)
                hint = nearest(location[-1], allowed) or _elsewhere(location[-1])
                message = f"unknown key; allowed are {', '.join(sorted(allowed))}." + hint
            elif item["type"] == "missing":
                message = "is required and not given"
            elif item["type"] != "value_error":
                message += f", received {item['input']!r}"
            lines.append(f"{_origin(layers, item, message)}: {key + ': ' if key else ''}{message}")
        raise UserError("\n".join(lines)) from None


def load_variant(variant):
    """Load the network that a variant describes.

    Args:
        variant: str, a name in `configs/` ("b0" ... "b8", "l2"), or the path of a YAML file; or a ModelSpec.

    Returns:
        A ModelSpec.

    Raises:
        UserError: for an unknown variant, a key or a value that the schema does not allow.
    """
    if isinstance(variant, ModelSpec):
        return variant
    content, path = _read_variant(variant)
    return _validate(ModelSpec, content, [(str(path), content)])


def _parse_overrides(overrides):
    """Turn `["train.epochs=5", ...]` into a nested mapping; values are read as YAML."""
    nested = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text}: expected section.key=value, for example train.epochs=5")
        nested = _merge(nested, _nested({key.strip(): _parse_yaml(value, f"--set {text}")}))
    return nested


def _nested(flat):
    """Turn {"train.epochs": 5, ...} into {"train": {"epochs": 5}, ...}."""
    nested = {}
    for key, value in flat.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        nested = _merge(nested, value)
    return nested


def load_config(variant, recipe, overrides=()):
    """Compose the config of a run: variant, recipe, overrides, in this order.

    Args:
        variant: str, name or path of a variant.
        recipe: str, name or path of a recipe.
        overrides: sequence of str, `section.key=value`, read as YAML.

    Returns:
        A Config, complete and checked.

    Raises:
        UserError: one error that lists every mistake: file, key, value received, what is allowed, the nearest key.
    """
    model, variant_path = _read_variant(variant)
    recipe_path = _find("recipe", CONFIG_DIR / "recipes", recipe)
    layers = [
        (str(variant_path), {"model": model}),
        (str(recipe_path), _read_mapping(recipe_path)),
        ("--set", _parse_overrides(overrides)),
    ]
    return _validate(Config, functools.reduce(_merge, (layer for _, layer in layers)), layers)


def override_config(config, overrides):
    """Return the config with `section.key=value` overrides laid upon it.

    Raises:
        UserError: as `load_config`.
    """
    over = _parse_overrides(overrides)
    return _validate(Config, _merge(config.model_dump(), over), [("--set", over)])


# --------------------------------------------------------------------------------------------------- files


def environment():
    """Return versions and git commit as a mapping: what, beside the config, decided a run."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("efficientnet_tf", "keras", "tensorflow", "tensorflow-cpu", "tensorflow-tpu", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        git = ["git", "-C", str(PACKAGE_DIR), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        versions["git_commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        versions["git_commit"] = "not a git checkout"
    return versions


def dump_config(config):
    """Return the config as YAML text, every key stated."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120
    )


def parse_config(text, where):
    """Read what `dump_config` wrote (an `environment` section beside it is passed over).

    Raises:
        UserError: when the text is not a complete config of this version.
    """
    content = _parse_yaml(text, where)
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a config")
    content.pop("environment", None)
    return _validate(Config, content, [(where, content)])


def diff_config(old, new):
    """Return the lines `key: old -> new` for every key in which two configs differ."""

    def flatten(section, prefix=""):
        for key, value in section.items():
            if isinstance(value, dict):
                yield from flatten(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    old, new = dict(flatten(old.model_dump())), dict(flatten(new.model_dump()))
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in new if old.get(key) != new.get(key)]

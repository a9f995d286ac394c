"""Tests of the config: what is shipped, how layers combine, which mistakes are reported, and what files hold."""

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.config import errors
from efficientnet_tf.config import load as load_lib
from efficientnet_tf.config.schema import DataConfig, Phase, Stage

VARIANTS = [f"b{i}" for i in range(9)] + ["l2"]
LITE = [f"lite{i}" for i in range(5)]
V2 = ["v2-b0", "v2-b1", "v2-b2", "v2-b3", "v2-s", "v2-m", "v2-l", "v2-xl"]
EDGETPU = ["edgetpu-s", "edgetpu-m", "edgetpu-l"]
FAMILIES = ["mobilenetv1", "mobilenetv2", "resnet50", "wide_resnet50_2"]
TRANSFER_SETS = ["cifar10", "cifar100", "birdsnap", "cars", "flowers", "aircraft", "pets", "food"]
RECIPES = [
    "imagenet",
    "imagenet_v2",
    "imagenet_v2_finetune",
    "imagenet_lite",
    "imagenet_modern",
    "imagenette",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "int8",
    "folder",
    "finetune",
    "digits",
    "smoke",
]
RECIPES += [f"transfer_{name}" for name in TRANSFER_SETS]
NO_DATA = {
    "folder",
    "finetune",
    "int8",
    "cifar10",
    "fashion_mnist",
    "transfer_birdsnap",
    "transfer_aircraft",
}  # need data.dir
PACKAGE = load_lib.PACKAGE_DIR
DIGITS = str(load_lib.CONFIG_DIR / "recipes" / "digits.yaml")


def load(*overrides, variant="b0", recipe="digits"):
    return load_lib.load_config(variant, recipe, overrides)


def error(function, *arguments, **keywords):
    """Return the message of the one UserError that a call must raise."""
    with pytest.raises(errors.UserError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a YAML file and returns its path as str."""

    def write_text(text, name="own.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write_text


# ------------------------------------------------------------------------------------------------ shipped files


# Published: width, depth, resolution, dropout.
@pytest.mark.parametrize(
    ("variant", "numbers"),
    {
        "b0": (1.0, 1.0, 224, 0.2),
        "b1": (1.0, 1.1, 240, 0.2),
        "b2": (1.1, 1.2, 260, 0.3),
        "b3": (1.2, 1.4, 300, 0.3),
        "b4": (1.4, 1.8, 380, 0.4),
        "b5": (1.6, 2.2, 456, 0.4),
        "b6": (1.8, 2.6, 528, 0.5),
        "b7": (2.0, 3.1, 600, 0.5),
        "b8": (2.2, 3.6, 672, 0.5),
        "l2": (4.3, 5.3, 800, 0.5),
    }.items(),
)
def test_variants_match_the_published_family(variant, numbers):
    spec = load_lib.load_variant(variant)
    assert (spec.width, spec.depth, spec.resolution, spec.dropout) == numbers
    assert spec.name == variant
    assert spec.drop_connect == 0.2
    assert spec.stages == load_lib.load_variant("b0").stages
    assert spec.mean == pytest.approx([255 * m for m in (0.485, 0.456, 0.406)])
    assert spec.std == pytest.approx([255 * s for s in (0.229, 0.224, 0.225)])


# Published: width, depth, resolution, dropout. The resolutions of V2 are those of evaluation.
@pytest.mark.parametrize(
    ("variant", "numbers"),
    {
        "lite0": (1.0, 1.0, 224, 0.2),
        "lite1": (1.0, 1.1, 240, 0.2),
        "lite2": (1.1, 1.2, 260, 0.3),
        "lite3": (1.2, 1.4, 280, 0.3),
        "lite4": (1.4, 1.8, 300, 0.3),
        "v2-b0": (1.0, 1.0, 224, 0.2),
        "v2-b1": (1.0, 1.1, 240, 0.2),
        "v2-b2": (1.1, 1.2, 260, 0.3),
        "v2-b3": (1.2, 1.4, 300, 0.3),
        "v2-s": (1.0, 1.0, 384, 0.2),
        "v2-m": (1.0, 1.0, 480, 0.3),
        "v2-l": (1.0, 1.0, 480, 0.4),
        "v2-xl": (1.0, 1.0, 512, 0.4),
        "edgetpu-s": (1.0, 1.0, 224, 0.2),
        "edgetpu-m": (1.0, 1.1, 240, 0.2),
        "edgetpu-l": (1.2, 1.4, 300, 0.3),
    }.items(),
)
def test_variants_match_the_other_published_families(variant, numbers):
    spec = load_lib.load_variant(variant)
    assert (spec.width, spec.depth, spec.resolution, spec.dropout) == numbers
    assert spec.drop_connect == 0.2
    pixels = 128.0 if variant in ("v2-s", "v2-m", "v2-l", "v2-xl") else 127.0
    if not variant.startswith("v2-b"):
        assert (spec.mean, spec.std) == ((pixels,), (128.0,))
    constants = (spec.activation, spec.batch_norm_momentum, spec.batch_norm_epsilon, spec.padding)
    activation = {"l": "relu6", "e": "relu", "v": "swish"}[variant[0]]
    assert constants == (activation, 0.9 if variant[0] == "v" else 0.99, 1e-3, "same")


def test_list_variants_names_all_in_alphabetical_order():
    assert load_lib.list_variants() == sorted([*VARIANTS, *LITE, *V2, *EDGETPU, *FAMILIES, "tiny"])


def test_every_recipe_is_listed_here():
    assert {path.stem for path in (load_lib.CONFIG_DIR / "recipes").glob("*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_loads(recipe):
    overrides = ["data.dir=photos"] if recipe in NO_DATA else []
    overrides += ["train.init_from=runs/other"] if recipe == "finetune" else []
    loaded = load_lib.load_config("v2-b3" if recipe == "imagenet_v2" else "b3", recipe, overrides)
    assert loaded.model.width == 1.2
    assert loaded.image_size == loaded.data.image_size or loaded.image_size == 300
    assert load_lib.parse_config(load_lib.dump_config(loaded), "dump") == loaded


def test_imagenet_recipe_is_the_official_one():
    loaded = load(recipe="imagenet")
    expected = {
        "optimizer": dict(name="rmsprop", learning_rate=0.016, rho=0.9, momentum=0.9, epsilon=1e-3, weight_decay=1e-5),
        "schedule": dict(name="exponential", warmup_epochs=5, decay_epochs=2.4, decay_rate=0.97),
        "train": dict(batch_size=2048, epochs=350, label_smoothing=0.1, ema_decay=0.9999),
        "augment": dict(crop_area=(0.08, 1), crop_aspect=(pytest.approx(3 / 4), pytest.approx(4 / 3)), flip=True),
        "data": dict(interpolation="bicubic"),
    }
    assert loaded.crop_padding == 32
    for section, values in expected.items():
        stated = getattr(loaded, section).model_dump()
        assert {key: stated[key] for key in values} == values
    assert loaded.model.batch_norm_momentum == 0.99
    assert loaded.model.batch_norm_epsilon == 1e-3


# ------------------------------------------------------------------------------------------------ composition


def test_overrides_beat_the_recipe_which_beats_the_variant_which_beats_the_default(write):
    variant = write("baseline: b0\nwidth: 1.5\nbatch_norm_momentum: 0.5\ndepth: 1.5\n", "mine.yaml")
    recipe = write("model: {width: 1.6, depth: 1.6}\ntrain: {epochs: 7, seed: 3}\nschedule: {warmup_epochs: 1}\n")
    loaded = load("model.depth=1.7", "train.seed=4", variant=variant, recipe=recipe)
    assert loaded.model.name == "mine"
    assert (loaded.model.batch_norm_momentum, loaded.model.width, loaded.model.depth) == (0.5, 1.6, 1.7)
    assert (loaded.train.epochs, loaded.train.seed, loaded.train.batch_size) == (7, 4, 2048)
    assert loaded.model.stages == load_lib.load_variant("b0").stages


def test_override_forms():
    loaded = load("train={epochs: 5, seed: 1}", "train.seed=2", "augment.crop_area=[0.25, 0.5]", "data.image_size=")
    assert (loaded.train.epochs, loaded.train.seed) == (5, 2)
    assert loaded.train.batch_size == 64, "the other keys of the section still come from the recipe"
    assert loaded.augment.crop_area == (0.25, 0.5)
    assert loaded.data.image_size is None
    assert loaded.image_size == 224
    assert load("data.dir=a=b", "data.source=folder").data.dir == "a=b"
    assert load("train={epochs: 5}", "train={seed: 9}") == load("train.epochs=5", "train.seed=9")


def test_override_config_runs_the_same_checks():
    loaded = load()
    assert load_lib.override_config(loaded, ["train.epochs=30"]) == load("train.epochs=30")
    assert load_lib.override_config(loaded, []) == loaded
    message = error(load_lib.override_config, loaded, ["train.epochs=-1"])
    assert message == "overrides: train.epochs: Input should be greater than 0, received -1"


def test_every_key_is_documented():
    sections = [field.annotation for field in load_lib.Config.model_fields.values()]
    for section in (load_lib.Config, *sections, Stage, Phase):
        undocumented = [key for key, field in section.model_fields.items() if not field.description]
        assert not undocumented, section


def test_a_config_cannot_be_changed():
    loaded = load()
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.epochs = 3


def test_variants_load_by_name_path_and_spec():
    spec = load_lib.load_variant("b2")
    assert load_lib.load_variant("B2") == spec
    assert load_lib.load_variant(str(load_lib.CONFIG_DIR / "b2.yaml")) == spec
    assert load_lib.load_variant(spec) is spec


# ------------------------------------------------------------------------------------------------ mistakes

MISTAKES = [
    # unknown keys
    ("train.epoch=5", "overrides: train.epoch: unknown key", ["batch_size", "epochs", "Did you mean 'epochs'?"]),
    ("trian.epochs=5", "overrides: trian: unknown key", ["model", "train", "Did you mean 'train'?"]),
    ("optimizer.learning-rate=5", "overrides: optimizer.learning-rate: unknown", ["Did you mean 'learning_rate'?"]),
    ("train.learning_rate=5", "overrides: train.learning_rate: unknown", ["Did you mean optimizer.learning_rate?"]),
    ("model.widht=2", "overrides: model.widht: unknown key", ["depth", "Did you mean 'width'?"]),
    # wrong types
    ("train.epochs=abc", "overrides: train.epochs:", ["valid number", "received 'abc'"]),
    ("train.epochs='5'", "overrides: train.epochs:", ["valid number", "received '5'"]),
    ("train.epochs=true", "overrides: train.epochs:", ["valid number", "received True"]),
    ("train.epochs=", "overrides: train.epochs:", ["valid number", "received None"]),
    ("train.epochs={a: 1}", "overrides: train.epochs:", ["valid number", "received {'a': 1}"]),
    ("train.epochs.a=1", "overrides: train.epochs:", ["valid number", "received {'a': 1}"]),
    ("train.batch_size=1.5", "overrides: train.batch_size:", ["valid integer", "received 1.5"]),
    ("train.batch_size=1e3", "overrides: train.batch_size:", ["valid integer", "received 1000.0"]),
    ("augment.flip=1", "overrides: augment.flip:", ["valid boolean", "received 1"]),
    ("data.dir=5", "overrides: data.dir:", ["valid string", "received 5"]),
    ("train=5", "overrides: train:", ["dictionary", "received 5"]),
    ("model.stages=3", "overrides: model.stages:", ["tuple", "received 3"]),
    ("augment.crop_area=[0.5]", "overrides: augment.crop_area.1:", ["is required but missing"]),
    ("augment.crop_area=[0.1, a]", "overrides: augment.crop_area.1:", ["valid number", "received 'a'"]),
    # out of range
    ("train.epochs=-1", "overrides: train.epochs:", ["greater than 0", "received -1"]),
    ("train.epochs=.nan", "overrides: train.epochs:", ["finite", "received nan"]),
    ("train.epochs=.inf", "overrides: train.epochs:", ["finite", "received inf"]),
    ("train.batch_size=0", "overrides: train.batch_size:", ["greater than or equal to 1", "received 0"]),
    ("model.dropout=1", "overrides: model.dropout:", ["less than 1", "received 1"]),
    ("train.keep_checkpoints=1", "overrides: train.keep_checkpoints:", ["greater than or equal to 2", "received 1"]),
    ("optimizer.name=lion", "overrides: optimizer.name:", ["'rmsprop', 'sgd', 'adamw' or 'lamb'", "received 'lion'"]),
    ("data.channels=17", "overrides: data.channels:", ["less than or equal to 16", "received 17"]),
    (
        "data.source=imagnet",
        "overrides: data.source:",
        ["digits|folder|table|records|arrays|parquet|webdataset|synthetic|tfds:", "received 'imagnet'"],
    ),
    ("model.stages=[]", "overrides: model.stages:", ["at least 1 item", "received []"]),
    # contradictions within the overrides, or between an override and the recipe
    ("model.mean=[1, 2]", "overrides: model: mean has 2 values but std has 3", []),
    ("augment.crop_area=[0.5, 0.1]", "overrides: augment: crop_area must be", ["low <= high", "[0.5, 0.1]"]),
    ("augment.crop_area=[0.5, 1.5]", "overrides: augment: crop_area must be", ["high <= 1.0", "[0.5, 1.5]"]),
    (
        "data.source=folder",
        "overrides: data.source=folder needs data.dir",
        ["the folder of the images. Set data.dir=PATH."],
    ),
    ("schedule.warmup_epochs=30", f"{DIGITS}, overrides: schedule.warmup_epochs=30", ["longer", "train.epochs=20"]),
    ("data.val_fraction=0.1", f"{DIGITS}, overrides: data.val_fraction", ["data.source=folder", "source 'digits'"]),
    # not of the form section.key=value
    ("train.epochs", "overrides: 'train.epochs' is not of the form section.key=value", ["for example train.epochs=5"]),
    ("=5", "overrides: '=5' is not of the form section.key=value", []),
]


@pytest.mark.parametrize(("override", "start", "parts"), MISTAKES, ids=[override for override, _, _ in MISTAKES])
def test_a_mistake_is_reported_in_one_line(override, start, parts):
    message = error(load, override)
    assert message.startswith(start)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_normalization_must_match_the_channels():
    message = error(load, "model.mean=[1, 2]", "model.std=[1, 2]")
    assert message == "overrides: model.mean has 2 values for data.channels=3"
    assert load("model.mean=[1]", "model.std=[2]").model.std == (2.0,)
    assert load("data.channels=1").data.channels == 1


def test_mistakes_in_files_name_the_file(write):
    recipe = write("train: {epoch: 5}\n")
    assert error(load, recipe=recipe).startswith(f"{recipe}: train.epoch: unknown key")
    recipe = write("train: {epochs: 1e-5}\n")
    assert error(load, recipe=recipe) == f"{recipe}: schedule.warmup_epochs=5 is longer than train.epochs=1e-05"
    recipe = write("train: null\n")
    assert error(load, recipe=recipe).startswith(f"{recipe}: train: Input should be a valid dictionary")
    recipe = write("data: {source: folder}\n")
    assert error(load, recipe=recipe).startswith(f"{recipe}: data.source=folder needs data.dir")
    variant = write("baseline: b0\nstd: [1.0]\n", "variant.yaml")
    assert error(load, variant=variant).startswith(f"{variant}: model: mean has 3 values but std has 1")
    assert error(load_lib.load_variant, variant).startswith(f"{variant}: mean has 3 values but std has 1")
    variant = write("width: 1.0\n", "variant.yaml")
    missing = ["depth", "resolution", "dropout", "stages"]
    lines = [f"{variant}: {key}: is required but missing" for key in missing]
    assert error(load_lib.load_variant, variant).splitlines() == lines
    lines = [f"{variant}: model.{key}: is required but missing" for key in missing]
    assert error(load, variant=variant).splitlines() == lines


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            "block: fused_mbconv, expand: 4",
            "se_ratio=0.25 is only for block=mbconv, received fused_mbconv. Set it to 0.",
        ),
        (
            "expand: 4, expand_from: 8",
            "expand_from=8 is only for block=fused_mbconv with expand above 1, received mbconv",
        ),
        (
            "block: fused_mbconv, expand: 1, se_ratio: 0, expand_from: 8",
            "received fused_mbconv with expand=1. Leave it",
        ),
        (
            "block: separable, expand: 1, se_ratio: 0, residual: false",
            "residual=false is only for mbconv and fused_mbconv",
        ),
        ("block: fused, expand: 4", "Input should be 'mbconv', 'fused_mbconv', 'separable' or 'bottleneck'"),
    ],
)
def test_keys_of_other_blocks_are_refused(write, keys, message):
    variant = write(f"baseline: b0\nstages: [{{kernel: 3, stride: 1, channels: 8, repeats: 1, {keys}}}]\n")
    assert message in error(load_lib.load_variant, variant)


def test_mistakes_in_the_stage_table_name_the_row(write):
    text = (load_lib.CONFIG_DIR / "b0.yaml").read_text().replace("kernel: 5", "kernel: 4", 1)
    variant = write(text.replace("expand: 1, ", ""))
    assert error(load_lib.load_variant, variant).splitlines() == [
        f"{variant}: stages.0.expand: is required but missing",
        f"{variant}: stages.2.kernel: Input should be 3, 5 or 7, received 4",
    ]
    variant = write("baseline: b0\nstages: [{kernal: 3, stride: 1, expand: 1, channels: 8, repeats: 1}]\n")
    message = error(load_lib.load_variant, variant)
    assert f"{variant}: stages.0.kernel: is required but missing" in message
    assert f"{variant}: stages.0.kernal: unknown key. Allowed are block, channels, expand" in message
    assert message.endswith("Did you mean 'kernel'?")


def test_all_mistakes_are_reported_at_once(write):
    recipe = write("train: {epoch: 5}\ndata: {source: x}\n")
    lines = error(load, "optimizer.rho=2", "eval.batch_size=x", recipe=recipe).splitlines()
    starts = [
        "overrides: optimizer.rho: ",
        "overrides: eval.batch_size: ",
        f"{recipe}: train.epoch: ",
        f"{recipe}: data.source: ",
    ]
    assert len(lines) == len(starts)
    for start in starts:
        assert any(line.startswith(start) for line in lines)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("width: 1.0\nwidth: 2.0\n", "'width' is given twice"),
        ("model: {width: 1.0, depth: 1.0, width: 2.0}\n", "'width' is given twice"),
        ("width: [1\n", "not valid YAML"),
        ("width: \x01\n", "not valid YAML"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("a: !!python/object:os.system x\n", "not valid YAML"),
        ("a: 1\n---\nb: 1\n", "not valid YAML"),
        ("- 1\n", "received list"),
        ("", "received nothing"),
        ("1: 2\nbaseline: b0\n", "a key must be a name, received 1"),
        ("baseline: b1\n", "Name a variant with a stage table"),
        ("baseline: b99\n", "'b99'. Allowed are b0, b1"),
    ],
)
def test_errors_name_files_that_are_not_configs(write, text, part):
    path = write(text)
    message = error(load_lib.load_variant, path)
    assert path in message
    assert part in message


def test_errors_name_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    assert str(tmp_path / "bytes.yaml") in error(load_lib.load_variant, str(tmp_path / "bytes.yaml"))
    message = error(load, recipe="missing.yaml")
    assert message == "recipe file 'missing.yaml' does not exist"


@pytest.mark.parametrize(
    ("keywords", "parts"),
    [
        (
            {"variant": "b9"},
            ["unknown variant 'b9'", "Allowed are b0, b1", "wide_resnet50_2, or a path", "Did you mean 'b8'?"],
        ),
        ({"recipe": "digit"}, ["unknown recipe 'digit'", "cifar10, cifar100, digits", "Did you mean 'digits'?"]),
        ({"variant": "recipes/digits"}, ["unknown variant 'recipes/digits'"]),
        ({"recipe": ""}, ["unknown recipe ''"]),
    ],
)
def test_unknown_names(keywords, parts):
    message = error(load, **keywords)
    for part in parts:
        assert part in message


# ------------------------------------------------------------------------------------------------ YAML 1.2


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("1e-5", "optimizer.epsilon", 1e-5),
        ("1E5", "train.epochs", 1e5),
        ("1.5e+2", "train.epochs", 150.0),
        ("+64", "train.batch_size", 64),
        ("010", "train.batch_size", 10),  # not octal
        ("08", "train.batch_size", 8),
        ("on", "train.jit_compile", "on"),
        ("off", "train.jit_compile", "off"),
        ("no", "data.train_split", "no"),
        ("Yes", "data.train_split", "Yes"),
        ("y", "data.cache", "y"),
        ("2024-01-01", "data.cache", "2024-01-01"),
        ("12:30", "data.cache", "12:30"),
        ("1_000", "data.cache", "1_000"),
        ("0x10", "data.cache", "0x10"),
        ("train[:10%]", "data.train_split", "train[:10%]"),
        ("True", "augment.flip", True),
        ("false", "augment.flip", False),
        ("~", "data.dir", None),
    ],
)
def test_plain_yaml_means_what_it_looks_like(write, written, key, value):
    section, name = key.split(".")
    for loaded in (load(f"{key}={written}"), load(recipe=write(f"{section}:\n  {name}: {written}\n"))):
        received = getattr(getattr(loaded, section), name)
        assert received == value
        assert type(received) is type(value)


@pytest.mark.parametrize("written", ["on", "off", "yes", "no", "y", "1", "0"])
def test_only_true_and_false_are_booleans(write, written):
    received = repr(int(written)) if written.isdigit() else repr(written)
    recipe = write(f"augment: {{flip: {written}}}\n")
    assert error(load, recipe=recipe) == f"{recipe}: augment.flip: Input should be a valid boolean, received {received}"


@pytest.mark.parametrize("written", ["1_000", "0x10", "12:30", "1e3"])
def test_only_digits_are_an_integer(written):
    assert "valid integer" in error(load, f"train.batch_size={written}")


# ------------------------------------------------------------------------------------------------ dump, parse, diff

# Strings that some YAML parsers read as another type.
tricky = st.sampled_from("on|no||~|null|true|08|0x8|1e5|.5|1.5e3|1_0|1:30|2024-01-01|<<|=| ".split("|"))
strings = tricky | st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=12)
positives = st.floats(1e-9, 1e9) | st.integers(1, 10**6).map(float)
counts, sides = st.integers(1, 10**6), st.integers(8, 4096)
VALUES = {
    "model.name": strings,
    "model.width": st.floats(1e-9, 1000),
    "model.resolution": sides,
    "model.dropout": st.floats(0, 1, exclude_max=True),
    "data.source": st.sampled_from(["digits", "synthetic", "tfds:cifar10", "tfds:imagenette/320px-v2"]),
    "data.dir": st.none() | strings.map("a/{}".format),
    "data.train_split": strings,
    "data.image_size": st.none() | sides | st.lists(sides, min_size=2, max_size=2),
    "data.channels": st.sampled_from([1, 3]),
    "augment.crop_area": st.tuples(st.floats(1e-3, 1), st.floats(1e-3, 1)).map(sorted),
    "augment.flip": st.booleans(),
    "optimizer.name": st.sampled_from(["rmsprop", "sgd", "adamw", "lamb"]),
    "optimizer.learning_rate": positives,
    "optimizer.weight_decay": st.just(0.0) | positives,
    "optimizer.decay_bias": st.booleans(),
    "schedule.name": st.sampled_from(["exponential", "cosine", "constant"]),
    "schedule.warmup_epochs": st.floats(0, 350),
    "train.batch_size": counts,
    "train.seed": st.integers(0, 2**31 - 1),
    "train.jit_compile": st.sampled_from(["auto", "on", "off"]),
    "eval.batch_size": counts,
    "eval.every_epochs": st.floats(1e-9, 1e7),
    "eval.best": st.sampled_from(["none", "top1", "top5", "loss"]),
}
some_overrides = st.fixed_dictionaries({}, optional=VALUES).filter(
    lambda values: values.get("data.dir") is None or values.get("data.source", "tfds:").startswith("tfds:")
)


def get(loaded, key):
    section, name = key.split(".")
    return getattr(getattr(loaded, section), name)


@settings(max_examples=30)
@given(some_overrides)
def test_every_valid_config_survives_a_round_trip(values):
    base = load(recipe="imagenet")
    loaded = load(*(f"{key}={json.dumps(value)}" for key, value in values.items()), recipe="imagenet")
    for key, value in values.items():
        expected = tuple(value) if isinstance(value, list) else value
        assert get(loaded, key) == expected
    assert load_lib.parse_config(load_lib.dump_config(loaded), "dump") == loaded
    different = [
        key
        for key in VALUES
        if get(loaded, key) != get(base, key) and get(loaded.resolve(), key) != get(base.resolve(), key)
    ]
    assert sorted(line.partition(":")[0] for line in load_lib.diff_config(base, loaded)) == sorted(different)


@pytest.mark.parametrize(
    ("size", "image_size", "shape", "padding"),
    [("48", 48, (48, 48), 7), ("[48, 48]", 48, (48, 48), 7), ("[35, 64]", (35, 64), (35, 64), 5)],
)
def test_sizes_of_images(size, image_size, shape, padding):
    loaded = load(f"data.image_size={size}", "data.dir=photos", recipe="folder")
    assert (loaded.image_size, loaded.image_shape, loaded.input_shape) == (image_size, shape, (*shape, 3))
    assert loaded.crop_padding == padding, "a seventh of the shorter side"
    assert loaded.resolve().data.image_size == image_size
    assert load_lib.parse_config(load_lib.dump_config(loaded.resolve()), "dump").image_shape == shape


@pytest.mark.parametrize("size", ["3", "[32]", "[32, 3]", "[32, 32, 3]", "[32.5, 32]", "[32, true]", "32x48", "{a: 1}"])
def test_sizes_of_images_that_are_refused(size):
    message = error(load, f"data.image_size={size}")
    assert "data.image_size: Input should be an integer from 8 to 65,536, or two of them, [height, width], " in message


def test_a_dump_states_every_key_and_may_have_an_environment():
    text = load_lib.dump_config(load())
    for name, section in load_lib.Config.model_fields.items():
        assert re.search(rf"^{name}:", text, re.MULTILINE)
        for key in section.annotation.model_fields:
            assert re.search(rf"\b{key}:", text)
    assert load_lib.parse_config(text + "environment: {python: 3.11.0}\n", "dump") == load()


def test_errors_name_a_dump_with_a_mistake():
    text = load_lib.dump_config(load())
    message = error(load_lib.parse_config, text.replace("flip:", "flap:"), "runs/config.yaml")
    assert message.startswith("runs/config.yaml: augment.flap: unknown key")
    assert error(load_lib.parse_config, "- 1\n", "runs/config.yaml") == "runs/config.yaml: not a config"
    assert error(load_lib.parse_config, "a: [", "runs/config.yaml").startswith("runs/config.yaml: not valid YAML")


def test_diff_shows_each_changed_key_with_both_values():
    old, new = load(), load("train.epochs=5", "augment.crop_area=[0.5,1]", "data.cache=x", "model.width=2")
    assert sorted(load_lib.diff_config(old, new)) == [
        "augment.crop_area: (0.8, 1.0) -> (0.5, 1.0)",
        "data.cache: 'none' -> 'x'",
        "model.width: 1.0 -> 2.0",
        "train.epochs: 20.0 -> 5.0",
    ]
    assert load_lib.diff_config(old, load()) == []


# ------------------------------------------------------------------------------------------------ environment


def test_environment_states_versions_and_commit():
    stated = load_lib.describe_environment()
    for package in ("keras", "numpy"):
        assert stated[package] == importlib.metadata.version(package)
    assert stated["python"] == sys.version.split()[0]
    head = subprocess.run(["git", "-C", PACKAGE, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert stated["git_commit"].removesuffix("-dirty") == head.stdout.strip()
    else:
        assert stated["git_commit"] == "not a git checkout"


def test_environment_without_a_repository_and_without_git(monkeypatch, tmp_path):
    assert load_lib.describe_environment(source_dir=tmp_path)["git_commit"] == "not a git checkout"
    monkeypatch.setenv("PATH", "")
    assert load_lib.describe_environment()["git_commit"] == "not a git checkout"


@pytest.mark.parametrize(("recipe", "source"), [("digits", "digits"), ("smoke", "synthetic")])
def test_a_folder_that_would_not_be_read_is_refused(recipe, source):
    message = f"data.dir=photos would not be read. It is only for data.source=folder or .* has {source}. Choose"
    with pytest.raises(errors.UserError, match=message):
        load_lib.load_config("b0", recipe, ["data.dir=photos"])
    config = load_lib.load_config("b0", recipe)
    assert config.data.source == source
    with pytest.raises(errors.UserError, match=message):
        load_lib.override_config(config, ["data.dir=photos"])
    changed = load_lib.override_config(config, ["data.dir=photos", "data.source=folder"])
    with pytest.raises(errors.UserError, match=message):
        load_lib.override_config(changed, [f"data.source={source}", "data.dir=photos"])
    # The config of an older run may contain both.
    older = load_lib.parse_config(
        load_lib.dump_config(changed).replace("source: folder", f"source: {source}"), "config.yaml"
    )
    assert older.data.dir == "photos" and load_lib.override_config(older, ["train.epochs=2"]).data.dir == "photos"


@pytest.mark.parametrize(
    ("override", "readers"),
    [
        ("data.classes=5", "source=records"),
        ("data.class_names=[a, b]", "source=arrays"),
        ("data.shuffle_buffer=7", "source=records or tfds or parquet or webdataset"),
        ("data.synthetic_examples=7", "source=synthetic"),
        ("data.synthetic_classes=7", "source=synthetic"),
        ("data.label_separator='|'", "task=multilabel"),
    ],
)
def test_a_key_that_would_not_be_read_is_refused(override, readers):
    key = override.partition("=")[0].removeprefix("data.")
    message = f"overrides: data.{key}=.* would not be read. It is only for data.{readers}, and"
    with pytest.raises(errors.UserError, match=message):
        load_lib.load_config("b0", "folder", ["data.dir=photos", override])
    default = getattr(DataConfig(), key)
    text = "null" if default is None else repr(default)
    load_lib.load_config("b0", "folder", ["data.dir=photos", f"data.{key}={text}"])


@pytest.mark.parametrize("crop", ["squash", "pad"])
def test_whole_images_have_no_crop_padding(crop):
    recipe = load_lib.load_config("b0", "digits")
    assert recipe.data.crop == "center" and recipe.data.crop_padding == 0
    whole = load_lib.load_config("b0", "digits", [f"data.crop={crop}"])  # The value of the recipe is not read.
    assert (whole.crop_padding, whole.resolve().data.crop_padding) == (0, None)
    assert load_lib.load_config("b0", "imagenet", [f"data.crop={crop}"]).crop_padding == 0
    message = f"overrides: data.crop_padding=5 would not be read. It is only for data.crop=center, .* has {crop}."
    with pytest.raises(errors.UserError, match=message):
        load_lib.load_config("b0", "digits", [f"data.crop={crop}", "data.crop_padding=5"])
    with pytest.raises(errors.UserError, match=message):
        load_lib.override_config(whole, ["data.crop_padding=5"])
    assert load_lib.override_config(whole, ["data.crop=center", "data.crop_padding=5"]).crop_padding == 5
    assert load_lib.override_config(whole, ["data.crop_padding=null"]).preprocessing == whole.preprocessing
    # Only the crop counts as changed, not the padding that is no longer read.
    assert load_lib.diff_config(recipe, whole) == [f"data.crop: 'center' -> {crop!r}"]


def test_the_crop_of_an_older_config_is_the_center():
    config = load_lib.load_config("b0", "digits")
    content = yaml.safe_load(load_lib.dump_config(config))
    assert content["data"].pop("crop") == "center"
    assert load_lib.parse_config(yaml.safe_dump(content), "config.yaml") == config


def test_an_unknown_crop_is_refused():
    with pytest.raises(
        errors.UserError, match="data.crop: Input should be 'center', 'squash' or 'pad', received 'fit'"
    ):
        load_lib.load_config("b0", "digits", ["data.crop=fit"])

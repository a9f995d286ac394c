"""Recipes that differ by variant, compared with the numbers of the published code, and how they are composed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from efficientnet_tf.config import load as load_lib
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.layers import CONFIG_DIR

# google/automl, efficientnetv2/effnetv2_configs.py: size in training, size in evaluation, dropout, RandAugment's
# magnitude, and alpha of mixup and CutMix.
PUBLISHED = {
    "v2-b0": (192, 224, 0.2, 0, 0),
    "v2-b1": (192, 240, 0.2, 0, 0),
    "v2-b2": (208, 260, 0.3, 0, 0),
    "v2-b3": (240, 300, 0.3, 0, 0),
    "v2-s": (300, 384, 0.2, 10, 0),
    "v2-m": (384, 480, 0.3, 15, 0.2),
    "v2-l": (384, 480, 0.4, 20, 0.5),
    "v2-xl": (384, 512, 0.4, 20, 0.5),
}
# The settings that all variants share, from hparams.py, datasets.py and main.py.
SHARED = {
    "optimizer": {
        "name": "rmsprop",
        "learning_rate": 0.016,  # for 256 images
        "momentum": 0.9,
        "rho": 0.9,
        "epsilon": 1e-3,
        "weight_decay": 1e-5,
        "decay_bias": False,
    },
    "schedule": {"name": "exponential", "warmup_epochs": 5, "decay_epochs": 2.4, "decay_rate": 0.97},
    "train": {"batch_size": 4096, "epochs": 350, "label_smoothing": 0.1, "ema_decay": 0.9999, "freeze": "none"},
    "model": {"drop_connect": 0.2, "batch_norm_momentum": 0.9, "batch_norm_epsilon": 1e-3, "activation": "swish"},
}


def printed(variant, recipe, *overrides):
    """Return what `--print_config` prints, as a dict."""
    return yaml.safe_load(load_lib.dump_config(load_lib.load_config(variant, recipe, overrides)))


def select(content, like):
    """Return the values of the keys that another nested dict has."""
    return {section: {key: content[section][key] for key in keys} for section, keys in like.items()}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_imagenet_v2_is_the_published_progressive_learning(variant):
    train_size, eval_size, dropout, magnitude, alpha = PUBLISHED[variant]
    config = printed(variant, "imagenet_v2")
    assert select(config, SHARED) == SHARED
    assert (config["model"]["resolution"], config["data"]["image_size"]) == (eval_size, None)
    assert config["model"]["dropout"] == dropout
    is_base = variant.startswith("v2-b")  # preprocess_legacy.py or preprocessing.py
    augment = {
        "crop_area": [0.08 if is_base else 0.05, 1],
        "crop_aspect": [0.75, pytest.approx(4 / 3 if is_base else 1.33)],
        "flip": True,
        "policy": "autoaugment" if is_base else "randaugment",
        "randaugment_count": 2,
    }
    data = {"crop_padding": 32, "interpolation": "bicubic"} if is_base else {"crop_padding": 0}
    assert select(config, {"augment": augment, "data": data}) == {"augment": augment, "data": data}
    assert config["data"]["interpolation"] == ("bicubic" if is_base else "bilinear")
    mean, std = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]) if is_base else ([128], [128])
    assert (config["model"]["mean"], config["model"]["std"]) == (mean, std)
    phases = load_lib.load_config(variant, "imagenet_v2").phases
    assert [end for end, _ in phases] == [87.5, 175, 262.5, 350]
    assert [phase.image_size for _, phase in phases] == [int(128 + (train_size - 128) * k / 4) for k in (1, 2, 3, 4)]
    if not is_base:
        levels = [phase.augment.randaugment_level for _, phase in phases]
        assert levels == pytest.approx(np.linspace(5, magnitude, 4), abs=1e-4)
    for key in ("mixup", "cutmix"):
        alphas = [getattr(phase.augment, key) for _, phase in phases]
        assert alphas == pytest.approx(np.linspace(0, alpha, 4), abs=1e-4)
    assert {phase.model.dropout for _, phase in phases} == {dropout}


def test_imagenet_v2_finetune_is_the_published_one():
    """datasets.py, ImagenetFt."""
    expected = {
        "optimizer": SHARED["optimizer"] | {"learning_rate": 0.0005},
        "schedule": {"name": "constant", "warmup_epochs": 1},
        "train": {"batch_size": 512, "epochs": 15, "label_smoothing": 0.1, "ema_decay": 0.9996, "phases": []},
        "augment": {"flip": True, "policy": "none", "mixup": 0, "cutmix": 0},
        "model": {"dropout": 0, "drop_connect": 0.2, "resolution": 480},
    }
    assert select(printed("v2-m", "imagenet_v2_finetune"), expected) == expected


@pytest.mark.parametrize(
    ("variant", "size", "dropout", "activation"),
    [
        ("lite0", 224, 0.2, "relu6"),
        ("lite1", 240, 0.2, "relu6"),
        ("lite2", 260, 0.3, "relu6"),
        ("lite3", 280, 0.3, "relu6"),
        ("lite4", 300, 0.3, "relu6"),
        ("edgetpu-s", 224, 0.2, "relu"),
        ("edgetpu-m", 240, 0.2, "relu"),
        ("edgetpu-l", 300, 0.3, "relu"),
    ],
)
def test_imagenet_lite_is_the_recipe_imagenet_with_the_published_differences(variant, size, dropout, activation):
    """lite/efficientnet_lite_builder.py, edgetpu/efficientnet_edgetpu_builder.py and main.py of the official code."""
    lite, base = printed(variant, "imagenet_lite"), printed("b0", "imagenet")
    network = {"resolution": size, "dropout": dropout, "activation": activation, "mean": [127], "std": [128]}
    network |= {"drop_connect": 0.2, "batch_norm_momentum": 0.99, "batch_norm_epsilon": 1e-3, "padding": "same"}
    assert select(lite, {"model": network}) == {"model": network}
    assert all(stage["se_ratio"] == 0 for stage in lite["model"]["stages"])
    assert lite["data"].pop("interpolation") == "bilinear" and base["data"].pop("interpolation") == "bicubic"
    del lite["model"], base["model"]
    assert lite == base


TIMM_CONSTANTS = """
import json
import timm_reference
model = timm_reference.import_timm().create_model("efficientnet_b0.ra4_e3600_r224_in1k")
config, stem = model.pretrained_cfg, model.bn1
print(json.dumps({
    "mean": [255 * value for value in config["mean"]],
    "std": [255 * value for value in config["std"]],
    "crop": config["crop_pct"],
    "size": config["input_size"][-1],
    "batch_norm_epsilon": stem.eps,
    "batch_norm_momentum": 1 - stem.momentum,
    "padding": model.conv_stem.padding,
}))
"""


@pytest.mark.slow
def test_imagenet_modern_has_the_constants_of_the_weights_in_timm():
    for library in ("torch", "timm"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "weights")}
    command = [sys.executable, "-c", TIMM_CONSTANTS]
    timm = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    config = load_lib.load_config("b0", "imagenet_modern")
    model, side = config.model, config.image_size
    assert set(timm["mean"]) == set(model.mean) and set(timm["std"]) == set(model.std)
    assert timm["batch_norm_epsilon"] == model.batch_norm_epsilon
    assert timm["batch_norm_momentum"] == pytest.approx(model.batch_norm_momentum)
    assert (timm["padding"], model.padding) == ([1, 1], "symmetric")
    assert side == timm["size"] and side / (side + config.crop_padding) == pytest.approx(timm["crop"], abs=1e-3)


# ------------------------------------------------------------------------------------------------ composition


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a YAML file and returns its path as str."""

    def write_text(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write_text


def error(*arguments):
    """Return the message of the UserError that `load_config` must raise."""
    with pytest.raises(UserError) as caught:
        load_lib.load_config(*arguments)
    return str(caught.value)


def test_recipes_name_only_variants_that_exist():
    for path in (CONFIG_DIR / "recipes").glob("*.yaml"):
        parts = yaml.safe_load(path.read_text()).get("variants", {})
        assert set(parts) <= set(load_lib.list_variants()), path


def test_values_for_a_variant_beat_the_recipe_which_beats_its_baseline(write):
    recipe = write(
        "own.yaml",
        "baseline: smoke\ntrain: {epochs: 7, seed: 3}\n"
        "variants: {b0: {train: {seed: 4, ema_decay: 0.5}}, b1: {train: {seed: 5}}}\n",
    )
    loaded = load_lib.load_config("b0", recipe, ["train.ema_decay=0.6"])
    assert (loaded.data.source, loaded.train.batch_size) == ("synthetic", 16)
    assert (loaded.train.epochs, loaded.train.seed, loaded.train.ema_decay) == (7, 4, 0.6)
    assert load_lib.load_config("B1", recipe).train.seed == 5


def test_a_recipe_names_the_variant_that_it_is_for(write):
    for recipe, variant in (("imagenet", "b0"), ("imagenet_v2", "v2-s"), ("imagenet_lite", "lite0")):
        assert load_lib.load_config(None, recipe).model.name == variant
    assert load_lib.load_config("b1", "imagenet_lite").model.name == "b1"
    of_baseline = write("baseline.yaml", "baseline: imagenet_lite\n")
    assert error(None, of_baseline).startswith(f"{of_baseline}: baseline 'imagenet_lite' has a baseline itself")
    assert load_lib.load_config(None, write("own.yaml", "baseline: smoke\nvariant: b3\n")).model.name == "b3"
    for value in ("b9", "[1]", "null"):
        recipe = write("own.yaml", f"baseline: smoke\nvariant: {value}\n")
        for variant in (None, "b0"):
            assert f"unknown variant in {recipe}: " in error(variant, recipe)


def test_a_variant_takes_the_values_for_its_baseline(write):
    variant = write("wider.yaml", "baseline: v2-s\nwidth: 1.2\n")
    loaded = load_lib.load_config(variant, "imagenet_v2")
    assert loaded.train == load_lib.load_config("v2-s", "imagenet_v2").train
    assert (loaded.model.name, loaded.model.width) == ("wider", 1.2)


def test_a_variant_without_values_is_refused(write):
    recipe = str(CONFIG_DIR / "recipes" / "imagenet_v2.yaml")
    assert error("b3", "imagenet_v2") == (
        f"{recipe} has no values for variant 'b3'. It has values for v2-b0, v2-b1, v2-b2, v2-b3, v2-s, v2-m, v2-l, "
        "v2-xl, tiny, and for variants with one of these as their baseline. Did you mean 'v2-b3'?"
    )


def test_mistakes_name_the_part_of_the_recipe(write):
    recipe = write("own.yaml", "baseline: smoke\nvariants: {b0: {train: {epoch: 4}}}\n")
    assert error("b0", recipe).startswith(f"{recipe} (variants.b0): train.epoch: unknown key")
    for text in ("[1]", "{b0: 5}", "null"):
        recipe = write("own.yaml", f"variants: {text}\n")
        message = f"{recipe}: variants: expected a mapping from names of variants to sections and their keys"
        assert error("b0", recipe) == message


@pytest.mark.parametrize(("baseline", "what"), [("imagenet_v2_finetune", "a baseline"), ("own", "a section variants")])
def test_a_baseline_of_a_recipe_stands_on_its_own(baseline, what, write, monkeypatch, tmp_path):
    if baseline == "own":
        (tmp_path / "recipes").mkdir()
        write("recipes/own.yaml", "variants: {b0: {}}\n")
        write("b0.yaml", (CONFIG_DIR / "b0.yaml").read_text())
        monkeypatch.setattr("efficientnet_tf.config.layers.CONFIG_DIR", tmp_path)
    recipe = write("mine.yaml", f"baseline: {baseline}\n")
    assert error("b0", recipe) == f"{recipe}: baseline {baseline!r} has {what} itself. Name a recipe without one."

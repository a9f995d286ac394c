"""Weights of other libraries give the logits of those libraries, or a clear error."""

import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import foreign
import hostile_weights
import keras
import numpy as np
import pytest
import tensorflow as tf
from foreign import logits, make_keras_model

from efficientnet_tf import EfficientNetB0, build_model, load_weights
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config, load_variant, override_config
from efficientnet_tf.models.model_dir import restore_model
from efficientnet_tf.predict import predict_images
from efficientnet_tf.scaling.compound import scale_network
from efficientnet_tf.weights.convert import convert_weights
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.names import model_variables, official_names, timm_names, variable_paths

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)


def build(variant="b0", classes=7, **options):
    return build_model(variant, classes, input_shape=(64, 64, 3), **options)


@functools.cache
def their_model(variant):
    """Return a keras.applications model with random weights. Tests set its normalization."""
    return make_keras_model(variant)


@functools.cache
def our_model(variant):
    """Return a model that all tests share, because each of them loads all of it."""
    return build(variant)


@pytest.fixture
def theirs():
    foreign.set_normalization(their_model("b0"), MEAN, STD)
    return their_model("b0")


@pytest.fixture
def ours():
    return our_model("b0")


def save_safetensors(tensors, path):
    from safetensors.numpy import save_file

    save_file(tensors, path)
    return str(path)


# ------------------------------------------------------------------------------------------------- each format


SLOW = pytest.mark.slow
NIGHTLY = pytest.mark.nightly
LARGER = ["b0", pytest.param("b3", marks=SLOW), pytest.param("b7", marks=NIGHTLY)]
KERAS_FILES = [("b0", name) for name in ("w.weights.h5", "w.h5", "w.keras")]
KERAS_FILES += [pytest.param("b3", name, marks=SLOW) for name in ("w.weights.h5", "w.h5", "w.keras")]
KERAS_FILES += [pytest.param("b7", "w.weights.h5", marks=NIGHTLY)]


@pytest.mark.parametrize(("variant", "name"), KERAS_FILES)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_keras(variant, name, tmp_path, pixels):
    model, mine = their_model(variant), our_model(variant)
    foreign.set_normalization(model, (0.1, 0.5, 0.9), (0.3, 0.1, 0.5))
    path = str(tmp_path / name)
    model.save_weights(path) if name == "w.weights.h5" else model.save(path)
    summary = load_weights(mine, path)
    np.testing.assert_allclose(logits(mine, pixels), logits(model, pixels), atol=1e-4)
    np.testing.assert_allclose(summary.needs["model.mean"], 255 * np.array([0.1, 0.5, 0.9]), rtol=1e-5)


def test_keras_weights_without_layer_names(theirs, ours, tmp_path, pixels):
    import h5py

    path = str(tmp_path / "w.weights.h5")
    theirs.save_weights(path)
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():
            if "vars" in group:
                group["vars"].attrs.pop("name", None)
    load_weights(ours, path)
    np.testing.assert_allclose(logits(ours, pixels), logits(theirs, pixels), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("include_top", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_released_imagenet_weights(include_top, tmp_path, pixels, monkeypatch):
    """With weights='imagenet', keras.applications builds a second rescaling layer, which no weight file mentions."""
    path = str(tmp_path / "efficientnetb0.h5")
    options = {} if include_top else {"include_top": False, "pooling": "avg"}
    # The released file contains the standard deviation where the variance should be.
    saved = make_keras_model("b0", classes=1000, size=224 if include_top else 64, std=np.sqrt(STD), **options)
    with open(path, "wb"):
        pass
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, saved)
    from keras.src.utils import file_utils

    for module in (file_utils, keras.utils):
        monkeypatch.setattr(module, "get_file", lambda *args, **kwargs: path)
    shape = (224, 224, 3) if include_top else (64, 64, 3)
    options |= {"input_shape": shape, "classifier_activation": None}
    model = keras.applications.EfficientNetB0(weights="imagenet", **options)
    assert sum(isinstance(layer, keras.layers.Rescaling) for layer in model.layers) == 2
    mine = build_model("b0", 1000, shape, **({} if include_top else {"include_top": False, "pooling": "avg"}))
    summary = load_weights(mine, path)
    images = pixels if not include_top else np.tile(pixels, (1, 4, 4, 1))[:, :224, :224]
    np.testing.assert_allclose(logits(mine, images), logits(model, images), atol=1e-4)
    assert any("ImageNet" in note for note in summary.notes)
    by_name = EfficientNetB0(weights="imagenet", **options)
    np.testing.assert_allclose(logits(by_name, images), logits(model, images), atol=1e-4)
    by_argument = build_model("b0", 1000, shape, weights="imagenet", include_top=include_top, pooling="avg")
    np.testing.assert_allclose(logits(by_argument, images), logits(model, images), atol=1e-4)
    assert [layer.name for layer in by_name.layers[1:]] == [
        re.sub(r"^(rescaling|normalization).*", r"\1", layer.name) if i != 2 else "rescaling_1"
        for i, layer in enumerate(model.layers[1:])
    ]
    by_arrays = EfficientNetB0(weights=None, **options)
    by_arrays.set_weights(model.get_weights())
    np.testing.assert_allclose(logits(by_arrays, images), logits(model, images), atol=1e-4)


@pytest.mark.parametrize("variant", LARGER)
def test_official_checkpoint(variant, tmp_path, pixels):
    model, mine = their_model(variant), build(variant) if variant == "b0" else our_model(variant)
    foreign.set_normalization(model, MEAN, STD)
    names = foreign.official_weights(model, f"efficientnet-{variant}")
    if variant == "b0":
        path = foreign.save_official({n: v + 1 for n, v in names.items()}, tmp_path / "model.ckpt", ema=names)
    else:
        path = foreign.save_official(names, tmp_path / "model.ckpt")
    summary = load_weights(mine, path if variant != "b3" else str(tmp_path), normalization="imagenet")
    np.testing.assert_allclose(logits(mine, pixels), logits(model, pixels), atol=1e-4)
    assert ("the EMA of the weights" if variant == "b0" else "the raw weights") in summary.notes[0]


@pytest.mark.slow
def test_official_checkpoint_raw(theirs, ours, tmp_path, pixels):
    names = foreign.official_weights(theirs)
    path = foreign.save_official(names, tmp_path / "model.ckpt", ema={n: v + 1 for n, v in names.items()})
    load_weights(ours, path, average=False, normalization="imagenet")
    np.testing.assert_allclose(logits(ours, pixels), logits(theirs, pixels), atol=1e-4)


@pytest.mark.slow
def test_advprop_normalization(tmp_path, pixels):
    model = their_model("b0")
    foreign.set_normalization(model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    path = foreign.save_official(foreign.official_weights(model), tmp_path / "model.ckpt")
    mine = build()
    mine.predict(pixels, verbose=0)  # compiled with the variant's normalization
    summary = load_weights(mine, path, normalization="advprop")
    np.testing.assert_allclose(logits(mine, pixels), logits(model, pixels), atol=1e-4)
    np.testing.assert_allclose(mine.predict(pixels, verbose=0), logits(model, pixels), atol=1e-4)
    assert summary.needs["model.mean"] == (127.5,) * 3
    mine.save(tmp_path / "saved.keras")
    reloaded = keras.models.load_model(tmp_path / "saved.keras")
    np.testing.assert_allclose(logits(reloaded, pixels), logits(model, pixels), atol=1e-4)


@pytest.mark.parametrize("variant", LARGER)
def test_timm_names(variant, tmp_path, pixels):
    model, mine = their_model(variant), our_model(variant)
    foreign.set_normalization(model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    folder = tmp_path / "snapshot"
    folder.mkdir()
    save_safetensors(foreign.timm_weights(model), folder / "model.safetensors")
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 300, 300], "crop_pct": 0.904}
    settings |= {"interpolation": "bilinear"}
    content = {"architecture": f"tf_efficientnet_{variant}", "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(content))
    summary = load_weights(mine, str(folder))
    np.testing.assert_allclose(logits(mine, pixels), logits(model, pixels), atol=1e-4)
    assert summary.needs["data.crop_padding"] == 32 and summary.needs["data.interpolation"] == "bilinear"
    assert summary.needs["data.image_size"] == 300


@pytest.mark.parametrize(
    ("settings", "needs", "noted"),
    [
        ({"crop_mode": "center", "crop_pct": 0.875}, {"crop_padding": 32}, False),
        ({"crop_mode": "squash", "crop_pct": 1.0}, {"crop": "squash"}, False),
        ({"crop_mode": "border", "crop_pct": 1}, {"crop": "pad", "background": [124, 116, 104]}, False),
        ({"crop_mode": "squash", "crop_pct": 0.875}, {"crop_padding": 32}, True),
        ({"crop_mode": "border"}, {}, True),
    ],
)
def test_crop_modes_of_timm(settings, needs, noted, tmp_path):
    settings = settings | {"mean": MEAN.tolist(), "std": STD.tolist(), "input_size": [3, 224, 224]}
    content = {"architecture": "tf_efficientnet_b0", "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = read_weights(hostile_weights.write_safetensors(tmp_path / "model.safetensors"), hostile_weights.VARIABLES)
    keys = ("data.crop", "data.crop_padding", "data.background")
    assert loaded.needs["data.image_size"] == 224
    assert {key: loaded.needs[key] for key in keys if key in loaded.needs} == {f"data.{k}": v for k, v in needs.items()}
    note = f"evaluation uses the center crop, because crop mode {settings['crop_mode']} with crop_pct "
    assert any(note in each for each in loaded.notes) == noted
    config = override_config(
        load_config("b0", "imagenet"), [f"{key}={json.dumps(value)}" for key, value in loaded.needs.items()]
    )
    assert config.data.crop == needs.get("crop", "center")


def test_images_of_timm_that_are_not_square(tmp_path):
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 224, 320], "crop_pct": 0.875}
    content = {"architecture": "tf_efficientnet_b0", "pretrained_cfg": settings}
    (tmp_path / "config.json").write_text(json.dumps(content))
    loaded = read_weights(hostile_weights.write_safetensors(tmp_path / "model.safetensors"), hostile_weights.VARIABLES)
    needs = [f"{key}={json.dumps(value)}" for key, value in loaded.needs.items()]
    config = override_config(load_config("b0", "imagenet"), needs)
    assert (config.image_shape, config.crop_padding) == ((224, 320), 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "name"),
    [
        pytest.param("b0", "tf_efficientnet_b0.ns_jft_in1k", marks=NIGHTLY),
        ("b0", "efficientnet_b0.ra_in1k"),
        pytest.param("b0", "tf_efficientnet_b0.ap_in1k", marks=NIGHTLY),
        pytest.param("b0", "efficientnet_b0.ra4_e3600_r224_in1k", marks=NIGHTLY),
        ("lite0", "tf_efficientnet_lite0.in1k"),
        pytest.param("lite0", "efficientnet_lite0.ra_in1k", marks=NIGHTLY),
        pytest.param("lite3", "tf_efficientnet_lite3.in1k", marks=NIGHTLY),
        ("v2-b0", "tf_efficientnetv2_b0.in1k"),
        pytest.param("v2-s", "tf_efficientnetv2_s.in1k", marks=NIGHTLY),
        ("edgetpu-s", "tf_efficientnet_es.in1k"),
        pytest.param("edgetpu-s", "efficientnet_es.ra_in1k", marks=NIGHTLY),
        pytest.param("edgetpu-m", "efficientnet_em.ra2_in1k", marks=NIGHTLY),
        pytest.param("edgetpu-l", "efficientnet_el.ra_in1k", marks=NIGHTLY),
        ("tiny", "test_efficientnet.r160_in1k"),
    ],
)
def test_timm_itself(variant, name, tmp_path):
    """All families of timm, with even and odd image sides, as safetensors and .pth files.

    The name of the file alone says how the model pads and normalizes.
    """
    for library in ("torch", "timm"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    pixels = {side: np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)) for side in (64, 75)}
    for side, images in pixels.items():
        np.save(tmp_path / f"images_{side}.npy", images)
    command = [sys.executable, Path(__file__).with_name("timm_reference.py"), name, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    convert_weights(variant, str(tmp_path / f"{name}.safetensors"), str(tmp_path / "out.keras"))
    for file in ("out.keras", f"{name}.pth"):
        for side, images in pixels.items():
            mine = build_model(spec_of(name, variant), 7, (side, side, 3))
            load_weights(mine, str(tmp_path / file))
            expected = np.load(tmp_path / f"logits_{side}.npy")
            np.testing.assert_allclose(logits(mine, images.astype(np.float32)), expected, atol=1e-4)


def spec_of(name, variant="b0"):
    spec = load_variant(variant)
    if name.startswith("tf_"):
        return spec
    return spec.model_copy(update={"padding": "symmetric", "batch_norm_epsilon": 1e-5})


def test_timm_models_without_tf_need_symmetric_padding(theirs, tmp_path):
    path = save_safetensors(foreign.timm_weights(theirs), tmp_path / "efficientnet_b0.safetensors")
    with pytest.raises(UserError, match=r"right predictions only with model.batch_norm_epsilon=1e-05 .*symmetric"):
        load_weights(build(), path)
    mine = build_model(spec_of("efficientnet_b0"), 7, (64, 64, 3))
    load_weights(mine, path)
    # With symmetric padding, stride 2 and an even side, a convolution starts one pixel further to the left.
    stem = keras.Model(mine.inputs[0], mine.get_layer("stem_conv").output)
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    padded = np.pad((image / 255 - MEAN) / STD, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = theirs.get_layer("stem_conv").get_weights()[0]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    np.testing.assert_allclose(stem(image), np.einsum("byxcij,ijco->byxo", windows, kernel), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "padding"),
    [("my-tf_efficientnet_b0", "same"), ("timm--efficientnet_b0.ra_in1k", "symmetric"), ("tf_efficientnet_l2", "same")],
)
def test_timm_padding_follows_the_name_of_the_model(name, padding, theirs, tmp_path):
    path = save_safetensors({"conv_head.weight": np.zeros([2, 2, 1, 1], np.float32)}, tmp_path / f"{name}.safetensors")
    assert read_weights(path, []).needs["model.padding"] == padding


def test_duplicate_variable(theirs, ours, tmp_path):
    names = foreign.official_weights(theirs)
    names["efficientnet-b0/stem/batch_normalization/gamma"] = names[
        "efficientnet-b0/stem/tpu_batch_normalization/gamma"
    ]
    with pytest.raises(UserError, match="it contains stem_bn/gamma twice"):
        load_weights(ours, foreign.save_official(names, tmp_path / "model.ckpt"))


def test_invalid_config_next_to_a_timm_file(theirs, ours, tmp_path):
    path = save_safetensors(foreign.timm_weights(theirs), tmp_path / "model.safetensors")
    for content in ("[1]", "{", '{"mean": 3, "architecture": "tf_efficientnet_b0"}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"config\.json.*(timm|JSON)"):
            load_weights(ours, path)


def test_timm_file_without_a_model_name_needs_the_padding(theirs, ours, tmp_path, pixels):
    path = save_safetensors(foreign.timm_weights(theirs), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="padding=same for tf_"):
        load_weights(ours, path)
    load_weights(ours, path, padding="same", normalization="imagenet")
    np.testing.assert_allclose(logits(ours, pixels), logits(theirs, pixels), atol=1e-4)


@pytest.mark.parametrize("variant", ["b8", "l2"])
def test_names_of_the_largest_networks(variant):
    """Both naming schemes cover every variable of networks that are too large to build here."""
    spec = load_variant(variant)
    network, paths = scale_network(spec), variable_paths(spec)
    repeats = [len(stage) for stage in network.stages]
    assert repeats == {"b8": [4, 8, 8, 11, 11, 15, 4], "l2": [6, 11, 11, 16, 16, 22, 6]}[variant]
    timm, official = timm_names(paths), official_names(paths)
    assert sorted(timm.values()) == sorted(official.values()) == sorted(paths)
    last = repeats[6] - 1
    assert timm[f"blocks.6.{last}.conv_pwl.weight"] == paths[paths.index("top_conv/kernel") - 5]
    assert official[f"blocks_{sum(repeats) - 1}/conv2d_1/kernel"] == timm[f"blocks.6.{last}.conv_pwl.weight"]
    assert len({re.sub(r"/.*", "", name) for name in official if name.startswith("blocks_")}) == sum(repeats)


@pytest.mark.parametrize("variant", ["b0", "b4", "l2"])
def test_variable_paths_match_the_built_model(variant):
    spec = load_variant(variant).model_copy(update={"width": 0.1})
    model = build_model(spec, 2, (32, 32, 3))
    assert variable_paths(spec) == list(model_variables(model))


# ------------------------------------------------------------------------------------------- this package


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Return a folder with one network's weights in each of this package's formats."""
    folder = tmp_path_factory.mktemp("converted")
    source = foreign.save_official(foreign.official_weights(their_model("b0")), folder / "model.ckpt")
    overrides = ["data.image_size=64", "data.crop_padding=8"]
    for name in ("b0.weights.h5", "b0.keras", "b0"):
        convert_weights("b0", source, str(folder / name), overrides=overrides)
    return folder


@pytest.fixture(scope="module")
def exported(converted):
    """Return the same folder with an export of the network, which only slow tests need."""
    command = [sys.executable, "-m", "efficientnet_tf.export", f"--model_dir={converted / 'b0'}"]
    subprocess.run([*command, f"--output={converted / 'exported'}"], check=True, capture_output=True)
    return converted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["b0.weights.h5", "b0.keras", "b0", "exported"])
def test_own_formats(name, exported, theirs, ours, pixels):
    summary = load_weights(ours, str(exported / name))
    np.testing.assert_allclose(logits(ours, pixels), logits(theirs, pixels), atol=1e-4)
    assert summary.needs["data.crop_padding"] == 8 and summary.needs["data.image_size"] == 64


@pytest.mark.slow
def test_predict_uses_the_settings_of_a_converted_directory(converted, theirs, tmp_path):
    """Size, crop and normalization are those of the conversion."""
    model, loaded, names = restore_model(str(converted / "b0"))
    assert (loaded.image_size, loaded.data.crop_padding, names) == (64, 8, list("0123456"))
    image = np.random.default_rng(0).integers(0, 256, (80, 72, 3), dtype=np.uint8)
    tf.io.write_file(str(tmp_path / "a.png"), tf.io.encode_png(image))
    [answer] = predict_images(str(converted / "b0"), [str(tmp_path / "a.png")], top=7)
    cropped = tf.image.resize(image[8:72, 4:68], [64, 64], "bicubic")[None]  # 72 * 64 / (64 + 8) = 64
    expected = tf.nn.softmax(theirs(cropped, training=False))[0].numpy()
    assert dict(answer) == pytest.approx({str(i): p for i, p in enumerate(expected)}, abs=1e-4)


def test_conversion_overwrites_nothing(converted, tmp_path):
    with pytest.raises(UserError, match=r"^output=.* exists\. Choose another path"):
        convert_weights("b0", str(converted / "b0.keras"), str(converted / "b0"))


# ----------------------------------------------------------------------------------------------------- mismatches


def damage_missing(tensors):
    del tensors[next(name for name in tensors if "conv_head" in name or "head/conv2d" in name)]


def damage_extra(tensors):
    tensors["spare/kernel"] = np.zeros([2, 3], np.float32)


def damage_shape(tensors):
    name = next(name for name in tensors if "conv_stem" in name or "stem/conv2d" in name)
    tensors[name] = tensors[name][..., :-1].copy()


def damage_number(tensors):
    name = next(name for name in tensors if "conv_stem" in name or "stem/conv2d" in name)
    tensors[name] = np.full_like(tensors[name], np.nan)


DAMAGES = {
    damage_missing: r"the file lacks top_conv/kernel \(1, 1, 320, 1280\)",
    damage_extra: r"the model has no variable spare/kernel \([23], [23]\)",
    damage_shape: r"stem_conv/kernel is \(.*\) in the file but \(3, 3, 3, 32\) in the model",
    damage_number: "stem_conv/kernel contains numbers that are not finite",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["official", "timm", "keras"])
def test_mismatch_leaves_the_model_unchanged(kind, damage, theirs, ours, tmp_path):
    before = [np.array(v) for v in ours.variables]
    if kind == "keras":
        path = damaged_keras(theirs, damage, tmp_path)
    else:
        tensors = foreign.timm_weights(theirs) if kind == "timm" else foreign.official_weights(theirs)
        damage(tensors)
        path = tmp_path / ("tf_efficientnet_b0.safetensors" if kind == "timm" else "model.ckpt")
        path = save_safetensors(tensors, path) if kind == "timm" else foreign.save_official(tensors, path)
    with pytest.raises(UserError, match=rf"nothing was loaded\..*\n  {DAMAGES[damage]}$"):
        load_weights(ours, path)
    assert all((np.array(v) == b).all() for v, b in zip(ours.variables, before, strict=True))


def damaged_keras(model, damage, folder):
    import h5py

    path = str(folder / "w.weights.h5")
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        by_name = {group["vars"].attrs["name"]: group["vars"] for group in file["layers"].values() if "vars" in group}
        if damage is damage_missing:
            del by_name["top_conv"]["0"]
        elif damage is damage_extra:
            file["layers"].create_group("spare/vars").create_dataset("0", data=np.zeros([2, 3], np.float32))
            file["layers/spare/vars"].attrs["name"] = "spare"
        else:
            stem = by_name["stem_conv"]
            kernel = stem["0"][...]
            del stem["0"]
            stem["0"] = kernel[..., :-1] if damage is damage_shape else np.full_like(kernel, np.nan)
    return path


def test_other_classes_need_reset_head(converted):
    path, mine = str(converted / "b0.weights.h5"), build(classes=5)
    head = mine.get_layer("predictions").get_weights()
    with pytest.raises(UserError, match=r"(?s)Use reset_head to .*\(1280, 7\) in the file but \(1280, 5\)"):
        load_weights(mine, path)
    summary = load_weights(mine, path, reset_head=True)
    assert summary.reset == summary.unused == ("predictions/kernel", "predictions/bias")
    assert summary.variables == len(mine.weights) - 2
    for value, before in zip(mine.get_layer("predictions").get_weights(), head, strict=True):
        np.testing.assert_array_equal(value, before)


def test_model_without_a_classifier_needs_reset_head(converted):
    path, body = str(converted / "b0.weights.h5"), build(include_top=False)
    with pytest.raises(UserError, match="the model has no variable predictions/bias"):
        load_weights(body, path)
    summary = load_weights(body, path, reset_head=True)
    assert summary.reset == () and summary.unused == ("predictions/kernel", "predictions/bias")


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_need_adapt_channels(channels, converted, theirs):
    path = str(converted / "b0.weights.h5")
    mine = build_model("b0", 7, (64, 64, channels))
    with pytest.raises(UserError, match=r"Use adapt_channels .*\n  stem_conv/kernel is \(3, 3, 3, 32\) in the file"):
        load_weights(mine, path)
    assert load_weights(mine, path, adapt_channels=True).notes == (
        f"the first convolution was adapted from 3 to {channels} channels",
    )
    kernel, theirs = (model.get_layer("stem_conv").get_weights()[0] for model in (mine, theirs))
    if channels == 1:
        np.testing.assert_allclose(kernel[:, :, 0], theirs.sum(axis=2), atol=1e-5)
    else:
        np.testing.assert_allclose(kernel, theirs[:, :, [0, 1, 2, 0]] * 0.75, rtol=1e-6)


def test_summary_is_one_short_line(converted, ours):
    summary = load_weights(ours, str(converted / "b0.weights.h5"))
    assert repr(summary) == (
        'LoadSummary(format="this package\'s weights", variables=311, reset=(), unused=(), notes=())'
    )


@pytest.mark.parametrize("option", ["normalization", "padding"])
def test_unknown_options(option, ours):
    with pytest.raises(UserError, match=f"{option}=other is unknown. Allowed are "):
        load_weights(ours, "file", **{option: "other"})


UNREADABLE = {
    "none.h5": (None, "does not exist"),
    "text.h5": (b"some words, no weights", "has an unknown format"),
    "short.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 30, "cannot be read as Keras weights"),
    "zip.keras": (b"PK\x03\x04" + b"\0" * 40, "a damaged zip archive"),
    "tf_efficientnet_b0.safetensors": (
        b'\x40\0\0\0\0\0\0\0{"a": ',
        "its header declares 64 bytes, but the file has 14",
    ),
    "model.ckpt.index": (b"\0" * 50, "cannot be read as a TensorFlow checkpoint"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_file(name, ours, tmp_path):
    content, message = UNREADABLE[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_weights(ours, str(tmp_path / name))


def test_empty_folder(ours, tmp_path):
    with pytest.raises(UserError, match="is not a model directory or an export"):
        load_weights(ours, str(tmp_path))


# ------------------------------------------------------------------------------------------------- the command


def run(*arguments):
    command = [sys.executable, "-m", "efficientnet_tf.weights", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command(theirs, tmp_path):
    path = save_safetensors(foreign.timm_weights(theirs), tmp_path / "tf_efficientnet_b0.ap_in1k.safetensors")
    out = tmp_path / "b0.weights.h5"
    done = run("--variant=b0", f"--input={path}", f"--output={out}", "--normalization=advprop")
    assert done.returncode == 0, done.stderr
    assert "timm's weights" in done.stdout and "mean 127.5, 127.5, 127.5" in done.stdout
    assert "padding same, because the model is tf_efficientnet_b0" in done.stdout and out.exists()
    wrong = run("--variant=b1", f"--input={path}", f"--output={tmp_path / 'b1'}")
    assert wrong.returncode == 1 and "contains the weights of b0, but the model is b1" in wrong.stderr
    assert not (tmp_path / "b1").exists()


def test_constructors_load_any_format(theirs, tmp_path, pixels):
    path = str(tmp_path / "w.weights.h5")
    theirs.save_weights(path)
    model = EfficientNetB0(weights=path, classes=7, input_shape=(64, 64, 3))
    expected = tf.nn.softmax(logits(theirs, pixels))
    np.testing.assert_allclose(logits(model, pixels), expected, atol=1e-5)


def test_build_model_loads_weights(theirs, tmp_path, pixels):
    path = str(tmp_path / "w.weights.h5")
    theirs.save_weights(path)
    model = build(weights=path)
    np.testing.assert_allclose(logits(model, pixels), logits(theirs, pixels), atol=1e-4)
    backbone = build(weights=path, endpoints=[8, 32])
    names = ("block3b_add", "block7a_project_bn")
    expected = keras.Model(model.input, [model.get_layer(name).output for name in names])(pixels)
    for features, value in zip(backbone(pixels).values(), expected, strict=True):
        np.testing.assert_allclose(features, value, atol=1e-4)
    body = build(weights=path, include_top=False, pooling="avg")
    pooled = keras.Model(model.input, model.get_layer("avg_pool").output)(pixels)
    np.testing.assert_allclose(body(pixels), pooled, atol=1e-4)

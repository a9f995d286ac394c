"""Weights of Lite, EfficientNetV2 and EdgeTPU in the names of other libraries, and of one network for another."""

import functools
import json

import foreign
import keras
import numpy as np
import pytest
import tiny
from foreign import logits

from efficientnet_tf import build_model, load_weights
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import list_variants, load_variant
from efficientnet_tf.weights.convert import convert_weights
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.identify import find_variant

SHAPE = (32, 32, 3)


@functools.cache
def make_models(variant, **narrower):
    """Return two models of a variant: one with random values in every variable, and one to load them into."""
    spec = load_variant(variant).model_copy(update=narrower)
    return tiny.randomize(build_model(spec, 7, SHAPE)), build_model(spec, 7, SHAPE)


def save_safetensors(tensors, path, config=None):
    from safetensors.numpy import save_file

    save_file(tensors, path)
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config))
    return str(path)


def assert_loads(path, source, target, **options):
    """Load a file into a model, and compare every variable with that of the model it was made from."""
    for variable in target.variables:
        variable.assign(np.zeros(variable.shape))
    summary = load_weights(target, path, **options)
    assert summary.variables == len(source.weights)
    for ours, theirs in zip(target.weights, source.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)
    return summary


TIMM = {
    "lite0": "tf_efficientnet_lite0.in1k",
    "v2-b0": "tf_efficientnetv2_b0.in1k",
    "edgetpu-s": "tf_efficientnet_es.in1k",
    "tiny": "test_efficientnet.r160_in1k",
}


@pytest.mark.parametrize("variant", TIMM)
def test_names_of_timm(variant, tmp_path):
    source, target = make_models(variant, width=0.25, depth=0.4)
    path = save_safetensors(foreign.timm_weights(source), tmp_path / f"{TIMM[variant]}.safetensors")
    assert_loads(path, source, target)


@pytest.mark.parametrize("variant", ["lite0", "b0"])
def test_names_of_efficientnet_pytorch(variant, tmp_path):
    source, target = make_models(variant, width=0.25, depth=0.4)
    path = save_safetensors(foreign.pytorch_weights(source), tmp_path / "model.safetensors")
    summary = assert_loads(path, source, target)
    assert summary.format == "weights of efficientnet_pytorch"
    assert summary.needs == {"model.padding": "same", "model.batch_norm_epsilon": 1e-3}


@pytest.mark.slow
def test_names_of_automl(tmp_path):
    source, target = make_models("v2-b0", width=0.25, depth=0.4)
    weights = foreign.official_weights(source, "efficientnetv2-b0")
    path = foreign.save_official({n: v + 1 for n, v in weights.items()}, tmp_path / "model", ema=weights)
    assert_loads(path, source, target)


def test_advprop_files_of_efficientnet_pytorch_say_so_by_their_name(tmp_path):
    for name, mean in {"adv-efficientnet-b0-b64d5a18": (127.5,) * 3, "efficientnet-b0-355c32eb": None}.items():
        tensors = {"_conv_stem.weight": np.zeros((2, 3, 3, 3), np.float32)}
        path = save_safetensors(tensors, tmp_path / f"{name}.safetensors")
        assert read_weights(path, []).needs.get("model.mean") == mean


def test_names_of_two_libraries_in_one_file_are_refused(tmp_path):
    source, target = make_models("lite0", width=0.25, depth=0.4)
    tensors = foreign.pytorch_weights(source) | {"conv_head.weight": np.zeros((1280, 80, 1, 1), np.float32)}
    with pytest.raises(UserError, match=r"nothing was loaded\..*\n  the model has no variable conv_head.weight"):
        load_weights(target, save_safetensors(tensors, tmp_path / "model.safetensors"))


# As timm 1.0.31 lists them in `timm.models.get_pretrained_cfg`.
MEANS = {
    "tf_efficientnet_b0.in1k": 0.485,
    "tf_efficientnet_b3.ap_in1k": 0.5,
    "tf_efficientnet_b3_ap-aad25bdd": 0.5,  # as its old files are called
    "tf_efficientnet_l2.ns_jft_in1k_475": 0.485,
    "efficientnet_b0.ra_in1k": 0.485,
    "efficientnet_b1.ra4_e3600_r240_in1k": 0.5,
    "tf_efficientnet_lite4.in1k": 0.5,
    "efficientnet_lite0.ra_in1k": 0.485,
    "tf_efficientnet_em.in1k": 0.5,
    "efficientnet_em.ra2_in1k": 0.485,
    "tf_efficientnetv2_b3.in1k": 0.485,
    "tf_efficientnetv2_b3.in21k_ft_in1k": 0.5,
    "tf_efficientnetv2_xl.in21k": 0.5,
    "test_efficientnet.r160_in1k": 0.485,
}


@pytest.mark.parametrize("name", MEANS)
def test_normalization_follows_the_name_of_a_timm_model_without_a_config(name, tmp_path):
    tensors = {"conv_head.weight": np.zeros([2, 2, 1, 1], np.float32)}
    path = save_safetensors(tensors, tmp_path / f"{name}.safetensors")
    assert read_weights(path, []).needs["model.mean"][0] == pytest.approx(255 * MEANS[name])
    config = {"architecture": name.split(".")[0], "pretrained_cfg": {"mean": [0.25] * 3, "std": [0.5] * 3}}
    path = save_safetensors(tensors, tmp_path / "model.safetensors", config)
    assert read_weights(path, []).needs["model.mean"] == (63.75,) * 3


@pytest.mark.parametrize(("name", "size"), [("tf_efficientnet_lite4.in1k", 380), ("efficientnet_lite3", 300)])
def test_image_size_follows_the_name_of_a_timm_model_of_another_size_than_the_variant(name, size, tmp_path):
    path = save_safetensors({"conv_head.weight": np.zeros([2, 2, 1, 1], "f")}, tmp_path / f"{name}.safetensors")
    loaded = read_weights(path, [])
    assert loaded.needs["data.image_size"] == size
    assert f"images of {size} pixels, because the model is {name}.safetensors" in loaded.notes
    config = {"architecture": name, "pretrained_cfg": {"input_size": [3, 320, 320]}}
    path = save_safetensors({"conv_head.weight": np.zeros([2, 2, 1, 1], "f")}, tmp_path / "model.safetensors", config)
    assert read_weights(path, []).needs["data.image_size"] == 320


# ---------------------------------------------------------------------------------------- keras.applications


@functools.cache
def their_model(variant):
    """Return a model of keras.applications with random weights."""
    build = getattr(keras.applications, f"EfficientNetV2{variant.removeprefix('v2-').upper()}")
    return tiny.randomize(build(weights=None, classes=7, input_shape=(64, 64, 3), classifier_activation=None))


@pytest.fixture
def pixels():
    return np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)


FILES = [
    pytest.param(v, f, marks=pytest.mark.slow) for v in ("v2-b0", "v2-s") for f in ("w.weights.h5", "w.h5", "w.keras")
]


@pytest.mark.parametrize(("variant", "name"), FILES)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_files_of_keras_applications_v2(variant, name, tmp_path, pixels):
    theirs, path = their_model(variant), str(tmp_path / name)
    theirs.save_weights(path) if name == "w.weights.h5" else theirs.save(path)
    ours = build_model(variant, 7, (64, 64, 3))
    load_weights(ours, path)
    expected = logits(theirs, pixels)
    np.testing.assert_allclose(logits(ours, pixels), expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("ending", "has_names"), [("weights.h5", True), ("weights.h5", False), ("keras", True), ("h5", True)]
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_keras_files_with_fused_blocks(ending, has_names, tmp_path):
    """The layers have the names that keras.applications gives them. Keras before 3.4 did not write those."""
    import h5py

    source, target = make_models("v2-b0", width=0.25, depth=0.4)
    path = str(tmp_path / f"w.{ending}")
    keras.Model.save_weights(source, path) if ending == "weights.h5" else source.save(path)
    if not has_names:
        with h5py.File(path, "a") as file:
            for group in file["layers"].values():
                if "vars" in group:
                    group["vars"].attrs.pop("name", None)
    assert_loads(path, source, target)


# ---------------------------------------------------------------------------------- one network for another


def test_every_variant_is_recognized_by_its_convolutions():
    from efficientnet_tf.weights.identify import _kernel_sizes

    sizes = {name: _kernel_sizes(load_variant(name)) for name in list_variants()}
    assert len({frozenset(counter.items()) for counter in sizes.values()}) == len(sizes) > 30
    for name in ("b0", "l2", "v2-s", "lite4"):
        assert find_variant([(1, 1, 1, size) for size in sizes[name].elements()]) == name
    assert find_variant([(3, 3, 3, 32)]) is None


@pytest.fixture(scope="module")
def networks():
    """Return small networks of both kinds: "tiny" has fused blocks and "lite0" has none."""
    return {name: build_model(name, 7, SHAPE) for name in ("tiny", "lite0")}


@pytest.mark.parametrize(("file", "model"), [("tiny", "lite0"), ("lite0", "tiny")])
@pytest.mark.parametrize("kind", ["timm", "keras"])
def test_weights_of_another_network_are_named(kind, file, model, networks, tmp_path):
    if kind == "keras":
        path = str(tmp_path / "w.weights.h5")
        networks[file].save_weights(path)
    else:
        path = save_safetensors(foreign.timm_weights(networks[file]), tmp_path / f"{TIMM[file]}.safetensors")
    message = f"contains the weights of {file}, but the model is {model}, and nothing was loaded. Build {file} for this"
    with pytest.raises(UserError, match=message) as raised:
        load_weights(networks[model], path)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "variant"), [("b0", "v2-b0"), ("v2-b0", "b0"), ("lite4", "lite3"), ("lite0", "b0")])
def test_weights_of_another_published_network_are_named(file, variant, tmp_path):
    path = str(tmp_path / "w.weights.h5")
    build_model(file, 7, SHAPE).save_weights(path)
    message = f"contains the weights of {file}, but the model is {variant}, and nothing was loaded. Build {file} for"
    with pytest.raises(UserError, match=message):
        load_weights(build_model(variant, 7, SHAPE), path)
    with pytest.raises(UserError, match=message):
        convert_weights(variant, path, str(tmp_path / "out"))


def test_classifier_for_imagenet_21k_is_named(networks, tmp_path):
    tensors = foreign.timm_weights(networks["tiny"])
    tensors |= {"classifier.weight": np.zeros((21843, 256), "f"), "classifier.bias": np.zeros(21843, "f")}
    path = save_safetensors(tensors, tmp_path / f"{TIMM['tiny']}.safetensors")
    message = "classifier has 21,843 classes, those of ImageNet-21k, and the model's 7. Build a model for 21,843. Use"
    with pytest.raises(UserError, match=message):
        load_weights(networks["tiny"], path)
    assert load_weights(networks["tiny"], path, reset_head=True).reset == ("predictions/kernel", "predictions/bias")


@pytest.mark.slow
def test_conversion_of_a_classifier_for_imagenet_21k(networks, tmp_path):
    tensors = foreign.timm_weights(networks["tiny"])
    tensors |= {"classifier.weight": np.zeros((21843, 256), "f"), "classifier.bias": np.ones(21843, "f")}
    path = save_safetensors(tensors, tmp_path / f"{TIMM['tiny']}.safetensors")
    convert_weights("tiny", path, str(tmp_path / "out.keras"))
    assert keras.models.load_model(tmp_path / "out.keras").output_shape == (None, 21843)
    with pytest.raises(UserError, match="Use reset_head"):
        convert_weights("tiny", path, str(tmp_path / "other.keras"), classes=1000)

"""What the application tests of Keras check, for every constructor and in both data formats."""

import contextlib
import dataclasses
import os

import keras
import numpy as np
import pytest
import tiny
from commands import run_here
from random_networks import images, randomize
from unallocated import unallocated

import efficientnet_tf
from efficientnet_tf.applications import build_model
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluation.attribution import class_activation_map, grad_cam
from efficientnet_tf.export.keras_file import read_keras_file
from efficientnet_tf.export.load import load_model
from efficientnet_tf.models import builder
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import write_model_dir
from efficientnet_tf.models.normalization import set_normalization
from efficientnet_tf.weights.convert import convert_weights
from efficientnet_tf.weights.load import load_weights

FORMATS = ["channels_first", "channels_last"]
# Published: channels of the last features, and the image side.
CONSTRUCTORS = {
    "B0": (1280, 224),
    "B1": (1280, 240),
    "B2": (1408, 260),
    "B3": (1536, 300),
    "B4": (1792, 380),
    "B5": (2048, 456),
    "B6": (2304, 528),
    "B7": (2560, 600),
    "B8": (2816, 672),
    "L2": (5504, 800),
    "V2B0": (1280, 224),
    "V2B1": (1280, 240),
    "V2B2": (1408, 260),
    "V2B3": (1536, 300),
    "V2S": (1280, 384),
    "V2M": (1280, 480),
    "V2L": (1280, 480),
    "Lite0": (1280, 224),
    "Lite1": (1280, 240),
    "Lite2": (1280, 260),
    "Lite3": (1280, 280),
    "Lite4": (1280, 300),
}
FAST = [("Lite0", "channels_first")]
CASES = [
    pytest.param((name, order), marks=[] if (name, order) in FAST else [pytest.mark.slow], id=f"{name}-{order}")
    for name in CONSTRUCTORS
    for order in FORMATS
]


@contextlib.contextmanager
def data_format(order):
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(order)
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)


@pytest.fixture
def channels_first():
    with data_format("channels_first"):
        yield


def transpose(pixels):
    """Return images [B, H, W, C] as [B, C, H, W]."""
    return np.moveaxis(pixels, -1, 1)


def shape_in(order, height, width, channels):
    return (channels, height, width) if order == "channels_first" else (height, width, channels)


# ------------------------------------------------------------------------------------------------ every constructor


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Return the constructor with random weights, the data format, and the published numbers."""
    name, order = request.param
    constructor = getattr(efficientnet_tf, f"EfficientNet{name}")

    def build(**arguments):
        with data_format(order), unallocated():
            return constructor(weights=None, **arguments)

    return build, order, *CONSTRUCTORS[name]


@pytest.fixture(scope="module")
def whole(case):
    """Return the network that the constructor builds without arguments."""
    return case[0]()


def test_default_network_has_probabilities(case, whole):
    _, order, channels, side = case
    assert whole.input_shape == (None, *shape_in(order, side, side, 3))
    assert whole.get_layer("top_activation").output.shape[1 if order == "channels_first" else -1] == channels
    assert whole.output_shape == (None, 1000)
    assert whole.layers[-1].activation.__name__ == "softmax"


def test_network_survives_serialization(whole):
    """The data format of Keras does not matter to a network that exists."""
    with unallocated():
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(whole))
        assert (again.input_shape, again.output_shape) == (whole.input_shape, whole.output_shape)
        assert [(w.path, w.shape) for w in again.weights] == [(w.path, w.shape) for w in whole.weights]
        assert again.get_config() == whole.get_config()


def test_features_on_a_custom_tensor_of_four_channels(case, shallow):
    build, order, channels, _ = case
    with data_format(order):
        inputs = keras.Input(shape_in(order, None, None, 4), name="own")
        tensor = keras.layers.Conv2D(4, 2, strides=2)(inputs)
    model = build(include_top=False, input_tensor=tensor, pooling="max")
    assert model.input is inputs
    assert model.get_layer("stem_conv").kernel.shape[2] == 4
    assert model.get_layer("top_activation").output.shape == (None, *shape_in(order, None, None, channels))
    assert model.output_shape == (None, channels)


def test_activation_of_the_classifier_can_be_chosen(case, shallow):
    build, *_ = case
    assert build(classifier_activation="sigmoid").layers[-1].activation.__name__ == "sigmoid"


@pytest.mark.parametrize("channels", [1, 4])
def test_features_of_images_of_any_size(case, shallow, channels):
    build, order, last, _ = case
    model = build(include_top=False, input_shape=shape_in(order, None, None, channels))
    assert model.output_shape == (None, *shape_in(order, None, None, last))


@pytest.mark.parametrize("pooling", [None, "avg", "max"])
def test_features_of_a_given_size(case, shallow, pooling):
    build, order, last, _ = case
    model = build(include_top=False, input_shape=shape_in(order, 123, 97, 3), pooling=pooling)
    assert model.output_shape == (None, *((last,) if pooling else shape_in(order, 4, 4, last)))


@pytest.fixture
def shallow(monkeypatch):
    """Build one block of each stage. The arguments of a constructor concern the ends of its network only."""
    scale_network = builder.scale_network

    def scale(spec):
        network = scale_network(spec)
        return dataclasses.replace(network, stages=tuple(stage[:1] for stage in network.stages))

    monkeypatch.setattr(builder, "scale_network", scale)


# ------------------------------------------------------------------------------------------- agreement of the orders


@pytest.fixture(scope="module")
def pair():
    """Return the variant `tiny` with channels last and with channels first, both with the same random weights."""
    keras.utils.set_random_seed(0)
    last = build_model("tiny", classes=5, input_shape=(37, 50, 3))
    randomize(last, 37, 50)
    with data_format("channels_first"):
        first = build_model("tiny", classes=5, input_shape=(3, 37, 50))
    first.set_weights(last.get_weights())
    return last, first


def assert_same(first, last, height, width, tolerance=1e-5):
    pixels = images(2, height, width, seed=1)
    expected = last(pixels).numpy()
    assert np.std(expected[0] - expected[1]) > 0.05, "different images must give different logits"
    np.testing.assert_allclose(first(transpose(pixels)), expected, atol=tolerance * np.abs(expected).max())


def test_logits_are_those_of_channels_last(pair):
    last, first = pair
    assert [w.shape for w in first.weights] == [w.shape for w in last.weights]
    assert_same(first, last, 37, 50)


def test_bytes_equal_floats(pair):
    pixels = transpose(images(2, 37, 50))
    np.testing.assert_array_equal(pair[1](pixels.astype("uint8")), pair[1](pixels))


def test_explanations_are_those_of_channels_last(pair):
    last, first = pair
    pixels = images(2, 37, 50)
    np.testing.assert_allclose(
        class_activation_map(first, transpose(pixels)), class_activation_map(last, pixels), atol=1e-4
    )
    for layer in ("top_activation", "block3a_expand_activation"):
        maps = grad_cam(last, pixels, layer)
        assert maps.max() > 0.01
        np.testing.assert_allclose(grad_cam(first, transpose(pixels), layer), maps, atol=1e-4)


def test_explanations_need_height_and_width(pair):
    with data_format("channels_first"):
        model = build_model("tiny", classes=5, input_shape=(3, 8, 8))
    for explain in (class_activation_map, grad_cam):
        with pytest.raises(UserError, match="has no height and width"):
            explain(model, transpose(images(1, 8, 8)))


def test_saved_model_keeps_its_order(pair, tmp_path):
    """A file of either order gives its weights to a network of the other one, and loads with any setting of Keras."""
    last, first = pair
    first.save(tmp_path / "first.keras")
    first.save_weights(tmp_path / "first.weights.h5")
    assert_same(keras.models.load_model(tmp_path / "first.keras"), last, 37, 50)
    for name in ("first.keras", "first.weights.h5"):
        model = build_model("tiny", classes=5, input_shape=(37, 50, 3), weights=str(tmp_path / name))
        pixels = images(2, 37, 50)
        np.testing.assert_array_equal(model(pixels), last(pixels))


def test_normalization_can_change(channels_first):
    model = build_model("tiny", input_shape=(3, 8, 9), include_top=False)
    set_normalization(model, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    pixels = images(1, 8, 9)
    expected = transpose((pixels - [1, 2, 3]) / [4, 5, 6])
    np.testing.assert_allclose(model.get_layer("normalization")(transpose(pixels)), expected, atol=1e-4)


def test_endpoints_of_channels_first(pair, tmp_path, channels_first):
    pair[1].save_weights(tmp_path / "tiny.weights.h5")
    model = build_model("tiny", input_shape=(3, 37, 50), endpoints=[4, 8], weights=str(tmp_path / "tiny.weights.h5"))
    pixels = transpose(images(1, 37, 50))
    found = model(pixels)
    assert {name: x.shape for name, x in found.items()} == {"stride4": (1, 24, 10, 13), "stride8": (1, 32, 5, 7)}
    expected = keras.Model(pair[1].input, pair[1].get_layer("block3a_project_bn").output)(pixels)
    np.testing.assert_allclose(found["stride8"], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b0", "v2-b0", "lite0", "edgetpu-s", "mobilenetv1", "resnet50"])
def test_logits_of_every_kind_of_network_are_those_of_channels_last(variant, shallow):
    last = builder.build_model(variant, 5, (45, 64, 3))
    randomize(last, 45, 64)
    with data_format("channels_first"):
        first = builder.build_model(variant, 5, (3, 45, 64))
    first.set_weights(last.get_weights())
    assert_same(first, last, 45, 64, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["B0", "V2B0"])
def test_layers_and_logits_of_channels_first_are_those_of_keras_applications(name, channels_first):
    keras.backend.clear_session(free_memory=False)
    arguments = {"weights": None, "input_shape": (3, 64, 45), "classes": 7, "classifier_activation": None}
    theirs = getattr(keras.applications, f"EfficientNet{name}")(**arguments)
    ours = getattr(efficientnet_tf, f"EfficientNet{name}")(**arguments)
    for layer in theirs.layers:
        if not layer.name.endswith(("_pad", "_se_squeeze")):
            assert ours.get_layer(layer.name).output.shape == layer.output.shape, layer.name
    ours.set_weights(theirs.get_weights())
    pixels = transpose(images(2, 64, 45))
    np.testing.assert_allclose(ours(pixels), theirs(pixels), atol=1e-4)


# ----------------------------------------------------------------------------------- Keras is set to channels first


@pytest.mark.parametrize(
    "shape", [(224, 224, 3), (8, 9, 1), (None, None, 3), (3, 8), (3, 8, 0), (0, 8, 8), (True, 8, 8), "abc"], ids=str
)
def test_shape_in_another_order_is_refused(shape, channels_first):
    with pytest.raises(UserError) as caught:
        builder.build_model("tiny", input_shape=shape)
    assert "(channels, height, width), because Keras is set to image_data_format='channels_first'" in str(caught.value)
    assert f"received {shape!r}" in str(caught.value)


def test_tensor_in_another_order_is_refused(channels_first):
    with pytest.raises(UserError, match=r"the shape of input_tensor must be \(channels, .*received \(64, 48, 3\)"):
        builder.build_model("tiny", input_tensor=keras.Input((64, 48, 3)))


def test_models_of_commands_have_channels_last(channels_first):
    config = tiny.load_config(tiny.SHORT)
    model = build_from_config(config, 10)
    assert keras.config.image_data_format() == "channels_first"
    with data_format("channels_last"):
        expected = build_from_config(config, 10)
    assert model.input_shape == (None, 32, 32, 3)
    assert model.get_config() == expected.get_config()


@pytest.mark.slow
def test_keras_file_with_channels_first_is_refused(tmp_path, channels_first):
    config = tiny.load_config("train.ema_decay=0", tiny.SHORT)
    folder = str(tmp_path / "model")
    write_model_dir(folder, build_from_config(config, 2), config, ["a", "b"])
    read_keras_file(os.path.join(folder, "model.keras"))
    builder.build_model(config.model, 2, (3, 32, 32)).save(os.path.join(folder, "model.keras"))
    with pytest.raises(UserError, match="data_format='channels_first', .*Convert it to channels last with `python -m"):
        read_keras_file(os.path.join(folder, "model.keras"))
    model = build_from_config(config, 2)
    load_weights(model, os.path.join(folder, "model.keras"))  # as the command `weights` does


@pytest.mark.slow
def test_weights_are_converted_to_channels_last(pair, tmp_path, channels_first):
    pair[1].save(tmp_path / "first.keras")
    convert_weights("tiny", str(tmp_path / "first.keras"), str(tmp_path / "last.keras"))
    converted = keras.models.load_model(tmp_path / "last.keras")
    assert converted.input_shape == (None, 160, 160, 3)
    for one, other in zip(converted.get_weights(), pair[0].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_commands_work_if_keras_is_set_to_channels_first(tmp_path, channels_first):
    """An export is compared with the model before it is written."""
    run, file = str(tmp_path / "run"), str(tmp_path / "network.tflite")
    variant = [f"--variant={tiny.VARIANT}", "--recipe=smoke", "--set", tiny.SHORT, "--set", "train.epochs=1"]
    for command, *arguments in (
        ("train", *variant, f"--model_dir={run}"),
        ("evaluate", f"--model_dir={run}"),
        ("export", f"--model_dir={run}", f"--output={file}"),
    ):
        assert not run_here(command, *arguments)
        assert keras.config.image_data_format() == "channels_first"
    pixels = images(2, 32, 32)
    np.testing.assert_allclose(load_model(file)(pixels), load_model(run)(pixels), atol=1e-4)

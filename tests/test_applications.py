"""The interface of keras.applications: models, layer names and weights equal Keras's, and the helpers around them."""

import copy
import inspect
import math

import keras
import numpy as np
import pytest
from foreign import set_normalization
from random_networks import images, randomize
from unallocated import unallocated

import efficientnet_tf
from efficientnet_tf.applications import build_model, decode_predictions, preprocess_input
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.models import builder
from efficientnet_tf.models.normalization import copy_normalization
from efficientnet_tf.weights.load import load_weights

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
FAMILY = [f"b{i}" for i in range(8)]
V2 = ["v2-b0", "v2-b1", "v2-b2", "v2-b3", "v2-s", "v2-m", "v2-l"]
LITE = [f"lite{i}" for i in range(5)]


def name_of(variant):
    """Return the name of a constructor: "EfficientNetV2B0" for v2-b0."""
    return "EfficientNet" + variant.replace("-", "").upper().replace("LITE", "Lite")


def build_keras(variant, **arguments):
    return getattr(keras.applications, name_of(variant))(weights=None, **arguments)


def build_ours(variant, **arguments):
    return getattr(efficientnet_tf, name_of(variant))(weights=None, **arguments)


# ------------------------------------------------------------------------------------- agreement with references

# Published: trainable and total parameters.
PARAMETERS = {
    "b0": (5_288_548, 5_330_564),
    "b1": (7_794_184, 7_856_232),
    "b2": (9_109_994, 9_177_562),
    "b3": (12_233_232, 12_320_528),
    "b4": (19_341_616, 19_466_816),
    "b5": (30_389_784, 30_562_520),
    "b6": (43_040_704, 43_265_136),
    "b7": (66_347_960, 66_658_680),
    "b8": (87_413_142, 87_793_174),
    "l2": (480_309_308, 481_399_996),
    "v2-b0": (7_139_704, 7_200_312),
    "v2-b1": (8_141_052, 8_212_124),
    "v2-b2": (10_096_086, 10_178_374),
    "v2-b3": (14_358_406, 14_467_622),
    "v2-s": (21_458_488, 21_612_360),
    "v2-m": (54_139_356, 54_431_388),
    "v2-l": (118_515_272, 119_027_848),
}


def count_parameters(model):
    return sum(math.prod(w.shape) for w in model.trainable_weights), model.count_params()


@pytest.mark.parametrize(
    ("variant", "mean", "std"),
    [
        ("v2-b0", MEAN * 255, STD * 255),
        pytest.param("v2-s", [128.0] * 3, [128.0] * 3, marks=pytest.mark.slow),
    ],
)
def test_preprocessing_of_v2_can_be_left_out(variant, mean, std):
    """The features of normalized pixels are then those of a model that normalizes."""
    whole = builder.build_model(load_variant(variant), 2, (32, 32, 3))
    part = build_ours(variant, classes=2, input_shape=(32, 32, 3), include_preprocessing=False)
    part.set_weights(whole.get_weights())
    pixels = images(1, 32, 32)
    stems = [keras.Model(model.input, model.get_layer("stem_bn").output) for model in (whole, part)]
    np.testing.assert_allclose(stems[1]((pixels - mean) / std), stems[0](pixels), atol=1e-4)
    np.testing.assert_array_equal(part.get_layer("normalization")(pixels), pixels)


@pytest.mark.parametrize("variant", ["b8", "l2"])
def test_parameters_of_the_largest_networks(variant):
    with unallocated():
        assert count_parameters(build_ours(variant)) == PARAMETERS[variant]


def build_pair(variant, height, width):
    """Return our model and that of keras.applications, with the same random weights and normalization."""
    keras.backend.clear_session(free_memory=False)  # Keras numbers its unnamed layers from 0 again
    keras.utils.set_random_seed(0)
    arguments = {"input_shape": (height, width, 3), "classifier_activation": None}
    ours, theirs = build_ours(variant, **arguments), build_keras(variant, **arguments)
    randomize(ours, height, width)
    if variant in FAMILY:  # The normalization of V2 has no variables in Keras, too.
        set_normalization(theirs, MEAN, STD)
    theirs.set_weights([*theirs.get_weights()[: len(theirs.weights) - len(ours.weights)], *ours.get_weights()])
    return ours, theirs


def assert_same_logits(ours, theirs):
    pixels = images(2, *ours.input_shape[1:3], seed=1)
    logits, expected = ours(pixels).numpy(), theirs(pixels).numpy()
    assert np.std(expected[0] - expected[1]) > 0.05, "different images must give different logits"
    assert np.max(np.abs(logits - expected)) <= 1e-4


SLOW = [
    pytest.param(variant, marks=pytest.mark.slow) for variant in FAMILY + V2 if variant not in ("b0", "b3", "v2-b0")
]


# "same" pads even and odd sides differently. 64 stays even down to 2. 97 gives 49, 25, 13 and 7.
@pytest.fixture(scope="module", params=["b0", "b3", "v2-b0", *SLOW])
def pair(request):
    return request.param, *build_pair(request.param, 64, 97)


def test_parameters_are_those_of_the_reference(pair):
    variant, ours, _ = pair
    assert count_parameters(ours) == PARAMETERS[variant]


def test_logits_equal_keras_applications(pair):
    _, ours, theirs = pair
    assert_same_logits(ours, theirs)


def test_layers_are_those_of_keras_applications(pair):
    """Names, order, weights and outputs are equal, apart from the layers that pass their input through."""
    variant, ours, theirs = pair
    assert ours.name == theirs.name
    names = [layer.name for layer in ours.layers]
    known = [layer.name for layer in theirs.layers]
    assert [name for name in names if name in known] == known
    assert set(names) - set(known) <= {"rescaling_1" if variant in FAMILY else "normalization"}
    for layer in theirs.layers:
        mine = ours.get_layer(layer.name)
        if layer.name != "normalization":
            assert [w.shape for w in mine.weights] == [w.shape for w in layer.weights]
        if not layer.name.endswith(("_pad", "_se_squeeze")):
            assert mine.output.shape == layer.output.shape
    added = [layer.name for layer in ours.layers if isinstance(layer, keras.layers.Identity)]
    assert all(name.startswith("rescaling") or name.endswith(("_pad", "_se_reshape")) for name in added)


@pytest.fixture(scope="module")
def b0_pair():
    """Return our B0 and that of keras.applications. Tests must leave both with equal weights."""
    return build_pair("b0", 64, 64)


def test_inner_features_equal_keras_applications(b0_pair):
    endings = ("_conv", "_bn", "_add", "_excite", "_reshape")
    names = [layer.name for layer in b0_pair[1].layers if layer.name.endswith(endings)]
    inner = [keras.Model(model.input, [model.get_layer(name).output for name in names]) for model in b0_pair]
    for name, ours, theirs in zip(names, *(model(images(1, 64, 64)) for model in inner), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3, err_msg=name)


@pytest.mark.slow
def test_set_weights_takes_the_arrays_of_keras_applications(b0_pair):
    ours, theirs = b0_pair
    pixels = images(2, 64, 64)
    ours.predict(pixels, verbose=0)  # Compiles the model with its old normalization.
    assert len(theirs.get_weights()) == len(ours.get_weights()) + 3
    for mean, std in (((0, 0, 0), (1, 1, 1)), ((0.1, 0.5, 0.9), (0.3, 0.1, 0.5))):
        set_normalization(theirs, mean, std)
        ours.set_weights(theirs.get_weights())
        assert_same_logits(ours, theirs)
        compiled, expected = ours.predict(pixels, verbose=0), theirs(pixels)
        np.testing.assert_allclose(compiled, expected, atol=1e-4)
        np.testing.assert_allclose(keras.ops.softmax(compiled), keras.ops.softmax(expected), atol=1e-5)
    weights = ours.get_weights()
    with pytest.raises(ValueError):
        ours.set_weights(weights[1:])
    np.testing.assert_array_equal(copy.deepcopy(ours)(pixels), ours(pixels))


def test_constructor_equals_build_model_bit_for_bit(b0_pair, tmp_path):
    """The layers with the names of Keras change neither the variables nor a single bit of the output."""
    ours, _ = b0_pair
    lean = build_model("b0", input_shape=(64, 64, 3))
    assert [w.path for w in lean.weights] == [w.path for w in ours.weights]
    lean.set_weights(ours.get_weights())
    copy_normalization(ours, lean)
    pixels = images(2, 64, 64).astype("uint8")
    np.testing.assert_array_equal(ours(pixels), lean(pixels))
    ours.save(tmp_path / "ours.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "ours.keras")(pixels), lean(pixels))
    assert load_weights(lean, str(tmp_path / "ours.keras")).format == "a Keras model"
    np.testing.assert_allclose(lean(pixels), ours(pixels), atol=1e-4)


def drop_rates(model):
    return {layer.name: layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)}


def test_drop_rates_grow_with_the_block(pair):
    variant, ours, theirs = pair
    names = [layer.name for layer in ours.layers]
    blocks = [name.removesuffix("_project_conv") for name in names if name.endswith("_project_conv")]
    rates = {name: 0.2 * i / len(blocks) for i, name in enumerate(blocks) if f"{name}_add" in names}
    expected = {f"{name}_drop": rate for name, rate in rates.items() if rate}
    dropout = dict(b0=0.2, b1=0.2, b2=0.3, b3=0.3, b4=0.4, b5=0.4, b6=0.5, b7=0.5)
    dropout |= dict(zip(V2, (0.2, 0.2, 0.3, 0.3, 0.2, 0.3, 0.4), strict=True))
    assert drop_rates(ours) == pytest.approx(expected | {"top_dropout": dropout[variant]}, abs=1e-12)
    if variant in FAMILY:
        assert drop_rates(ours) == pytest.approx(drop_rates(theirs), abs=1e-12)
        return
    # Keras has a dropout of 0.2 before every classifier of V2, and divides by the number of blocks before scaling.
    unscaled = sum(stage.repeats for stage in load_variant(variant).stages)
    theirs = {name: rate * unscaled / len(blocks) for name, rate in drop_rates(theirs).items() if "top" not in name}
    assert expected == pytest.approx(theirs, abs=1e-12)


@pytest.mark.slow
def test_logits_of_b0_equal_keras_applications_at_its_resolution():
    assert_same_logits(*build_pair("b0", 224, 224))


@pytest.mark.parametrize("variant", [*FAMILY, "b8", "l2", *V2, *LITE])
def test_constructors_have_the_signature_of_keras_applications(variant):
    ours = getattr(efficientnet_tf, name_of(variant))
    reference = getattr(keras.applications, name_of(variant), keras.applications.EfficientNetB0)
    parameters = {p.name: (p.kind, p.default) for p in inspect.signature(ours).parameters.values()}
    expected = {p.name: (p.kind, p.default) for p in inspect.signature(reference).parameters.values()}
    if variant not in FAMILY + V2:  # Keras has neither the network nor weights for it
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        expected |= {"name": (kind, f"efficientnet{variant}"), "weights": (kind, None)}
    assert list(parameters.items()) == list(expected.items())
    assert ours.__name__ == name_of(variant)
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        ours(depth=2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"classes": 7, "pooling": "max", "name": "own"},
        {"include_top": False},
        {"include_top": False, "input_shape": (97, 64, 3)},
        {"include_top": False, "pooling": "avg"},
        {"include_top": False, "pooling": "max", "input_shape": (97, 64, 3)},
    ],
    ids=str,
)
def test_shapes_equal_keras_applications(arguments):
    with unallocated():
        ours, theirs = build_ours("b0", **arguments), build_keras("b0", **arguments)
        assert (ours.input_shape, ours.output_shape) == (theirs.input_shape, theirs.output_shape)
        assert ours.name == theirs.name
        assert ours.layers[-1].name == theirs.layers[-1].name
        assert isinstance(ours, keras.Model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a B0 of 10 classes, and the path of its weights."""
    path = str(tmp_path_factory.mktemp("saved") / "b0.weights.h5")
    model = build_model("b0", classes=10, input_shape=(32, 32, 3))
    model.save_weights(path)
    return model, path


def test_constructor_gives_probabilities_and_loads_weights(saved):
    expected, path = saved
    model = efficientnet_tf.EfficientNetB0(weights=path, input_shape=(32, 32, 3), classes=10)
    pixels = images(3, 32, 32)
    np.testing.assert_allclose(model(pixels), keras.ops.softmax(expected(pixels)), atol=1e-6)


def test_constructor_without_the_top_ignores_the_classifier(saved):
    expected, path = saved
    body = efficientnet_tf.EfficientNetB0(weights=path, input_shape=(32, 32, 3), include_top=False, pooling="avg")
    pooled = keras.Model(expected.input, expected.get_layer("avg_pool").output)
    np.testing.assert_array_equal(body(images(3, 32, 32)), pooled(images(3, 32, 32)))


# ------------------------------------------------------------------------------------------------------- helpers


def test_preprocess_input_changes_nothing():
    pixels = images(1, 8, 8)
    expected = keras.applications.efficientnet.preprocess_input(pixels)
    assert preprocess_input(pixels, data_format="channels_last") is pixels is expected
    assert preprocess_input(pixels, data_format="channels_first") is pixels


def test_decode_predictions_with_class_names():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], "float32")
    decoded = decode_predictions(keras.ops.convert_to_tensor(scores), class_names=("cat", "dog", "fox"))
    assert [[(key, name) for key, name, _ in row] for row in decoded] == [
        [("1", "dog"), ("2", "fox"), ("0", "cat")],
        [("0", "cat"), ("1", "dog"), ("2", "fox")],
    ]
    assert [score for _, _, score in decoded[0]] == pytest.approx([0.7, 0.2, 0.1])
    assert [len(row) for row in decode_predictions(scores, top=1, class_names=["a", "b", "c"])] == [1, 1]


def test_decode_predictions_of_imagenet(monkeypatch, tmp_path):
    (tmp_path / "index.json").write_text(str({str(i): [f"n{i}", f"name{i}"] for i in range(1000)}).replace("'", '"'))
    module = inspect.getmodule(keras.applications.imagenet_utils.decode_predictions)
    monkeypatch.setattr(module, "CLASS_INDEX", None)
    monkeypatch.setattr(module.file_utils, "get_file", lambda *args, **kwargs: str(tmp_path / "index.json"))
    scores = np.linspace(0, 1, 1000, dtype="float32")[None]
    assert decode_predictions(scores, top=1) == [[("n999", "name999", 1.0)]]
    assert decode_predictions(scores) == keras.applications.efficientnet.decode_predictions(scores)


def test_decode_predictions_without_a_download(monkeypatch):
    def fail(*arguments, **options):
        raise Exception("URL fetch failure")  # noqa: TRY002 - as Keras does

    module = inspect.getmodule(keras.applications.imagenet_utils.decode_predictions)
    monkeypatch.setattr(module, "CLASS_INDEX", None)
    monkeypatch.setattr(module.file_utils, "get_file", fail)
    with pytest.raises(UserError, match="cannot be downloaded: URL fetch failure. Pass class_names, or copy"):
        decode_predictions(np.zeros([1, 1000]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"preds": np.zeros([2, 10])},
            r"must have shape \[N, 1000\], received \[2, 10\]. Pass the model's class_names",
        ),
        ({"preds": np.zeros([3]), "class_names": ["a", "b", "c"]}, r"must have shape \[N, 3\], received \[3\]"),
        ({"preds": np.zeros([1, 2]), "class_names": ["a", "b"], "top": 0}, "top=0 must be at least 1"),
    ],
)
def test_decode_predictions_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        decode_predictions(**arguments)


# -------------------------------------------------------------------------------------------------------- errors


def test_imagenet_weights_without_a_download(monkeypatch):
    def fail(name, origin, cache_subdir, file_hash):
        raise Exception(f"URL fetch failure on {origin}")  # noqa: TRY002 - as Keras does

    monkeypatch.setattr(keras.utils, "get_file", fail)
    for arguments in ({}, {"weights": "imagenet"}):
        with pytest.raises(UserError, match=r"efficientnetb3.h5 cannot be downloaded: URL fetch failure on .*/eff"):
            efficientnet_tf.EfficientNetB3(**arguments)
    with pytest.raises(UserError, match=r"efficientnetb3_notop.h5 cannot be downloaded"):
        efficientnet_tf.EfficientNetB3(include_top=False)
    with pytest.raises(UserError, match=r"efficientnetb1_notop.h5 cannot be downloaded"):
        build_model("b1", 5, weights="imagenet", endpoints=[8])
    with pytest.raises(UserError, match="has 1000 classes, received classes=10"):
        efficientnet_tf.EfficientNetB3(classes=10)


@pytest.mark.parametrize("variant", ["b0", "v2-b0", *SLOW])
@pytest.mark.parametrize("include_top", [pytest.param(True, marks=pytest.mark.slow), False])
def test_imagenet_weights_are_fetched_as_keras_fetches_them(variant, include_top, monkeypatch):
    """The name, the address and the hash of the file are those that Keras's own constructor asks for."""

    def stop(name, origin, **options):
        raise FileNotFoundError((name, origin, options["cache_subdir"], options["file_hash"]))

    module = inspect.getmodule(inspect.unwrap(getattr(keras.applications, name_of(variant))))
    for holder in (keras.utils, module.file_utils):
        monkeypatch.setattr(holder, "get_file", stop)
    with pytest.raises(UserError) as ours:
        getattr(efficientnet_tf, name_of(variant))(include_top=include_top)
    with unallocated(), pytest.raises(FileNotFoundError) as theirs:
        getattr(keras.applications, name_of(variant))(include_top=include_top)
    assert str(theirs.value.args[0])[:200] in str(ours.value)


@pytest.mark.parametrize("build", [efficientnet_tf.EfficientNetB8, lambda weights: build_model("b8", weights=weights)])
def test_variants_without_imagenet_weights(build):
    with pytest.raises(UserError, match="not available for b8. Keras has released weights for b0, b1, .*, b7"):
        build(weights="imagenet")


def test_weights_of_another_network_are_refused(saved):
    _, path = saved
    with pytest.raises(UserError, match=r"predictions/kernel is \(1280, 10\) in the file but \(1280, 11\)"):
        efficientnet_tf.EfficientNetB0(weights=path, classes=11, input_shape=(8, 8, 3))
    with pytest.raises(UserError, match=r"missing\.weights\.h5 does not exist"):
        efficientnet_tf.EfficientNetB0(weights="missing.weights.h5", input_shape=(8, 8, 3))

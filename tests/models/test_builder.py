"""The builder against keras.applications, published numbers and its own promises: sizes, names, saving, fine-tuning."""

import inspect
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from unallocated import unallocated

import efficientnet_tf
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.models.builder import build_model

MEAN = 255 * np.array([0.485, 0.456, 0.406])
STD = 255 * np.array([0.229, 0.224, 0.225])
FAMILY = [f"b{i}" for i in range(8)]


def images(count, height, width, channels=3, seed=0):
    """Return float32 whole pixels [count, height, width, channels]: coarse patches that differ much, and noise."""
    rng = np.random.default_rng(seed)
    patches = rng.uniform(0, 255, (count, 4, 4, channels))
    coarse = np.kron(patches, np.ones((1, -(-height // 4), -(-width // 4), 1)))[:, :height, :width]
    return np.clip(coarse + rng.normal(0, 30, coarse.shape), 0, 255).round().astype("float32")


def randomize(model, height, width):
    """Give biases and batch norm random values, and statistics such that images of this size get logits apart."""
    rng = np.random.default_rng(0)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = norms[0].momentum
    for layer in norms:
        layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape) * (0.5 if "project" in layer.name else 1))
        layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
        layer.momentum = 0.0
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    classifier = model.get_layer("predictions")
    classifier.kernel.assign(rng.normal(0, 0.2, classifier.kernel.shape))
    model(images(4, height, width), training=True)
    for layer in norms:
        variance = layer.moving_variance.numpy()
        layer.moving_variance.assign((variance + variance.mean()) / 2)  # none is close to 0
        layer.momentum = momentum


def build_keras(variant, **arguments):
    return getattr(keras.applications, f"EfficientNet{variant.upper()}")(weights=None, **arguments)


def build_ours(variant, **arguments):
    return getattr(efficientnet_tf, f"EfficientNet{variant.upper()}")(weights=None, **arguments)


def weighted_layers(model):
    return {layer.name: layer for layer in model.layers if layer.weights and "normalization" not in layer.name}


@pytest.fixture(scope="module")
def b0():
    """Return a B0 of 10 classes for images of any size, with random weights; no test changes it."""
    keras.utils.set_random_seed(0)
    model = build_model("b0", classes=10, input_shape=(None, None, 3))
    randomize(model, 64, 64)
    return model


@pytest.fixture(scope="module")
def fresh_b0():
    """Return a B0 as it is initialised; no test changes it."""
    keras.utils.set_random_seed(1)
    return build_model("b0")


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
}


def count_parameters(model):
    return sum(math.prod(w.shape) for w in model.trainable_weights), model.count_params()


@pytest.mark.parametrize("variant", ["b8", "l2"])
def test_parameters_of_the_giants(variant):
    with unallocated():
        assert count_parameters(build_model(variant)) == PARAMETERS[variant]


def build_pair(variant, height, width):
    """Return our model and that of keras.applications, with the same random weights."""
    keras.backend.clear_session(free_memory=False)  # Keras numbers its unnamed layers from 0 again
    keras.utils.set_random_seed(0)
    arguments = {"input_shape": (height, width, 3), "classifier_activation": None}
    ours, theirs = build_ours(variant, **arguments), build_keras(variant, **arguments)
    randomize(ours, height, width)
    for name, layer in weighted_layers(ours).items():
        theirs.get_layer(name).set_weights(layer.get_weights())
    # Its graph divides by 255 first, so that mean and variance are those of pixels in [0, 1].
    normalization = theirs.get_layer("normalization")
    normalization.set_weights([MEAN / 255, (STD / 255) ** 2, np.array(0)])
    normalization.finalize_state()
    return ours, theirs


def assert_same_logits(ours, theirs):
    pixels = images(2, *ours.input_shape[1:3], seed=1)
    logits, expected = ours(pixels).numpy(), theirs(pixels).numpy()
    assert np.std(expected[0] - expected[1]) > 0.05, "the images make no difference: the test would see nothing"
    assert np.max(np.abs(logits - expected)) <= 1e-4


SLOW = [pytest.param(variant, marks=pytest.mark.slow) for variant in FAMILY[4:]]


# 64 and its halves are even down to 2, where "same" pads one side more; 97's (49, 25, 13, 7) are odd.
@pytest.fixture(scope="module", params=[*FAMILY[:4], *SLOW])
def pair(request):
    return request.param, *build_pair(request.param, 64, 97)


def test_parameters_are_those_of_the_reference(pair):
    variant, ours, _ = pair
    assert count_parameters(ours) == PARAMETERS[variant]


def test_logits_equal_keras_applications(pair):
    _, ours, theirs = pair
    assert_same_logits(ours, theirs)


def test_layers_are_those_of_keras_applications(pair):
    _, ours, theirs = pair
    assert ours.name == theirs.name
    expected = {name: [w.shape for w in layer.weights] for name, layer in weighted_layers(theirs).items()}
    assert {name: [w.shape for w in layer.weights] for name, layer in weighted_layers(ours).items()} == expected
    public = ("_add", "_drop", "_activation", "_excite", "_squeeze", "avg_pool", "top_dropout", "normalization")
    wanted = {layer.name for layer in theirs.layers if layer.name.endswith(public)}
    assert len(wanted) > 50
    assert wanted <= {layer.name for layer in ours.layers}


def drop_rates(model):
    return {layer.name: layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)}


def test_drop_rates_grow_with_the_block(pair):
    variant, ours, theirs = pair
    names = [layer.name for layer in ours.layers]
    blocks = [name.removesuffix("_project_conv") for name in names if name.endswith("_project_conv")]
    expected = {f"{name}_drop": 0.2 * i / len(blocks) for i, name in enumerate(blocks) if f"{name}_add" in names}
    dropout = dict(b0=0.2, b1=0.2, b2=0.3, b3=0.3, b4=0.4, b5=0.4, b6=0.5, b7=0.5)[variant]
    assert drop_rates(ours) == pytest.approx(expected | {"top_dropout": dropout}, abs=1e-12)
    assert drop_rates(ours) == pytest.approx(drop_rates(theirs), abs=1e-12)


def test_logits_of_b0_equal_keras_applications_at_its_resolution():
    assert_same_logits(*build_pair("b0", 224, 224))


@pytest.mark.parametrize("variant", FAMILY)
def test_constructors_have_the_signature_of_keras_applications(variant):
    name = f"EfficientNet{variant.upper()}"
    ours, theirs = getattr(efficientnet_tf, name), getattr(keras.applications, name)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert ours.__name__ == theirs.__name__
    assert inspect.getdoc(ours)


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


def test_constructor_gives_probabilities_and_loads_weights(b0, tmp_path):
    b0.save_weights(tmp_path / "b0.weights.h5")
    model = efficientnet_tf.EfficientNetB0(weights=str(tmp_path / "b0.weights.h5"), input_shape=(32, 32, 3), classes=10)
    pixels = images(3, 32, 32)
    np.testing.assert_allclose(model(pixels), keras.ops.softmax(b0(pixels)), atol=1e-6)


# --------------------------------------------------------------------------------------------- input and output


def test_normalization_is_inside(b0):
    pixels = images(1, 8, 8)
    normalized = b0.get_layer("normalization")(pixels)
    np.testing.assert_allclose(normalized, (pixels - MEAN) / STD, atol=1e-5)


def test_bytes_equal_floats(b0):
    pixels = images(2, 33, 40)
    np.testing.assert_array_equal(b0(pixels.astype("uint8")), b0(pixels))


def test_one_model_takes_images_of_any_size(b0):
    fixed = build_model("b0", classes=10, input_shape=(40, 65, 3))
    fixed.set_weights(b0.get_weights())
    pixels = images(2, 40, 65)
    np.testing.assert_allclose(b0(pixels), fixed(pixels), atol=1e-5)
    for height, width in [(1, 1), (32, 32), (77, 31)]:
        logits = b0(images(1, height, width))
        assert logits.shape == (1, 10)
        assert np.isfinite(logits).all()


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_any_number_of_channels(channels):
    model = build_model("b0", classes=3, input_shape=(32, 32, channels))
    pixels = images(2, 32, 32, channels)
    normalized = model.get_layer("normalization")(pixels)
    np.testing.assert_allclose(normalized, (pixels - MEAN.mean()) / STD.mean(), atol=1e-5)
    logits = model(pixels).numpy()
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()
    assert model.get_layer("stem_conv").kernel.shape == (3, 3, channels, 32)


def test_channels_argument_and_a_spec_of_own_channels():
    update = {"mean": (10.0, 20.0), "std": (2.0, 4.0), "resolution": 32}
    spec = load_variant("b0").model_copy(update=update)
    with unallocated():
        model = build_model(spec, channels=2)
        assert model.input_shape == (None, 32, 32, 2)
        normalized = model.get_layer("normalization")(np.array([12.0, 28.0], "float32"))
        assert normalized.numpy().tolist() == [1.0, 2.0]
        assert build_model("b0", channels=5).input_shape == (None, 224, 224, 5)


def test_builds_on_a_tensor(b0):
    image = keras.Input((None, None, 3))
    model = build_model("b0", classes=10, input_tensor=keras.ops.flip(image, axis=2))
    model.set_weights(b0.get_weights())
    pixels = images(1, 32, 32)
    np.testing.assert_allclose(model(pixels[:, :, ::-1]), b0(pixels), atol=1e-5)


def test_classifier_activation(b0):
    model = build_model("b0", classes=10, input_shape=(32, 32, 3), classifier_activation="sigmoid")
    model.set_weights(b0.get_weights())
    pixels = images(1, 32, 32)
    np.testing.assert_allclose(model(pixels), keras.ops.sigmoid(b0(pixels)), atol=1e-5)


def test_endpoints(b0):
    model = build_model("b0", input_shape=(65, 97, 3), endpoints=[2, 4, 8, 16, 32])
    for layer in model.layers:
        layer.set_weights(b0.get_layer(layer.name).get_weights() if layer.weights else [])
    pixels = images(1, 65, 97)
    features = model(pixels)
    assert {key: value.shape[1:] for key, value in features.items()} == {
        "stride2": (33, 49, 16),
        "stride4": (17, 25, 24),
        "stride8": (9, 13, 40),
        "stride16": (5, 7, 112),
        "stride32": (3, 4, 320),
    }
    last = ("block1a_project_bn", "block2b_add", "block3b_add", "block5c_add", "block7a_project_bn")
    inner = keras.Model(b0.input, [b0.get_layer(name).output for name in last])(pixels)
    for ours, expected in zip(features.values(), inner, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    with unallocated():
        assert list(build_model("b0", endpoints=[16]).output) == ["stride16"]


@pytest.fixture
def mixed_bfloat16():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(policy)


def test_mixed_bfloat16_has_float32_variables_and_logits(b0, mixed_bfloat16):
    model = build_model("b0", classes=10, input_shape=(None, None, 3))
    model.set_weights(b0.get_weights())
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert model.get_layer("normalization").compute_dtype == "float32"
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert model.get_layer("block6a_dwconv").compute_dtype == "bfloat16"
    pixels = images(4, 64, 64)
    logits, expected = model(pixels), b0(pixels)
    assert logits.dtype == "float32"
    assert model(pixels.astype("uint8")).dtype == "float32"
    error = np.abs(np.subtract(logits, expected))
    assert 0 < np.max(error) < 0.1 * np.std(expected)


# ------------------------------------------------------------------------------------------------ regularisation


def test_drop_connect_drops_whole_branches_of_single_images(b0):
    layer = b0.get_layer("block6d_drop")
    ones = np.ones((2000, 2, 2, 3), "float32")
    np.testing.assert_array_equal(layer(ones, training=False), ones)
    kept = np.asarray(layer(ones, training=True))
    assert np.ptp(kept, axis=(1, 2, 3)).max() == 0
    rate = 0.2 * 14 / 16
    assert np.unique(kept) == pytest.approx([0, 1 / (1 - rate)])
    assert np.mean(kept == 0) == pytest.approx(rate, abs=0.04)


def test_no_layer_where_nothing_is_dropped():
    spec = load_variant("b0").model_copy(update={"dropout": 0.0, "drop_connect": 0.0})
    with unallocated():
        assert not drop_rates(build_model(spec))


def test_training_is_random_and_evaluation_is_not(b0):
    clone = keras.models.clone_model(b0)  # training moves the statistics
    clone.set_weights(b0.get_weights())
    pixels = images(4, 32, 32)
    assert np.ptp([clone(pixels, training=True)[0, 0] for _ in range(2)]) > 0
    np.testing.assert_array_equal(b0(pixels), b0(pixels))


def test_batch_norm_constants_come_from_the_spec():
    spec = load_variant("b0").model_copy(update={"batch_norm_momentum": 0.7, "batch_norm_epsilon": 0.02})

    def constants(variant):
        layers = build_model(variant).layers
        norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
        return len(norms), {(layer.momentum, layer.epsilon) for layer in norms}

    with unallocated():
        assert constants("b0") == (49, {(0.99, 1e-3)})
        assert constants(spec) == (49, {(0.7, 0.02)})


# ------------------------------------------------------------------------------------------------ initial weights


def scores(model, kind, last_axis):
    """Return {name: kernel / sqrt(2 / (k * k * out))} of the convolutions of a kind."""
    layers = [layer for layer in model.layers if type(layer) is kind]
    return {
        layer.name: layer.kernel.numpy() / math.sqrt(2 / (layer.kernel.shape[0] ** 2 * last_axis(layer.kernel.shape)))
        for layer in layers
    }


@pytest.mark.parametrize(
    ("kind", "count", "out"),
    [(keras.layers.Conv2D, 65, lambda shape: shape[-1]), (keras.layers.DepthwiseConv2D, 16, lambda shape: 1)],
    ids=["conv", "depthwise"],
)
def test_convolutions_start_normal_and_not_truncated(fresh_b0, kind, count, out):
    kernels = scores(fresh_b0, kind, out)
    assert len(kernels) == count
    for name, kernel in kernels.items():
        assert abs(np.std(kernel) - 1) < 5 / math.sqrt(2 * kernel.size), name
        assert abs(np.mean(kernel)) < 5 / math.sqrt(kernel.size), name
    everything = np.abs(np.concatenate([kernel.ravel() for kernel in kernels.values()]))
    for bound in (2, 2.5, 3):  # a truncated normal has nothing beyond 2.27 of its standard deviations
        share = math.erfc(bound / math.sqrt(2))
        assert np.mean(everything > bound) == pytest.approx(share, abs=5 * math.sqrt(share / everything.size))


def test_classifier_starts_uniform_within_one_over_the_root_of_classes(fresh_b0):
    kernel, bias = fresh_b0.get_layer("predictions").get_weights()
    bound = 1 / math.sqrt(1000)
    assert 0.999 * bound < np.max(np.abs(kernel)) <= bound
    assert np.std(kernel) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert not bias.any()


def test_batch_norm_and_biases_start_neutral(fresh_b0):
    for layer in fresh_b0.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            assert (gamma == 1).all() and (variance == 1).all() and not beta.any() and not mean.any()
        elif layer.name.endswith(("se_reduce", "se_expand")):
            assert not layer.bias.numpy().any()
        else:
            assert layer.name == "predictions" or getattr(layer, "bias", None) is None


def test_no_two_kernels_start_alike(fresh_b0):
    starts = [layer.kernel.numpy().ravel()[:8].tobytes() for layer in fresh_b0.layers if hasattr(layer, "kernel")]
    assert len(set(starts)) == len(starts) == 82


def test_a_seed_decides_the_initial_weights():
    def stem(seed):
        keras.utils.set_random_seed(seed)
        return build_model(spec, input_shape=(8, 8, 3)).get_layer("stem_conv").kernel.numpy()

    spec = load_variant("b0").model_copy(update={"stages": load_variant("b0").stages[:1]})
    np.testing.assert_array_equal(stem(3), stem(3))
    assert (stem(3) != stem(4)).all()


# --------------------------------------------------------------------------------- save, load, clone, fine-tune


def run_python(source, *arguments, **environment):
    """Run a Python program in a fresh process, in which `blocked` names what must not be imported."""
    guard = (
        "import sys\n"
        "class Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in blocked:\n"
        "            raise ImportError(f'{name} is blocked')\n"
        "sys.meta_path.insert(0, Guard())\n"
    )
    command = [sys.executable, "-c", guard + source, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_saved_model_loads_where_this_package_is_not(b0, tmp_path):
    pixels = images(2, 64, 64)
    b0.save(tmp_path / "b0.keras")
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "logits.npy", b0(pixels))
    run_python(
        "blocked = {'efficientnet_tf'}\n"
        "import keras, numpy as np, pathlib\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "model = keras.models.load_model(folder / 'b0.keras')\n"
        "logits = model(np.load(folder / 'pixels.npy'))\n"
        "np.testing.assert_allclose(logits, np.load(folder / 'logits.npy'), atol=1e-6)\n",
        tmp_path,
    )


def test_runs_on_jax_without_tensorflow(b0, tmp_path):
    pixels = images(2, 64, 64)
    b0.save_weights(tmp_path / "b0.weights.h5")
    np.save(tmp_path / "pixels.npy", pixels)
    # Keras would compile an initialiser for every weight, for nothing.
    run_python(
        "blocked = {'tensorflow'}\n"
        "import keras, numpy as np, pathlib\n"
        "from efficientnet_tf import build_model\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with keras.StatelessScope(initialize_variables=False):\n"
        "    model = build_model('b0', classes=10, input_shape=(64, 64, 3))\n"
        "model.load_weights(folder / 'b0.weights.h5')\n"
        "logits = model.predict(np.load(folder / 'pixels.npy'), verbose=0)\n"
        "assert keras.backend.backend() == 'jax' and 'tensorflow' not in sys.modules\n"
        "np.save(folder / 'logits.npy', logits)\n",
        tmp_path,
        KERAS_BACKEND="jax",
        JAX_PLATFORMS="cpu",
    )
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), b0(pixels), atol=1e-4)


def test_clone_is_the_same_network_with_weights_of_its_own(b0):
    clone = keras.models.clone_model(b0)
    assert [layer.name for layer in clone.layers] == [layer.name for layer in b0.layers]
    assert not np.array_equal(clone.get_layer("stem_conv").kernel, b0.get_layer("stem_conv").kernel)
    clone.set_weights(b0.get_weights())
    pixels = images(2, 32, 48)
    np.testing.assert_allclose(clone(pixels), b0(pixels), atol=1e-6)


def test_fine_tuning_the_head_leaves_all_else_alone(b0):
    model = keras.models.clone_model(b0)
    model.set_weights(b0.get_weights())
    for layer in model.layers[:-1]:
        layer.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=True)
    model.train_on_batch(images(4, 32, 32), np.array([0, 1, 2, 3]))
    changed = {a.path for a, b in zip(model.weights, b0.weights, strict=True) if not np.array_equal(a, b)}
    assert changed == {"predictions/kernel", "predictions/bias"}


def test_a_step_of_training_changes_every_weight(b0):
    model = keras.models.clone_model(b0)
    model.set_weights(b0.get_weights())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=True)
    model.train_on_batch(images(2, 64, 64), np.array([0, 1]))
    same = {a.path for a, b in zip(model.weights, b0.weights, strict=True) if np.array_equal(a, b)}
    assert not same


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"variant": "b11"}, ["unknown variant 'b11'", "Allowed are b0, b1", "l2", "Did you mean 'b1'?"]),
        ({"variant": "none.yaml"}, ["'none.yaml' does not exist"]),
        ({"classes": 0}, ["classes must be an int >= 1, received 0"]),
        ({"classes": "10"}, ["classes must be an int >= 1, received '10'"]),
        ({"channels": 0}, ["channels must be an int >= 1, received 0"]),
        ({"pooling": "sum"}, ["pooling must be None, 'avg' or 'max', received 'sum'"]),
        ({"input_shape": (32, 32)}, ["input_shape must be (height, width, channels)", "received (32, 32)"]),
        ({"input_shape": (0, 32, 3)}, ["input_shape must be", "received (0, 32, 3)"]),
        ({"input_shape": (32, 32, None)}, ["input_shape must be", "received (32, 32, None)"]),
        ({"input_shape": 32}, ["input_shape must be", "received 32"]),
        ({"input_tensor": np.zeros((1, 8, 8, 3))}, ["input_tensor must be a Keras tensor, received ndarray"]),
        ({"endpoints": [4, 3]}, ["endpoints=[4, 3]", "allowed are strides out of [2, 4, 8, 16, 32]"]),
        ({"endpoints": []}, ["endpoints=[]", "allowed are strides out of"]),
        ({"endpoints": 8}, ["endpoints=8", "allowed are strides out of"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments(arguments, parts):
    with pytest.raises(UserError) as error:
        build_model(**arguments)
    for part in parts:
        assert part in str(error.value)


def test_imagenet_weights_that_cannot_be_had(monkeypatch):
    def fail(name, origin, cache_subdir, file_hash):
        raise Exception(f"URL fetch failure on {origin}")  # noqa: TRY002 - as Keras does

    monkeypatch.setattr(keras.utils, "get_file", fail)
    for arguments in ({}, {"weights": "imagenet"}):
        with pytest.raises(UserError, match=r"efficientnetb3.h5 cannot be had: URL fetch failure on .*/eff"):
            efficientnet_tf.EfficientNetB3(**arguments)
    with pytest.raises(UserError, match=r"efficientnetb3_notop.h5 cannot be had"):
        efficientnet_tf.EfficientNetB3(include_top=False)
    with pytest.raises(UserError, match="has 1000 classes, received classes=10"):
        efficientnet_tf.EfficientNetB3(classes=10)


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras's, before its error
def test_weights_of_another_network_are_refused(b0, tmp_path):
    b0.save_weights(tmp_path / "b0.weights.h5")
    with pytest.raises(ValueError):
        efficientnet_tf.EfficientNetB0(weights=str(tmp_path / "b0.weights.h5"), classes=11, input_shape=(8, 8, 3))
    with pytest.raises((OSError, ValueError), match="missing.weights.h5"):
        efficientnet_tf.EfficientNetB0(weights=str(tmp_path / "missing.weights.h5"), input_shape=(8, 8, 3))

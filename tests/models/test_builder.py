"""The network builder: inputs, outputs, initial weights, saving, cloning and fine-tuning."""

import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from random_networks import images, randomize
from unallocated import unallocated

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.models.builder import build_model

MEAN = 255 * np.array([0.485, 0.456, 0.406])
STD = 255 * np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def b0():
    """Return a B0 of 10 classes for images of any size, with random weights. Tests must not change it."""
    keras.utils.set_random_seed(0)
    model = build_model("b0", classes=10, input_shape=(None, None, 3))
    randomize(model, 64, 64)
    return model


@pytest.fixture(scope="module")
def fresh_b0():
    """Return a B0 with its initial weights. Tests must not change it."""
    keras.utils.set_random_seed(1)
    return build_model("b0")


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


def test_channels_argument_and_a_spec_for_two_channels():
    update = {"mean": (10.0, 20.0), "std": (2.0, 4.0), "resolution": 32}
    spec = load_variant("b0").model_copy(update=update)
    with unallocated():
        model = build_model(spec, channels=2)
        assert model.input_shape == (None, 32, 32, 2)
        normalized = model.get_layer("normalization")(np.array([[[[12.0, 28.0]]]], "float32"))
        assert normalized.numpy().ravel().tolist() == [1.0, 2.0]
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


# ------------------------------------------------------------------------------------------------ regularization


def test_drop_connect_drops_the_whole_branch_of_an_image(b0):
    layer = b0.get_layer("block6d_drop")
    ones = np.ones((2000, 2, 2, 3), "float32")
    np.testing.assert_array_equal(layer(ones, training=False), ones)
    kept = np.asarray(layer(ones, training=True))
    assert np.ptp(kept, axis=(1, 2, 3)).max() == 0
    rate = 0.2 * 14 / 16
    assert np.unique(kept) == pytest.approx([0, 1 / (1 - rate)])
    assert np.mean(kept == 0) == pytest.approx(rate, abs=0.04)


def test_no_dropout_layers_without_dropout():
    spec = load_variant("b0").model_copy(update={"dropout": 0.0, "drop_connect": 0.0})
    with unallocated():
        assert not any(isinstance(layer, keras.layers.Dropout) for layer in build_model(spec).layers)


def test_training_is_random_and_evaluation_is_not(b0):
    clone = keras.models.clone_model(b0)  # training changes the statistics
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
def test_convolutions_start_with_an_untruncated_normal(fresh_b0, kind, count, out):
    kernels = scores(fresh_b0, kind, out)
    assert len(kernels) == count
    for name, kernel in kernels.items():
        assert abs(np.std(kernel) - 1) < 5 / math.sqrt(2 * kernel.size), name
        assert abs(np.mean(kernel)) < 5 / math.sqrt(kernel.size), name
    everything = np.abs(np.concatenate([kernel.ravel() for kernel in kernels.values()]))
    for bound in (2, 2.5, 3):  # a truncated normal ends at 2.27 standard deviations
        share = math.erfc(bound / math.sqrt(2))
        assert np.mean(everything > bound) == pytest.approx(share, abs=5 * math.sqrt(share / everything.size))


def test_classifier_starts_uniform(fresh_b0):
    kernel, bias = fresh_b0.get_layer("predictions").get_weights()
    bound = 1 / math.sqrt(1000)
    assert 0.999 * bound < np.max(np.abs(kernel)) <= bound
    assert np.std(kernel) == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert not bias.any()


def test_classifier_of_few_classes_starts_near_a_guess(b0):
    initializer = b0.get_layer("predictions").kernel_initializer
    kernel = np.asarray(initializer((1280, 10)))
    bound = 1 / math.sqrt(1280)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("channels", [5, 7])
@pytest.mark.parametrize("side", [1, 3])
def test_square_images_of_many_channels_and_few_pixels(side, channels):
    model = build_model("tiny", 2, (side, side, channels), channels=channels)
    assert model.input_shape == (None, side, side, channels)


def test_batch_norm_and_biases_start_neutral(fresh_b0):
    for layer in fresh_b0.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            assert (gamma == 1).all() and (variance == 1).all() and not beta.any() and not mean.any()
        elif layer.name.endswith(("se_reduce", "se_expand")):
            assert not layer.bias.numpy().any()
        else:
            assert layer.name == "predictions" or getattr(layer, "bias", None) is None


def test_all_kernels_start_with_different_values(fresh_b0):
    starts = [layer.kernel.numpy().ravel()[:8].tobytes() for layer in fresh_b0.layers if hasattr(layer, "kernel")]
    assert len(set(starts)) == len(starts) == 82


def test_seed_determines_the_initial_weights():
    def stem(seed):
        keras.utils.set_random_seed(seed)
        return build_model(spec, input_shape=(8, 8, 3)).get_layer("stem_conv").kernel.numpy()

    spec = load_variant("b0").model_copy(update={"stages": load_variant("b0").stages[:1]})
    np.testing.assert_array_equal(stem(3), stem(3))
    assert (stem(3) != stem(4)).all()


# --------------------------------------------------------------------------------- save, load, clone, fine-tune


def run_python(source, *arguments, **environment):
    """Run a Python program in a new process. Its first line sets `blocked`, the packages that cannot be imported."""
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


@pytest.mark.slow
def test_saved_model_loads_without_this_package(b0, tmp_path):
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


@pytest.mark.slow
def test_runs_on_jax_without_tensorflow(b0, tmp_path):
    pixels = images(2, 64, 64)
    b0.save_weights(tmp_path / "b0.weights.h5")
    np.save(tmp_path / "pixels.npy", pixels)
    # Without values, because on JAX Keras would compile an initializer for every weight.
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


def test_clone_has_its_own_weights(b0):
    clone = keras.models.clone_model(b0)
    assert [layer.name for layer in clone.layers] == [layer.name for layer in b0.layers]
    assert not np.array_equal(clone.get_layer("stem_conv").kernel, b0.get_layer("stem_conv").kernel)
    clone.set_weights(b0.get_weights())
    pixels = images(2, 32, 48)
    np.testing.assert_allclose(clone(pixels), b0(pixels), atol=1e-6)


def test_fine_tuning_the_head_changes_nothing_else(b0):
    model = keras.models.clone_model(b0)
    model.set_weights(b0.get_weights())
    for layer in model.layers[:-1]:
        layer.trainable = False
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=True)
    model.train_on_batch(images(4, 32, 32), np.array([0, 1, 2, 3]))
    changed = {a.path for a, b in zip(model.weights, b0.weights, strict=True) if not np.array_equal(a, b)}
    assert changed == {"predictions/kernel", "predictions/bias"}


def test_training_step_changes_every_weight(b0):
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
        ({"input_shape": (3, 32, 32)}, ["must be (height, width, channels), because", "received (3, 32, 32)"]),
        ({"input_shape": (0, 32, 3)}, ["input_shape must be", "received (0, 32, 3)"]),
        ({"input_shape": (32, 32, None)}, ["input_shape must be", "received (32, 32, None)"]),
        ({"input_shape": 32}, ["input_shape must be", "received 32"]),
        ({"input_tensor": np.zeros((1, 8, 8, 3))}, ["input_tensor must be a Keras tensor, received ndarray"]),
        ({"endpoints": [4, 3]}, ["endpoints must be a list of strides out of [2, 4, 8, 16, 32], received [4, 3]"]),
        ({"endpoints": []}, ["endpoints must be a list of strides", "received []"]),
        ({"endpoints": 8}, ["endpoints must be a list of strides", "received 8"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments(arguments, parts):
    with pytest.raises(UserError) as error:
        build_model(**arguments)
    for part in parts:
        assert part in str(error.value)

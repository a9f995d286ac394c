"""Models that contain the network as one of their layers, and Keras's own methods for loading weights."""

import warnings
from pathlib import Path

import foreign
import keras
import numpy as np
import pytest
import tiny
from foreign import logits

from efficientnet_tf import EfficientNetB0, EfficientNetLite0, build_model, load_weights
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.models import builder
from efficientnet_tf.weights.convert import convert_weights

layers = keras.layers
TINY = str(Path(__file__).parents[1] / "tiny.yaml")
MEAN, STD = (0.1, 0.5, 0.9), (0.3, 0.1, 0.5)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)


def make_network(**options):
    """Return a tiny network that normalizes pixels like those of keras.applications, in layers with variables."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Normalization(name=f"normalization_{len(options)}9")(layers.Rescaling(1 / 255)(inputs))
    spec = load_variant(TINY).model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    model = builder.build_model(spec, input_tensor=x, **options)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.7, 1.3, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    foreign.set_normalization(model, MEAN, STD)
    return model


@pytest.fixture(scope="module")
def body():
    return make_network(include_top=False)


@pytest.fixture(scope="module")
def top():
    return make_network(classes=7)


@pytest.fixture(scope="module")
def ours():
    """Return a model that the tests share, because each of them loads all of it."""
    return build_model(TINY, 3, (32, 32, 3))


def sequential(body):
    return keras.Sequential([body, layers.GlobalAveragePooling2D(), layers.Dense(3)])


def functional(body):
    inputs = keras.Input((32, 32, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip()(inputs))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(body(x)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="answer")(x))


def two_levels(body):
    augment = keras.Sequential([layers.RandomFlip(), layers.RandomZoom(0.1)], name="augment")
    features = keras.Sequential([body, layers.GlobalAveragePooling2D()], name="features")
    return keras.Sequential([keras.Input((32, 32, 3)), augment, features, layers.Dropout(0.1), layers.Dense(3)])


def flat(body):
    x = layers.GlobalAveragePooling2D()(body.output)
    return keras.Model(body.input, layers.Dense(3, name="own_head")(x))


FORMATS = ["keras", "weights.h5", "h5"]


def save(model, folder, ending):
    path = str(folder / f"w.{ending}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that .h5 is legacy
        model.save_weights(path) if ending == "weights.h5" else model.save(path)
    return path


def probabilities(model, pixels):
    outputs = logits(model, pixels)
    return outputs if np.allclose(outputs.sum(axis=1), 1) else np.asarray(keras.ops.softmax(outputs))


@pytest.mark.parametrize("build", [sequential, functional, two_levels, flat])
@pytest.mark.parametrize("ending", FORMATS)
def test_the_network_inside_is_found_with_its_classifier(build, ending, body, ours, tmp_path, pixels):
    model = build(body)
    path = save(model, tmp_path, ending)
    summary = load_weights(ours, path)
    np.testing.assert_allclose(probabilities(ours, pixels), probabilities(model, pixels), atol=1e-5)
    np.testing.assert_allclose(summary.needs["model.mean"], [25.5, 127.5, 229.5], rtol=1e-5)
    head = [np.array(w) for w in ours.get_layer("predictions").weights]
    summary = load_weights(ours, path, reset_head=True)
    assert summary.unused == ("predictions/kernel", "predictions/bias")
    np.testing.assert_array_equal(ours.get_layer("predictions").kernel, head[0])


def flatten(body):
    return keras.Sequential([body, layers.Flatten(), layers.Dense(3)])


def max_pool(body):
    return keras.Sequential([body, layers.GlobalMaxPooling2D(), layers.Dense(3)])


def normalized_features(body):
    pooled = layers.BatchNormalization()
    return keras.Sequential([body, layers.GlobalAveragePooling2D(), pooled, layers.Dense(3)])


def two_dense(body):
    return keras.Sequential([body, layers.GlobalAveragePooling2D(), layers.Dense(5), layers.Dense(3)])


def relu(body):
    return keras.Sequential([body, layers.GlobalAveragePooling2D(), layers.Dense(3, activation="relu")])


HEADS = [(normalized_features, ending) for ending in FORMATS] + [(two_dense, ending) for ending in FORMATS]
HEADS += [(build, "keras") for build in (max_pool, relu, flatten)]


@pytest.mark.parametrize(("build", "ending"), HEADS)
def test_other_heads_need_reset_head(build, ending, body, ours, tmp_path):
    path = save(build(body), tmp_path, ending)
    with pytest.raises(UserError, match=r"nothing was loaded\. .*Use reset_head to keep the model's own classifier"):
        load_weights(ours, path)
    summary = load_weights(ours, path, reset_head=True)
    assert summary.variables == len(ours.weights) - 2 and len(summary.unused) >= 2


def test_classes_of_another_number_need_reset_head(body, tmp_path):
    model = build_model(TINY, 5, (32, 32, 3))
    path = save(sequential(body), tmp_path, "keras")
    with pytest.raises(UserError, match=r"(?s)Use reset_head .*\(32, 3\) in the file but \(32, 5\)"):
        load_weights(model, path)
    load_weights(model, path, reset_head=True)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_network_with_its_top_inside(ending, top, tmp_path, pixels):
    model = build_model(TINY, 7, (32, 32, 3))
    augmented = keras.Sequential([keras.Input((32, 32, 3)), layers.RandomFlip(), top])
    load_weights(model, save(augmented, tmp_path, ending))
    np.testing.assert_allclose(logits(model, pixels), logits(top, pixels), atol=1e-4)
    with_more = keras.Sequential([top, layers.Dense(3)])
    with pytest.raises(UserError, match="Use reset_head"):
        load_weights(model, save(with_more, tmp_path, ending))


@pytest.mark.parametrize("ending", FORMATS)
def test_two_networks_are_named(ending, body, ours, tmp_path):
    other = keras.models.clone_model(body)
    other.name = "efficientnetb0_1"
    inputs = keras.Input((32, 32, 3))
    pooled = [layers.GlobalAveragePooling2D()(network(inputs)) for network in (body, other)]
    model = keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(pooled)))
    with pytest.raises(UserError, match=r"it contains 2 EfficientNets, \w+ and \w+\. Save the one to use on its own"):
        load_weights(ours, save(model, tmp_path, ending))


@pytest.mark.parametrize("ending", FORMATS)
def test_other_networks_are_refused(ending, ours, tmp_path):
    mobile = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Conv2D(4, 3, name="Conv1"), layers.DepthwiseConv2D(3)], name="mobilenet"
    )
    # A .weights.h5 file does not record the names of models.
    found = r"\(.*Conv1, " if ending == "weights.h5" else "mobilenet"
    with pytest.raises(UserError, match=rf"it contains .*{found}.*but no layer stem_conv, .* Choose a file"):
        load_weights(ours, save(sequential(mobile), tmp_path, ending))


def before(body, *first):
    return keras.Sequential([keras.Input((32, 32, 3)), *first, body, layers.GlobalAveragePooling2D(), layers.Dense(3)])


@pytest.mark.parametrize("ending", FORMATS)
def test_layers_that_change_the_pixels_are_refused(ending, body, ours, tmp_path):
    for first in (layers.Conv2D(3, 1), layers.Normalization(), layers.BatchNormalization()):
        with pytest.raises(
            UserError, match="changes the pixels before|neither a part of the network|another one|twice"
        ):
            load_weights(ours, save(before(body, first), tmp_path, ending), reset_head=True)


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_rescaling_before_the_network_is_a_part_of_the_normalization(ending, body, ours, tmp_path, pixels):
    model = before(body, layers.Rescaling(1 / 127.5, offset=-1.0))
    load_weights(ours, save(model, tmp_path, ending))
    np.testing.assert_allclose(logits(ours, pixels), logits(model, pixels), atol=1e-4)


def test_a_rescaling_that_the_file_does_not_record_is_refused(body, ours, tmp_path):
    for rescale in (layers.Rescaling(1 / 127.5), layers.Normalization(mean=[1.0] * 3, variance=[2.0] * 3)):
        path = save(before(body, rescale), tmp_path, "weights.h5")
        message = (
            f"its layer {rescale.name} changes the pixels outside the network by numbers that such a file does not"
        )
        with pytest.raises(UserError, match=message):
            load_weights(ours, path)


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_network_that_does_not_normalize_pixels_is_noted(ending, tmp_path):
    spec = load_variant(TINY).model_copy(update={"mean": (0.0,), "std": (1.0,)})
    network = builder.build_model(spec, include_top=False, input_tensor=keras.Input((32, 32, 3)))
    inputs, start = keras.Input((32, 32, 3)), network.get_layer("stem_conv")
    rest = keras.Model(start.input, network.output)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(rest(inputs))))
    target = build_model(TINY, 3, (32, 32, 3))
    summary = load_weights(target, save(model, tmp_path, ending))
    assert "the file's model does not normalize pixels, so the normalization is that of the variant" in summary.notes
    assert "model.mean" not in summary.needs


def test_a_network_of_this_package_inside(ours, tmp_path, pixels):
    network = build_model(TINY, input_shape=(32, 32, 3), include_top=False)
    model = sequential(network)
    load_weights(ours, save(model, tmp_path, "keras"))
    np.testing.assert_allclose(logits(ours, pixels), logits(model, pixels), atol=1e-5)


def rescaled(body):
    """Return a model as a tutorial makes it, with the network as one layer after augmentation and a rescaling."""
    inputs = keras.Input((64, 64, 3))
    x = layers.Rescaling(0.5)(layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs)))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(body(x, training=False)))
    return keras.Model(inputs, layers.Dense(3)(x))


BACKBONES = {
    "v2-b0": keras.applications.EfficientNetV2B0,
    "v2-s": keras.applications.EfficientNetV2S,
    "lite0": EfficientNetLite0,
    "b0": keras.applications.EfficientNetB0,
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b0", "lite0", "v2-b0", pytest.param("v2-s", marks=pytest.mark.nightly)])
def test_networks_of_all_families_inside(variant, tmp_path):
    network = BACKBONES[variant](weights=None, include_top=False, input_shape=(64, 64, 3))
    tiny.randomize(network)
    target = build_model(variant, 3, (64, 64, 3))
    images = np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    for build, ending in [(sequential, "weights.h5"), (sequential, "keras"), (rescaled, "keras"), (rescaled, "h5")]:
        model = build(network)
        assert load_weights(target, save(model, tmp_path, ending)).variables == len(target.weights)
        expected = logits(model, images)
        np.testing.assert_allclose(logits(target, images), expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_conversion_of_a_nested_model(body, tmp_path, pixels):
    model = sequential(body)
    path = save(model, tmp_path, "weights.h5")
    convert_weights(TINY, path, str(tmp_path / "out.keras"), overrides=["data.image_size=32"])
    converted = keras.models.load_model(tmp_path / "out.keras")
    np.testing.assert_allclose(logits(converted, pixels), logits(model, pixels), atol=1e-4)
    convert_weights(TINY, path, str(tmp_path / "out5.weights.h5"), classes=5, reset_head=True)
    with pytest.raises(UserError, match="Pass classes=N and reset_head"):
        convert_weights(TINY, save(two_dense(body), tmp_path, "keras"), str(tmp_path / "x.keras"))


# ---------------------------------------------------------------------------------- Keras's own load_weights


@pytest.mark.parametrize("ending", FORMATS)
def test_keras_files_through_the_method_give_equal_outputs(ending, top, tmp_path, pixels):
    model, path = build_model(TINY, 7, (32, 32, 3)), save(top, tmp_path, ending)
    model.predict(pixels, verbose=0)  # compiled with the variant's normalization
    model.load_weights(path)
    np.testing.assert_allclose(logits(model, pixels), logits(top, pixels), atol=1e-4)
    np.testing.assert_allclose(model.predict(pixels, verbose=0), logits(top, pixels), atol=1e-4)
    if ending == "weights.h5":
        model = build_model(TINY, 7, (32, 32, 3))
        model.load_weights(path, skip_mismatch=True)
        np.testing.assert_allclose(logits(model, pixels), logits(top, pixels), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_real_keras_files_through_the_method_give_equal_outputs(ending, tmp_path):
    reference = foreign.make_keras_model("b0", mean=MEAN, std=STD)
    options = {"weights": None, "classes": 7, "input_shape": (64, 64, 3), "classifier_activation": None}
    model, path = EfficientNetB0(**options), save(reference, tmp_path, ending)
    model.load_weights(path)
    images = np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(logits(model, images), logits(reference, images), atol=1e-4)
    if ending == "h5":
        model = EfficientNetB0(**options)
        with pytest.raises(UserError, match="changes the pixels before the network"):
            load_weights(model, save(keras.Sequential([layers.Conv2D(3, 1), reference]), tmp_path, "keras"))
    for copy in (keras.models.clone_model(model), keras.Sequential([keras.Input((64, 64, 3)), model])):
        with pytest.raises((ValueError, UserWarning)):  # Keras warns if it finds nothing for a layer of the model.
            copy.load_weights(path)


def test_copies_refuse_the_variables_that_they_have_no_place_for(tmp_path):
    """Clones and reloaded models have only Keras's own methods, which must not load a part silently."""
    model = build_model(TINY, 7, (32, 32, 3))
    original = _like_keras(model)
    model.save(tmp_path / "copy.keras")
    copies = [keras.models.clone_model(model), keras.models.load_model(tmp_path / "copy.keras")]
    for ending in FORMATS:
        path = save(original, tmp_path, ending)
        for copy in copies:
            with pytest.raises(
                ValueError, match=r"expected 0 variables, but received 3|expected \d+ layers, found \d+"
            ):
                copy.load_weights(path)
            with pytest.raises(ValueError, match="weight list of length"):
                copy.set_weights(original.get_weights())
    with pytest.raises(ValueError, match="expected 0 variables, but received 3"):
        wrapped = keras.Sequential([keras.Input((32, 32, 3)), copies[0]])
        wrapped.load_weights(save(keras.Sequential([keras.Input((32, 32, 3)), original]), tmp_path, "weights.h5"))
    load_weights(copies[1], path)  # the function fits every copy


def _like_keras(model):
    """Return a clone of a model whose normalization has variables, as that of keras.applications."""

    def clone(layer):
        if layer.name == "normalization":
            return layers.Normalization(name="normalization")
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone)


def test_own_weights_carry_the_normalization_epsilon_and_padding(top, tmp_path, pixels):
    source, target = build_model(TINY, 7, (32, 32, 3)), build_model(TINY, 7, (32, 32, 3))
    source.load_weights(save(top, tmp_path, "keras"))
    source.save_weights(tmp_path / "own.weights.h5")
    target.load_weights(tmp_path / "own.weights.h5")
    np.testing.assert_allclose(logits(target, pixels), logits(top, pixels), atol=1e-4)
    load_weights(build_model(TINY, 7, (32, 32, 3)), str(tmp_path / "own.weights.h5"))
    for update in ({"padding": "symmetric"}, {"batch_norm_epsilon": 1e-5}):
        other = build_model(load_variant(TINY).model_copy(update=update), 7, (32, 32, 3))
        for path in ("own.weights.h5", "w.keras"):
            with pytest.raises(UserError, match="these weights give the right predictions only with"):
                other.load_weights(tmp_path / path)


def test_the_state_of_an_optimizer_is_restored(tmp_path, pixels):
    models = build_model(TINY, 7, (32, 32, 3)), build_model(TINY, 7, (32, 32, 3))
    for model in models:
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
        model.optimizer.build(model.trainable_variables)
    models[0].optimizer.iterations.assign(7)
    models[0].save_weights(tmp_path / "w.weights.h5")
    models[1].load_weights(tmp_path / "w.weights.h5")
    assert int(models[1].optimizer.iterations) == 7
    np.testing.assert_array_equal(logits(models[0], pixels), logits(models[1], pixels))

"""Networks whose batch norm is part of the convolutions compute what the networks compute."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.load import load_variant
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.folding import Inference, fold_batch_norm


def make_images(size, count=4):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3)).astype(np.float32)


def trace(classify, size):
    """Return a graph of a function of images, and whether it has operations for batch norm."""
    specification = tf.TensorSpec([None, size, size, 3], tf.float32)
    function = tf.function(classify, autograph=False).get_concrete_function(specification)
    return function, any(operation.type == "Rsqrt" for operation in function.graph.get_operations())


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        (tiny.VARIANT, 32),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("resnet50", 32), ("mobilenetv1", 33), ("symmetric", 33), ("tiny", 33), ("lite0", 32))
        ),
    ],
)
def test_both_folded_networks_compute_the_same_function(variant, size):
    spec = load_variant(tiny.VARIANT if variant == "symmetric" else variant)
    if variant == "symmetric":
        spec = spec.model_copy(update={"padding": "symmetric"})
    model = tiny.randomize(build_model(spec, 10, (size, size, 3)))
    images = make_images(size)
    expected = model.predict(images, verbose=0)
    folded = fold_batch_norm(model)
    kinds = {type(layer) for layer in folded.layers}
    assert not kinds & {keras.layers.BatchNormalization, keras.layers.Dropout}
    assert {layer.name for layer in folded.layers} < {layer.name for layer in model.layers}
    limit = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(folded.predict(images, verbose=0), expected, atol=limit)
    classify, has_batch_norm = trace(Inference(model, "CPU"), size)
    assert not has_batch_norm
    np.testing.assert_allclose(classify(images), expected, atol=limit)
    np.testing.assert_array_equal(model.predict(images, verbose=0), expected)  # the original is unchanged


@pytest.fixture(scope="module")
def model():
    return tiny.randomize(build_model(tiny.VARIANT, 10, (32, 32, 3)))


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_inference_follows_the_variables_and_can_read_others(model, device):
    images, inference = make_images(32), Inference(model, device)
    before, has_batch_norm = trace(inference, 32)
    assert has_batch_norm == (device == "GPU")
    other = tiny.randomize(build_model(tiny.VARIANT, 10, (32, 32, 3)), seed=1)
    pairs = zip(model.variables, other.variables, strict=True)
    with_values, _ = trace(inference.with_values({id(own): foreign for own, foreign in pairs}), 32)
    expected, limit = other.predict(images, verbose=0), 1e-4
    np.testing.assert_allclose(with_values(images), expected, atol=limit)
    np.testing.assert_allclose(before(images), model.predict(images, verbose=0), atol=limit)
    weights = model.get_weights()
    try:
        model.set_weights(other.get_weights())
        np.testing.assert_allclose(before(images), expected, atol=limit)
    finally:
        model.set_weights(weights)


def test_other_graphs_are_computed_layer_by_layer(model):
    image = keras.Input([32, 32, 3])
    nested = keras.Model(image, model(image))
    conv = keras.layers.Conv2D(3, 3, padding="same")
    norm = keras.layers.BatchNormalization()
    twice = keras.Model(image, norm(conv(norm(conv(image)))))
    images = make_images(32)
    for other in (nested, twice):
        np.testing.assert_allclose(
            Inference(other, "CPU")(images), other.predict(images, verbose=0), rtol=1e-5, atol=1e-4
        )


def test_a_convolution_that_another_layer_reads_keeps_its_batch_norm():
    image = keras.Input([32, 32, 3], name="image")
    conv = keras.layers.Conv2D(3, 3, padding="same", name="conv")(image)
    both = keras.layers.Add(name="both")([conv, keras.layers.BatchNormalization(name="norm")(conv)])
    model = tiny.randomize(keras.Model(image, both))
    images = make_images(32)
    expected = model.predict(images, verbose=0)
    for other in (fold_batch_norm(model), Inference(model, "CPU")):
        np.testing.assert_allclose(other(images), expected, rtol=1e-4, atol=1e-3)


def test_half_precision_is_computed_layer_by_layer():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = build_model(tiny.VARIANT, 10, (32, 32, 3))
    finally:
        keras.config.set_dtype_policy("float32")
    assert trace(Inference(half, "CPU"), 32)[1]

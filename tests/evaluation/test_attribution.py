"""Class activation maps and Grad-CAM, compared with theory, numpy and finite differences."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf import build_model
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluation.attribution import class_activation_map, grad_cam

SIZE = 64


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return tiny.randomize(build_model(tiny.VARIANT, classes=4, input_shape=(None, None, 3)))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(1)
    smooth = tf.image.resize(rng.uniform(0, 255, (3, 9, 9, 3)), [SIZE, SIZE], "bicubic")
    return np.uint8(np.clip(smooth, 0, 255))


def compute_layer(model, layer, images):
    """Return the output of a layer."""
    return keras.Model(model.input, model.get_layer(layer).output)(images, training=False).numpy()


# ------------------------------------------------------------------------------------------------ the maps


@pytest.mark.parametrize("classes", [None, 2, [3, 0, 1]])
def test_mean_of_the_map_plus_bias_is_the_logit(model, images, classes):
    maps = class_activation_map(model, images, classes)
    logits = model(images, training=False).numpy()
    chosen = logits.argmax(axis=1) if classes is None else np.broadcast_to(classes, 3)
    features, (kernel, bias) = (
        compute_layer(model, "top_activation", images),
        model.get_layer("predictions").get_weights(),
    )
    assert maps.dtype == np.float32 and maps.shape == (3, SIZE // 8, SIZE // 8)
    for one, feature, logit, label in zip(maps, features, logits, chosen, strict=True):
        np.testing.assert_allclose(one, feature @ kernel[:, label], rtol=1e-4, atol=1e-5)
        assert one.mean(dtype=np.float64) + bias[label] == pytest.approx(logit[label], rel=1e-5, abs=1e-5)


def test_grad_cam_of_the_last_features_is_the_positive_part_of_the_map(model, images):
    """The gradient of a linear function of the mean is kernel / positions at every position, and so is its mean."""
    for label in range(4):
        expected = np.maximum(class_activation_map(model, images, label), 0) / (SIZE // 8) ** 2
        received = grad_cam(model, images, classes=label)
        assert received.dtype == np.float32 and received.shape == (3, SIZE // 8, SIZE // 8)
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-6)
    assert max(grad_cam(model, images, classes=label).max() for label in range(4)) > 0.01


def test_grad_cam_of_an_inner_layer_agrees_with_finite_differences(model, images):
    """The mean gradient of a channel is the slope of the logit when the whole channel is raised, per position."""
    layer, label, step = "block2b_add", 3, 0.02
    features = compute_layer(model, layer, images)
    rest = keras.Model(model.get_layer(layer).output, model.output)
    raised = step * np.eye(features.shape[-1], dtype=np.float32)

    def logits(shift):
        return rest(features + shift, training=False).numpy()[:, label]

    slopes = np.stack([(logits(shift) - logits(-shift)) / (2 * step) for shift in raised], axis=1)
    expected = np.maximum(np.einsum("bhwc,bc->bhw", features, slopes / np.prod(features.shape[1:3])), 0)
    received = grad_cam(model, images, layer, label)
    assert received.shape == features.shape[:3] and received.max() > 0
    np.testing.assert_allclose(received, expected, atol=0.01 * expected.max())


def test_grad_cam_within_a_residual_branch(model, images):
    """A sum passes the same gradient to both of its terms, so the map of the branch differs only by its features."""
    with tf.GradientTape() as tape:
        added = tf.constant(compute_layer(model, "block3b_add", images))
        tape.watch(added)
        logits = keras.Model(model.get_layer("block3b_add").output, model.output)(added, training=False)
        score = logits[:, 0]
    weights = tf.reduce_mean(tape.gradient(score, added), axis=[1, 2]).numpy()
    expected = np.maximum(np.einsum("bhwc,bc->bhw", compute_layer(model, "block3b_project_bn", images), weights), 0)
    received = grad_cam(model, images, "block3b_project_bn", 0)
    np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_classifier_with_softmax_is_explained_by_its_logits(model, images):
    copy = build_model(tiny.VARIANT, classes=4, input_shape=(None, None, 3), classifier_activation="softmax")
    copy.set_weights(model.get_weights())
    copy.trainable = False  # gradients must flow nevertheless
    for function in (class_activation_map, grad_cam):
        np.testing.assert_allclose(function(copy, images), function(model, images), rtol=1e-5, atol=1e-6)


def test_maps_peak_where_the_evidence_is():
    """One class is noise with a striped patch, the other only noise. The classifier is fitted by least squares."""
    keras.utils.set_random_seed(0)
    model = build_model(tiny.VARIANT, classes=2, input_shape=(SIZE, SIZE, 3))
    rng, half = np.random.default_rng(0), SIZE // 2
    stripes = 255.0 * (np.arange(20) // 2 % 2)[:, None, None]

    def make_image(quadrant):
        image = rng.normal(128, 20, (SIZE, SIZE, 3))
        if quadrant is not None:
            y, x = half * (quadrant // 2) + rng.integers(4, 9), half * (quadrant % 2) + rng.integers(4, 9)
            image[y : y + 20, x : x + 20] = stripes
        return image

    quadrants = [0, 1, 2, 3] * 16 + [None] * 64
    target = np.array([-1 if q is None else 1 for q in quadrants])
    pooled = compute_layer(model, "avg_pool", np.stack([make_image(q) for q in quadrants]))
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0)
    scaled = (pooled - mean) / deviation
    weights = np.linalg.solve(scaled.T @ scaled + 300 * np.eye(len(mean)), scaled.T @ target) / deviation
    model.get_layer("predictions").set_weights([np.outer(weights, [-1, 1]), np.multiply(mean @ weights, [1, -1])])
    tested = np.stack([make_image(q) for q in range(4)])
    assert (model(tested, training=False).numpy().argmax(axis=1) == 1).all()
    for maps in (
        class_activation_map(model, tested),
        *(grad_cam(model, tested, layer) for layer in ("block3b_add", "block2b_add")),
    ):
        for quadrant, one in enumerate(maps):
            y, x = np.unravel_index(one.argmax(), one.shape)
            assert (2 * y // len(one), 2 * x // len(one)) == divmod(quadrant, 2)


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("blok2b_add",), "unknown layer=blok2b_add. Similar names are block2b_add"),
        (("zzz",), "unknown layer=zzz. Similar names are block3b_drop, block3b_add, top_conv, top_bn, top_activation."),
        (("avg_pool",), "layer=avg_pool has no height and width, its output is [32]. Use Grad-CAM at an earlier layer"),
        (("block2b_se_reduce",), "layer=block2b_se_reduce has no height and width, its output is [1, 1, 4]"),
        (("top_conv", 4), "classes=4 is out of range. The model has the classes 0 to 3."),
        (("top_conv", [0, -1, 0]), "classes=[0, -1, 0] is out of range. The model has the classes 0 to 3."),
        (("top_conv", [0, 1]), "classes=[0, 1] is neither an integer nor a sequence of 3 integers"),
        (("top\x1b[31m",), "unknown layer=top\\x1b[31m. Similar names are"),
        (("top_conv", [[0], [0, 1], 2]), "classes=[[0], [0, 1], 2] is neither an integer nor a sequence"),
        (("top_conv", 10**30), f"classes={10**30} is neither an integer"),
        (("top_conv", "temple"), "classes='temple' is neither an integer nor a sequence of 3 integers"),
    ],
)
def test_invalid_arguments(model, images, arguments, part):
    with pytest.raises(UserError, match=re.escape(part)):
        grad_cam(model, images, *arguments)


def test_maps_of_one_pixel_are_refused(model, images):
    with pytest.raises(UserError, match=r"the input of 'avg_pool' has no height and width, its output is \[1, 1, 32\]"):
        class_activation_map(model, images[:, :8, :8])
    with pytest.raises(UserError, match="layer=top_conv has no height and width"):
        grad_cam(model, images[:, :8, :8], "top_conv")


def test_models_with_another_head(images):
    without = build_model(tiny.VARIANT, include_top=False, input_shape=(SIZE, SIZE, 3))
    for function in (class_activation_map, grad_cam):
        with pytest.raises(UserError, match="has no classifier. It needs a dense layer named 'predictions'"):
            function(without, images)
    hidden = keras.layers.Dense(8, "relu")(keras.layers.GlobalAveragePooling2D(name="avg_pool")(without.output))
    for features in (hidden, keras.layers.GlobalMaxPooling2D(name="max_pool")(without.output)):
        other = keras.Model(without.inputs, keras.layers.Dense(3, name="predictions")(features))
        with pytest.raises(UserError, match="has no layer 'avg_pool' in front of 'predictions'. Use Grad-CAM instead."):
            class_activation_map(other, images)
        assert grad_cam(other, images).shape == (3, SIZE // 8, SIZE // 8)

"""What happens to the weights of a network before it is quantized to int8."""

import keras
import numpy as np
import pytest
from keras import layers

from efficientnet_tf.export import bias_correction
from efficientnet_tf.export.bias_correction import correct_biases
from efficientnet_tf.export.equalization import LARGEST_SCALE, equalize_channels
from efficientnet_tf.export.int8_network import make_int8_network, measure_limits
from efficientnet_tf.export.quantization import kernel_step, list_kernel_layers
from efficientnet_tf.export.rounding import round_weights


@pytest.fixture
def images():
    """Images whose pixels are far from zero and vary together, as those of photographs do."""
    rng = np.random.default_rng(0)
    return [rng.uniform(50, 200) + rng.normal(0, 3, (1, 12, 12, 3)).astype("float32") for _ in range(20)]


@pytest.fixture
def network(images):
    """Every kind of kernel layer, with a residual connection, and channels of very different ranges."""
    x = inputs = keras.Input((12, 12, 3))
    x = layers.Rescaling([1 / 128, 1 / 64, 1 / 100], [-0.5, -1, -0.7], name="normalization")(x)
    x = narrow = layers.Conv2D(8, 3, 2, "same", name="narrow")(x)
    x = layers.Activation("relu6")(layers.Conv2D(16, 1, name="expand")(x))
    x = layers.Activation("relu6")(layers.DepthwiseConv2D(5, padding="same", name="depthwise")(x))
    x = layers.Add(name="sum")([layers.Conv2D(8, 1, name="project")(x), narrow])
    x = layers.GlobalAveragePooling2D()(layers.Activation("swish")(layers.Conv2D(32, 1, name="top")(x)))
    model = keras.Model(inputs, layers.Dense(5, name="logits")(x))
    rng = np.random.default_rng(1)
    for name in list_kernel_layers(model):
        layer = model.get_layer(name)
        shape = layer.kernel.shape
        layer.kernel.assign(rng.normal(0, 1.5 / np.sqrt(np.prod(shape[:2])), shape))
        layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))
    for name in ("narrow", "project"):  # the writers of the residual tensors
        for variable in model.get_layer(name).weights:
            variable.assign(variable * np.geomspace(0.05, 1, 8))
    return model


def compute(model, images):
    outputs = model(np.concatenate(images))  # not `predict`, whose graph holds the old normalization
    return [part.numpy() for part in outputs] if isinstance(outputs, list) else outputs.numpy()


def test_rounding_changes_outputs_less_than_rounding_each_weight(network, images):
    expected, plain = compute(network, images), keras.models.clone_model(network)
    plain.set_weights(network.get_weights())
    for layer in map(plain.get_layer, list_kernel_layers(plain)):
        step = kernel_step(layer)
        layer.kernel.assign(np.round(layer.kernel / step) * step)
    round_weights(network, images)
    ours, theirs = (np.abs(compute(model, images) - expected).mean() for model in (network, plain))
    assert ours < 0.7 * theirs


def test_rounded_weights_are_those_that_a_quantizer_finds_again(network, images):
    steps = {name: kernel_step(network.get_layer(name)) for name in list_kernel_layers(network)}
    round_weights(network, images)
    for name, step in steps.items():
        layer = network.get_layer(name)
        np.testing.assert_allclose(kernel_step(layer), step, rtol=1e-6, err_msg=name)
        levels = layer.kernel.numpy() / step
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-3, err_msg=name)


def test_layers_in_float_keep_their_weights(network, images):
    before = [v.numpy() for v in network.get_layer("depthwise").weights]
    round_weights(network, images, keep_float=["depthwise"])
    for old, new in zip(before, network.get_layer("depthwise").weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_equalized_channels_use_the_same_range_and_the_network_computes_the_same(network, images):
    expected = compute(network, images)
    residual = [network.get_layer(name).output for name in ("narrow", "project", "sum")]
    narrow = keras.Model(network.input, residual)

    def ranges():
        return np.max([np.abs(part).max(axis=(0, 1, 2)) for part in compute(narrow, images)], axis=0)

    before = ranges()
    assert before.max() > 4 * before.min()
    top = network.get_layer("top").kernel.numpy()
    depthwise = network.get_layer("depthwise").kernel.numpy()
    equalize_channels(network, images)
    np.testing.assert_allclose(network.get_layer("normalization").offset, [-64, -64, -70])
    np.testing.assert_allclose(ranges(), before.max(), rtol=1e-3)
    np.testing.assert_allclose(compute(network, images), expected, rtol=1e-3, atol=1e-3)
    assert not np.allclose(network.get_layer("top").kernel, top)
    np.testing.assert_array_equal(network.get_layer("depthwise").kernel, depthwise)  # reads and writes ReLU6
    assert before.max() / before.min() < LARGEST_SCALE


def test_a_channel_of_zeros_stays_finite(network, images):
    for name in ("narrow", "project"):
        layer = network.get_layer(name)
        layer.kernel.assign(layer.kernel * ([0] + [1] * 7))
        layer.bias.assign(layer.bias * ([0] + [1] * 7))
    expected = compute(network, images)
    equalize_channels(network, images)
    round_weights(network, images)
    assert all(np.isfinite(weight).all() for weight in network.get_weights())
    np.testing.assert_allclose(compute(network, images), expected, atol=0.2 * np.abs(expected).max())


def test_corrected_biases_keep_the_mean_of_every_layer(network, images):
    """The limits of one tensor are so narrow that they clip, which shifts all tensors after it."""
    limits = measure_limits(network, images) | {"expand_activation": (0.0, 1.0), "activation": (0.0, 1.0)}
    rounded, batch = make_int8_network(network, limits, rounds_dense=True), np.concatenate(images[:16])
    before = [np.abs(compute(rounded, images) - compute(network, images)).mean()]
    correct_biases(rounded, network, batch)
    assert np.abs(compute(rounded, images) - compute(network, images)).mean() < before[0]
    names = list_kernel_layers(network)
    expected, found = (
        compute(keras.Model(model.input, [model.get_layer(name).output for name in names]), images[:16])
        for model in (network, rounded)
    )
    for x, y in zip(expected, found, strict=True):
        axes = tuple(range(x.ndim - 1))
        np.testing.assert_allclose(x.mean(axes), y.mean(axes), atol=1e-4)


def test_biases_stay_if_correcting_them_does_not_help(network, images, monkeypatch):
    """Means that are wrong by 5 stand for a correction that does harm."""
    compute_sum = bias_correction._compute_sum
    rounded = make_int8_network(network, measure_limits(network, images), rounds_dense=True)
    before = rounded.get_weights()
    with monkeypatch.context() as patch:
        patch.setattr(bias_correction, "_compute_sum", lambda layer: compute_sum(layer) + 5.0)
        correct_biases(rounded, network, np.concatenate(images))
    for old, new in zip(before, rounded.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_pixels_outside_of_0_to_255_are_kept(network, images):
    """Bicubic resizing overshoots."""
    assert measure_limits(network, images)["pixels"] == (0, 255)
    wide = [np.where(image > 150, image + 100, image - 100) for image in images]
    low, high = measure_limits(network, wide)["pixels"]
    assert (low, high) == (min(map(np.min, wide)), max(map(np.max, wide)))

"""Recomputing blocks in the backward pass changes what is kept, not what is computed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.scaling.layers import find_block, list_layers
from efficientnet_tf.scaling.memory import count_kept_bytes, count_training_memory, find_largest_batch
from efficientnet_tf.training.graph import make_training_graph
from efficientnet_tf.training.remat import RecomputingNetwork


@pytest.fixture(scope="module")
def model():
    return tiny.randomize(build_from_config(tiny.load_config("model.drop_connect=0.2", "model.dropout=0.2"), 10))


def make_graph(model, *settings):
    return make_training_graph(model, tiny.load_config(*settings), tiny.make_strategy(1))


def test_outputs_statistics_and_gradients_are_the_same(model):
    whole, parts = make_graph(model), make_graph(model, "train.remat=true")
    assert isinstance(parts, RecomputingNetwork)
    rng = np.random.default_rng(0)
    size = model.input_shape[1]
    images = tf.constant(rng.uniform(0, 255, [8, size, size, 3]), tf.float32)
    weights = [tf.constant(rng.normal(0, 0.1, v.shape), tf.float32) for v in whole.trainable_variables]
    found, convolutions = [], []
    for graph in (whole, parts):
        assert [v.path for v in graph.trainable_variables] == [v.path for v in whole.trainable_variables]
        others = [tf.ones_like(v.value) for v in graph.non_trainable_variables]

        @tf.function(autograph=False)
        def differentiate(weights, others, graph=graph):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                logits, updated = graph.stateless_call(weights, others, images, training=True)
                loss = tf.reduce_sum(logits**2)
            return logits, updated, tape.gradient(loss, weights)

        found.append(tf.nest.flatten(differentiate(weights, others)))
        operations = differentiate.get_concrete_function(weights, others).graph.get_operations()
        convolutions.append(sum(operation.type == "DepthwiseConv2dNative" for operation in operations))
    assert convolutions[1] == 2 * convolutions[0] > 0, "all of them are computed again"
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert any(np.abs(gradient).max() > 0 for gradient in found[1][-len(weights) :])


@pytest.mark.parametrize("variant", ["b0", "v2-b0", "lite0"])
def test_a_network_is_divided_between_its_blocks(variant):
    config = load_config(variant, "digits", ["data.image_size=32"])
    model = build_from_config(config, 10)
    parts = RecomputingNetwork(keras.models.clone_model(model))._parts
    blocks = {find_block(layer.name) for layer in model.layers}
    assert len(parts) == len(blocks)
    found = [{find_block(layer.name) for layer in part.layers if layer.weights} for part in parts]
    assert all(len(names) == 1 for names in found) and set.union(*found) == blocks
    assert sum(part.count_params() for part in parts) == model.count_params()


def test_a_model_that_trains_itself_is_not_divided(model):
    """Dividing a model adds to its layers, so it must be a copy."""
    plain = build_from_config(tiny.load_config("model.drop_connect=0", "model.dropout=0"), 10)
    make_graph(plain, "train.remat=true", "model.drop_connect=0", "model.dropout=0")
    for layer in plain.layers:
        assert layer.output is not None  # raises if the layer is called in two places


def test_memory_is_that_of_the_ends_and_of_the_two_neighbors_that_need_most():
    layers = list_layers(load_config("b0", "digits").model, 224, 1000, 3)
    blocks = {}
    for layer in layers:
        blocks.setdefault(find_block(layer.name), []).append(layer)
    assert len(blocks) == 18  # stem, 16 blocks, head
    ends = sum(4 * block[-1].elements for block in blocks.values())
    inside = [count_kept_bytes(block) for block in blocks.values()]
    largest = max(one + other for one, other in zip(inside, inside[1:], strict=False))
    assert count_kept_bytes(layers, remat=True) == ends + largest
    whole, recomputed = (count_training_memory(layers, 32, remat=remat) for remat in (False, True))
    assert recomputed.activations < 0.55 * whole.activations and recomputed.weights == whole.weights
    assert find_largest_batch(layers, 2**34, remat=True) > 1.9 * find_largest_batch(layers, 2**34)


def test_it_cannot_be_combined_with_int8():
    settings = ["train.remat=true", "train.quantize=int8", "train.init_from=runs/x"]
    with pytest.raises(UserError, match=r"train.quantize=int8 cannot be combined with train.remat"):
        load_config("tiny", "smoke", settings)

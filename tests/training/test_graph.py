"""The training graph: batch-norm groups, fused layers, and any number of replicas equals one device."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import restore_model
from efficientnet_tf.training import graph as graph_lib
from efficientnet_tf.training.fused_layers import FUSE_FROM_VALUES, FusedLayers
from efficientnet_tf.training.trainer import train_model

ONE_BLOCK = "model.stages=[{kernel: 3, stride: 1, expand: 4, channels: 8, repeats: 1}]"
DRAWN = ("model.dropout=0.3", "model.drop_connect=0.3", "augment.mixup=0.2", "augment.cutmix=0.5")
DIGITS = (ONE_BLOCK, *DRAWN, "train.batch_size=32", "optimizer.learning_rate=0.016", "schedule.warmup_epochs=0.2")


@pytest.mark.parametrize(
    ("asked", "replicas", "group"),
    [
        *(("auto", replicas, 1) for replicas in (1, 2, 4, 8)),
        *(("auto", replicas, 8) for replicas in (16, 32, 64)),
        *(("auto", 128, 16), ("auto", 2048, 256)),
        *(("all", 1, 1), ("all", 2, 2), ("all", 12, 12), (1, 8, 1), (2, 4, 2), (4, 4, 4)),
    ],
)
def test_group_size(asked, replicas, group):
    """ "auto" is the rule of the official code."""
    config = tiny.load_config(f"train.batch_norm_group={asked}")
    assert graph_lib.batch_norm_group_size(config, SimpleNamespace(num_replicas_in_sync=replicas)) == group


def test_impossible_groups_are_refused(tmp_path):
    config = tiny.load_config("train.batch_norm_group=3", "train.batch_size=32", "eval.batch_size=32")
    with pytest.raises(UserError, match="train.batch_norm_group=3 does not divide 4 replicas .* Use 1, 2, 4"):
        train_model(config, str(tmp_path / "run"), tiny.make_strategy(4))
    config = tiny.load_config("train.batch_norm_group=all", "train.jit_compile=on")
    with pytest.raises(
        UserError,
        match="batch_norm_group=all shares batch norm between 2 replicas, which train.jit_compile=on cannot compile",
    ):
        train_model(config, str(tmp_path / "run"), tiny.make_strategy(2))
    assert not (tmp_path / "run").exists()
    for value in ("0", "some", "1.5"):
        with pytest.raises(UserError, match="train.batch_norm_group"):
            tiny.load_config(f"train.batch_norm_group={value}")


@pytest.fixture(scope="module")
def one_device():
    """Return losses and variables of 20 steps on one device."""
    return _train(1, "auto")


def _train(replicas, group):
    run = tiny.Run(tiny.load_config(*DIGITS, f"train.batch_norm_group={group}"), replicas)
    losses = run.losses(20)
    assert {type(layer) for layer in run.state.model.layers if "_bn" in layer.name} == {keras.layers.BatchNormalization}
    return losses, {name: tiny.replica_values(v) for name, v in tiny.variables_of(run.state).items()}


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_replicas_that_share_batch_norm_equal_one_device(one_device, replicas):
    """Losses, weights, slots, statistics and EMA of 20 steps are equal up to the order of sums."""
    losses, variables = _train(replicas, "all")
    expected_losses, expected = one_device
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert max(abs(np.diff(expected_losses))) > 1e-3  # Something is learned.
    for name, values in variables.items():
        for value in values:
            np.testing.assert_array_equal(value, values[0], err_msg=name)
        np.testing.assert_allclose(values[0], expected[name][0], rtol=1e-4, atol=5e-5, err_msg=name)


@pytest.mark.slow
def test_replicas_with_separate_batch_norm_differ(one_device):
    """So the test above can fail."""
    losses, variables = _train(2, "auto")
    assert losses != pytest.approx(one_device[0], rel=1e-4)
    name = "model/stem_bn/moving_variance"
    assert np.abs(variables[name][0] / one_device[1][name][0] - 1).max() > 1e-3


def test_a_model_without_special_layers_is_not_copied():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    assert graph_lib.make_training_graph(model, tiny.load_config(), tiny.make_strategy(1)) is model


# A block with a projection and a residual, and one without, as in EfficientNetV2, with the activation of Lite.
FUSED_BLOCKS = (
    "model.activation=relu6",
    "model.drop_connect=0",
    "model.stages=[{block: fused_mbconv, kernel: 3, stride: 1, expand: 4, channels: 8, repeats: 1, se_ratio: 0},"
    " {block: fused_mbconv, kernel: 3, stride: 2, expand: 1, channels: 16, repeats: 1, se_ratio: 0}]",
)


@pytest.fixture(scope="module", params=[(ONE_BLOCK,), FUSED_BLOCKS], ids=["mbconv", "fused"])
def copied(request):
    """Return a model, its training graph with the same weights, and images."""
    config, strategy = tiny.load_config(*request.param, "model.dropout=0"), tiny.make_strategy(1)
    model = build_from_config(config, 10)
    graph = graph_lib.make_training_graph(model, config, strategy)
    weights = {v.path: v for v in model.variables}
    for variable in graph.variables:
        if "seed" not in variable.path:
            variable.assign(weights[variable.path])
    return model, graph, np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")


def test_consecutive_layers_are_fused(copied):
    model, graph, _ = copied
    blocks = {
        "block1a_bn": [
            "block1a_expand_conv_to_block1a_expand_activation",
            "block1a_bn_to_block1a_se_excite",
            "block1a_project_bn_to_block1a_project_bn",
        ],
        "block2a_project_activation": [
            "block1a_expand_bn_to_block1a_expand_activation",
            "block1a_project_bn_to_block1a_project_bn",
            "block2a_project_bn_to_block2a_project_activation",
        ],
    }
    (expected,) = (names for layer, names in blocks.items() if layer in {layer.name for layer in model.layers})
    fused = [layer.name for layer in graph.layers if isinstance(layer, FusedLayers)]
    assert fused == ["stem_bn_to_stem_activation", *expected, "top_conv_to_top_activation"]
    assert {v.path for v in model.trainable_variables} == {v.path for v in graph.trainable_variables}


def test_the_training_graph_equals_the_model_in_inference(copied):
    model, graph, images = copied
    np.testing.assert_allclose(graph(images, training=False), model(images, training=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fuse_from", [0, FUSE_FROM_VALUES])
def test_the_training_graph_equals_the_model_in_training(copied, fuse_from):
    """Outputs, gradients and statistics are the same, fused and layer by layer."""
    for layer in copied[1].layers:
        if isinstance(layer, FusedLayers):
            layer.fuse_from = fuse_from
    results = []
    for network in copied[:2]:
        trainable = {v.path: tf.constant(v.numpy()) for v in sorted(network.trainable_variables, key=lambda v: v.path)}
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            logits, others = network.stateless_call(
                [trainable[v.path] for v in network.trainable_variables],
                [v.numpy() for v in network.non_trainable_variables],
                copied[2],
                training=True,
            )
        gradients = tape.gradient(logits, trainable, output_gradients=tf.reshape(tf.cos(tf.range(20.0)), [2, 10]))
        moved = {v.path: o for v, o in zip(network.non_trainable_variables, others, strict=True)}
        results.append((logits, gradients, {p: o for p, o in moved.items() if "moving" in p}))
    (logits, gradients, moved), (other_logits, other_gradients, other_moved) = results
    np.testing.assert_allclose(logits, other_logits, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == other_gradients.keys() and moved.keys() == other_moved.keys()
    for path, value in (gradients | moved).items():
        scale = np.abs(value).max() + 1e-3  # Before a batch norm, some gradients are only rounding errors.
        np.testing.assert_allclose(
            (other_gradients | other_moved)[path] / scale, value / scale, atol=2e-3, err_msg=path
        )


@pytest.mark.slow
def test_a_run_can_move_from_four_replicas_to_two_to_one(tmp_path):
    """Stopped by signals at steps 8 and 16 of 22, it reaches the results of a run on one device."""
    config = tiny.load_config(*DIGITS, "train.batch_norm_group=all", "train.epochs=0.5", "train.steps_per_loop=4")
    expected = train_model(config, str(tmp_path / "one"), tiny.make_strategy(1))
    stops = tiny.At(step8=tiny.send_sigterm, step16=tiny.send_sigterm)
    for replicas, result in ((4, {"step": 8, "finished": False}), (2, {"step": 16, "finished": False})):
        assert train_model(config, str(tmp_path / "moved"), tiny.make_strategy(replicas), callbacks=[stops]) == result
    result = train_model(config, str(tmp_path / "moved"), tiny.make_strategy(1))
    assert result["step"] == expected["step"] == 22
    for kind in ("raw", "ema"):
        assert result[kind] == pytest.approx(expected[kind], rel=1e-3)
    one, moved = (restore_model(str(tmp_path / name), raw=True)[0] for name in ("one", "moved"))
    for variable, value in zip(one.weights, moved.weights, strict=True):
        np.testing.assert_allclose(value, variable, rtol=1e-3, atol=1e-4, err_msg=variable.path)

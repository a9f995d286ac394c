"""Gradient clipping, compared with Keras and numpy: on one replica and on several, in parts, and with frozen layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import list_checkpoints
from efficientnet_tf.training.clipping import clip_gradients, find_unit_axes
from efficientnet_tf.training.optimizers import create_optimizer
from efficientnet_tf.training.state import State
from efficientnet_tf.training.tensorflow_loop import make_train_loop
from efficientnet_tf.training.trainer import train_model

# The rate of a batch of 16 is 1, so a step subtracts the gradient from the weights.
PLAIN_SGD = (
    "optimizer.name=sgd",
    "optimizer.momentum=0.0",
    "optimizer.learning_rate=16",
    "optimizer.weight_decay=0.0",
    "schedule.name=constant",
    "schedule.warmup_epochs=0",
    "train.batch_size=16",
    "train.label_smoothing=0.0",
)
# The axes that a norm is taken over, by hand. The classifier has none.
UNITS = {
    "conv/kernel": (0, 1, 2),
    "conv/bias": (0,),
    "depthwise/kernel": (0, 1),
    "dense/kernel": (0,),
    "dense/bias": (0,),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype("uint8")
LABELS = (np.arange(16) % 10).astype("int32")


def make_network():
    """Return a network without batch norm, whose gradient is the mean of the gradients of single images."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1)(inputs)
    x = keras.layers.Conv2D(6, 3, activation="relu", name="conv")(x)
    x = keras.layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = keras.layers.Dense(8, name="dense")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, keras.layers.Dense(10, name="predictions")(x))
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if variable.name == "kernel":  # Biases start at zero.
            variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def whole_gradients(model):
    """Return {path: gradient} of the mean loss of all images, in eager Keras."""
    with tf.GradientTape() as tape:
        logits = model(IMAGES.astype("float32"))
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(LABELS, logits, from_logits=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    return {v.path: g.numpy() for v, g in zip(model.trainable_variables, gradients, strict=True)}


def norm(values, axes):
    return np.sqrt((values.astype(float) ** 2).sum(axis=axes, keepdims=True))


def clip_in_numpy(gradients, weights, agc):
    """Return the gradients clipped as Brock et al. describe it, and the share of the units that were clipped."""
    clipped, active = dict(gradients), []
    for path in gradients.keys() & UNITS.keys():
        axes = UNITS[path]
        limit = agc * np.maximum(norm(weights[path], axes), 1e-3)
        length = norm(gradients[path], axes)
        clipped[path] = np.where(length > limit, gradients[path] * limit / length, gradients[path])
        active += (length > limit).ravel().tolist()
    return clipped, np.mean(active)


def clip_in_keras(gradients, **clipping):
    """Return the gradients that an optimizer of Keras would use: what it subtracts at a rate of 1."""
    variables = [keras.Variable(np.zeros_like(g)) for g in gradients.values()]
    keras.optimizers.SGD(1.0, **clipping).apply([tf.constant(g) for g in gradients.values()], variables)
    return {path: -v.numpy() for path, v in zip(gradients, variables, strict=True)}


def train_one_step(config, replicas, frozen):
    """Return {path: (before, after)} of the trainable variables for one step of the loop on all images."""
    strategy = tiny.make_strategy(replicas)
    with strategy.scope():
        model = make_network()
        state = State(model, create_optimizer(config, model, 100), None)
    graph = keras.models.clone_model(model)
    graph.get_layer("conv").trainable = not frozen
    shards = IMAGES.reshape(replicas, -1, 8, 8, 3), LABELS.reshape(replicas, -1)
    batches = tf.data.Dataset.from_tensor_slices(shards)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    make_train_loop(state, config, strategy, graph)(tiny.distribute(strategy, lambda _: batches), tf.constant(1))
    after = {v.path: tiny.replica_values(v) for v in model.trainable_variables}
    for path, (first, *others) in after.items():
        assert len(others) == replicas - 1
        for other in others:
            np.testing.assert_array_equal(other, first, err_msg=path)
    return {path: (before[path], values[0]) for path, values in after.items()}


@pytest.mark.parametrize(
    ("key", "replicas", "parts", "frozen"),
    [
        ("clip_norm", 2, 2, False),
        ("agc", 1, 1, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("clip_norm", 1, 1, True),
                ("clip_norm", 4, 1, False),
                ("clip_value", 2, 2, False),
                ("agc", 2, 1, False),
                ("agc", 1, 2, True),
            )
        ),
    ],
)
def test_a_step_clips_the_gradient_of_the_whole_batch(key, replicas, parts, frozen):
    """The references clip the gradient of all images, without those of frozen weights."""
    model = make_network()
    weights = {v.path: v.numpy() for v in model.trainable_variables}
    gradients = {p: g for p, g in whole_gradients(model).items() if not (frozen and p.startswith("conv/"))}
    values = np.concatenate([g.ravel() for g in gradients.values()])
    if key == "clip_norm":
        limit = 0.3 * float(np.linalg.norm(values))
        expected = clip_in_keras(gradients, global_clipnorm=limit)
        assert np.linalg.norm(np.concatenate([g.ravel() for g in expected.values()])) == pytest.approx(limit, rel=1e-5)
    elif key == "clip_value":
        limit = float(np.quantile(np.abs(values), 0.6))
        expected = clip_in_keras(gradients, clipvalue=limit)
    else:
        ratios = [norm(gradients[p], UNITS[p]) / norm(weights[p], UNITS[p]) for p in gradients if p == "dense/kernel"]
        limit = float(np.median(ratios))
        expected, active = clip_in_numpy(gradients, weights, limit)
        assert 0.1 < active < 0.9
    config = tiny.load_config(*PLAIN_SGD, f"train.accumulate={parts}", f"optimizer.{key}={limit!r}")
    for path, (before, after) in train_one_step(config, replicas, frozen).items():
        want = expected[path] if path in gradients else 0
        np.testing.assert_allclose(before - after, want, rtol=1e-3, atol=2e-6, err_msg=path)
        assert path not in gradients or np.abs(want).max() > (1e-3 if path.endswith("kernel") else 1e-5)


def test_a_unit_is_an_output_channel_and_the_classifier_has_none():
    axes = find_unit_axes(make_network())
    assert axes == UNITS
    real = find_unit_axes(build_from_config(tiny.load_config(), 10))
    assert real["block2a_dwconv/kernel"] == (0, 1) and real["block2a_expand_conv/kernel"] == (0, 1, 2)
    assert real["block2a_se_reduce/bias"] == real["top_bn/gamma"] == (0,)
    assert not any(path.startswith("predictions") for path in real)


def test_a_gradient_within_the_limit_is_not_changed():
    gradients = [tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32) for shape in ((3, 4), (4,))]
    weights = [tf.ones((3, 4)), tf.zeros((4,))]
    for setting in ("clip_norm=1e3", "clip_value=1e3", "agc=1e6", "clip_norm=0"):
        settings = tiny.load_config(f"optimizer.{setting}").optimizer
        for old, new in zip(gradients, clip_gradients(gradients, weights, [(0,), (0,)], settings), strict=True):
            np.testing.assert_array_equal(new, old, err_msg=setting)


def test_a_gradient_that_is_not_finite_stays_so():
    """The loss of the next step then ends the run. Clipping must not hide it."""
    for bad in (np.nan, np.inf):
        gradients, weights = [tf.constant([[1.0, bad], [1.0, 1.0]])], [tf.ones((2, 2))]
        for setting in ("clip_norm=1", "agc=0.1"):
            (clipped,) = clip_gradients(gradients, weights, [(0,)], tiny.load_config(f"optimizer.{setting}").optimizer)
            assert np.isnan(clipped.numpy()).any()


def test_ways_to_clip_exclude_each_other():
    with pytest.raises(UserError, match=r"optimizer: clip_norm=5 and agc=0\.01 are different ways to clip gradients"):
        tiny.load_config("optimizer.clip_norm=5.0", "optimizer.agc=0.01")
    with pytest.raises(UserError, match=r"train\.phases cannot set optimizer: clip_norm=5 and clip_value=1"):
        tiny.load_config("optimizer.clip_norm=5.0", "train.phases=[{until: 1.0, set: {optimizer.clip_value: 1.0}}]")


@pytest.mark.slow
def test_a_stopped_run_with_clipping_in_phases_and_bce_ends_the_same_bit_for_bit(tmp_path):
    settings = (
        "model.stages=[{kernel: 3, stride: 1, expand: 1, channels: 8, repeats: 1}]",
        *("data.source=synthetic", "data.eval_split=val", "data.synthetic_examples=48", "data.image_size=16"),
        *("train.batch_size=8", "eval.batch_size=48", "train.epochs=1", "train.steps_per_loop=1"),
        *("schedule.warmup_epochs=0", "train.loss=bce", "augment.mixup=0.2", "optimizer.rate_scaling=sqrt"),
        "train.phases=[{until: 0.5, set: {optimizer.clip_norm: 0.05}}, {until: 1.0, set: {optimizer.agc: 0.01}}]",
    )
    config, strategy = tiny.load_config(*settings), tiny.make_strategy(1)
    assert [phase.optimizer.clip_norm for _, phase in config.phases] == [0.05, 0.0]
    assert train_model(config, tmp_path / "whole", strategy)["finished"]
    stop = tiny.At(step4=tiny.send_sigterm)
    assert train_model(config, tmp_path / "stopped", strategy, callbacks=[stop])["step"] == 4
    assert train_model(config, tmp_path / "stopped", strategy)["finished"]
    ends = [tf.train.load_checkpoint(list_checkpoints(str(tmp_path / run))[6]) for run in ("whole", "stopped")]
    names = [name for name in ends[0].get_variable_to_shape_map() if name.startswith(("model", "average", "optimizer"))]
    assert len(names) > 20
    for name in names:
        np.testing.assert_array_equal(ends[1].get_tensor(name), ends[0].get_tensor(name), err_msg=name)

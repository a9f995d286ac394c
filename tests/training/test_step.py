"""The training step and its loop, compared with eager Keras and numpy, on one replica and on several."""

import itertools
import re

import keras
import make_goldens
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tiny

from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.training.fused_layers import FUSE_FROM_VALUES
from efficientnet_tf.training.graph import freeze_layers
from efficientnet_tf.training.optimizers import create_optimizer
from efficientnet_tf.training.state import State, create_state
from efficientnet_tf.training.tensorflow_loop import make_train_loop

NO_DROPOUT = ("model.dropout=0.0", "model.drop_connect=0.0")


# -------------------------------------------------------------------------------------------------- one step

SIZE = 1437  # Training images, from which the schedule computes epochs.
STEP = (
    tiny.SHORT,
    *NO_DROPOUT,
    "train.batch_size=16",
    "optimizer.learning_rate=0.5",  # 0.03 at this batch size, so that the weights change visibly.
    "optimizer.weight_decay=0.01",
    "schedule.name=constant",
    "schedule.warmup_epochs=0.05",  # 4.49 steps.
    "train.ema_decay=0.9999",
)
ONE_BLOCK = ("model.stages=[{kernel: 3, stride: 1, expand: 4, channels: 8, repeats: 1}]",)


class Reference:
    """Training in eager Keras, with the loss, its gradient and all updates in numpy. A shard is a replica's images."""

    def __init__(self, config, trained):
        model = build_from_config(config, 10)
        model.set_weights(trained.get_weights())
        self.norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        self.model = keras.Model(model.input, [model.output, *(norm.input for norm in self.norms)])
        norm_weights = {id(w) for norm in self.norms for w in norm.weights}
        self.variables = model.trainable_variables
        self.decayed = [id(v) not in norm_weights for v in self.variables]
        self.weights = [v.numpy().astype(float) for v in self.variables]
        self.moving = [[norm.moving_mean.numpy(), norm.moving_variance.numpy()] for norm in self.norms]
        self.averages = [w.copy() for w in self.weights], [np.array(pair) for pair in self.moving]
        self.mean_square = [np.ones_like(w) for w in self.weights]
        self.velocity = [np.zeros_like(w) for w in self.weights]
        self.done = 0

    def shard(self, images, labels):
        """Return the loss, accuracy, gradients and batch statistics of the images of one replica."""
        with tf.GradientTape() as tape:
            logits, *inputs = self.model(images.astype("float32"), training=True)
        scores = logits.numpy().astype(float)
        target = 0.9 * np.eye(10)[labels] + 0.1 / 10
        loss = -(target * scipy.special.log_softmax(scores, axis=1)).sum(axis=1).mean()
        slope = (scipy.special.softmax(scores, axis=1) - target) / len(labels)
        gradients = tape.gradient(logits, self.variables, output_gradients=tf.constant(slope, tf.float32))
        statistics = [[x.numpy().mean(axis=(0, 1, 2)), x.numpy().var(axis=(0, 1, 2))] for x in inputs]
        return loss, (scores.argmax(axis=1) == labels).mean(), [g.numpy() for g in gradients], statistics

    def step(self, shards):
        """Take one step on [(images, labels), ...], and return the loss and the accuracy."""
        losses, accuracies, gradients, statistics = zip(*(self.shard(*shard) for shard in shards), strict=True)
        penalty = 0.01 / 2 * sum((w**2).sum() for w, decayed in zip(self.weights, self.decayed, strict=True) if decayed)
        rate = 0.5 * 16 / 256 * min(1, self.done / (0.05 * SIZE / 16))
        keep = (1 + self.done) / (10 + self.done)
        for i, gradient in enumerate(np.mean(g, axis=0) for g in zip(*gradients, strict=True)):
            gradient = gradient + 0.01 * self.weights[i] * self.decayed[i]
            self.mean_square[i] = 0.9 * self.mean_square[i] + 0.1 * gradient**2
            self.velocity[i] = 0.9 * self.velocity[i] + rate * gradient / np.sqrt(self.mean_square[i] + 1e-3)
            self.weights[i] = self.weights[i] - self.velocity[i]
            self.averages[0][i] = keep * self.averages[0][i] + (1 - keep) * self.weights[i]
            self.variables[i].assign(self.weights[i])
        for i, own in enumerate(zip(*statistics, strict=True)):
            self.moving[i] = 0.9 * np.array(self.moving[i]) + 0.1 * np.mean(own, axis=0)
            self.averages[1][i] = keep * self.averages[1][i] + (1 - keep) * self.moving[i]
        self.done += 1
        return np.mean(losses) + penalty, np.mean(accuracies)


@pytest.mark.parametrize(
    ("replicas", "jit", "group", "parts"),
    [
        *((1, "on", 1, 1), (2, "off", 1, 1)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (1, "off", 1, 1),
                (1, "off", 1, 4),
                (4, "off", 1, 1),
                (4, "off", 2, 1),
                (1, "on", 1, 2),
                (2, "off", 1, 2),
            )
        ),
    ],
)
def test_train_step_equals_eager_keras_and_numpy(replicas, jit, group, parts):
    """Ten steps: loss, gradients, weight decay, RMSprop, statistics (the mean over groups) and EMA."""
    short = ONE_BLOCK if replicas == 4 else ()
    settings = f"train.jit_compile={jit}", f"train.batch_norm_group={group}", f"train.accumulate={parts}"
    config = tiny.load_config(*STEP, *settings, *short)
    strategy = tiny.make_strategy(replicas)
    state = create_state(config, 10, SIZE, strategy)
    reference = Reference(config, state.model)
    start = [w.copy() for w in reference.weights]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, replicas, 16 // replicas, 32, 32, 3)).astype("uint8")
    labels = rng.integers(0, 10, images.shape[:3]).astype("int32")
    # For the reference, the images that share batch norm are one shard: those of a group, or of a part.
    count = replicas * parts // group
    shards = images.reshape(10, count, -1, 32, 32, 3), labels.reshape(10, count, -1)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).unbatch()
    iterator = tiny.distribute(strategy, lambda context: batches)
    # On one replica, fuse layers although the tensors are small.
    loop = make_train_loop(state, config, strategy, fuse_from=0 if replicas == 1 else FUSE_FROM_VALUES)
    step = 0
    for count in (1, 1, 1, 3, 4):
        expected = [
            reference.step(list(zip(shards[0][i], shards[1][i], strict=True))) for i in range(step, step + count)
        ]
        loss, accuracy = loop(iterator, tf.constant(count)).numpy()
        assert loss == pytest.approx(np.mean([e[0] for e in expected]), rel=1e-4)
        assert accuracy == pytest.approx(np.mean([e[1] for e in expected]), abs=1e-6)
        step += count
    assert loop.experimental_get_tracing_count() == 1
    assert state.step == 10

    got = tiny.variables_of(state)
    for name, variable in got.items():
        first, *others = tiny.replica_values(variable)
        assert len(others) == replicas - 1
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=name)

    def assert_same(part, variable, want, begin):
        """Assert that values are equal up to a thousandth of how far the variable has moved."""
        way = np.abs(want - begin).max()
        value = tiny.replica_values(got[f"{part}/{variable.path}"])[0]
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-3 * way + 3e-6, err_msg=f"{part}/{variable.path}")
        return way

    ways = [
        assert_same(part, variable, want, begin)
        for part, wanted in (("model", reference.weights), ("average", reference.averages[0]))
        for variable, want, begin in zip(reference.variables, wanted, start, strict=True)
    ]
    # All but the offsets of batch norms without activation, which the next batch norm subtracts again.
    assert np.mean(np.array(ways) > 3e-4) > 0.9
    for part, wanted in (("model", reference.moving), ("average", reference.averages[1])):
        for norm, (mean, variance) in zip(reference.norms, wanted, strict=True):
            assert_same(part, norm.moving_mean, mean, 0)
            assert assert_same(part, norm.moving_variance, variance, 1) > 1e-2


# ---------------------------------------------------------------------------------------------- dropout masks


def observe_masks(replicas, seed=0, first_step=0, steps=3):
    """Return the dropout masks that the loop draws: bool [step, layer, replica, feature].

    A batch is one image a replica, all pixels 2**replica; batch norm with momentum 0 after each dropout keeps the
    masked image, and the mean over replicas the sum whose bits are the masks.
    """
    config = tiny.load_config(f"train.seed={seed}")
    strategy = tiny.make_strategy(replicas)
    with strategy.scope():
        inputs = keras.Input((8, 8, 3))
        branches = [
            keras.layers.BatchNormalization(momentum=0.0)(keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs)))
            for _ in range(2)
        ]
        model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Concatenate()(branches)))
        optimizer = create_optimizer(config, model, SIZE)
        optimizer.iterations.assign(first_step)
    images = np.tile(2 ** np.arange(replicas, dtype="uint8").reshape(-1, 1, 1, 1, 1), (steps, 1, 8, 8, 3))
    batches = tf.data.Dataset.from_tensor_slices((images, np.zeros((len(images), 1), "int32")))
    iterator = tiny.distribute(strategy, lambda context: batches)
    loop = make_train_loop(State(model, optimizer, None), config, strategy)
    means = [v for v in batch_norm_statistics(model) if v.name == "moving_mean"]
    masks = []
    for _ in range(steps):
        loop(iterator, tf.constant(1))
        sums = np.array([tiny.replica_values(v)[0] for v in means]) * replicas / 2  # A kept pixel is doubled.
        whole = np.round(sums).astype(int)
        np.testing.assert_allclose(sums, whole, atol=1e-5)
        masks.append([[(layer >> replica) & 1 for replica in range(replicas)] for layer in whole])
    return np.array(masks, bool)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_masks_differ_between_steps_layers_and_replicas(replicas):
    masks = observe_masks(replicas)
    assert masks.shape == (3, 2, replicas, 192)
    # About half of the 192 features are kept, and two independent masks agree on about half of them.
    distinct = masks.reshape(-1, 192)
    assert (abs(distinct.mean(axis=1) - 0.5) < 0.2).all()
    for one, other in itertools.combinations(distinct, 2):
        assert abs((one == other).mean() - 0.5) < 0.2


def test_masks_follow_from_seed_and_step():
    masks = observe_masks(2)
    np.testing.assert_array_equal(observe_masks(2), masks)
    np.testing.assert_array_equal(observe_masks(2, first_step=2, steps=1), masks[2:])
    assert abs((observe_masks(2, seed=1, steps=1) == masks[:1]).mean() - 0.5) < 0.2


# ------------------------------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def digits_run():
    """Return a run after the 20 steps of the golden file, its variables before them, and its losses."""
    run = make_goldens.start_digits_loss(fuse_from=0)  # The golden file was written layer by layer.
    start = {name: variable.numpy() for name, variable in tiny.variables_of(run.state).items()}
    return run, start, run.losses(20)


def test_loss_curve_equals_the_golden_file(digits_run):
    run, start, losses = digits_run
    assert losses == pytest.approx(make_goldens.read("digits_loss")["loss"], rel=1e-3)
    assert not any(
        np.array_equal(variable.numpy(), start[name]) for name, variable in tiny.variables_of(run.state).items()
    )


def test_training_is_exactly_repeatable(digits_run):
    run, start, losses = digits_run
    again = create_state(run.config, 10, SIZE, run.strategy)
    for name, variable in tiny.variables_of(again).items():
        np.testing.assert_array_equal(variable.numpy(), start[name], err_msg=name)
    # Run the traced loop again from the same variables.
    for name, variable in tiny.variables_of(run.state).items():
        variable.assign(start[name])
    run.rewind()
    assert run.losses(20) == losses


def test_loop_is_traced_once_for_all_lengths(digits_run):
    run, *_ = digits_run
    run.steps(1)
    run.steps(2)
    run.steps(5)
    assert run.loop.experimental_get_tracing_count() == 1


def test_no_host_operation_in_the_loop(digits_run):
    """The loop has nothing that a TPU would leave to its host: Python, printing, summaries, files, dynamic shapes."""
    run, *_ = digits_run
    graph = run.loop.get_concrete_function(run.batches, tf.constant(1)).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    operations = {node.op for node in nodes}
    assert {"Conv2D", "IteratorGetNext"} <= operations and operations & {"While", "StatelessWhile"}
    host = re.compile("PyFunc|Print|Summary|Assert|Host|Outfeed|Infeed|File|Save|Restore|String|Regex|^Where$|Unique")
    assert [op for op in operations if host.search(op)] == []
    assert not any(attribute.type == tf.string.as_datatype_enum for node in nodes for attribute in node.attr.values())
    assert all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(run.batches.element_spec))


@pytest.mark.slow
def test_mixed_precision_trains_without_nan():
    official = ("optimizer.name=rmsprop", "optimizer.learning_rate=0.016", "optimizer.weight_decay=1e-5")
    at_once = ("schedule.name=constant", "schedule.warmup_epochs=0", "train.batch_size=16", "model.drop_connect=0.2")
    config = tiny.load_config("train.precision=mixed_bfloat16", *official, *at_once)
    run = tiny.Run(config)
    assert keras.config.dtype_policy().name == "float32"
    policies = {layer.name: layer.dtype_policy for layer in run.state.model.layers}
    assert policies["stem_conv"].name == policies["block2b_se_expand"].name == "mixed_bfloat16"
    assert policies["predictions"].compute_dtype == policies["normalization"].compute_dtype == "float32"
    first, _ = run.steps(1)
    body = run.loop.get_concrete_function(run.batches, tf.constant(1))
    assert body.output_dtypes == tf.float32
    graph = body.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    assert {node.attr["T"].type for node in nodes if node.op == "Conv2D"} == {tf.bfloat16.as_datatype_enum}
    assert {node.attr["T"].type for node in nodes if "SoftmaxCrossEntropy" in node.op} <= {tf.float32.as_datatype_enum}
    run.steps(50)
    last, _ = run.steps(49)
    assert last < first - 0.2
    for name, variable in tiny.variables_of(run.state).items():
        assert variable.dtype == (tf.int64 if name == "optimizer/iteration" else tf.float32), name
        assert np.isfinite(variable.numpy()).all(), name


def test_accumulation_equals_the_whole_batch_with_frozen_batch_norm():
    """Only batch norm mixes images, so weights, slots and EMA of ten steps are the same."""
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype("uint8")
    batch, runs = (images, np.arange(16, dtype="int32") % 10), []
    for parts in (1, 4):
        config = tiny.load_config(*STEP, f"train.accumulate={parts}")
        strategy = tiny.make_strategy(1)
        state = create_state(config, 10, SIZE, strategy)
        graph = build_from_config(config, 10)
        freeze_layers(graph, "batch_norm")
        iterator = tiny.distribute(strategy, lambda context: tf.data.Dataset.from_tensors(batch).repeat())
        losses = make_train_loop(state, config, strategy, graph)(iterator, tf.constant(10)).numpy()
        runs.append((losses, {name: v.numpy() for name, v in tiny.variables_of(state).items()}))
    (losses, whole), (losses_in_parts, in_parts) = runs
    np.testing.assert_allclose(losses_in_parts, losses, rtol=1e-5)
    for name, value in whole.items():
        np.testing.assert_allclose(in_parts[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_parts_of_a_batch_have_different_masks():
    """Two parts with the same images. With the same masks, their loss would be that of one part."""
    losses = []
    for parts in (1, 2):
        config = tiny.load_config(*STEP, *ONE_BLOCK, "model.dropout=0.5", f"train.accumulate={parts}")
        strategy = tiny.make_strategy(1)
        state = create_state(config, 10, SIZE, strategy)
        images = np.random.default_rng(0).integers(0, 256, (1, 8, 32, 32, 3)).astype("uint8").repeat(parts, axis=0)
        batch = images.reshape(-1, 32, 32, 3), np.zeros(8 * parts, "int32")
        iterator = tiny.distribute(strategy, lambda context, batch=batch: tf.data.Dataset.from_tensors(batch).repeat())
        losses.append(make_train_loop(state, config, strategy)(iterator, tf.constant(1)).numpy()[0])
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)

"""The two loops on the device: against eager Keras and numpy, on one replica and on several; `train` around them."""

import itertools
import json
import re
import signal

import keras
import make_goldens
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.evaluation.loop import make_evaluator
from efficientnet_tf.models.model_dir import build_from_config, list_checkpoints, restore_model
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.training.checkpoint import State, create_state
from efficientnet_tf.training.fused_layers import FUSE_FROM_VALUES
from efficientnet_tf.training.optimizers import create_optimizer
from efficientnet_tf.training.tensorflow_loop import make_evaluators, make_train_loop
from efficientnet_tf.training.trainer import train_model
from efficientnet_tf.training.transfer import freeze_layers

NO_DROPOUT = ("model.dropout=0.0", "model.drop_connect=0.0")


# ------------------------------------------------------------------------------------------------ the train step

SIZE = 1437  # training images, for the schedule
STEP = (
    tiny.SHORT,
    *NO_DROPOUT,
    "train.batch_size=16",
    "optimizer.learning_rate=0.5",  # 0.03 at this batch: weights move visibly
    "optimizer.weight_decay=0.01",
    "schedule.name=constant",
    "schedule.warmup_epochs=0.05",  # 4.49 steps
    "train.ema_decay=0.9999",
)
ONE_BLOCK = ("model.stages=[{kernel: 3, stride: 1, expand: 4, channels: 8, repeats: 1}]",)  # four replicas trace long


class Reference:
    """Training in eager Keras, with the loss, its gradient and all updates in numpy; a shard stands for a replica."""

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
        """Return loss, accuracy, gradients and batch norm's batch statistics for the images of one replica."""
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
        """Take one step on [(images, labels), ...]; return loss and accuracy."""
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
        *((1, "off", 1, 1), (1, "on", 1, 1), (2, "off", 1, 1), (1, "off", 1, 4)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((4, "off", 1, 1), (4, "off", 2, 1), (1, "on", 1, 2), (2, "off", 1, 2))
        ),
    ],
)
def test_train_step_is_that_of_eager_keras_and_numpy(replicas, jit, group, parts):
    """Ten steps of everything: loss, gradients, weight decay, RMSprop, statistics (mean of the groups'), average."""
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
    # To the reference, images that batch norm takes together are a replica's: those of a group, of a part.
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
        """Assert equality up to a thousandth of the way that the variable has come."""
        way = np.abs(want - begin).max()
        value = tiny.replica_values(got[f"{part}/{variable.path}"])[0]
        np.testing.assert_allclose(value, want, rtol=0, atol=1e-3 * way + 3e-6, err_msg=f"{part}/{variable.path}")
        return way

    ways = [
        assert_same(part, variable, want, begin)
        for part, wanted in (("model", reference.weights), ("average", reference.averages[0]))
        for variable, want, begin in zip(reference.variables, wanted, start, strict=True)
    ]
    # All but the offsets of linear batch norms, which the next one takes away.
    assert np.mean(np.array(ways) > 3e-4) > 0.9
    for part, wanted in (("model", reference.moving), ("average", reference.averages[1])):
        for norm, (mean, variance) in zip(reference.norms, wanted, strict=True):
            assert_same(part, norm.moving_mean, mean, 0)
            assert assert_same(part, norm.moving_variance, variance, 1) > 1e-2


# ------------------------------------------------------------------------------------------------------- masks


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
        sums = np.array([tiny.replica_values(v)[0] for v in means]) * replicas / 2  # a kept pixel is doubled
        whole = np.round(sums).astype(int)
        np.testing.assert_allclose(sums, whole, atol=1e-5)
        masks.append([[(layer >> replica) & 1 for replica in range(replicas)] for layer in whole])
    return np.array(masks, bool)


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_masks_differ_between_steps_layers_and_replicas(replicas):
    masks = observe_masks(replicas)
    assert masks.shape == (3, 2, replicas, 192)
    # Of 192 features about half are kept, and two independent masks agree in about half of them.
    distinct = masks.reshape(-1, 192)
    assert (abs(distinct.mean(axis=1) - 0.5) < 0.2).all()
    for one, other in itertools.combinations(distinct, 2):
        assert abs((one == other).mean() - 0.5) < 0.2


def test_masks_come_again_with_seed_and_step():
    masks = observe_masks(2)
    np.testing.assert_array_equal(observe_masks(2), masks)
    np.testing.assert_array_equal(observe_masks(2, first_step=2, steps=1), masks[2:])
    assert abs((observe_masks(2, seed=1, steps=1) == masks[:1]).mean() - 0.5) < 0.2


# ------------------------------------------------------------------------------------- the loop as one function


@pytest.fixture(scope="module")
def digits_run():
    """Return a run of the golden file's config after its 20 steps, its variables before them, and its losses."""
    run = make_goldens.start_digits_loss(fuse_from=0)  # The golden file was written layer by layer.
    start = {name: variable.numpy() for name, variable in tiny.variables_of(run.state).items()}
    return run, start, run.losses(20)


def test_loss_curve_is_the_golden_one(digits_run):
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
    # The loop as it is traced already, from those variables on.
    for name, variable in tiny.variables_of(run.state).items():
        variable.assign(start[name])
    run.rewind()
    assert run.losses(20) == losses


def test_loop_is_traced_once_whatever_its_length(digits_run):
    run, *_ = digits_run
    run.steps(1)
    run.steps(2)
    run.steps(5)
    assert run.loop.experimental_get_tracing_count() == 1


def test_no_host_operation_in_the_loop(digits_run):
    """Nothing that a TPU would have to ask its host for: Python, printing, summaries, files, dynamic shapes."""
    run, *_ = digits_run
    graph = run.loop.get_concrete_function(run.batches, tf.constant(1)).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    operations = {node.op for node in nodes}
    assert {"Conv2D", "IteratorGetNext"} <= operations and operations & {"While", "StatelessWhile"}
    host = re.compile("PyFunc|Print|Summary|Assert|Host|Outfeed|Infeed|File|Save|Restore|String|Regex|^Where$|Unique")
    assert [op for op in operations if host.search(op)] == []
    assert not any(attribute.type == tf.string.as_datatype_enum for node in nodes for attribute in node.attr.values())
    assert all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(run.batches.element_spec))


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


# -------------------------------------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def test_digits():
    """Return the source of the 360 test digits, and they as float32 [360, 32, 32, 3] and int [360], one by one."""
    config = tiny.load_config()
    source = open_source(config.data, "test", training=False)
    return source, *read_one_by_one(source, config)


def read_one_by_one(source, config):
    examples = [source.load(tf.constant(i, tf.int64)) for i in range(source.size)]
    images = np.stack([eval_image(encoded, config).numpy() for encoded, _ in examples])
    return images, np.array([label.numpy() for _, label in examples])


def linear_classifier(classes):
    """Return a function from images to logits, for TensorFlow, and for numpy."""
    weights = np.random.default_rng(0).normal(size=(32 * 32 * 3, classes)).astype("float32") / 2000

    def logits_of(images):
        return tf.reshape(images, [-1, 32 * 32 * 3]) @ weights

    return logits_of, lambda images: images.reshape(len(images), -1).astype(float) @ weights


def score(labels, logits):
    """Return what scipy and scikit-learn say of logits."""
    losses = -scipy.special.log_softmax(logits.astype(float), axis=1)[np.arange(len(labels)), labels]
    return {
        "examples": len(labels),
        "loss": losses.mean(),
        "top1": sklearn.metrics.accuracy_score(labels, logits.argmax(axis=1)),
        "top5": sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(logits.shape[1])),
    }


@pytest.mark.parametrize(
    ("replicas", "batch"), [(1, 7), (1, 120), (1, 361), (2, 14), (2, 360), (2, 700), (4, 28), (4, 400)]
)
def test_every_example_counts_once(test_digits, replicas, batch):
    source, images, labels = test_digits
    logits_of, logits_by_numpy = linear_classifier(10)
    config = tiny.load_config(f"eval.batch_size={batch}")
    expected = score(labels, logits_by_numpy(images))
    assert 0.02 < expected["top1"] < 0.5 < 2 * expected["top5"]  # a poor classifier tells errors best
    traced = []
    evaluator = make_evaluator(
        lambda images: traced.append(images.shape) or logits_of(images), source, config, tiny.make_strategy(replicas)
    )
    for _ in range(2):
        assert evaluator() == pytest.approx(expected, rel=1e-6)
        assert traced == replicas * [(batch // replicas, 32, 32, 3)]


def test_nan_counts_as_wrong(test_digits):
    source, images, labels = test_digits
    logits_of, logits_by_numpy = linear_classifier(10)
    dark = images.mean(axis=(1, 2, 3)) < np.median(images.mean(axis=(1, 2, 3)))

    def sometimes_nan(pixels):
        mean = tf.reduce_mean(pixels, axis=(1, 2, 3))[:, None]
        return tf.where(mean < np.median(images.mean(axis=(1, 2, 3))), np.nan, logits_of(pixels))

    result = make_evaluator(sometimes_nan, source, tiny.load_config(), tiny.make_strategy(1))()
    light = score(labels[~dark], logits_by_numpy(images[~dark]))
    assert 0 < dark.sum() < 360
    assert result["top1"] == pytest.approx(light["top1"] * (~dark).mean())
    assert result["top5"] == pytest.approx(light["top5"] * (~dark).mean())
    assert np.isnan(result["loss"])


def test_of_equal_logits_the_first_counts(test_digits):
    """As for argmax and scikit-learn; a network that says the same of all classes is no perfect one."""
    source, images, labels = test_digits
    logits_of, logits_by_numpy = linear_classifier(10)
    coarse = np.round(logits_by_numpy(images)[..., ::-1] / 3).astype("float32")  # whole numbers: many are equal
    order = np.argsort(-coarse, axis=1, kind="stable")
    assert (np.sort(coarse)[:, -1] == np.sort(coarse)[:, -2]).mean() > 0.1

    def coarse_logits_of(pixels):
        return tf.round(tf.reverse(logits_of(pixels), [1]) / 3)

    result = make_evaluator(coarse_logits_of, source, tiny.load_config(), tiny.make_strategy(1))()
    for key, count in (("top1", 1), ("top5", 5)):
        assert result[key] == pytest.approx((order[:, :count] == labels[:, None]).any(axis=1).mean())
    assert result["top1"] == pytest.approx((coarse.argmax(axis=1) == labels).mean())


def test_fewer_than_five_classes():
    config = tiny.load_config("data.synthetic_classes=3", "data.synthetic_examples=50", recipe="smoke")
    source = open_source(config.data, "val", training=False)
    images, labels = read_one_by_one(source, config)
    logits_of, logits_by_numpy = linear_classifier(3)
    logits = logits_by_numpy(images)
    result = make_evaluator(logits_of, source, config, tiny.make_strategy(1))()
    assert result["top1"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert 0 < result["top1"] < 1 and result["top5"] == 1


def test_broken_image_stops_an_evaluation(tmp_path):
    rng = np.random.default_rng(0)
    for name, i in itertools.product(("cat", "dog"), range(3)):
        path = tmp_path / "val" / name / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_jpeg(rng.integers(0, 256, (40, 50, 3)).astype("uint8")).numpy())
    config = tiny.load_config(f"data.dir={tmp_path}", "eval.batch_size=4", recipe="folder")
    logits_of, _ = linear_classifier(2)
    strategy = tiny.make_strategy(1)

    def evaluate_folder():
        source = open_source(config.data, "val", training=False)
        return make_evaluator(logits_of, source, config, strategy)()

    assert evaluate_folder()["examples"] == 6
    (tmp_path / "val" / "dog" / "1.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"1 of 6 images cannot be read or decoded.*dog/1\.jpg"):
        evaluate_folder()


@pytest.mark.parametrize("replicas", [1, 2])
def test_raw_and_average_are_evaluated_as_keras_would(test_digits, replicas):
    source, images, labels = test_digits
    config = tiny.load_config(tiny.SHORT)
    strategy = tiny.make_strategy(replicas)
    state = create_state(config, 10, SIZE, strategy)
    rng = np.random.default_rng(0)
    weights = [*state.model.trainable_variables, *batch_norm_statistics(state.model)]
    averages = [*state.ema.trainable, *state.ema.statistics]
    for variable, name in zip((*weights, *averages), 2 * [v.name for v in weights], strict=True):
        noise = 0 if name == "moving_variance" else rng.normal(0, 0.3, variable.shape)
        variable.assign(tiny.replica_values(variable)[0] * rng.uniform(0.5, 1.5, variable.shape) + noise)
    evaluators = make_evaluators(state, source, config, strategy)
    assert list(evaluators) == ["raw", "ema"]
    results = {kind: evaluator() for kind, evaluator in evaluators.items()}
    plain = build_from_config(config, 10)
    by_path = {v.path: v for v in plain.variables}
    for kind, values in (("raw", weights), ("ema", averages)):
        for variable, value in zip(weights, values, strict=True):
            by_path[variable.path].assign(tiny.replica_values(value)[0])
        expected = score(labels, plain(images, training=False).numpy())
        assert results[kind]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        for key in ("top1", "top5"):
            assert results[kind][key] == pytest.approx(expected[key], abs=1.5 / 360)  # one may stand on the edge
    assert results["raw"]["loss"] != pytest.approx(results["ema"]["loss"], rel=1e-2)


def test_no_average_no_evaluator():
    config = tiny.load_config(tiny.SHORT, "train.ema_decay=0")
    state = create_state(config, 10, SIZE, tiny.make_strategy(1))
    assert state.ema is None
    source = open_source(config.data, "test", training=False)
    assert list(make_evaluators(state, source, config, tiny.make_strategy(1))) == ["raw"]


# ------------------------------------------------------------------------------------------------------- train

# 22 steps; a look at 3, 6, 7, 9, ...; checkpoints every 7 steps, evaluation every 11.
WHOLE = (
    tiny.SHORT,
    "model.drop_connect=0.2",
    "train.epochs=1",
    "train.steps_per_loop=3",
    "train.checkpoint_every_epochs=0.3",
    "eval.every_epochs=0.5",
    "schedule.warmup_epochs=0.1",
)


def saved(model_dir):
    """Return {name: array} of the newest checkpoint."""
    prefix = next(iter(list_checkpoints(str(model_dir)).values()))
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "GRAPH" not in name}


def told(model_dir):
    """Return the lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the directory of a finished run, never interrupted, and what `train` returned."""
    model_dir = tmp_path_factory.mktemp("run") / "new" / "model"
    return model_dir, train_model(tiny.load_config(*WHOLE), str(model_dir), tiny.make_strategy(1))


def test_a_finished_run(finished, capsys):
    model_dir, result = finished
    assert (result["step"], result["finished"]) == (22, True)
    assert sorted(list_checkpoints(str(model_dir))) == [14, 21, 22]
    lines = told(model_dir)
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == [3, 6, 7, 10, 11, 14, 17, 20, 21, 22]
    assert [(line["step"], line["kind"]) for line in lines if line["kind"] != "train"] == [
        (11, "eval/raw"),
        (11, "eval/ema"),
        (22, "eval/raw"),
        (22, "eval/ema"),
    ]
    assert result["raw"] != result["ema"]
    strategy = tiny.make_strategy(1)
    assert evaluate_model(str(model_dir), strategy=strategy) == pytest.approx(result["ema"], rel=1e-5)
    assert evaluate_model(str(model_dir), strategy=strategy, raw=True) == pytest.approx(result["raw"], rel=1e-5)
    model, average = keras.saving.load_model(model_dir / "model.keras"), restore_model(str(model_dir))[0]
    for variable, value in zip(model.get_weights(), average.get_weights(), strict=True):
        np.testing.assert_array_equal(variable, value)
    # Once more: nothing is left to train, nor to tell.
    before = saved(model_dir)
    assert train_model(tiny.load_config(*WHOLE), str(model_dir), strategy) == result
    assert told(model_dir) == lines
    after = saved(model_dir)
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert "Continuing from the checkpoint of step 22 of 22" in capsys.readouterr().out


def test_interrupted_and_resumed_is_the_same_run_bit_for_bit(finished, tmp_path, capsys):
    """A SIGTERM after step 10, which no checkpoint is due at, then a crash after step 17, then to the end."""
    config, strategy = tiny.load_config(*WHOLE), tiny.make_strategy(1)

    def crash():
        raise RuntimeError("the plug is pulled")

    handler = signal.getsignal(signal.SIGTERM)
    assert train_model(config, str(tmp_path), strategy, callbacks=[tiny.At(step10=tiny.send_sigterm)]) == {
        "step": 10,
        "finished": False,
    }
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "Stopped. Step 10 of 22 is saved." in capsys.readouterr().out
    assert sorted(list_checkpoints(str(tmp_path))) == [7, 10]
    assert not (tmp_path / "model.keras").exists()
    with pytest.raises(RuntimeError, match="the plug"):
        train_model(config, str(tmp_path), strategy, callbacks=[tiny.At(step17=crash)])
    assert told(tmp_path)[-1]["step"] == 17
    result = train_model(config, str(tmp_path), strategy)
    out = capsys.readouterr().out
    assert "Continuing from the checkpoint of step 10" in out and "Continuing from the checkpoint of step 14" in out
    model_dir, expected = finished
    assert result == expected
    one, other = saved(tmp_path), saved(model_dir)
    assert one.keys() == other.keys() and len(one) > 100
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    assert told(tmp_path) == told(model_dir)


def test_two_replicas_from_start_to_end(tmp_path):
    config = tiny.load_config(
        tiny.SHORT, "train.epochs=0.14", "train.ema_decay=0", "optimizer.name=sgd", "schedule.warmup_epochs=0"
    )
    result = train_model(config, str(tmp_path), tiny.make_strategy(2))
    assert (result["step"], result["finished"]) == (3, True) and "ema" not in result
    assert evaluate_model(str(tmp_path), strategy=tiny.make_strategy(1)) == pytest.approx(result["raw"], rel=1e-5)
    with pytest.raises(UserError, match="belongs to a run with another config"):
        train_model(tiny.load_config(tiny.SHORT), str(tmp_path), tiny.make_strategy(1))


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    """The rate is 0 at step 0, and 1e30 after: step 1 is saved, step 2 moves the weights out of the world."""
    every_step = [f"{key}=0.04" for key in ("train.checkpoint_every_epochs", "schedule.warmup_epochs")]
    config = tiny.load_config(
        tiny.SHORT, *every_step, "train.steps_per_loop=1", "optimizer.learning_rate=1e30", "schedule.name=constant"
    )
    with pytest.raises(UserError, match=r"The loss is (inf|nan) after step \d+\..*optimizer\.learning_rate"):
        train_model(config, str(tmp_path), tiny.make_strategy(1))
    steps = sorted(list_checkpoints(str(tmp_path)))
    assert steps[0] == 1 and told(tmp_path)[-1]["step"] == steps[-1] < 5
    prefix = list_checkpoints(str(tmp_path))[1]
    state = create_state(config, 10, SIZE, tiny.make_strategy(1))
    reader = tf.train.load_checkpoint(prefix)
    for variable in state.model.trainable_variables:
        value = reader.get_tensor(f"model/{variable.path.replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE")
        np.testing.assert_array_equal(value, variable.numpy())


def test_parts_are_the_whole_where_batch_norm_is_frozen():
    """Nothing else of the network looks beyond an image: weights, slots and averages of ten steps are the same."""
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


def test_parts_have_masks_of_their_own():
    """A batch whose images are all the same, in two parts: were the masks the same, it would be the loss of one."""
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


def test_batch_that_cannot_be_divided_builds_nothing(tmp_path):
    model_dir = tmp_path / "model"
    with pytest.raises(
        UserError, match="train.batch_size=64 is not divisible into train.accumulate=3 parts on each of 1 repl"
    ):
        train_model(tiny.load_config("train.accumulate=3"), str(model_dir), tiny.make_strategy(1))
    with pytest.raises(UserError, match="batch_norm_group=all makes 2 replicas meet, which train.accumulate=2 cannot"):
        together = tiny.load_config("train.accumulate=2", "train.batch_norm_group=all")
        train_model(together, str(model_dir), tiny.make_strategy(2))
    for override in ("train.batch_size=30", "eval.batch_size=30"):
        with pytest.raises(UserError, match=rf"{override} is not divisible by 4 replicas. Use a multiple of 4"):
            train_model(tiny.load_config(override), str(model_dir), tiny.make_strategy(4))
    assert not model_dir.exists()

"""Learning from a teacher: the loss against numpy and Keras, what stays fixed, and what is refused."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import write_model_dir
from efficientnet_tf.ops.random import make_seed
from efficientnet_tf.training.graph import make_training_graph
from efficientnet_tf.training.losses import compute_similarity_losses, compute_teacher_losses
from efficientnet_tf.training.step import TrainStep
from efficientnet_tf.training.teacher import check_teacher
from efficientnet_tf.training.trainer import train_model

RNG = np.random.default_rng(0)
TAUGHT, OUTPUTS = RNG.normal(0, 3, (2, 6, 5)).astype("float32")
DIGITS = [str(digit) for digit in range(10)]


def write_teacher(folder, *overrides, names=DIGITS):
    """Write the model directory of a network with random weights, and return it and the model."""
    config = tiny.load_config("train.ema_decay=0", *overrides)
    model = tiny.randomize(build_from_config(config, len(names)))
    write_model_dir(str(folder), model, config, names)
    return str(folder), model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "t", "data.image_size=[32, 48]")


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes(temperature):
    config = tiny.load_config(f"train.teacher_temperature={temperature}")
    losses = compute_teacher_losses(tf.constant(TAUGHT), tf.constant(OUTPUTS), config).numpy()
    p, q = (scipy.special.softmax(x.astype(float) / temperature, axis=1) for x in (TAUGHT, OUTPUTS))
    np.testing.assert_allclose(losses, temperature**2 * scipy.special.rel_entr(p, q).sum(axis=1), rtol=1e-4)
    assert compute_teacher_losses(tf.constant(TAUGHT), tf.constant(TAUGHT), config).numpy() == pytest.approx(
        0, abs=1e-5
    )


def test_labels():
    config = tiny.load_config("data.task=multilabel", "train.teacher_temperature=2")
    losses = compute_teacher_losses(tf.constant(TAUGHT), tf.constant(OUTPUTS), config).numpy()
    p, q = (scipy.special.expit(x.astype(float) / 2) for x in (TAUGHT, OUTPUTS))
    divergence = scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)
    np.testing.assert_allclose(losses, 4 * divergence.mean(axis=1), rtol=1e-3)


def test_numbers():
    config = tiny.load_config("data.task=regression", "train.loss=mae", "data.target_mean=[1]", "data.target_std=[2]")
    losses = compute_teacher_losses(tf.constant([[3.0]]), tf.constant([[7.0]]), config)
    assert losses.numpy() == pytest.approx(2.0), "4 in units of the standard deviation"


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_step_weights_labels_and_teacher(teacher, weight):
    """The teacher sees the mixed images in its own height and width, with the layers of the stored Keras model."""
    path, model = teacher
    settings = ["train.label_smoothing=0", "augment.mixup=0.5", "optimizer.weight_decay=0", "model.dropout=0"]
    settings += ["model.drop_connect=0", "train.teacher_temperature=3"]
    run = tiny.Run(tiny.load_config(f"train.teacher={path}", f"train.teacher_weight={weight}", *settings))
    step = TrainStep(run.state.model, run.state.model, run.config, teacher=run.state.teacher)
    images = RNG.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    labels, seed = np.array([1, 2, 3, 4], np.int32), make_seed(0, 0, 0)
    values = [v.value for v in step.trainable]
    inputs = {path: v.value for path, v in step.inputs.items()}
    loss = float(step.compute_loss(values, inputs, seed, images, labels)[0])

    from efficientnet_tf.data.mixing import mix_images

    targets = tf.one_hot(labels, 10)
    mixed, targets = mix_images(tf.cast(images, tf.float32), targets, seed, run.config.augment)
    outputs = run.state.model(mixed, training=True).numpy().astype(float)
    large = keras.ops.image.resize(mixed, (32, 48), antialias=True)
    taught = model(large, training=False).numpy().astype(float)
    hard = -(targets.numpy() * scipy.special.log_softmax(outputs, axis=1)).sum(axis=1)
    p, q = (scipy.special.softmax(x / 3, axis=1) for x in (taught, outputs))
    soft = 9 * scipy.special.rel_entr(p, q).sum(axis=1)
    assert loss == pytest.approx(((1 - weight) * hard + weight * soft).mean(), rel=1e-3)


def similarity(features):
    """Return the rows of similarities, by a loop."""
    rows = [[float(np.dot(one, other)) for other in features] for one in features]
    return np.array([np.array(row) / np.sqrt(sum(number**2 for number in row)) for row in rows])


def test_similarities_of_a_batch():
    """Networks may have any numbers of features, at any scale."""
    taught, features = RNG.random((2, 6, 5)).astype("float32")
    losses = compute_similarity_losses(tf.constant(taught), tf.constant(features)).numpy()
    np.testing.assert_allclose(losses, ((similarity(taught) - similarity(features)) ** 2).sum(axis=1), rtol=1e-4)
    wider = np.concatenate([3 * taught, np.zeros([6, 4])], axis=1).astype("float32")
    assert compute_similarity_losses(tf.constant(taught), tf.constant(wider)).numpy() == pytest.approx(0, abs=1e-10)
    assert not compute_similarity_losses(tf.zeros([3, 4]), tf.zeros([3, 2])).numpy().any()


@pytest.mark.parametrize("remat", ["false", "true"])
def test_a_step_adds_the_features(teacher, remat):
    """They are the mean of each channel of the last feature maps, in training for the student, and as stored for the
    teacher."""
    path, model = teacher
    settings = ["augment.mixup=0", "optimizer.weight_decay=0", "model.dropout=0", "model.drop_connect=0"]
    losses = {}
    for weight in (0, 5):
        overrides = [f"train.teacher={path}", f"train.teacher_features={weight}", f"train.remat={remat}", *settings]
        run = tiny.Run(tiny.load_config(*overrides))
        graph = make_training_graph(run.state.model, run.config, tiny.make_strategy(1))
        step = TrainStep(run.state.model, graph, run.config, teacher=run.state.teacher)
        images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        labels, seed = np.array([1, 2, 3, 4], np.int32), make_seed(0, 0, 0)
        inputs = {name: v.value for name, v in step.inputs.items()}
        loss, _, metrics = step.compute_loss([v.value for v in step.trainable], inputs, seed, images, labels)
        assert metrics.shape == (2,)
        losses[weight] = float(loss)
    maps = {}
    for name, network, options in (("student", run.state.model, {"training": True}), ("teacher", model, {})):
        body = keras.Model(network.input, network.get_layer("avg_pool").input)
        resized = keras.ops.image.resize(tf.cast(images, tf.float32), network.input_shape[1:3], antialias=True)
        maps[name] = body(resized, **options).numpy().astype(float).mean(axis=(1, 2))
    expected = 5 * ((similarity(maps["teacher"]) - similarity(maps["student"])) ** 2).sum(axis=1).mean()
    assert expected > 0.01 and losses[5] - losses[0] == pytest.approx(expected, rel=1e-3)


def test_features_need_a_teacher():
    with pytest.raises(UserError, match=r"train\.teacher_features=1 needs train\.teacher\. Set train\.teacher=DIR\."):
        tiny.load_config("train.teacher_features=1")


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_teacher_does_not_change(teacher, replicas):
    run = tiny.Run(tiny.load_config(f"train.teacher={teacher[0]}", "train.batch_size=16"), replicas)
    variables = list(run.state.teacher.variables.values())
    before = [tiny.replica_values(v) for v in variables]
    assert np.isfinite(run.losses(3)).all()
    for old, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(old, tiny.replica_values(variable))


def test_the_student_follows_the_teacher(teacher):
    """Without labels, its outputs come closer to those of the teacher, which are random."""
    path, model = teacher
    settings = ["train.teacher_weight=1", "optimizer.learning_rate=0.05", "train.batch_size=64", "model.dropout=0"]
    settings += ["model.drop_connect=0", "schedule.warmup_epochs=0", "schedule.name=constant"]
    run = tiny.Run(tiny.load_config(f"train.teacher={path}", *settings))
    losses = run.losses(25)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.slow
def test_a_run_that_is_stopped_repeats_itself(teacher, tmp_path):
    """Bit for bit, with the teacher read again."""
    settings = [f"train.teacher={teacher[0]}", "train.epochs=1", "schedule.warmup_epochs=0", "train.steps_per_loop=5"]
    settings.append(tiny.SHORT)
    config = tiny.load_config(*settings, "train.checkpoint_every_epochs=0.5")
    whole = train_model(config, str(tmp_path / "whole"), tiny.make_strategy(1))
    stopped = [tiny.At(step10=tiny.send_sigterm)]
    assert not train_model(config, str(tmp_path / "parts"), tiny.make_strategy(1), callbacks=stopped)["finished"]
    assert train_model(config, str(tmp_path / "parts"), tiny.make_strategy(1)) == whole


# ---------------------------------------------------------------------------------------------------------- bad input


def test_other_classes(tmp_path):
    names = [*DIGITS[:8], "nine", "eight"]
    path, _ = write_teacher(tmp_path / "t", names=names)
    with pytest.raises(UserError, match=r"train.teacher=.* predicts 0, 1, 2, 3, 4 .*, but the data has 0, 1, 2, 3, 4"):
        check_teacher(tiny.load_config(f"train.teacher={path}"), DIGITS)
    check_teacher(tiny.load_config(f"train.teacher={path}"), names)


def test_another_task(tmp_path):
    path, _ = write_teacher(tmp_path / "t", "data.task=multilabel")
    with pytest.raises(UserError, match=r"has data.task=multilabel, but this run has data.task=classification"):
        check_teacher(tiny.load_config(f"train.teacher={path}"))


def test_other_channels(tmp_path):
    gray = ["data.channels=1", "model.mean=[128]", "model.std=[60]"]
    path, _ = write_teacher(tmp_path / "t", *gray)
    with pytest.raises(UserError, match=r"has data.channels=1, but this run has data.channels=3"):
        check_teacher(tiny.load_config(f"train.teacher={path}"))


def test_no_model(tmp_path):
    with pytest.raises(UserError, match=r"train.teacher=.*: model_dir=.* is not a model directory"):
        check_teacher(tiny.load_config(f"train.teacher={tmp_path}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.teacher_weight=1.5", "less than or equal to 1"),
        ("train.teacher_weight=-1", "greater than or equal to 0"),
        ("train.teacher_temperature=0", "greater than or equal to 0.1"),
        ("train.quantize=int8", "cannot be combined with train.teacher"),
    ],
)
def test_settings_that_make_no_sense(override, message):
    with pytest.raises(UserError, match=message):
        tiny.load_config("train.teacher=x", override)

"""The training losses, compared with Keras and numpy."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tiny
from sklearn.utils.class_weight import compute_class_weight

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.ops.random import make_seed
from efficientnet_tf.training.losses import compute_losses, compute_metric, make_targets, split_labels, weigh_classes
from efficientnet_tf.training.step import TrainStep

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 5)).astype("float32")
MIXED = RNG.dirichlet(np.ones(5), 6).astype("float32")
LOGITS_OF_ALL = [1.0, 1.0, -2.0, 0.5, 0.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [np.eye(5, dtype="float32")[[0, 4, 2, 2, 1, 3]], MIXED], ids=["one_hot", "mixed"])
def test_bce_is_the_mean_over_the_classes(targets, smoothing):
    """timm: the targets are smoothed like those of the cross-entropy, not toward one half as in Keras."""
    config = tiny.load_config("train.loss=bce", f"train.label_smoothing={smoothing}")
    losses = compute_losses(tf.constant(targets), tf.constant(LOGITS), config).numpy()
    smoothed = targets * (1 - smoothing) + smoothing / 5
    probabilities = scipy.special.expit(LOGITS.astype(float))
    expected = -(smoothed * np.log(probabilities) + (1 - smoothed) * np.log(1 - probabilities)).mean(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(losses, keras.losses.binary_crossentropy(smoothed, LOGITS, from_logits=True), rtol=1e-5)


def test_a_step_trains_with_the_loss_of_the_config():
    """Two images that are mixed, in a network with the same logits for both classes: the shares do not matter."""
    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(5)])
    model.layers[-1].kernel.assign(np.zeros((12, 5)))
    model.layers[-1].bias.assign(LOGITS_OF_ALL)
    images, labels = np.zeros((2, 2, 2, 3), np.uint8), np.array([0, 1], np.int32)
    losses = {}
    for loss in ("cross_entropy", "bce"):
        config = tiny.load_config(f"train.loss={loss}", "augment.mixup=0.5", "optimizer.weight_decay=0.0")
        step = TrainStep(model, model, config)
        values = [v.value for v in step.trainable]
        losses[loss] = float(step.compute_loss(values, {}, make_seed(0, 0, 0), images, labels)[0])
    targets, logits = np.array([0.9 + 0.02, 0.02, 0.02, 0.02, 0.02]), np.array(LOGITS_OF_ALL)
    assert losses["cross_entropy"] == pytest.approx(-(targets * scipy.special.log_softmax(logits)).sum(), rel=1e-5)
    log_one, log_zero = np.log(scipy.special.expit(logits)), np.log(scipy.special.expit(-logits))
    assert losses["bce"] == pytest.approx(-(targets * log_one + (1 - targets) * log_zero).mean(), rel=1e-5)


LABELS = np.random.default_rng(1).integers(0, 2, (6, 5)).astype("float32")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_are_smoothed_toward_one_half(smoothing):
    config = tiny.load_config("data.task=multilabel", f"train.label_smoothing={smoothing}")
    losses = compute_losses(tf.constant(LABELS), tf.constant(LOGITS), config).numpy()
    expected = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
    np.testing.assert_allclose(losses, expected(LABELS, LOGITS), rtol=1e-5)


def test_the_asymmetric_loss():
    """Ben-Baruch et al. 2021, equations 5 to 7, with gamma+ = 0, gamma- = 4 and m = 0.05."""
    config = tiny.load_config("data.task=multilabel", "train.loss=asymmetric", "train.label_smoothing=0.0")
    p = scipy.special.expit(LOGITS.astype(float))
    shifted = np.maximum(p - 0.05, 0)
    expected = -np.where(LABELS == 1, np.log(p), shifted**4 * np.log(1 - shifted)).mean(axis=1)
    losses = compute_losses(tf.constant(LABELS), tf.constant(LOGITS), config).numpy()
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    easy = compute_losses(tf.zeros([1, 1]), tf.constant([[-3.0]]), config).numpy()
    assert easy == 0, "an absent label with a probability under the margin counts nothing"


def test_the_asymmetric_loss_of_a_sure_mistake_has_a_gradient():
    logits = tf.Variable([[40.0, -40.0]])
    config = tiny.load_config("data.task=multilabel", "train.loss=asymmetric", "train.label_smoothing=0.0")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(compute_losses(tf.constant([[0.0, 1.0]]), logits, config))
    assert np.isfinite(loss) and np.isfinite(tape.gradient(loss, logits)).all()


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        ("mse", lambda error: error**2),
        ("mae", np.abs),
        ("huber", lambda error: np.where(np.abs(error) <= 1, error**2 / 2, np.abs(error) - 0.5)),
    ],
)
def test_errors_of_numbers_are_in_units_of_their_deviation(loss, reference):
    statistics = ("data.target_mean=[10, 2000]", "data.target_std=[2, 500]")
    config = tiny.load_config("data.task=regression", f"train.loss={loss}", *statistics)
    numbers = np.array([[10, 2100], [14, 1000], [7, 2000]], np.float32)
    outputs = np.array([[11, 2100], [10, 2500], [9, 1999]], np.float32)
    losses = compute_losses(tf.constant(numbers), tf.constant(outputs), config).numpy()
    np.testing.assert_allclose(losses, reference((outputs - numbers) / [2, 500]).mean(axis=1), rtol=1e-5)


def test_the_default_loss_is_that_of_the_task():
    config = tiny.load_config("data.task=regression")
    assert (config.train.loss, config.loss, config.resolve().train.loss) == (None, "mse", "mse")
    assert tiny.load_config("data.task=multilabel").loss == "bce" and tiny.load_config().loss == "cross_entropy"


@pytest.mark.parametrize(
    ("task", "labels", "outputs", "expected"),
    [
        ("classification", [1, 0, 2], [[0.0, 1, 0], [0, 1, 0], [0, 0, 3]], 2 / 3),
        ("multilabel", [[0.0, 1], [1, 1], [0, 0]], [[-1.0, 2], [1, -1], [-3, -3]], 2 / 3),
        ("regression", [[1.0, 2], [3, 4]], [[2.0, 2], [3, 6]], 0.75),
    ],
)
def test_the_metric_of_a_step(task, labels, outputs, expected):
    labels = np.array(labels, np.int32 if task == "classification" else np.float32)
    metric = compute_metric(tf.constant(labels), tf.constant(outputs), tiny.load_config(f"data.task={task}"))
    assert float(metric) == pytest.approx(expected)


def test_targets():
    assert make_targets(tf.constant([2, 0]), 3, "classification").numpy().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert make_targets(tf.constant(LABELS), 5, "multilabel").numpy().tolist() == LABELS.tolist()


def test_balanced_classes_count_alike():
    """scikit-learn's "balanced": N / (classes * images of the class)."""
    labels = np.array([0] * 6 + [1] * 3 + [3])
    weights = weigh_classes(tiny.load_config("train.class_weights=balanced"), 5, labels)
    assert weights == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3, 0])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    assert [weights[label] for label in (0, 1, 3)] == pytest.approx(expected)
    assert np.mean([weights[label] for label in labels]) == pytest.approx(1)


def test_weights_of_classes():
    config = tiny.load_config("train.class_weights=[1, 2.5]")
    assert weigh_classes(config, 2, None) == [1, 2.5] and weigh_classes(tiny.load_config(), 2, None) is None
    with pytest.raises(UserError, match="train.class_weights has 2 weights, but the data has 10 classes"):
        weigh_classes(config, 10, None)
    with pytest.raises(UserError, match="train.class_weights=balanced needs the labels of all images"):
        weigh_classes(tiny.load_config("train.class_weights=balanced"), 2, None)
    for wrong in ("train.class_weights=[0, 1]", "train.class_weights=[-1, 1]", "train.class_weights=equal"):
        with pytest.raises(UserError, match=r"train\.class_weights"):
            tiny.load_config(wrong)
    with pytest.raises(UserError, match="train.class_weights is for data.task=classification"):
        tiny.load_config("data.task=multilabel", "train.class_weights=balanced")


def test_a_step_weighs_its_images():
    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(5)])
    model.layers[-1].kernel.assign(np.zeros((12, 5)))
    model.layers[-1].bias.assign(LOGITS_OF_ALL)
    config = tiny.load_config("optimizer.weight_decay=0.0", "train.label_smoothing=0.0")
    images, labels = np.zeros((3, 2, 2, 3), np.uint8), np.array([0, 2, 2], np.int32)
    step = TrainStep(model, model, config, class_weights=[1.0, 1.0, 4.0, 1.0, 1.0])
    loss = step.compute_loss([v.value for v in step.trainable], {}, make_seed(0, 0, 0), images, labels)[0]
    losses = -scipy.special.log_softmax(np.array(LOGITS_OF_ALL))[labels]
    assert float(loss) == pytest.approx((losses * [1, 4, 4]).mean(), rel=1e-5)


def test_probabilities_of_classes_are_learned_as_they_are():
    targets = make_targets(tf.constant(MIXED), 5, "classification")
    np.testing.assert_array_equal(targets, MIXED)
    config = tiny.load_config("train.label_smoothing=0.0")
    losses = compute_losses(targets, tf.constant(LOGITS), config).numpy()
    expected = -(MIXED * scipy.special.log_softmax(LOGITS.astype(float), axis=1)).sum(axis=1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    metric = float(compute_metric(tf.constant(MIXED), tf.constant(LOGITS), config))
    assert metric == pytest.approx(np.mean(MIXED.argmax(axis=1) == LOGITS.argmax(axis=1)))


def test_balanced_weights_count_probabilities():
    config = tiny.load_config("train.class_weights=balanced")
    weights = weigh_classes(config, 5, MIXED)
    np.testing.assert_allclose(weights, 6 / (5 * MIXED.sum(axis=0, dtype=float)), rtol=1e-6)
    assert weigh_classes(config, 5, np.eye(5, dtype=np.float32)) == weigh_classes(config, 5, np.arange(5)) == [1.0] * 5


def test_weights_are_the_last_column():
    rows = tf.constant([[2.0, 0.5], [0.0, 3.0]])
    plain, weighted = (
        tiny.load_config(*keys) for keys in ([], ["data.source=table", "data.dir=a", "data.weight_column=w"])
    )
    labels, weights = split_labels(rows, weighted)
    assert labels.dtype == tf.int32 and labels.numpy().tolist() == [2, 0] and weights.numpy().tolist() == [0.5, 3]
    assert split_labels(rows, plain) == (rows, None)

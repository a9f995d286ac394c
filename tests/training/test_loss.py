"""The training losses, compared with Keras and numpy."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tiny

from efficientnet_tf.ops.random import make_seed
from efficientnet_tf.training.step import TrainStep, classification_losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 5)).astype("float32")
MIXED = RNG.dirichlet(np.ones(5), 6).astype("float32")
LOGITS_OF_ALL = [1.0, 1.0, -2.0, 0.5, 0.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [np.eye(5, dtype="float32")[[0, 4, 2, 2, 1, 3]], MIXED], ids=["one_hot", "mixed"])
def test_bce_is_the_mean_over_the_classes(targets, smoothing):
    """timm: the targets are smoothed like those of the cross-entropy, not toward one half as in Keras."""
    settings = tiny.load_config("train.loss=bce", f"train.label_smoothing={smoothing}").train
    losses = classification_losses(tf.constant(targets), tf.constant(LOGITS), settings).numpy()
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

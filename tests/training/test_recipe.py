"""Proof of the recipe: network, training and pixels, compared with references outside this package.

The references are TensorFlow 1's own functions, which the official code calls, a few lines of numpy, and published
numbers. Other test files prove the rest: drop rates, initial weights and logits (models/test_builder.py), scaled
channels and repeats (scaling/test_compound.py), a whole training step (test_step.py), evaluation
(evaluation/test_loop.py), crops, resizing and mirroring (data/test_pipeline.py), and policies (data/test_policies.py).
"""

import math

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf
import tiny
import yaml
from unallocated import unallocated

from efficientnet_tf.config import schema
from efficientnet_tf.config.load import CONFIG_DIR, load_config, load_variant
from efficientnet_tf.data import pipeline
from efficientnet_tf.data.pipeline import eval_steps, train_image
from efficientnet_tf.data.source import source_from_bytes
from efficientnet_tf.data.windows import random_window
from efficientnet_tf.evaluation.loop import make_evaluator
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.training.ema import ModelEMA
from efficientnet_tf.training.optimizers import create_optimizer
from efficientnet_tf.training.schedule import create_schedule
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.tensorflow_loop import make_train_loop

IMAGENET = 1_281_167  # Training images.


# --------------------------------------------------------------------------------------------------- the network


def small_spec(*stages):
    """Return B0 with another stage table, rows of (kernel, stride, expand, channels, repeats), and a narrow stem."""
    keys = ("kernel", "stride", "expand", "channels", "repeats")
    rows = tuple(schema.Stage(**dict(zip(keys, stage, strict=True))) for stage in stages)
    return load_variant("b0").model_copy(update={"stages": rows, "stem_channels": 8, "head_channels": 16})


def test_a_block_with_stride_1_and_the_same_channels_is_residual():
    """The position in the stage does not matter, although no published variant has a first block like this."""
    table = [(3, 1, 1, 8, 1), (3, 2, 4, 8, 2), (3, 1, 4, 16, 2), (5, 1, 4, 16, 1), (5, 2, 4, 16, 1)]
    with unallocated():
        model = build_model(small_spec(*table), input_shape=(32, 32, 3))
        adds = {layer.name: layer.input for layer in model.layers if isinstance(layer, keras.layers.Add)}
        assert set(adds) == {"block1a_add", "block2b_add", "block3b_add", "block4a_add"}
        # The block's input is added, not the expanded one.
        inputs = {name: pair[1] for name, pair in adds.items()}
        assert inputs["block1a_add"] is model.get_layer("stem_activation").output
        assert inputs["block3b_add"] is model.get_layer("block3a_project_bn").output
        assert inputs["block4a_add"] is model.get_layer("block3b_add").output


def test_batch_norm_has_momentum_99_percent_and_epsilon_a_thousandth():
    """Ten steps of dark images, so that an epsilon of 0.001 changes the result visibly."""
    keras.utils.set_random_seed(0)
    model = build_model(small_spec((3, 1, 1, 8, 1), (3, 2, 4, 16, 2)), classes=2, input_shape=(16, 16, 3))
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 1 + 2 + 3 + 3 + 1
    for norm in norms:
        norm.gamma.assign(np.full(norm.gamma.shape, 0.1))  # Dark through all layers.
    watched = keras.Model(model.input, [tensor for norm in norms for tensor in (norm.input, norm.output)])
    rng = np.random.default_rng(0)
    pixels = rng.normal(rng.uniform(118, 138, (11, 8, 1, 1, 1)), 3, (11, 8, 16, 16, 3)).astype("float32")

    def observe(step, training):
        tensors = iter(watched(pixels[step], training=training))
        return [(before.numpy().astype(float), after.numpy()) for before, after in zip(tensors, tensors, strict=True)]

    moving = [(0.0, 1.0)] * len(norms)
    for step in range(10):
        for i, (before, after) in enumerate(observe(step, training=True)):
            mean, variance = before.mean(axis=(0, 1, 2)), before.var(axis=(0, 1, 2))
            assert variance.max() < 0.2
            np.testing.assert_allclose(after, 0.1 * (before - mean) / np.sqrt(variance + 1e-3), atol=1e-4)
            moving[i] = 0.99 * moving[i][0] + 0.01 * mean, 0.99 * moving[i][1] + 0.01 * variance
    for norm, (mean, variance), (before, after) in zip(norms, moving, observe(10, training=False), strict=True):
        np.testing.assert_allclose(norm.moving_mean.numpy(), mean, atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance.numpy(), variance, rtol=1e-5)
        np.testing.assert_allclose(after, 0.1 * (before - mean) / np.sqrt(variance + 1e-3), atol=1e-4)


# ----------------------------------------------------------------------------------------------------- training


def test_imagenet_recipe_states_every_published_number():
    """In the file itself, so that a changed default does not change the recipe."""
    stated = yaml.safe_load((CONFIG_DIR / "recipes" / "imagenet.yaml").read_text())
    third = pytest.approx(4 / 3, abs=1e-6)
    published = {
        "data": {"source": "tfds:imagenet2012", "train_split": "train", "eval_split": "validation"},
        "augment": {"crop_area": [0.08, 1], "crop_aspect": [0.75, third], "flip": True, "policy": "autoaugment"},
        "optimizer": {"name": "rmsprop", "learning_rate": 0.016, "rho": 0.9, "momentum": 0.9},
        "schedule": {"name": "exponential", "warmup_epochs": 5, "decay_epochs": 2.4, "decay_rate": 0.97},
        "train": {"batch_size": 2048, "epochs": 350, "label_smoothing": 0.1, "ema_decay": 0.9999},
    }
    published["optimizer"] |= {"epsilon": 1e-3, "weight_decay": 1e-5}
    for section, values in published.items():
        assert {key: stated[section].get(key) for key in values} == values
    # Network and image size come from the variant. The padding of the evaluation crop is 32 at every size.
    assert "model" not in stated and "phases" not in stated["train"]
    assert not {"image_size", "crop_padding", "interpolation"} & set(stated["data"])
    whole = load_config("b4", "imagenet")
    assert (whole.image_size, whole.crop_padding, whole.data.interpolation) == (380, 32, "bicubic")
    assert (whole.augment.mixup, whole.augment.cutmix, whole.augment.erase) == (0, 0, 0)
    assert (whole.augment.randaugment_count, whole.augment.randaugment_level) == (2, 10)


@pytest.mark.parametrize("batch", [2048, 4096])
def test_learning_rate_equals_tensorflow_1_around_every_decay_step(batch):
    run = load_config("b0", "imagenet", [f"train.batch_size={batch}"])
    rate, steps_per_epoch = create_schedule(run, IMAGENET), IMAGENET / batch
    peak = {2048: 0.128, 4096: 0.256}[batch]
    edges = np.ceil(np.arange(3, 146) * 2.4 * steps_per_epoch)
    steps = np.append(edges[:, None] + [-2, -1, 0, 1], 350 * steps_per_epoch).astype(int)
    official = tf.compat.v1.train.exponential_decay(peak, steps, steps_per_epoch * 2.4, 0.97, staircase=True)
    rates = np.array([float(rate(step)) for step in steps])
    np.testing.assert_allclose(rates, official(), rtol=1e-5)
    assert len(np.unique(rates.round(9))) == len(edges) + 1
    warmup_steps = 5 * steps_per_epoch
    climb = [0, 1, int(warmup_steps / 2), int(warmup_steps) - 1]
    assert [float(rate(step)) for step in climb] == pytest.approx([peak * s / warmup_steps for s in climb], rel=1e-6)
    assert float(rate(math.ceil(warmup_steps))) == pytest.approx(peak * 0.97**2, rel=1e-6)


def test_optimizer_and_ema_equal_tensorflow_1():
    """Twenty steps of the recipe, four per epoch, with one epoch of warmup and two decay steps."""
    run = load_config("b0", "imagenet", ["schedule.warmup_epochs=1"])
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()])
    optimizer = create_optimizer(run, model, size=4 * 2048)
    average = ModelEMA(model, run.train.ema_decay)
    weights, statistics = model.trainable_variables, batch_norm_statistics(model)
    assert [v.name for v in statistics] == ["moving_mean", "moving_variance"]

    theirs = [tf.Variable(v.numpy()) for v in (*weights, *statistics)]
    done = tf.Variable(0)
    decay = tf.compat.v1.train.exponential_decay(0.128, done, 2.4 * 4, 0.97, staircase=True)
    official = tf.compat.v1.train.RMSPropOptimizer(
        lambda: tf.where(done < 4, 0.128 * tf.cast(done, tf.float32) / 4, decay()),
        decay=0.9,
        momentum=0.9,
        epsilon=1e-3,
    )
    follower = tf.train.ExponentialMovingAverage(0.9999, num_updates=done)
    follower.apply(theirs)  # Creates the averages with the values of the variables.

    rng = np.random.default_rng(0)
    for scale in np.geomspace(1e-3, 3, 20):  # Gradients small and large compared with epsilon.
        gradients = [tf.constant(rng.normal(0, scale, v.shape), tf.float32) for v in weights]
        moved = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in statistics]
        optimizer.apply(gradients, weights)
        average.update(int(done), weights, moved)
        official.apply_gradients(zip(gradients, theirs, strict=False))
        for variable, value in zip(theirs[len(weights) :], moved, strict=True):
            variable.assign(value)
        follower.apply(theirs)
        done.assign_add(1)
        for ours, value in zip(weights, theirs, strict=False):
            np.testing.assert_allclose(ours.numpy(), value, rtol=1e-5, atol=1e-6)
        for ours, value in zip([*average.trainable, *average.statistics], theirs, strict=True):
            np.testing.assert_allclose(ours.numpy(), follower.average(value), rtol=1e-5, atol=1e-6)


def test_ema_ramp_ends_at_the_decay():
    """(1 + t) / (10 + t) is 0.9999 at t = 89,990. A run of 350 epochs at batch 4096 has 109,475 steps."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    for step, kept in ((8, 0.5), (44_990, 0.9998), (89_990, 0.9999), (10**7, 0.9999)):
        average = ModelEMA(model, load_config("b0", "imagenet").train.ema_decay)
        average.update(step, [np.ones((1, 1), "float32")], [])
        assert average.trainable[0].numpy().item() == pytest.approx(1 - kept, rel=2e-3)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_loss_equals_float64(precision):
    """With the published label smoothing and weight decay, to float32 precision for all precisions of the activations.

    The classifier's kernel is zero, so that the logits are its bias. All other variables are random, so that a mistake
    in which of them are decayed shows. In bfloat16, the logits would be off by a thousandth.
    """
    published = ("optimizer.weight_decay=1e-5", "train.label_smoothing=0.1", "train.batch_size=16")
    run = tiny.load_config(tiny.SHORT, *published, f"train.precision={precision}")
    strategy = tiny.make_strategy(1)
    state = create_state(run, 10, 1437, strategy)
    rng, decayed = np.random.default_rng(0), 0.0
    for layer in state.model.layers:
        for variable in layer.trainable_variables:
            assert variable.dtype == "float32"
            value = rng.normal(0, 3, variable.shape).astype("float32")
            variable.assign(value * (variable.path != "predictions/kernel"))
            if not isinstance(layer, keras.layers.BatchNormalization):
                decayed += (variable.numpy().astype(float) ** 2).sum()
    assert 1e-5 / 2 * decayed > 0.05
    images = rng.integers(0, 256, (1, 16, 32, 32, 3)).astype("uint8")
    labels = rng.integers(0, 10, (1, 16)).astype("int32")
    scores = state.model.get_layer("predictions").bias.numpy().astype(float)
    target = 0.9 * np.eye(10)[labels[0]] + 0.1 / 10
    expected = -(target * scipy.special.log_softmax(scores)).sum(axis=1).mean() + 1e-5 / 2 * decayed
    batches = tiny.distribute(strategy, lambda context: tf.data.Dataset.from_tensor_slices((images, labels)))
    loss, accuracy = make_train_loop(state, run, strategy)(batches, tf.constant(1)).numpy()
    assert loss == pytest.approx(expected, rel=2e-6)
    assert accuracy == pytest.approx((labels == scores.argmax()).mean())


# ------------------------------------------------------------------------------------------------------- pixels


def draw_sizes(rng, count, height, width, area, aspect, covered=0.1, attempts=10):
    """Draw crops as TensorFlow 1's `sample_distorted_bounding_box` does. Return heights, widths and which failed.

    Uniform are the aspect, then the height within what the area and the image allow.
    """
    ratio = rng.uniform(*aspect, (count, attempts))
    low, high = (np.rint(np.sqrt(share * height * width / ratio)) for share in area)
    high = np.minimum(np.minimum(high, np.ceil((width + 0.5) / ratio) - 1), height)
    h = high - np.floor(rng.uniform(0, 1, ratio.shape) * (np.maximum(high - low, 0) + 1))
    w = np.rint(h * ratio)
    share = h * w / (height * width)
    good = (share >= area[0]) & (share <= area[1]) & (share >= covered) & (w <= width)
    first = np.arange(count), good.argmax(axis=1)
    return h[first], w[first], ~good.any(axis=1)


def our_windows(count, height, width, settings):
    """Return (y, x, h, w) of `count` training crops, and which are the fallback."""
    seeds = np.stack([np.full(count, 5), np.arange(count)], axis=1).astype(np.int64)
    shape, fallback = tf.constant([height, width, 3]), tf.constant([-1, -1, -1, -1])
    windows = tf.data.Dataset.from_tensor_slices(seeds).map(lambda s: random_window(shape, s, settings, fallback))
    windows = next(iter(windows.batch(count))).numpy().T
    return windows, windows[0] < 0


@pytest.mark.parametrize(("height", "width"), [(427, 640), (500, 375), (300, 1200)])
def test_training_crops_have_the_distribution_of_tensorflow_1(height, width):
    count = 4000
    ours, failed = our_windows(count, height, width, load_config("b0", "imagenet").augment)
    law_h, law_w, law_failed = draw_sizes(np.random.default_rng(0), count, height, width, (0.08, 1), (3 / 4, 4 / 3))
    assert failed.mean() == pytest.approx(law_failed.mean(), abs=0.01)
    (y, x, h, w), law_h, law_w = ours[:, ~failed], law_h[~law_failed], law_w[~law_failed]
    share, law_share = h * w / (height * width), law_h * law_w / (height * width)
    assert 0.1 <= share.min() < 0.105  # A tenth of the image must be visible.
    for drawn, expected in ((h, law_h), (w, law_w), (w / h, law_w / law_h), (share, law_share)):
        assert scipy.stats.ks_2samp(drawn, expected).pvalue > 1e-3
    for place, room in ((y, height - h), (x, width - w)):
        place, room = (
            place[room > 50],
            room[room > 50],
        )  # Few positions have no distribution.
        assert len(room) > count / 4
        assert scipy.stats.kstest((place + 0.5) / room, "uniform").pvalue > 1e-3


def test_training_crop_gives_up_after_ten_attempts():
    """43% of 30 x 90 pixels are 39 full columns, an aspect of 38.5/30 to 40/30: one attempt in twelve succeeds."""
    _, failed = our_windows(4000, 30, 90, schema.AugmentConfig(crop_area=(0.43, 1.0)))
    chance = (4 / 3 - 38.5 / 30) / (4 / 3 - 3 / 4)
    assert failed.mean() == pytest.approx((1 - chance) ** 10, abs=0.02)  # After nine attempts it would be 0.038 more.


def test_policy_is_applied_to_uint8_pixels_after_resizing_and_mirroring(monkeypatch):
    seen = []

    def look(policy, image, seed):
        seen.append(image)
        return 255 - image

    monkeypatch.setattr(pipeline, "apply_policy", look)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    encoded = tf.io.encode_png(pixels)
    plain, varied, unflipped = (
        load_config("b0", "imagenet", ["data.image_size=24", *overrides])
        for overrides in (["augment.policy=none"], [], ["augment.policy=none", "augment.flip=false"])
    )
    mirrored = 0
    for i in range(8):
        seed = tf.constant([0, i], tf.int64)
        before, after, straight = (train_image(encoded, seed, run).numpy() for run in (plain, varied, unflipped))
        assert seen[i].dtype == tf.uint8 and seen[i].shape == (24, 24, 3)
        np.testing.assert_array_equal(seen[i], before)
        np.testing.assert_array_equal(after, 255 - before)
        mirrored += np.array_equal(before, straight[:, ::-1])
    assert len(seen) == 8 and 0 < mirrored < 8


@pytest.mark.slow
def test_evaluation_counts_all_50000_images():
    """The last batch of 1,024 has 848 images. Only those are classified correctly, so dropping them would show."""
    run = load_config("b0", "imagenet", ["data.image_size=8"])
    grays = [tf.io.encode_png(np.full((1, 1, 3), 20 * gray, np.uint8)).numpy() for gray in range(10)]
    labels = np.arange(50_000) % 10
    shown = np.where(np.arange(50_000) < 48 * 1024, (labels + 6) % 10, labels)
    source = source_from_bytes([grays[gray] for gray in shown], labels, [str(i) for i in range(10)], "gray")

    def logits_of(images):
        """Rank the shown class first, then those after it."""
        shown = tf.round(tf.reduce_mean(images, axis=(1, 2, 3)) / 20)[:, None]
        return -tf.math.floormod(tf.range(10.0)[None] - shown, 10.0)

    result = make_evaluator(logits_of, source, run, tiny.make_strategy(1))()
    assert eval_steps(source, run) == 49
    assert result["examples"] == 50_000
    assert result["top1"] == 848 / 50_000
    assert result["top5"] == 1  # The label of the wrong ones ranks fifth: 4 after (label + 6).
    wrong, right = -scipy.special.log_softmax(-np.arange(10.0))[[4, 0]]
    assert result["loss"] == pytest.approx((49_152 * wrong + 848 * right) / 50_000, rel=1e-5)

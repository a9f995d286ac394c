"""AdvProp: the attack against numpy, a step against two Keras models, and what a run keeps of it."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.auxiliary_norms import PREFIX, name_original
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import list_checkpoints
from efficientnet_tf.ops.random import make_seed
from efficientnet_tf.training.adversarial import attack_images
from efficientnet_tf.training.graph import make_training_graph
from efficientnet_tf.training.optimizers import find_rate_scales
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.step import TrainStep
from efficientnet_tf.training.trainer import train_model

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
IMAGES[:, :8] = 0
IMAGES[:, -8:] = 255
LABELS = RNG.integers(0, 10, 8).astype(np.int32)
NO_DROPOUT = ("model.dropout=0", "model.drop_connect=0")
PLAIN = (tiny.SHORT, *NO_DROPOUT, "optimizer.weight_decay=0.01", "train.batch_size=8")


# --------------------------------------------------------------------------------------------------------- the attack


def attack(images, weights, labels, seed, **settings):
    """Attack a linear classifier."""
    settings = [f"train.adversarial_{key}={value}" for key, value in settings.items()]

    def compute_loss(images):
        logits = tf.reshape(images, [len(labels), -1]) @ tf.constant(weights)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    return attack_images(tf.constant(images), compute_loss, seed, tiny.load_config(*settings).train).numpy()


@pytest.mark.parametrize(("steps", "epsilon", "step_size"), [(1, 1, 1), (5, 4, 1), (4, 2.5, 2)])
def test_the_attack_equals_numpy(steps, epsilon, step_size):
    """For a linear classifier, the gradient is W (softmax - target), which differs from step to step."""
    images = IMAGES[:4, ::4, ::4].astype(np.float32)
    weights = RNG.normal(0, 1e-4, (images[0].size, 10)).astype(np.float32)
    seed, limits = make_seed(3, 1, 0), {"epsilon": epsilon, "step_size": step_size}
    got = attack(images, weights, LABELS[:4], seed, steps=steps, **limits)
    pixels = attack(images, weights, LABELS[:4], seed, steps=0, **limits).reshape(4, -1).astype(float)
    low, high = (images.reshape(4, -1) + sign * epsilon for sign in (-1, 1))
    for _ in range(steps):
        probabilities = scipy.special.softmax(pixels @ weights, axis=1)
        gradient = (probabilities - np.eye(10)[LABELS[:4]]) @ weights.T
        pixels = np.minimum(np.maximum(pixels + step_size * np.sign(gradient), low), high).clip(0, 255)
    np.testing.assert_allclose(got.reshape(4, -1), pixels, rtol=0, atol=1e-3)
    assert np.abs(got - images).max() == pytest.approx(epsilon, rel=1e-5)
    assert (got.min(), got.max()) == (0, 255)


def test_the_attack_starts_at_a_random_point_that_follows_from_the_position():
    images, weights = IMAGES.astype(np.float32), np.zeros((IMAGES[0].size, 10), np.float32)
    starts = attack(images, weights, LABELS, make_seed(0, 5, 0), steps=0, epsilon=4)
    change = (starts - images)[:, 8:-8]
    assert np.abs(change).max() <= 4
    assert change.mean() == pytest.approx(0, abs=0.1)
    assert change.std() == pytest.approx(4 / np.sqrt(3), rel=0.05), "uniform"
    second = attack(images[4:], weights, LABELS[4:], make_seed(0, 5, 4), steps=0, epsilon=4)
    np.testing.assert_array_equal(second, starts[4:])
    for other in (make_seed(0, 6, 0), make_seed(1, 5, 0)):
        assert (attack(images, weights, LABELS, other, steps=0, epsilon=4) != starts).mean() > 0.5


# ----------------------------------------------------------------------------------------------------------- one step


class Step:
    """A step with its values, outside of a loop."""

    def __init__(self, *settings, auxiliary_seed=None):
        self.config, strategy = tiny.load_config(*settings), tiny.make_strategy(1)
        self.state = create_state(self.config, 10, 1000, strategy)
        tiny.randomize(self.state.model)
        rng = np.random.default_rng(auxiliary_seed)
        originals = {v.path: v for v in self.state.model.variables}
        for v in self.state.auxiliary:
            original = originals[name_original(v.path)].numpy()
            v.assign(original if auxiliary_seed is None else original * rng.uniform(0.5, 2, v.shape))
        graph = make_training_graph(self.state.model, self.config, strategy)
        self.step = TrainStep(self.state.model, graph, self.config, self.state.extras)

    def compute(self, images=IMAGES, seed=None):
        """Return the loss, {path: new statistics}, the metrics and {path: gradient}."""
        weights = [tf.convert_to_tensor(v.value) for v in self.step.trainable]
        inputs = {path: tf.convert_to_tensor(v.value) for path, v in self.step.inputs.items()}
        with tf.GradientTape() as tape:
            tape.watch(weights)
            seed = make_seed(0, 0, 0) if seed is None else seed
            loss, statistics, metrics = self.step.compute_loss(weights, inputs, seed, images, LABELS)
        gradients = tape.gradient(loss, weights)
        named = {v.path: g.numpy() for v, g in zip(self.step.trainable, gradients, strict=True)}
        new = {v.path: s.numpy() for v, s in zip(self.step.statistics, statistics, strict=True)}
        return float(loss), new, metrics.numpy(), named

    def copy(self, auxiliary):
        """Return the network as a Keras model, with one of the sets of batch norms."""
        model = build_from_config(self.config, 10)
        values = {v.path: v for v in (*self.state.model.variables, *self.state.auxiliary)}
        for v in model.variables:
            if v.path in values:
                v.assign(values.get(f"{PREFIX}{v.path}" if auxiliary else v.path, values[v.path]))
        return model


def reference_loss(model, images, training):
    return tf.reduce_mean(
        keras.losses.categorical_crossentropy(
            tf.one_hot(LABELS, 10), model(images, training=training), from_logits=True, label_smoothing=0.1
        )
    )


def test_a_step_equals_two_keras_models():
    """The second model has the auxiliary batch norms. It is attacked, and it learns the adversarial images."""
    settings = ["train.adversarial_epsilon=12", "train.adversarial_step_size=5", "train.adversarial_steps=3"]
    step = Step(*PLAIN, *settings, auxiliary_seed=1)
    loss, statistics, (clean_loss, _), gradients = step.compute()
    clean, other = step.copy(auxiliary=False), step.copy(auxiliary=True)
    images = IMAGES.astype(np.float32)
    start = step.config.train.model_copy(update={"adversarial_steps": 0})
    adversarial = attack_images(tf.constant(images), tf.reduce_sum, make_seed(0, 0, 0), start)
    for _ in range(3):
        with tf.GradientTape() as tape:
            tape.watch(adversarial)
            attacked = reference_loss(other, adversarial, training=False)
        change = 5 * np.sign(tape.gradient(attacked, adversarial))
        adversarial = tf.constant((adversarial + change).numpy().clip(images - 12, images + 12).clip(0, 255))
    found = {}
    losses = []
    for model, inputs in ((clean, images), (other, adversarial)):
        with tf.GradientTape() as tape:
            losses.append(reference_loss(model, inputs, training=True))
        for v, gradient in zip(
            model.trainable_variables, tape.gradient(losses[-1], model.trainable_variables), strict=True
        ):
            is_norm = v.name in ("gamma", "beta")
            path = f"{PREFIX}{v.path}" if model is other and is_norm else v.path
            found[path] = found.get(path, 0) + gradient.numpy()
    decayed = [v for v in clean.trainable_variables if v.name not in ("gamma", "beta")]
    penalty = 0.01 / 2 * sum((v.numpy().astype(float) ** 2).sum() for v in decayed)
    for v in decayed:
        found[v.path] += 0.01 * v.numpy()
    # An attack by the other batch norms, or none, would give a loss that differs by several percent.
    assert float(losses[1]) > 1.05 * float(reference_loss(step.copy(auxiliary=True), images, training=True))
    assert loss == pytest.approx(float(losses[0]) + float(losses[1]) + penalty, rel=1e-4)
    assert clean_loss == pytest.approx(float(losses[0]) + penalty, rel=1e-5)
    assert set(gradients) == set(found)
    for path, gradient in gradients.items():
        np.testing.assert_allclose(
            gradient, found[path], rtol=0, atol=5e-3 * np.abs(found[path]).max() + 1e-6, err_msg=path
        )
    for model, prefix in ((clean, ""), (other, PREFIX)):  # Calling them has moved their statistics.
        for v in model.non_trainable_variables:
            if v.name.startswith("moving"):
                np.testing.assert_allclose(statistics[f"{prefix}{v.path}"], v, rtol=1e-3, atol=1e-4, err_msg=v.path)


def test_adversarial_images_leave_clean_statistics_and_metrics_alone():
    step = Step(*PLAIN, "train.adversarial_steps=2", auxiliary_seed=1)
    _, statistics, metrics, _ = step.compute()
    _, expected, plain_metrics, _ = Step(*PLAIN).compute()
    assert {path for path in statistics if not path.startswith(PREFIX)} == set(expected)
    assert {name_original(path) for path in statistics if path.startswith(PREFIX)} == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(statistics[path], value, err_msg=path)
        assert not np.allclose(statistics[f"{PREFIX}{path}"], value, rtol=1e-3)
    np.testing.assert_array_equal(metrics, plain_metrics)


def test_without_a_change_both_losses_are_equal():
    """The images count twice then, and weight decay once."""
    step = Step(*PLAIN, "train.adversarial_steps=2", "train.adversarial_epsilon=0")
    loss, statistics, _, gradients = step.compute()
    plain = Step(*PLAIN)
    plain_loss, plain_statistics, _, plain_gradients = plain.compute()
    decayed = {v.path: 0.01 * v.numpy() for v in plain.step.trainable if v.name not in ("gamma", "beta")}
    penalty = sum((v.astype(float) ** 2).sum() for v in decayed.values()) / 0.02
    assert loss == pytest.approx(2 * plain_loss - penalty, rel=1e-5)
    for path, gradient in gradients.items():
        expected = plain_gradients[name_original(path)]
        if path in decayed:
            expected = 2 * expected - decayed[path]
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max() + 1e-7, err_msg=path)
    for path, value in statistics.items():
        np.testing.assert_allclose(value, plain_statistics[name_original(path)], rtol=1e-5, atol=1e-6, err_msg=path)


def test_clean_and_adversarial_images_have_different_masks():
    settings = (tiny.SHORT, "model.drop_connect=0", "model.dropout=0.5", "optimizer.weight_decay=0")
    loss, _, (clean_loss, _), _ = Step(*settings, "train.adversarial_steps=1", "train.adversarial_epsilon=0").compute()
    assert loss != pytest.approx(2 * clean_loss, rel=1e-3)


def test_an_infinite_adversarial_loss_is_reported():
    step = Step(*PLAIN, "train.adversarial_steps=1")
    step.state.auxiliary[0].assign(np.full(step.state.auxiliary[0].shape, np.inf))
    _, _, (loss, accuracy), _ = step.compute()
    assert not np.isfinite(loss)
    assert np.isfinite(accuracy)


def test_auxiliary_norms_are_clipped_and_scaled_like_the_others():
    step = Step(*PLAIN, "train.adversarial_steps=1", "optimizer.agc=0.01", "optimizer.name=adamw")
    weights = [tf.ones(v.shape) for v in step.step.trainable]
    clipped = step.step.clip([1e3 * w for w in weights], weights)
    for v, gradient in zip(step.step.trainable, clipped, strict=True):
        if v.name in ("gamma", "beta"):
            assert np.linalg.norm(gradient) == pytest.approx(0.01 * np.sqrt(v.shape[0]), rel=1e-4), v.path
    model, optimizer = step.state.model, step.state.optimizer
    trainable = [v for v in step.state.auxiliary if v.name in ("gamma", "beta")]
    assert not any(optimizer._use_weight_decay(v) for v in trainable)
    scales = find_rate_scales(model, 0.5, trainable)
    paths = [v.path for v in (*model.trainable_variables, *trainable)]
    by_path = dict(zip(paths, scales, strict=True))
    assert all(by_path[path] == by_path[name_original(path)] for path in paths)
    assert len(set(scales)) > 3


# ------------------------------------------------------------------------------------------------------------ the run


@pytest.mark.slow
def test_two_replicas_equal_one():
    """With batch norm over all images. A part of a batch is attacked as the whole is."""
    settings = [tiny.SHORT, "train.batch_size=16", "train.adversarial_steps=2", "train.batch_norm_group=all"]
    settings += ["optimizer.learning_rate=0.2", "schedule.warmup_epochs=0"]
    one, two = (tiny.Run(tiny.load_config(*settings), replicas) for replicas in (1, 2))
    np.testing.assert_allclose(one.losses(3), two.losses(3), rtol=1e-4)
    others = tiny.variables_of(two.state)
    for name, variable in tiny.variables_of(one.state).items():
        value = tiny.replica_values(variable)[0]
        first, second = tiny.replica_values(others[name])
        np.testing.assert_array_equal(first, second, err_msg=name)
        np.testing.assert_allclose(first, value, rtol=0, atol=2e-3 * np.abs(value).max() + 1e-5, err_msg=name)


@pytest.mark.slow
def test_a_run_with_parts_learns():
    settings = [tiny.SHORT, "train.batch_size=32", "train.adversarial_steps=1", "train.accumulate=2"]
    run = tiny.Run(tiny.load_config(*settings, "optimizer.learning_rate=0.1", "schedule.warmup_epochs=0"))
    start = {v.path: v.numpy() for v in run.state.auxiliary}
    assert run.steps(10)[0] > run.steps(20)[0]
    originals = {v.path: v.numpy() for v in run.state.model.variables}
    for v in run.state.auxiliary:
        assert not np.array_equal(v.numpy(), start[v.path]), v.path
        assert not np.array_equal(v.numpy(), originals[name_original(v.path)]), v.path


def read_checkpoint(model_dir):
    reader = tf.train.load_checkpoint(next(iter(list_checkpoints(str(model_dir)).values())))
    return {name: reader.get_tensor(name) for name, shape in reader.get_variable_to_shape_map().items() if shape}


@pytest.mark.slow
def test_a_run_that_is_stopped_repeats_itself(tmp_path):
    """Bit for bit, auxiliary batch norms included. The saved model has none of them."""
    settings = ["train.epochs=1", "schedule.warmup_epochs=0", "train.steps_per_loop=5", "train.adversarial_steps=1"]
    config = tiny.load_config(tiny.SHORT, *settings, "train.checkpoint_every_epochs=0.5", "train.ema_decay=0.9")
    whole = train_model(config, str(tmp_path / "whole"), tiny.make_strategy(1))
    stopped = [tiny.At(step10=tiny.send_sigterm)]
    assert not train_model(config, str(tmp_path / "parts"), tiny.make_strategy(1), callbacks=stopped)["finished"]
    assert train_model(config, str(tmp_path / "parts"), tiny.make_strategy(1)) == whole
    expected, found = (read_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert sum(name.startswith("auxiliary/") for name in expected) == 28
    assert not any("auxiliary" in name for name in expected if name.startswith(("model", "average")))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    saved = keras.models.load_model(tmp_path / "whole" / "model.keras")
    plain = build_from_config(config, 10)
    assert [v.path for v in saved.weights] == [v.path for v in plain.weights]
    assert [layer.name for layer in saved.layers] == [layer.name for layer in plain.layers]


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.adversarial_steps=-1", "greater than or equal to 0"),
        ("train.adversarial_steps=101", "less than or equal to 100"),
        ("train.adversarial_steps=1.5", "valid integer"),
        ("train.adversarial_epsilon=-1", "greater than or equal to 0"),
        ("train.adversarial_epsilon=256", "less than or equal to 255"),
        ("train.adversarial_epsilon=.nan", "finite number"),
        ("train.adversarial_step_size=0", "greater than 0"),
        ("train.adversarial_step_size=.inf", "finite number"),
        ("train.quantize=int8", "train.adversarial_steps=5 cannot be combined with train.quantize=int8"),
        ("train.freeze=batch_norm", "train.adversarial_steps=5 cannot be combined with train.freeze=batch_norm"),
        ("train.teacher=other", "train.adversarial_steps=5 cannot be combined with train.teacher=other"),
        (
            "train.phases=[{until: 1.0, set: {train.freeze: body}}]",
            "train.phases cannot set .*train.adversarial_steps=5 cannot be combined with train.freeze=body",
        ),
        (
            "train.phases=[{until: 1.0, set: {train.adversarial_steps: 1}}]",
            "train.phases cannot set 'train.adversarial_steps'",
        ),
    ],
)
def test_settings_that_make_no_sense(override, message):
    with pytest.raises(UserError, match=message):
        tiny.load_config("train.adversarial_steps=5", "train.init_from=x", override)

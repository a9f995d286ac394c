"""Schedule, optimizers, weight decay and EMA, compared with a few lines of numpy."""

import math

import keras
import numpy as np
import pytest
import tiny
from unallocated import unallocated

from efficientnet_tf.config.load import load_config
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.variables import batch_norm_statistics, decayed_variables
from efficientnet_tf.ops.random import make_seed
from efficientnet_tf.training.ema import ModelEMA
from efficientnet_tf.training.optimizers import RMSprop, create_optimizer, weight_penalty
from efficientnet_tf.training.schedule import (
    LearningRate,
    Rhythm,
    create_schedule,
    plan_phases,
    steps_per_epoch,
    to_steps,
)
from efficientnet_tf.training.step import TrainStep

RHO, MOMENTUM, EPSILON = 0.9, 0.9, 1e-3


def make_schedule(*overrides, size=1000, batch=100):
    fixed = ("optimizer.learning_rate=0.016", "train.epochs=20", f"train.batch_size={batch}")
    return create_schedule(tiny.load_config(*fixed, *overrides), size)


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


# ------------------------------------------------------------------------------------------------- optimisers


def tensorflow1_rmsprop(weight, gradients, rate):
    """Yield the weight after each step of TensorFlow 1's RMSProp. `rate` maps a step to its learning rate."""
    mean_square, velocity = np.ones_like(weight), np.zeros_like(weight)
    for step, gradient in enumerate(gradients):
        mean_square = RHO * mean_square + (1 - RHO) * gradient**2
        velocity = MOMENTUM * velocity + rate(step) * gradient / np.sqrt(mean_square + EPSILON)
        weight = weight - velocity
        yield weight


def test_rmsprop_equals_tensorflow_1():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(3, 4))
    # Gradients that are small and large compared with epsilon, and a rate that changes at every step.
    gradients = rng.normal(size=(20, 3, 4)) * np.geomspace(1e-3, 3, 20)[:, None, None]
    schedule = make_schedule("schedule.name=cosine", "schedule.warmup_epochs=0.7", "train.epochs=2")
    variable = keras.Variable(start)
    optimizer = RMSprop(schedule, rho=RHO, momentum=MOMENTUM, epsilon=EPSILON)
    optimizer.build([variable])
    expected = tensorflow1_rmsprop(start, gradients, lambda step: float(schedule(step)))
    for gradient, value in zip(gradients, expected, strict=True):
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)


def test_keras_rmsprop_starts_far_too_fast():
    """At gradient 0.01, Keras's mean square after the first step is 1e-5 and TensorFlow 1's is about 0.9."""
    moved = {}
    for make in (RMSprop, keras.optimizers.RMSprop):
        variable = keras.Variable([0.0])
        make(0.1, rho=RHO, momentum=MOMENTUM, epsilon=EPSILON).apply([keras.ops.full((1,), 0.01)], [variable])
        moved[make] = -variable.numpy().item()
    assert moved[RMSprop] == pytest.approx(0.1 * 0.01 / math.sqrt(0.9 + 1e-5 + EPSILON), rel=1e-5)
    assert moved[keras.optimizers.RMSprop] == pytest.approx(0.1 * 0.01 / math.sqrt(1e-5 + EPSILON), rel=1e-5)


def make_model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization()])


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw", "lamb"])
def test_settings_reach_the_optimizer(name):
    """The second step shows momentum and epsilon. The reference is Keras's optimizer with explicit numbers."""
    settings = {"learning_rate": 0.02, "momentum": 0.7, "rho": 0.6, "epsilon": 0.01, "weight_decay": 0.3}
    overrides = [f"optimizer.{key}={value}" for key, value in settings.items()]
    run = tiny.load_config(
        f"optimizer.name={name}",
        *overrides,
        "train.batch_size=512",
        "schedule.name=constant",
        "schedule.warmup_epochs=0",
    )
    rate = 0.02 * 512 / 256
    reference = {
        "rmsprop": lambda: RMSprop(rate, rho=0.6, momentum=0.7, epsilon=0.01),
        "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.7),
        "adamw": lambda: keras.optimizers.AdamW(rate, weight_decay=0.3, beta_1=0.7, beta_2=0.6, epsilon=0.01),
        "lamb": lambda: keras.optimizers.Lamb(rate, weight_decay=0.3, beta_1=0.7, beta_2=0.6, epsilon=0.01),
    }[name]()
    keras.utils.set_random_seed(0)
    first, second = make_model(), make_model()
    second.set_weights(first.get_weights())
    optimizer = create_optimizer(run, first, size=1000)
    kernels = first.trainable_variables[:1], second.trainable_variables[:1]
    assert optimizer.built
    reference.build(second.trainable_variables)
    rng = np.random.default_rng(0)
    for _ in range(2):
        gradients = [
            keras.ops.convert_to_tensor(rng.normal(size=v.shape), "float32") for v in first.trainable_variables
        ]
        optimizer.apply(gradients, first.trainable_variables)
        reference.apply(gradients, second.trainable_variables)
    np.testing.assert_array_equal(kernels[0][0].numpy(), kernels[1][0].numpy())


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_decay_leaves_batch_norm_alone(optimizer):
    run = tiny.load_config(f"optimizer.name={optimizer}", "optimizer.weight_decay=0.5", "schedule.warmup_epochs=0")
    model = make_model()
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones_like(variable))
    optimizer = create_optimizer(run, model, size=1000)
    optimizer.apply([keras.ops.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)
    after = {v.name: v.numpy() for v in model.trainable_variables}
    rate = run.optimizer.learning_rate * run.train.batch_size / 256
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(after[name], 1 - 0.5 * rate, rtol=1e-6)
    for name in ("gamma", "beta"):
        np.testing.assert_array_equal(after[name], 1)


def test_rmsprop_can_be_restored_from_its_config():
    schedule = make_schedule("schedule.name=exponential")
    optimizer = RMSprop(schedule, rho=0.8, momentum=0.7, epsilon=0.02)
    plain = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(plain)
    assert type(again) is RMSprop
    assert again.get_config() == optimizer.get_config()
    steps = range(0, 300, 7)
    np.testing.assert_array_equal(rates(again._learning_rate, steps), rates(schedule, steps))


def test_slots_survive_a_saved_model_and_a_second_build(tmp_path):
    model = make_model()
    model.compile(RMSprop(0.1, momentum=MOMENTUM), "mse")
    model.train_on_batch(np.ones((2, 3)), np.zeros((2, 4)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.optimizer.build(loaded.trainable_variables)
    before, after = ([v.numpy() for v in m.optimizer.variables] for m in (model, loaded))
    assert any((slot.numpy() != 1).any() for slot in model.optimizer._velocities)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)


# --------------------------------------------------------------------------------------------------- schedule


def test_a_batch_of_65536_has_the_schedule_of_2048():
    """350 epochs of ImageNet in 6,842 steps: 32 times the rate at the same epoch, with the same decay steps."""
    size, small, large = (
        1_281_167,
        *(tiny.load_config(f"train.batch_size={b}", recipe="imagenet") for b in (2048, 65536)),
    )
    assert [plan_phases(c, size)[-1].end_step for c in (small, large)] == [218_949, 6_842]
    schedules = [create_schedule(c, size) for c in (small, large)]
    steps = np.unique([*range(0, 6_842, 10), *range(90, 110)])
    # One step of the large batch is 32 steps of the small one.
    small_rates, large_rates = rates(schedules[0], steps * 32), rates(schedules[1], steps)
    np.testing.assert_allclose(large_rates, 32 * np.array(small_rates), rtol=1e-5)
    warmup, peak = 5 * size / 65536, 0.016 * 65536 / 256
    around = np.array(large_rates)[(steps == 97) | (steps == 98)]  # The rate drops at the end of the warmup.
    assert around == pytest.approx([peak * 97 / warmup, peak * 0.97**2], rel=1e-5)


def test_durations_become_steps():
    run = tiny.load_config("train.batch_size=64")
    assert steps_per_epoch(run, 1437) == 1437 / 64
    assert to_steps(20, run, 1437) == 449  # 449.06
    assert to_steps(2, run, 1437) == 45  # 44.9
    assert to_steps(0.001, run, 1437) == 1


@pytest.mark.parametrize(("epochs", "batch"), [(1, 64), (5, 64), (0.3, 100), (2, 1437), (1e-6, 64), (1, 5000)])
def test_what_repeats_every_few_epochs_is_due_at_the_closest_steps(epochs, batch):
    run = tiny.load_config(f"train.batch_size={batch}")
    period, rhythm = max(1, epochs * 1437 / batch), Rhythm(epochs, run, 1437)
    due = [step for step in range(1000) if rhythm.is_due(step)]
    assert due == [step for step in (round(count * period) for count in range(1, 1001)) if step < 1000]
    step, reached = 0, []
    while (step := rhythm.next_after(step)) < 1000:
        reached.append(step)
    assert reached == due


def test_the_end_of_a_run_coincides_with_its_last_evaluation():
    """20 epochs are 449 steps. Before, the fourth evaluation of five epochs each was after 4 x 112 = 448 steps."""
    run = tiny.load_config("train.batch_size=64")
    assert Rhythm(5, run, 1437).is_due(to_steps(20, run, 1437))


def test_peak_rate_grows_with_the_batch_size():
    for batch in (32, 256, 4096):
        schedule = make_schedule("schedule.name=constant", "schedule.warmup_epochs=0", batch=batch)
        assert rates(schedule, [0, 1, 10**6]) == [pytest.approx(0.016 * batch / 256, rel=1e-6)] * 3
    assert 0.016 * 4096 / 256 == 0.256  # As in the paper.


def test_peak_rate_can_grow_with_the_square_root_of_the_batch_size():
    for batch, factor in ((64, 0.5), (256, 1), (4096, 4)):
        settings = ("optimizer.rate_scaling=sqrt", "schedule.name=constant", "schedule.warmup_epochs=0")
        schedule = make_schedule(*settings, batch=batch)
        assert rates(schedule, [0, 10**6]) == [pytest.approx(0.016 * factor, rel=1e-6)] * 2


@pytest.mark.parametrize("name", ["exponential", "cosine", "constant"])
def test_warmup_is_linear_from_zero(name):
    """5 epochs of 10 steps are 50 steps."""
    schedule = make_schedule(f"schedule.name={name}", "schedule.warmup_epochs=5")
    peak = 0.016 * 100 / 256
    assert float(schedule(0)) == 0.0
    assert rates(schedule, [1, 25, 49]) == pytest.approx([peak / 50, peak / 2, peak * 49 / 50], rel=1e-6)
    # There are two decay steps, 24 and 48, before the warmup ends.
    after = peak * 0.97**2 if name == "exponential" else peak
    assert float(schedule(50)) == pytest.approx(after, rel=1e-6)


def test_decay_steps_are_counted_from_step_zero():
    schedule = make_schedule("schedule.name=exponential", "schedule.warmup_epochs=0", "train.epochs=100")
    peak = 0.016 * 100 / 256
    for number in range(42):
        edge = 24 * number  # 2.4 epochs of 10 steps
        assert rates(schedule, [edge, edge + 12, edge + 23]) == pytest.approx([peak * 0.97**number] * 3, rel=1e-5)


def test_official_imagenet_schedule():
    """The official recipe at batch 4096: 0.256, times 0.97 every 2.4 epochs, 350 epochs, 5 of them warmup."""
    size = 1_281_167
    official = create_schedule(load_config("b0", "imagenet", ["train.batch_size=4096"]), size)
    epoch = size / 4096
    assert rates(official, [0, epoch]) == [0.0, pytest.approx(0.256 / 5, rel=1e-5)]
    for number in range(3, 145):
        # One step away from the decay step, where float32 is precise enough.
        before, after = math.ceil(number * 2.4 * epoch) - 2, math.floor(number * 2.4 * epoch) + 2
        expected = [0.256 * 0.97 ** (number - 1), 0.256 * 0.97**number]
        assert rates(official, [before, after]) == pytest.approx(expected, rel=1e-4)


def test_cosine_ends_at_zero():
    schedule = make_schedule("schedule.name=cosine", "schedule.warmup_epochs=2", "train.epochs=12")
    peak = 0.016 * 100 / 256
    steps = [20, 45, 70, 95, 120, 130]
    shares = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]
    assert rates(schedule, steps) == pytest.approx([peak * share for share in shares], rel=1e-5, abs=1e-9)


def test_warmup_may_take_the_whole_run():
    schedule = make_schedule("schedule.name=cosine", "schedule.warmup_epochs=2", "train.epochs=2")
    assert rates(schedule, [10, 19]) == pytest.approx([0.00625 / 2, 0.00625 * 0.95], rel=1e-6)


@pytest.mark.parametrize("name", ["exponential", "cosine", "constant"])
def test_schedule_can_be_restored_from_its_config(name):
    schedule = make_schedule(f"schedule.name={name}")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config() == LearningRate(**schedule.get_config()).get_config()
    assert rates(again, range(0, 250, 9)) == rates(schedule, range(0, 250, 9))


# ----------------------------------------------------------------------------------------------- weight decay


def test_everything_but_batch_norm_is_decayed():
    with unallocated():
        model = build_model("b0", input_shape=(32, 32, 3))
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        spared = {id(w) for layer in norms for w in layer.trainable_weights}
        decayed = decayed_variables(model)
        assert [v.path for v in decayed] == [v.path for v in model.trainable_variables if id(v) not in spared]
        paths = {v.path for v in decayed}
        assert {"block1a_se_reduce/bias", "block7a_se_expand/bias", "predictions/bias", "stem_conv/kernel"} <= paths
        assert len(model.trainable_variables) - len(decayed) == 2 * len(norms) == 2 * 49
        kernels = decayed_variables(model, decay_bias=False)
        assert [v.path for v in kernels] == [v.path for v in decayed if not v.path.endswith("/bias")]
        assert len(decayed) - len(kernels) == 2 * 16 + 1  # squeeze-and-excitation of 16 blocks, and the classifier
        # The statistics are the other variables of batch norm, each once.
        moving = {id(w) for layer in norms for w in layer.non_trainable_weights}
        assert {id(v) for v in batch_norm_statistics(model)} == moving and len(batch_norm_statistics(model)) == len(
            moving
        ) == 98


def test_biases_can_be_spared():
    """For RMSProp weight decay is a part of the loss, and for AdamW a part of the update."""
    model, kept = make_model(), {}
    kernel, bias = model.layers[0].weights
    bias.assign([1.0, 2.0, 3.0, 4.0])
    images, labels = np.zeros((2, 3), np.uint8), np.array([0, 1], np.int32)
    for spared in (True, False):
        decay = ("optimizer.weight_decay=0.5", f"optimizer.decay_bias={str(not spared).lower()}")
        step = TrainStep(model, model, tiny.load_config(*decay))
        values = [step.trainable, {path: v.value for path, v in step.inputs.items()}]
        loss, *_ = step.compute_loss(*values, make_seed(0, 0, 0), images, labels)
        kept[spared] = float(loss)
        run = tiny.load_config(*decay, "optimizer.name=adamw", "schedule.warmup_epochs=0")
        before = [kernel.numpy(), bias.numpy()]
        optimizer = create_optimizer(run, model, size=1000)
        optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
        assert not np.array_equal(kernel, before[0])
        assert np.array_equal(bias, before[1]) == spared
        kernel.assign(before[0])
        bias.assign(before[1])
    assert kept[False] - kept[True] == pytest.approx(0.5 * 30 / 2, rel=1e-5)


def test_weight_penalty():
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype("float32") for shape in [(3, 3, 2, 4), (7,), (1,)]]
    squares = sum((v.astype("float64") ** 2).sum() for v in values)
    for name in ("rmsprop", "sgd"):
        run = tiny.load_config(f"optimizer.name={name}", "optimizer.weight_decay=1e-5")
        assert float(weight_penalty(run, values)) == pytest.approx(1e-5 * squares / 2, rel=1e-6)
    for override in ("optimizer.name=adamw", "optimizer.name=lamb", "optimizer.weight_decay=0"):
        assert float(weight_penalty(tiny.load_config(override), values)) == 0


# --------------------------------------------------------------------------------------------- moving average


@pytest.mark.parametrize("decay", [0.9999, 0.5])
def test_ema_has_a_ramp_and_includes_the_statistics(decay):
    """With a decay of 0.5, the ramp (1 + t) / (10 + t) reaches it at t = 8."""
    model = make_model()
    rng = np.random.default_rng(0)
    trained, statistics = model.trainable_variables, batch_norm_statistics(model)
    assert [v.name for v in statistics] == ["moving_mean", "moving_variance"]
    variables = [*trained, *statistics]
    for variable in variables:
        variable.assign(rng.normal(size=variable.shape))
    average = ModelEMA(model, decay)
    expected = [v.numpy().astype("float64") for v in variables]
    for step in range(20):
        values = [rng.normal(size=v.shape).astype("float32") for v in variables]
        average.update(step, values[: len(trained)], values[len(trained) :])
        keep = min(decay, (1 + step) / (10 + step))
        expected = [keep * e + (1 - keep) * v for e, v in zip(expected, values, strict=True)]
        for got, want in zip([*average.trainable, *average.statistics], expected, strict=True):
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)
    assert not any(v.trainable for v in [*average.trainable, *average.statistics])


# ------------------------------------------------------------------------------------------------- rates of layers


def step_of(name, layer_decay):
    """Return {path: change} of the weights of a small network in a single step with random gradients."""
    config = tiny.load_config(
        f"optimizer.name={name}",
        f"optimizer.layer_decay={layer_decay}",
        "optimizer.weight_decay=0.1",
        "schedule.warmup_epochs=0",
    )
    keras.utils.set_random_seed(0)
    model = build_model("tiny", 3, (32, 32, 3))
    optimizer = create_optimizer(config, model, 1000)
    before = [v.numpy() for v in model.trainable_variables]
    rng = np.random.default_rng(0)
    gradients = [keras.ops.convert_to_tensor(rng.normal(size=v.shape).astype("float32")) for v in before]
    optimizer.apply(gradients, model.trainable_variables)
    after = model.trainable_variables
    return {v.path: v.numpy() - old for v, old in zip(after, before, strict=True)}


@pytest.mark.parametrize("name", ["rmsprop", "sgd", "adamw", "lamb"])
def test_earlier_layers_learn_more_slowly(name):
    whole, decayed = step_of(name, 1.0), step_of(name, 0.5)
    parts = ["stem", "block1a", "block2a", "block3a", "block4a", "block5a", "top", "predictions"]
    seen = set()
    for path, change in whole.items():
        part = next(part for part in parts if path.startswith(part))
        factor = 0.5 ** (len(parts) - 1 - parts.index(part))
        np.testing.assert_allclose(decayed[path], factor * change, rtol=2e-3, atol=1e-7)
        seen.add(part)
    assert seen == set(parts)

"""The learning-rate range test: its curve, its rates, and the command."""

import json
import math
import shlex

import numpy as np
import pytest
import tensorflow as tf
import tiny
from commands import run_here, run_process

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.training import learning_rate_finder, tensorflow_loop
from efficientnet_tf.training.learning_rate_finder import Curve, choose_phase, find_learning_rate

SMALL = (
    "model.stages=[{kernel: 3, stride: 1, expand: 1, channels: 8, repeats: 1}]",
    "data.source=synthetic",
    "data.synthetic_examples=64",
    "data.image_size=16",
    "train.batch_size=16",
    "schedule.warmup_epochs=0",
)


def draw_curve(losses, window=5):
    """Return the summary of a curve with the rates 1, 2, 4, ..., and how many losses it took."""
    curve, taken = Curve(window), 0
    for taken, loss in enumerate(losses, 1):
        if not curve.add(2.0 ** (taken - 1), loss):
            break
    return curve.summarize(), taken


def test_the_smoothed_loss_is_an_average_without_bias():
    losses = np.random.default_rng(0).uniform(1, 2, 30)
    smoothed = draw_curve(losses)[0]["smoothed"]
    for end in range(1, 31):
        weights = 0.8 ** np.arange(end)[::-1]
        assert smoothed[end - 1] == pytest.approx(np.average(losses[:end], weights=weights))


def test_a_tenth_of_the_rate_with_the_lowest_smoothed_loss_is_suggested():
    losses = [2.0] * 10 + [1.5, 1.0, 0.5, 0.5, 0.5, 0.5] + [3.0] * 50
    result, taken = draw_curve(losses)
    assert result["suggestion"] == 2.0 ** int(np.argmin(result["smoothed"])) / 10 == 2.0**15 / 10
    assert not result["diverged"] and taken == len(losses)


def test_a_loss_that_grows_beyond_four_times_its_minimum_ends_the_test():
    result, taken = draw_curve([2.0] * 10 + [1.0] * 20 + [100.0] * 30)
    assert result["diverged"] and 30 < taken < 33 and len(result["losses"]) == taken
    assert result["suggestion"] == pytest.approx(2.0**29 / 10)


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_test_and_is_left_out(end):
    result, taken = draw_curve([2.0] * 10 + [1.0] * 5 + [end] * 30)
    assert result["diverged"] and taken == 16 and len(result["losses"]) == 15
    assert result["suggestion"] == 2.0**14 / 10
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("losses", [[2.0] * 30, [2.0] * 10 + [1.97] * 20, [2.0, 1.0, 0.5], [2.0] * 10 + [9.0] * 20])
def test_no_rate_is_suggested_if_the_loss_does_not_fall(losses):
    assert draw_curve(losses)[0]["suggestion"] is None


def test_each_step_has_its_rate_in_the_unit_of_the_config(monkeypatch):
    """16 images at a rate for 256: a quarter of it with square-root scaling."""
    used, losses = [], iter([1.0] * 20 + [math.nan])

    def make_train_loop(state, *_):
        def loop(batches, steps):
            used.append(float(state.optimizer.learning_rate))
            state.optimizer.iterations.assign_add(int(steps))
            return tf.constant([next(losses), 0.0])

        return loop

    monkeypatch.setattr(tensorflow_loop, "make_train_loop", make_train_loop)
    monkeypatch.setattr(learning_rate_finder, "train_dataset", lambda *_: tf.data.Dataset.from_tensors(0))
    config = tiny.load_config(*SMALL, "optimizer.rate_scaling=sqrt", "optimizer.name=sgd")
    result = find_learning_rate(config, tiny.make_strategy(1), steps=20, lowest=1e-4, highest=1.0)
    assert len(used) == len(result["learning_rates"]) == 20 and not result["diverged"]
    np.testing.assert_allclose(result["learning_rates"], np.geomspace(1e-4, 1, 20), rtol=1e-6)
    np.testing.assert_allclose(used, np.geomspace(1e-4, 1, 20) / 4, rtol=1e-4)
    assert result["losses"] == [1.0] * 20 and result["suggestion"] is None
    with pytest.raises(UserError, match="The loss of the first step is not finite"):
        find_learning_rate(config, tiny.make_strategy(1), steps=20)


def test_the_phase_that_uses_the_rate_is_tested():
    phases = "[{until: 0.5, set: {optimizer.learning_rate: 0.5}}, {until: 1.0, set: {train.batch_size: 32}}]"
    assert choose_phase(tiny.load_config(*SMALL, f"train.phases={phases}"), 64).batch_size == 32
    phases = phases.replace("train.batch_size: 32", "train.batch_size: 32, optimizer.learning_rate: 0.1")
    assert choose_phase(tiny.load_config(*SMALL, f"train.phases={phases}"), 64).batch_size == 16
    assert choose_phase(tiny.load_config(*SMALL), 64).batch_size == 16


def test_wrong_arguments_are_refused():
    config = tiny.load_config(*SMALL)
    with pytest.raises(UserError, match="steps=19 is too few.*at least 20"):
        find_learning_rate(config, steps=19)
    with pytest.raises(UserError, match="lowest=1 must be above 0 and below highest=0.1"):
        find_learning_rate(config, lowest=1.0, highest=0.1)


@pytest.mark.slow
def test_the_command_suggests_a_rate_and_the_run_can_begin_in_the_same_directory(tmp_path, capsys):
    model_dir = tmp_path / "new" / "run"
    settings = [
        SMALL[0],
        "data.image_size=16",
        "train.epochs=1",
        "schedule.warmup_epochs=0",
        "optimizer.learning_rate=1e-9",
    ]
    flags = [f"--variant={tiny.VARIANT}", *(word for text in settings for word in ("--set", text))]
    assert run_here("train", *flags, f"--model_dir={model_dir}", "--find_learning_rate", "--steps=80") == 0
    output = capsys.readouterr().out
    assert sorted(path.name for path in model_dir.iterdir()) == ["learning_rate_test.json", "learning_rate_test.png"]
    result = json.loads((model_dir / "learning_rate_test.json").read_text())
    assert 1e-4 < result["suggestion"] < 1
    setting = f"optimizer.learning_rate={result['suggestion']:.2g}"
    assert f"Suggested: {setting}" in output
    command = next(line for line in output.splitlines() if line.startswith("Train with it: "))
    words = shlex.split(command)
    assert setting in words and "optimizer.learning_rate=1e-9" not in words and "--steps=80" not in words
    assert run_here("train", *words[words.index("efficientnet_tf.train") + 1 :]) == 0
    output = capsys.readouterr().out
    assert "Continuing" not in output and "Finished: " in output


@pytest.mark.slow
def test_with_jax_the_loss_starts_at_that_of_a_guess_and_falls(tmp_path):
    texts = (SMALL[0], "data.image_size=16", "schedule.warmup_epochs=0")
    settings = [word for text in texts for word in ("--set", text)]
    flags = [f"--variant={tiny.VARIANT}", *settings, f"--model_dir={tmp_path}", "--find_learning_rate", "--steps=80"]
    done = run_process("train", "--backend=jax", "--recipe=digits", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "learning_rate_test.json").read_text())
    assert result["losses"][0] == pytest.approx(math.log(10), rel=0.1)
    assert min(result["smoothed"]) < 0.9 * result["losses"][0]

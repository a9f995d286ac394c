"""Training runs from start to end: logs, checkpoints, interruptions and refusals."""

import json
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.models.model_dir import list_checkpoints, restore_model
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.trainer import train_model

SIZE = 1437  # Training images, from which the schedule computes epochs.


# 22 steps in loops that end at 3, 6, 7, 10, ...; a checkpoint every 7 steps and an evaluation every 11.
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


def logged(model_dir):
    """Return the lines of metrics.jsonl without times and rates."""
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the directory of a run that was never interrupted, and what `train_model` returned."""
    model_dir = tmp_path_factory.mktemp("run") / "new" / "model"
    return model_dir, train_model(tiny.load_config(*WHOLE), str(model_dir), tiny.make_strategy(1))


def test_a_finished_run(finished, capsys):
    model_dir, result = finished
    assert (result["step"], result["finished"]) == (22, True)
    assert sorted(list_checkpoints(str(model_dir))) == [13, 20, 22]
    lines = logged(model_dir)
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == [3, 6, 7, 10, 11, 13, 16, 19, 20, 22]
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
    # Once more: nothing is left to train or to log.
    before = saved(model_dir)
    assert train_model(tiny.load_config(*WHOLE), str(model_dir), strategy) == result
    assert logged(model_dir) == lines
    after = saved(model_dir)
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert "Continuing from the checkpoint of step 22 of 22" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_run_ends_the_same_bit_for_bit(finished, tmp_path, capsys):
    """SIGTERM after step 10, where no checkpoint is due, then a crash after step 16, then to the end."""
    config, strategy = tiny.load_config(*WHOLE), tiny.make_strategy(1)

    def crash():
        raise RuntimeError("power failure")

    handler = signal.getsignal(signal.SIGTERM)
    assert train_model(config, str(tmp_path), strategy, callbacks=[tiny.At(step10=tiny.send_sigterm)]) == {
        "step": 10,
        "finished": False,
    }
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "Stopped. Step 10 of 22 is saved." in capsys.readouterr().out
    assert sorted(list_checkpoints(str(tmp_path))) == [7, 10]
    assert not (tmp_path / "model.keras").exists()
    with pytest.raises(RuntimeError, match="power failure"):
        train_model(config, str(tmp_path), strategy, callbacks=[tiny.At(step16=crash)])
    assert logged(tmp_path)[-1]["step"] == 16
    result = train_model(config, str(tmp_path), strategy)
    out = capsys.readouterr().out
    assert "Continuing from the checkpoint of step 10" in out and "Continuing from the checkpoint of step 13" in out
    model_dir, expected = finished
    assert result == expected
    one, other = saved(tmp_path), saved(model_dir)
    assert one.keys() == other.keys() and len(one) > 100
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
    assert logged(tmp_path) == logged(model_dir)


@pytest.mark.slow
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
    """The rate is 0 at step 0 and 1e30 after it: step 1 is saved, and step 2 makes the weights infinite."""
    every_step = [f"{key}=0.04" for key in ("train.checkpoint_every_epochs", "schedule.warmup_epochs")]
    config = tiny.load_config(
        tiny.SHORT, *every_step, "train.steps_per_loop=1", "optimizer.learning_rate=1e30", "schedule.name=constant"
    )
    with pytest.raises(UserError, match=r"The loss is (inf|nan) after step \d+\..*optimizer\.learning_rate"):
        train_model(config, str(tmp_path), tiny.make_strategy(1))
    steps = sorted(list_checkpoints(str(tmp_path)))
    assert steps[0] == 1 and logged(tmp_path)[-1]["step"] == steps[-1] < 5
    prefix = list_checkpoints(str(tmp_path))[1]
    state = create_state(config, 10, SIZE, tiny.make_strategy(1))
    reader = tf.train.load_checkpoint(prefix)
    for variable in state.model.trainable_variables:
        value = reader.get_tensor(f"model/{variable.path.replace('/', '.S')}/.ATTRIBUTES/VARIABLE_VALUE")
        np.testing.assert_array_equal(value, variable.numpy())


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_written(tmp_path):
    model_dir = tmp_path / "model"
    with pytest.raises(
        UserError, match="train.batch_size=64 is not divisible into train.accumulate=3 parts on each of 1 repl"
    ):
        train_model(tiny.load_config("train.accumulate=3"), str(model_dir), tiny.make_strategy(1))
    with pytest.raises(
        UserError, match="shares batch norm between 2 replicas, which does not support gradient accumulation"
    ):
        shared = tiny.load_config("train.accumulate=2", "train.batch_norm_group=all")
        train_model(shared, str(model_dir), tiny.make_strategy(2))
    for override in ("train.batch_size=30", "eval.batch_size=30"):
        with pytest.raises(UserError, match=rf"{override} is not divisible by 4 replicas. Use a multiple of 4"):
            train_model(tiny.load_config(override), str(model_dir), tiny.make_strategy(4))
    assert not model_dir.exists()

"""Runs that are disturbed: failing evaluations, deleted directories, second trainers, signals, and changed configs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.model_dir import list_checkpoints, read_config
from efficientnet_tf.models.run_directory import read_history
from efficientnet_tf.runtime.lock import lock_directory
from efficientnet_tf.training.trainer import Callback, train_model

# Six steps: checkpoints at 4 and 6, evaluations at 3 and 6.
CONFIG = (
    "model.stages=[{kernel: 3, stride: 1, expand: 1, channels: 8, repeats: 1}]",
    "data.source=synthetic",
    "data.eval_split=val",
    "data.synthetic_examples=48",
    "data.image_size=16",
    "train.batch_size=8",
    "eval.batch_size=48",
    "train.epochs=1",
    "train.steps_per_loop=1",
    "train.checkpoint_every_epochs=0.667",
    "eval.every_epochs=0.5",
    "schedule.warmup_epochs=0",
)


def train(model_dir, *overrides, callbacks=(), allow_change=()):
    config = tiny.load_config(*CONFIG, *overrides)
    return train_model(config, model_dir, tiny.make_strategy(1), callbacks=callbacks, allow_change=allow_change)


def lines_of(model_dir):
    """Return the lines of metrics.jsonl without times and rates."""
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().split("\n")[:-1]]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def saved(model_dir):
    reader = tf.train.load_checkpoint(next(iter(list_checkpoints(str(model_dir)).values())))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model", "average", "optimizer"))]
    return {name: reader.get_tensor(name) for name in names}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("finished") / "run"
    assert train(model_dir)["finished"]
    return model_dir


def assert_same_end(model_dir, finished):
    assert lines_of(model_dir) == lines_of(finished)
    one, other = saved(model_dir), saved(finished)
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


class Break(Callback):
    """Makes the evaluation at a step fail, as a picture that cannot be read does."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error or UserError("image 7 cannot be decoded")

    def after_loop(self, trainer, metrics):
        if trainer.step == self.step:
            trainer._evaluator = self.fail

    def fail(self):
        raise self.error


@pytest.mark.slow
def test_a_failing_evaluation_loses_no_step_and_is_repeated(finished, tmp_path):
    with pytest.raises(
        UserError, match="The evaluation failed after step 3, which is saved.*image 7 cannot be decoded"
    ):
        train(tmp_path, callbacks=[Break(3)])
    assert sorted(list_checkpoints(str(tmp_path))) == [3]
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]
    error = tf.errors.DataLossError(None, None, "corrupted record")
    with pytest.raises(UserError, match="failed after step 6, which is saved.*corrupted record"):
        train(tmp_path, callbacks=[Break(6, error)])
    assert lines_of(tmp_path) == lines_of(finished)[:-2]
    assert train(tmp_path)["finished"]
    assert_same_end(tmp_path, finished)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [-2, -1])
def test_a_kill_between_saving_and_evaluating_repeats_the_evaluation(finished, tmp_path, kept):
    model_dir = shutil.copytree(finished, tmp_path / "run")
    lines = (model_dir / "metrics.jsonl").read_text().split("\n")[:-1]
    (model_dir / "metrics.jsonl").write_text("\n".join(lines[:kept]) + "\n")
    (model_dir / "model.keras").unlink()
    assert train(model_dir)["finished"]
    assert_same_end(model_dir, finished)
    assert keras.saving.load_model(model_dir / "model.keras", compile=False).output_shape == (None, 10)


@pytest.mark.slow
@pytest.mark.parametrize("after", ["move", "replace"])
def test_a_directory_that_is_gone_ends_the_run_and_stays_gone(tmp_path, after):
    model_dir = tmp_path / "run"

    def remove():
        model_dir.rename(tmp_path / "moved") if after == "move" else shutil.rmtree(model_dir)
        if after == "replace":
            model_dir.mkdir()

    with pytest.raises(UserError, match="^model_dir=.*was deleted or moved while this process used it"):
        train(model_dir, callbacks=[tiny.At(step2=remove)])
    if after == "replace":
        assert list(model_dir.iterdir()) == []
    else:
        assert not model_dir.exists()


def test_a_second_trainer_is_refused(tmp_path):
    with lock_directory(str(tmp_path), "training"), pytest.raises(UserError, match="is in use by process"):
        train(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_more_epochs_and_a_cache_continue_a_run(finished, tmp_path):
    model_dir = shutil.copytree(finished, tmp_path / "run")
    changes = ("train.epochs=2", "data.cache=memory")
    with pytest.raises(UserError, match=r"another config(.|\n)*add allow_change=data.cache,train.epochs$"):
        train(model_dir, *changes)
    result = train(model_dir, *changes, allow_change=["train.epochs", "data.cache"])
    assert (result["step"], result["finished"]) == (12, True)
    assert lines_of(model_dir)[: len(lines_of(finished))] == lines_of(finished)
    (entry,) = read_history(str(model_dir))
    assert (entry["step"], entry["changes"]["train.epochs"]) == (6, [1.0, 2.0])
    assert read_config(str(model_dir)).train.epochs == 2
    assert train(model_dir, *changes)["step"] == 12  # The flag is not needed again.
    with pytest.raises(UserError, match="train.epochs=1 means 6 steps, but this run has already done 12"):
        train(model_dir, "data.cache=memory", allow_change=["train.epochs"])


PROGRAM = """
import sys, time, tiny
from efficientnet_tf.training import trainer
from test_interruptions import train

class Hang(trainer.Callback):
    def after_loop(self, trainer, metrics):
        if trainer.step == 3:
            trainer._evaluator = self.hang
    def hang(self):
        tiny.send_sigterm()
        time.sleep(1000)

trainer.QUICK_SECONDS = 0.5
train(sys.argv[1], callbacks=[Hang()])
"""


@pytest.mark.slow
def test_sigterm_while_evaluating_saves_and_ends(finished, tmp_path):
    tests = Path(__file__).parents[1]
    path = {"PYTHONPATH": f"{tests.parent}:{tests}:{tests / 'training'}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 75, done.stderr
    assert "Stopped while evaluating. Step 3 of 6 is saved. The same command continues from there." in done.stdout
    assert sorted(list_checkpoints(str(tmp_path))) == [3]
    assert train(tmp_path)["finished"]  # Its lock is no obstacle.
    assert_same_end(tmp_path, finished)

"""The best checkpoint (`eval.best`) and the early end of a run (`eval.patience`)."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.evaluate import evaluate_model
from efficientnet_tf.models.model_dir import list_checkpoints, restore_model
from efficientnet_tf.models.stored import find_step
from efficientnet_tf.training.trainer import Callback, train_model

# 24 steps. Evaluations at 3, 6, 9, ..., and checkpoints at 6, 12, ...
CONFIG = (
    "model.stages=[{kernel: 3, stride: 1, expand: 1, channels: 8, repeats: 1}]",
    "data.source=synthetic",
    "data.eval_split=val",
    "data.synthetic_examples=48",
    "data.image_size=16",
    "train.batch_size=8",
    "train.epochs=4",
    "train.steps_per_loop=3",
    "train.checkpoint_every_epochs=1",
    "train.keep_checkpoints=2",
    "eval.batch_size=48",
    "eval.every_epochs=0.5",
    "eval.best=loss",
    "eval.patience=3",
    "schedule.warmup_epochs=0",
)


def train(model_dir, *overrides, callbacks=()):
    config = tiny.load_config(*CONFIG, *overrides)
    return train_model(config, str(model_dir), tiny.make_strategy(1), callbacks=callbacks)


def lines_of(model_dir):
    """Return the lines of metrics.jsonl without times and rates."""
    lines = [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def contents(model_dir):
    """Return {step: {name: bytes}} of all checkpoints, with the config and what was the best."""
    found = {}
    for step, prefix in list_checkpoints(str(model_dir)).items():
        reader = tf.train.load_checkpoint(prefix)
        names = [name for name in reader.get_variable_to_shape_map() if "GRAPH" not in name]
        found[step] = {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}
    return found


class Losses(Callback):
    """Replaces the results of evaluations by losses that a test has chosen."""

    def __init__(self, *losses):
        self.losses = losses

    def after_loop(self, trainer, metrics):
        result = {"examples": 48, "top1": 0.5, "loss": self.losses[trainer.step // 3 - 1]}
        trainer._evaluator = lambda: {"raw": result | {"loss": 0.0}, "ema": result}


def test_the_best_checkpoint_is_kept_and_a_run_that_gets_no_better_ends(tmp_path, capsys):
    """The best evaluation is at step 9, where no checkpoint is due. That of step 18 is equal, which is not better."""
    result = train(tmp_path, callbacks=[Losses(2.0, 1.5, 1.0, 1.2, 1.1, 1.0)])
    assert (result["step"], result["finished"], result["best_step"]) == (18, True, 9)
    assert sorted(list_checkpoints(str(tmp_path))) == [9, 12, 18]
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines() if "the best so far" in line] == [
        "step 3",
        "step 6",
        "step 9",
    ]
    assert "Stopped early after step 18 of 24: no better loss in 3 evaluations (eval.patience)" in out
    assert f"Finished: {tmp_path}/model.keras, from the best checkpoint, step 9 with a loss of 1.0000" in out
    saved = keras.saving.load_model(tmp_path / "model.keras").get_weights()
    for checkpoint, is_same in ((None, True), ("best", True), (9, True), ("newest", False), ("18", False)):
        weights = restore_model(str(tmp_path), checkpoint=checkpoint)[0].get_weights()
        same = all(np.array_equal(one, other) for one, other in zip(saved, weights, strict=True))
        assert same == is_same, checkpoint


class Crash(Callback):
    """Ends the run after the evaluation at a step, before anything of it is saved."""

    def __init__(self, step):
        self.step = step

    def after_evaluation(self, trainer, results):
        if trainer.step == self.step:
            raise RuntimeError("power failure")


@pytest.mark.slow
def test_a_disturbed_run_chooses_the_same_checkpoint_and_ends_at_the_same_step_bit_for_bit(tmp_path):
    """It crashes right after the evaluation that is the best and after the last one, and is stopped before that."""
    whole, model_dir = tmp_path / "whole", tmp_path / "disturbed"
    settings = ("eval.every_epochs=0.34", "eval.patience=2", "optimizer.learning_rate=10", "train.ema_decay=0.5")
    expected = train(whole, *settings)
    best, end = expected["best_step"], expected["step"]
    assert (best, end) == (8, 12)
    for step in (best, end):
        with pytest.raises(RuntimeError, match="power failure"):
            train(model_dir, *settings, callbacks=[Crash(step)])
        (model_dir / "metrics.jsonl").write_bytes(b"\xff damaged\n")
    assert not train(model_dir, *settings, callbacks=[tiny.At(**{f"step{end}": tiny.send_sigterm})])["finished"]
    for _ in range(2):  # A finished run is only repeated.
        assert train(model_dir, *settings) == expected
        assert find_step(str(model_dir), "best") == best
        one, other = contents(model_dir), contents(whole)
        assert one[best] == other[best] and one[end] == other[end]
    assert lines_of(model_dir)[-2:] == lines_of(whole)[-2:]
    for checkpoint in ("best", "newest"):
        result = evaluate_model(str(model_dir), strategy=tiny.make_strategy(1), checkpoint=checkpoint)
        line = next(line for line in lines_of(whole)[::-1] if line["step"] == {"best": best, "newest": end}[checkpoint])
        assert result["loss"] == pytest.approx(line["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_with_more_patience(tmp_path):
    """It ends within its first phase, and the second one is not begun."""
    phases = "train.phases=[{until: 0.75, set: {augment.flip: false}}, {until: 1.0, set: {}}]"
    result = train(tmp_path, phases, callbacks=[Losses(1.0, 2.0, 2.0, 2.0)])
    assert (result["step"], result["finished"], result["best_step"]) == (12, True, 3)
    longer = tiny.load_config(*CONFIG, phases, "eval.patience=5")
    callbacks = [Losses(0, 0, 0, 0, 0.5, 0.7, 0.7, 0.7)]
    result = train_model(
        longer, str(tmp_path), tiny.make_strategy(1), callbacks=callbacks, allow_change=["eval.patience"]
    )
    assert (result["step"], result["best_step"]) == (24, 15)

"""Progressive resizing: a run in phases with their own image size, batch size and regularization."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import Failures, train_dataset
from efficientnet_tf.data.source import Order
from efficientnet_tf.models.model_dir import list_checkpoints
from efficientnet_tf.training.graph import build_phase_graph
from efficientnet_tf.training.schedule import create_schedule, plan_phases, to_steps
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.trainer import train_model

PHASES = (
    "train.phases=[{until: 0.25, set: {data.image_size: 16, train.batch_size: 128, model.dropout: 0.0}},"
    " {until: 0.75, set: {train.batch_size: 32}}, {until: 1.0, set: {}}]"
)


def test_a_run_without_phases_has_one():
    run = tiny.load_config("train.epochs=3")
    (phase,) = plan_phases(run, 1437)
    assert phase.config == run
    assert (phase.first_step, phase.first_epoch, phase.first_position) == (0, 0, 0)
    assert phase.end_step == to_steps(3, run, 1437)


def test_phases_follow_each_other():
    run = tiny.load_config("train.epochs=4", "train.batch_size=64", PHASES)
    plan = plan_phases(run, 1280)
    assert [p.batch_size for p in plan] == [128, 32, 64]
    assert [p.config.image_size for p in plan] == [16, 32, 32]
    assert [p.config.model.dropout for p in plan] == [0.0, 0.2, 0.2]
    assert [p.first_step for p in plan] == [0, 10, 90]
    assert [p.end_step for p in plan] == [10, 90, 110]
    assert [p.first_position for p in plan] == [0, 1280, 3 * 1280]
    assert [p.first_epoch for p in plan] == [0, 1, 3]


@pytest.mark.parametrize("name", ["exponential", "cosine", "constant"])
def test_learning_rate_follows_epochs_and_batch_size(name):
    """At every step, it is the rate of a run without phases at the same epoch times the ratio of the batch sizes."""
    settings = ["train.epochs=4", f"schedule.name={name}", "schedule.warmup_epochs=1.5", "schedule.decay_epochs=0.3"]
    phased = create_schedule(tiny.load_config(*settings, "train.batch_size=64", PHASES), 1280)
    for first, first_epoch, steps, batch in ((0, 0, 10, 128), (10, 1, 80, 32), (90, 3, 20, 64)):
        plain = create_schedule(tiny.load_config(*settings, f"train.batch_size={batch}"), 1280)
        for step in range(steps):
            same_epoch = round(first_epoch * 1280 / batch) + step
            assert float(phased(first + step)) == pytest.approx(float(plain(same_epoch)), rel=1e-5, abs=1e-9)


def test_every_image_is_used_once_per_epoch_across_phases():
    run = tiny.load_config("train.epochs=4", "train.batch_size=64", PHASES)
    source = open_source(run.data, "train", training=True)
    used = []
    for phase in plan_phases(run, source.size):
        order = Order(
            batch=phase.batch_size,
            shuffle=True,
            steps=phase.end_step - phase.first_step,
            first_position=phase.first_position,
        )
        used += [(int(position), int(id_)) for position, id_, _ in source.stream(order)]
    assert [position for position, _ in used] == list(range(len(used)))
    ids = np.array([id_ for _, id_ in used])
    for epoch in range(len(ids) // source.size):
        assert sorted(ids[epoch * source.size : (epoch + 1) * source.size]) == list(range(source.size))


def test_batches_have_the_size_of_their_phase():
    run = tiny.load_config("train.epochs=4", "train.batch_size=64", PHASES)
    source = open_source(run.data, "train", training=True)
    first = plan_phases(run, source.size)[0]
    batches = train_dataset(source, first.config, Failures(source), 0, tf.distribute.InputContext(), 0)
    assert next(iter(batches))[0].shape == (128, 16, 16, 3)


def test_a_phase_has_its_own_graph_only_if_it_needs_one():
    """Another size or drop rate needs a new model. Otherwise the run's own model is used."""
    run = tiny.load_config("train.epochs=4", "train.batch_size=64", PHASES)
    strategy = tiny.make_strategy(1)
    state = create_state(run, 10, 1280, strategy)
    small, same, also = (
        build_phase_graph(phase.config, run, state.model, strategy) for phase in plan_phases(run, 1280)
    )
    assert small.input_shape == (None, 16, 16, 3) and same is also is state.model
    assert [v.path for v in small.trainable_variables] == [v.path for v in state.model.trainable_variables]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ("[{until: 0.5, set: {}}]", "the last at 1"),
        ("[{until: 0.7, set: {}}, {until: 0.5, set: {}}, {until: 1.0, set: {}}]", "one after the other"),
        ("[{until: 1.0, set: {optimizer.name: sgd}}]", "cannot set 'optimizer.name'"),
        ("[{until: 1.0, set: {data.image_size: big}}]", "data.image_size"),
        ("[{until: 1.5, set: {}}]", "less than or equal to 1"),
    ],
)
def test_wrong_phases_are_refused(phases, expected):
    with pytest.raises(UserError, match=expected):
        tiny.load_config(f"train.phases={phases}")


@pytest.mark.slow
def test_imagenet_v2_killed_between_two_phases_ends_the_same_bit_for_bit(tmp_path):
    """Each phase of `tiny` has three steps of 16 digits, at 80, 96, 112 and 128 pixels. Evaluation has 160 pixels."""
    settings = [
        "data.source=digits",
        "data.eval_split=test",
        "train.batch_size=16",
        f"train.epochs={12 * 16 / 1437}",
        f"train.checkpoint_every_epochs={9 * 16 / 1437}",
        "train.steps_per_loop=2",
        "schedule.warmup_epochs=0",
        "eval.batch_size=90",
    ]
    config, strategy = load_config("tiny", "imagenet_v2", settings), tiny.make_strategy(1)
    plan = plan_phases(config, 1437)
    assert [(phase.end_step, phase.config.image_size) for phase in plan] == [(3, 80), (6, 96), (9, 112), (12, 128)]
    assert train_model(config, str(tmp_path / "whole"), strategy)["finished"]
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    assert sorted(list_checkpoints(str(tmp_path / "killed"))) == [9, 12]
    for path in (tmp_path / "killed").rglob("*12*"):
        path.unlink()
    assert sorted(list_checkpoints(str(tmp_path / "killed"))) == [9]
    assert train_model(config, str(tmp_path / "killed"), strategy)["finished"]
    ends = [tf.train.load_checkpoint(list_checkpoints(str(tmp_path / run))[12]) for run in ("whole", "killed")]
    names = [name for name in ends[0].get_variable_to_shape_map() if name.startswith(("model", "average", "optimizer"))]
    assert len(names) > 100
    for name in names:
        np.testing.assert_array_equal(ends[1].get_tensor(name), ends[0].get_tensor(name), err_msg=name)

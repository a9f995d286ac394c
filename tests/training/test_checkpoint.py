"""Checkpoints: every variable is restored bit for bit, and damaged files are skipped. Also the model directory."""

import contextlib
import logging
import os
import resource
import shutil
import threading
from concurrent import futures
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import parse_config
from efficientnet_tf.config.yaml12 import parse_yaml
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import (
    list_checkpoints,
    open_model_dir,
    read_class_names,
    read_config,
    restore_model,
    save_keras_model,
)
from efficientnet_tf.models.selection import Selection
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.training.checkpoint import Checkpointer
from efficientnet_tf.training.state import create_state
from efficientnet_tf.weights.load import load_weights

CLASSES = [str(i) for i in range(10)]


def make_config(*overrides):
    return tiny.load_config(tiny.SHORT, *overrides)


def make_state(config, replicas=1):
    return create_state(config, len(CLASSES), 1437, tiny.make_strategy(replicas))


def fill(state, step, seed):
    """Set every variable to a random value, and the step to this one."""
    rng = np.random.default_rng(seed)
    for name, variable in tiny.variables_of(state).items():
        variable.assign(step if name == "optimizer/iteration" else rng.normal(size=variable.shape))


def values(state):
    """Return {name: array}, which is the same on all replicas."""
    found = {}
    for name, variable in tiny.variables_of(state).items():
        found[name], *others = tiny.replica_values(variable)
        for other in others:
            np.testing.assert_array_equal(found[name], other, err_msg=name)
    return found


def assert_same(state, expected):
    got = values(state)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        assert value.dtype == expected[name].dtype
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def save_at(model_dir, config, *steps, replicas=1):
    """Save a state with new random values at each step. Return the state and {step: its values}."""
    state = make_state(config, replicas)
    checkpointer = Checkpointer(str(model_dir), state, config, CLASSES)
    saved = {}
    for step in steps:
        fill(state, step, seed=step)
        saved[step] = values(state)
        assert checkpointer.save() == step
    return state, saved


def folder_of(model_dir):
    return Path(model_dir) / "checkpoints"


def steps_in(model_dir):
    """Return the steps of the checkpoints. Each must have its two files and no other."""
    names = sorted(path.name for path in folder_of(model_dir).iterdir() if path.name != "checkpoint")
    steps = sorted({int(name.removeprefix("step-").split(".")[0]) for name in names})
    assert names == sorted(f"step-{s}{end}" for s in steps for end in (".data-00000-of-00001", ".index"))
    return steps


# ----------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("optimizer.name=adamw", "train.ema_decay=0"),
        ("optimizer.name=sgd", "train.precision=mixed_bfloat16"),
        ("optimizer.name=lamb",),
    ],
)
def test_every_variable_is_restored_bit_for_bit(tmp_path, overrides):
    config = make_config(*overrides)
    _, saved = save_at(tmp_path, config, 7)
    state = make_state(config)
    fill(state, 3, seed=99)
    assert Checkpointer(str(tmp_path), state, config).restore() == 7
    assert state.step == 7
    assert_same(state, saved[7])


def test_nothing_to_restore(tmp_path):
    state = make_state(make_config())
    before = values(state)
    assert Checkpointer(str(tmp_path), state, make_config()).restore() == 0
    assert_same(state, before)


@pytest.mark.parametrize(
    ("before", "after"), [(2, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 2), (2, 1)))]
)
def test_another_number_of_replicas_restores_the_same(tmp_path, before, after):
    config = make_config()
    _, saved = save_at(tmp_path, config, 7, replicas=before)
    state = make_state(config, after)
    fill(state, 3, seed=99)
    assert Checkpointer(str(tmp_path), state, config).restore() == 7
    assert_same(state, saved[7])


def test_contents_have_readable_names(tmp_path):
    config = make_config()
    state, saved = save_at(tmp_path, config, 7)
    prefix = str(folder_of(tmp_path) / "step-7")
    assert tf.train.latest_checkpoint(str(folder_of(tmp_path))) == prefix
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    contents = {
        name.removesuffix(suffix).replace(".S", "/"): (name, shape)
        for name, shape in tf.train.list_variables(prefix)
        if name.endswith(suffix)
    }
    for text in ("config", "classes"):
        _, shape = contents.pop(text)
        assert shape == []
    assert {name: tuple(shape) for name, (_, shape) in contents.items()} == {
        name: value.shape for name, value in saved[7].items()
    }
    # Everything: the weights twice, three optimizer variables for two of them, and the step.
    weights, trainable = len(state.model.weights), len(state.model.trainable_weights)
    seeds = sum("seed" in v.name for v in state.model.weights)
    assert len(contents) == 2 * (weights - seeds) + 2 * trainable + 1
    assert {"model/stem_conv/kernel", "average/top_bn/moving_mean", "optimizer/iteration"} <= contents.keys()
    assert {"optimizer/predictions_bias_velocity", "optimizer/predictions_bias_momentum"} <= contents.keys()
    reader = tf.train.load_checkpoint(prefix)
    for name, (key, _) in contents.items():
        np.testing.assert_array_equal(reader.get_tensor(key), saved[7][name])


def test_config_is_inside(tmp_path):
    config = make_config("train.seed=17")
    save_at(tmp_path, config, 7)
    text = tf.train.load_variable(str(folder_of(tmp_path) / "step-7"), "config/.ATTRIBUTES/VARIABLE_VALUE").decode()
    assert parse_config(text, "checkpoint") == config


def test_the_newest_are_kept_and_remains_of_killed_writes_deleted(tmp_path):
    config = make_config("train.keep_checkpoints=2")
    state, _ = save_at(tmp_path, config, 1, 2, 3)
    assert steps_in(tmp_path) == [2, 3]
    # What a killed process leaves: data without an index, and TensorFlow's temporary folder.
    folder = folder_of(tmp_path)
    (folder / "step-4.data-00000-of-00001").write_bytes(b"part")
    (folder / "step-4_temp").mkdir()
    (folder / "step-4_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"part")
    (folder / "step-5_temp").mkdir()
    again = Checkpointer(str(tmp_path), state, config)
    assert again.restore() == 3
    fill(state, 5, seed=5)
    again.save()
    assert steps_in(tmp_path) == [3, 5]
    fill(state, 10, seed=10)
    again.save()
    assert steps_in(tmp_path) == [5, 10]  # In numerical order.


# -------------------------------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """Return a model directory with checkpoints of steps 10 and 20, a state, and {step: values}."""
    model_dir = tmp_path_factory.mktemp("two")
    config = make_config()
    open_model_dir(str(model_dir), config, CLASSES)
    state, saved = save_at(model_dir, config, 10, 20)
    return model_dir, state, saved


@pytest.fixture
def damaged(two_checkpoints, tmp_path, monkeypatch):
    """Return (folder of a copy of the checkpoints, function that restores, {step: values}, warnings so far)."""
    model_dir, state, saved = two_checkpoints
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    monkeypatch.setattr(logging.getLogger("efficientnet_tf"), "handlers", [handler])

    def restore():
        fill(state, 5, seed=99)
        step = Checkpointer(str(copy), state, make_config()).restore()
        assert state.step == step
        assert_same(state, saved[step])
        return step

    return folder_of(copy), restore, saved, warnings


def truncate(share):
    return lambda data: data[: int(len(data) * share)]


def flip(share):
    def change(data):
        position = int(len(data) * share)
        return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]

    return change


DAMAGES = {
    "data empty": (".data-00000-of-00001", truncate(0)),
    "data half": (".data-00000-of-00001", truncate(0.5)),
    "data but the last byte": (".data-00000-of-00001", lambda data: data[:-1]),
    "data flipped at the start": (".data-00000-of-00001", flip(0)),
    "data flipped in the middle": (".data-00000-of-00001", flip(0.5)),
    "data flipped near the end": (".data-00000-of-00001", flip(0.999)),
    "data of another step": (".data-00000-of-00001", None),
    "data deleted": (".data-00000-of-00001", "delete"),
    "index empty": (".index", truncate(0)),
    "index half": (".index", truncate(0.5)),
    "index but the last byte": (".index", lambda data: data[:-1]),
    "index flipped": (".index", flip(0.3)),
    "index garbage": (".index", lambda data: np.random.default_rng(0).bytes(len(data))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(damaged, damage):
    folder, restore, _, warnings = damaged
    ending, change = DAMAGES[damage]
    path = folder / f"step-20{ending}"
    if change == "delete":
        path.unlink()
    else:
        other = (folder / f"step-10{ending}").read_bytes()
        path.write_bytes(other if change is None else change(path.read_bytes()))
    assert restore() == 10
    (warning,) = warnings
    assert str(folder / "step-20") in warning and "damaged" in warning


def test_any_changed_byte_is_found(damaged):
    """Whichever byte is changed, one of the two checkpoints is restored completely."""
    folder, restore, *_ = damaged
    rng = np.random.default_rng(0)
    steps = []
    for path in (folder / "step-20.index", folder / "step-20.data-00000-of-00001"):
        whole = path.read_bytes()
        for position in rng.choice(len(whole), 12, replace=False):
            path.write_bytes(flip(position / len(whole))(whole))
            steps.append(restore())
        path.write_bytes(whole)
    assert steps.count(10) >= 20  # The other bytes have no meaning.
    assert restore() == 20


def test_a_write_killed_between_data_and_index_does_not_count(damaged):
    folder, restore, _, warnings = damaged
    (folder / "step-20.index").unlink()
    assert restore() == 10
    assert warnings == []


def test_a_checkpoint_appears_in_one_step(damaged, monkeypatch):
    """Whenever a file gets a new name, what readers see is whole."""
    folder, restore, saved, warnings = damaged
    rename, seen = tf.io.gfile.rename, []

    def watch(source, target, overwrite):
        seen.append((Path(target).name, sorted(list_checkpoints(str(folder.parent)))))
        rename(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", watch)
    config = make_config()
    save_at(folder.parent, config, 30)
    assert seen == [("step-30.data-00000-of-00001", [10, 20]), ("step-30.index", [10, 20])]
    assert steps_in(folder.parent) == [10, 20, 30]
    assert warnings == []


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe\x00", None])
def test_tensorflows_list_of_checkpoints_does_not_matter(damaged, content):
    folder, restore, _, warnings = damaged
    (folder / "checkpoint").unlink()
    if content is not None:
        (folder / "checkpoint").write_bytes(content)
    assert restore() == 20
    assert warnings == []


def test_a_damaged_checkpoint_is_written_again(damaged, two_checkpoints):
    folder, restore, saved, _ = damaged
    _, state, _ = two_checkpoints
    path = folder / "step-20.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-100])
    assert restore() == 10
    fill(state, 20, seed=20)
    Checkpointer(str(folder.parent), state, make_config()).save()
    assert restore() == 20
    assert steps_in(folder.parent) == [10, 20]


def test_only_damaged_checkpoints_are_an_error(damaged):
    folder, restore, _, warnings = damaged
    for path in folder.glob("*.data-*"):
        path.write_bytes(path.read_bytes()[:-1])
    for attempt in (restore, lambda: restore_model(str(folder.parent))):
        with pytest.raises(UserError, match="None of the 2 checkpoints in .*copy can be read"):
            attempt()
    assert [("step-20" in warning, "step-10" in warning) for warning in warnings] == 2 * [(True, False), (False, True)]


# ----------------------------------------------------------------------------------------- what cannot be written


@contextlib.contextmanager
def small_files_only():
    """Limit files to 10,000 bytes, so that writing fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_leaves_earlier_checkpoints_intact(two_checkpoints, tmp_path):
    model_dir, state, saved = two_checkpoints
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    checkpointer = Checkpointer(str(copy), state, make_config())
    fill(state, 30, seed=30)
    with small_files_only():
        with pytest.raises(
            UserError, match=r"step 30 cannot be written to .*too large.*Earlier checkpoints are intact"
        ):
            checkpointer.save()
    assert steps_in(copy) == [10, 20]  # and no part of the new one
    assert checkpointer.restore() == 20
    assert_same(state, saved[20])
    fill(state, 30, seed=30)
    expected = values(state)
    checkpointer.save()
    assert steps_in(copy) == [10, 20, 30]
    fill(state, 1, seed=1)
    assert checkpointer.restore() == 30
    assert_same(state, expected)


def test_a_file_in_place_of_the_checkpoint_folder(tmp_path):
    config = make_config()
    folder_of(tmp_path).write_text("a file is in the way")
    checkpointer = Checkpointer(str(tmp_path), make_state(config), config)
    with pytest.raises(UserError, match="checkpoint of step 0 cannot be written"):
        checkpointer.save()


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_background_write_has_the_values_of_its_step(tmp_path, replicas):
    """The variables change before the writing begins, by assignment and in place."""
    config, gate = make_config(), threading.Event()
    state = make_state(config, replicas)
    with Checkpointer(str(tmp_path), state, config) as checkpointer:
        fill(state, 5, seed=5)
        expected = values(state)
        checkpointer._writer.submit(gate.wait)
        assert checkpointer.save(background=True) == 5
        for variable in tiny.variables_of(state).values():
            variable.assign_add(tf.ones_like(variable))
        fill(state, 6, seed=6)
        checkpointer.wait(only_if_done=True)
        assert not folder_of(tmp_path).exists()
        gate.set()
        checkpointer.wait()
        assert checkpointer.restore() == 5
    assert_same(state, expected)


def test_a_failed_background_write_is_reported(tmp_path, caplog):
    config = make_config()
    folder_of(tmp_path).write_text("a file is in the way")

    def begin():
        checkpointer = Checkpointer(str(tmp_path), make_state(config), config)
        checkpointer.save(background=True)
        futures.wait([checkpointer._writing])
        return checkpointer

    message = "checkpoint of step 0 cannot be written"
    for act in (
        lambda c: c.wait(),
        lambda c: c.wait(only_if_done=True),
        lambda c: c.save(),
        lambda c: c.__exit__(None),
    ):
        with pytest.raises(UserError, match=message):
            act(begin())
    # The error that ended the run is raised, and this one is logged.
    with pytest.raises(ZeroDivisionError), begin():
        raise ZeroDivisionError
    assert message in caplog.text


def test_text_files_are_replaced_atomically(tmp_path):
    path = tmp_path / "text"
    write_text(str(path), "old")
    with path.open() as reader:
        write_text(str(path), "new")
        assert (reader.read(), path.read_text()) == ("old", "new")
    with small_files_only(), pytest.raises(OSError, match="too large"):
        write_text(str(path), "x" * 20_000)
    assert path.read_text() == "new"


# ---------------------------------------------------------------------------------------------- the directory


def test_a_new_directory_records_the_run(tmp_path):
    model_dir, config = tmp_path / "a" / "b", make_config()
    open_model_dir(str(model_dir), config, CLASSES)
    assert read_config(str(model_dir)) == config
    assert read_class_names(str(model_dir)) == CLASSES
    written = parse_yaml((model_dir / "config.yaml").read_text(), "config.yaml")
    assert {"python", "keras", "numpy", "efficientnet_tf", "git_commit"} <= written["environment"].keys()
    # The same run again, and a run that was killed before it wrote its config.
    open_model_dir(str(model_dir), config, CLASSES)
    (model_dir / "config.yaml").unlink()
    open_model_dir(str(model_dir), config, CLASSES)
    assert sorted(os.listdir(model_dir)) == ["classes.txt", "config.yaml"]


def test_another_config_is_refused_with_the_differences(tmp_path):
    open_model_dir(str(tmp_path), make_config(), CLASSES)
    before = (tmp_path / "config.yaml").read_text()
    changed = make_config("train.seed=1", "optimizer.momentum=0.5", "model.width=2.0")
    with pytest.raises(UserError) as caught:
        open_model_dir(str(tmp_path), changed, CLASSES)
    first, *lines = str(caught.value).splitlines()
    assert str(tmp_path) in first and "another config" in first and first.startswith("model_dir=")
    assert lines == [
        "  model.width: 1.0 -> 2.0",
        "  optimizer.momentum: 0.9 -> 0.5",
        "  train.seed: 0 -> 1",
        "A run cannot change model.width. A new run can start from its weights with train.init_from.",
    ]
    assert (tmp_path / "config.yaml").read_text() == before


@pytest.mark.parametrize("classes", [CLASSES[:-1], [*CLASSES[1:], CLASSES[0]]])
def test_other_classes_are_refused(tmp_path, classes):
    open_model_dir(str(tmp_path), make_config(), CLASSES)
    with pytest.raises(UserError, match=r"classes of the data set differ from those in classes\.txt"):
        open_model_dir(str(tmp_path), make_config(), classes)


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for model_dir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=f"model_dir={model_dir} cannot be written"):
            open_model_dir(str(model_dir), make_config(), CLASSES)


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?", "run\\1"])
def test_a_directory_that_tensorflow_could_not_read(tmp_path, name):
    with pytest.raises(UserError, match="TensorFlow cannot read checkpoints"):
        open_model_dir(str(tmp_path / name), make_config(), CLASSES)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------- load_model


def test_restore_model_uses_ema_or_raw_weights(two_checkpoints):
    model_dir, _, saved = two_checkpoints
    for raw, part in ((False, "average"), (True, "model")):
        model, config, classes = restore_model(str(model_dir), raw)
        assert (config, classes) == (make_config(), CLASSES)
        weights = {f"{part}/{v.path}": v.numpy() for v in model.weights if "seed" not in v.name}
        assert weights.keys() == {name for name in saved[20] if name.startswith(part)}
        for name, value in weights.items():
            np.testing.assert_array_equal(value, saved[20][name], err_msg=name)
        assert model.output_shape == (None, 10)


def test_restore_model_without_ema_uses_the_weights(tmp_path):
    config = make_config("train.ema_decay=0")
    open_model_dir(str(tmp_path), config, CLASSES)
    _, saved = save_at(tmp_path, config, 7)
    model, *_ = restore_model(str(tmp_path))
    np.testing.assert_array_equal(model.get_layer("stem_conv").kernel.numpy(), saved[7]["model/stem_conv/kernel"])


def test_restore_model_skips_a_damaged_checkpoint(damaged):
    folder, _, saved, warnings = damaged
    (folder / "step-20.index").write_bytes(b"")
    model, *_ = restore_model(str(folder.parent))
    np.testing.assert_array_equal(model.get_layer("stem_conv").kernel.numpy(), saved[10]["average/stem_conv/kernel"])
    assert len(warnings) == 1


def test_restore_model_of_another_directory(tmp_path):
    with pytest.raises(UserError, match=r"is not a model directory: it has no config\.yaml"):
        restore_model(str(tmp_path))
    open_model_dir(str(tmp_path), make_config(), CLASSES)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        restore_model(str(tmp_path))


def test_the_saved_model_is_replaced_atomically(two_checkpoints, tmp_path):
    model_dir, _, saved = two_checkpoints
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    path = save_keras_model(str(copy))
    assert path == str(copy / "model.keras")
    kernel = keras.saving.load_model(path).get_layer("stem_conv").kernel.numpy()
    np.testing.assert_array_equal(kernel, saved[20]["average/stem_conv/kernel"])
    whole = Path(path).read_bytes()
    with small_files_only(), pytest.raises(UserError, match=r"model\.keras cannot be written .*too large"):
        save_keras_model(str(copy))
    assert Path(path).read_bytes() == whole
    save_keras_model(str(copy))
    assert sorted(os.listdir(copy)) == ["checkpoints", "classes.txt", "config.yaml", "model.keras"]


# ------------------------------------------------------------------------------------------------- the best one


@pytest.fixture(scope="module")
def with_best(tmp_path_factory):
    """Return a directory with the newest checkpoints 4 and 5 and the best one, 2, the state, and {step: values}."""
    model_dir, config = tmp_path_factory.mktemp("best"), make_config("train.keep_checkpoints=2", "eval.best=loss")
    open_model_dir(str(model_dir), config, CLASSES)
    state = make_state(config)
    checkpointer = Checkpointer(str(model_dir), state, config, CLASSES)
    saved = {}
    for step, loss in enumerate((3.0, 1.0, 2.0, 2.0, 1.0), 1):
        fill(state, step, seed=step)
        saved[step] = values(state)
        results = {"raw": {"loss": loss}}
        state.selection = state.selection.add(step, results, state.selection.improves(results))
        checkpointer.save()
    return model_dir, state, saved


def test_the_best_checkpoint_is_kept_beside_the_newest(with_best):
    model_dir, state, saved = with_best
    assert steps_in(model_dir) == [2, 4, 5]
    expected, state.selection = state.selection, Selection("loss")
    assert Checkpointer(str(model_dir), state, make_config()).restore() == 5
    assert state.selection == expected
    state.selection = Selection("top1")  # Another metric cannot be compared with it.
    Checkpointer(str(model_dir), state, make_config()).restore()
    assert state.selection == Selection("top1")


def test_every_reader_takes_the_checkpoint_that_is_asked_for(with_best):
    model_dir, _, saved = with_best
    for checkpoint, step in ((None, 2), ("best", 2), ("newest", 5), ("4", 4), (4, 4)):
        kernel = restore_model(str(model_dir), checkpoint=checkpoint)[0].get_layer("stem_conv").kernel.numpy()
        np.testing.assert_array_equal(kernel, saved[step]["average/stem_conv/kernel"])
    model = build_from_config(make_config(), len(CLASSES))
    load_weights(model, str(model_dir))
    np.testing.assert_array_equal(model.get_layer("stem_conv").kernel.numpy(), saved[2]["average/stem_conv/kernel"])
    for checkpoint in ("3", "bset", 2.0, "-1", "9" * 5000):
        with pytest.raises(UserError, match=r"is not a checkpoint of .*newest, or the step of one.*: 2, 4, 5\."):
            restore_model(str(model_dir), checkpoint=checkpoint)


def test_a_best_checkpoint_that_is_damaged_is_named(with_best, tmp_path, caplog):
    copy, saved = shutil.copytree(with_best[0], tmp_path / "copy"), with_best[2]
    path = folder_of(copy) / "step-2.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"checkpoint=best: .*step-2 cannot be read"):
        restore_model(str(copy), checkpoint="best")
    kernel = restore_model(str(copy))[0].get_layer("stem_conv").kernel.numpy()
    np.testing.assert_array_equal(kernel, saved[5]["average/stem_conv/kernel"])
    assert "The best checkpoint, " in caplog.text and "Using the newest one" in caplog.text


def test_a_run_without_a_best_checkpoint_says_so(two_checkpoints):
    with pytest.raises(UserError, match="checkpoint=best: no evaluation of .* is recorded as the best"):
        restore_model(str(two_checkpoints[0]), checkpoint="best")

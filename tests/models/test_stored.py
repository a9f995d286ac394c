"""What a checkpoint says about its run, compared with config.yaml and classes.txt, which anybody can edit."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import tensorflow as tf
import yaml

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import diff_config, override_config
from efficientnet_tf.models.model_dir import (
    change_config,
    open_model_dir,
    read_class_names,
    read_config,
    read_newest_checkpoint,
    restore_model,
)
from efficientnet_tf.models.run_directory import read_history
from efficientnet_tf.models.stored import read_newest_stored, read_run, text_variables

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "old_run"
CONFIG = read_config(str(OLD_RUN))
NAMES = read_class_names(str(OLD_RUN))


@pytest.fixture
def old_run(tmp_path):
    """Return a copy of a run whose checkpoints hold the config, and no class names."""
    return shutil.copytree(OLD_RUN, tmp_path / "run")


@pytest.fixture
def new_run(tmp_path):
    """Return a run whose checkpoint holds config and class names, and nothing else."""
    model_dir = tmp_path / "new"
    open_model_dir(str(model_dir), CONFIG, NAMES)
    save(model_dir, 5)
    return model_dir


def save(model_dir, step, config=CONFIG, names=NAMES):
    values = tf.train.Checkpoint(model={}, value=tf.Variable(step), **text_variables(config, names))
    values.write(str(model_dir / "checkpoints" / f"step-{step}"))


def edit(model_dir, change):
    content = yaml.safe_load((model_dir / "config.yaml").read_text())
    change(content)
    (model_dir / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "mean", [923, 923, 923]),
        ("model", "std", [0.001, 0.001, 0.001]),
        ("model", "padding", "symmetric"),
        ("model", "batch_norm_epsilon", 0.5),
        ("model", "activation", "relu"),
        ("data", "image_size", 48),
        ("data", "interpolation", "bilinear"),
        ("data", "crop_padding", 300),
        ("data", "channels", 1),
        ("train", "ema_decay", 0),
    ],
)
def test_an_edited_value_that_changes_answers_is_named(old_run, section, key, value):
    edit(old_run, lambda content: content[section].update({key: value}))
    expected = rf"config.yaml was changed after the training.*\n  {section}.{key}: .* -> "
    with pytest.raises(UserError, match=expected) as caught:
        read_run(str(old_run))
    assert len(str(caught.value).split("\n")) == 2
    with pytest.raises(UserError, match=expected):
        restore_model(str(old_run))


def test_values_that_change_no_answer_may_be_edited(old_run):
    def change(content):
        content["data"] |= {"dir": "elsewhere", "eval_split": "train", "cache": "memory"}
        content["eval"] |= {"batch_size": 7}
        content["train"] |= {"epochs": 99, "ema_decay": 0.5}
        content["model"] |= {"name": "other", "dropout": 0.5}

    edit(old_run, change)
    config, names = read_run(str(old_run))
    assert (config.data.dir, names) == ("elsewhere", NAMES)


def test_a_checkpoint_without_class_names_loads(old_run):
    stored = read_newest_stored(str(old_run))
    assert stored is not None
    assert (stored.config, stored.class_names, stored.classes, stored.step) == (CONFIG, None, 10, 45)
    assert read_run(str(old_run)) == (CONFIG, NAMES)


@pytest.mark.parametrize("count", [1, 9, 11])
def test_the_number_of_names_must_be_that_of_the_outputs(old_run, count):
    (old_run / "classes.txt").write_text("".join(f"name{i}\n" for i in range(count)))
    with pytest.raises(UserError, match=f"classes.txt has {count} class names, but the stored model has 10 outputs"):
        restore_model(str(old_run))


def test_names_in_another_order_are_found(new_run):
    swapped = [NAMES[1], NAMES[0], *NAMES[2:]]
    (new_run / "classes.txt").write_text("".join(f"{name}\n" for name in swapped))
    with pytest.raises(UserError, match="Class 1 is '0' in the checkpoint, but '1' in classes.txt"):
        read_run(str(new_run))
    with pytest.raises(UserError, match="other classes"):
        open_model_dir(str(new_run), CONFIG, NAMES)
    (new_run / "classes.txt").unlink()
    with pytest.raises(UserError, match="Class 1 is '0' in the checkpoint, but '1' in the data set"):
        open_model_dir(str(new_run), CONFIG, swapped)
    open_model_dir(str(new_run), CONFIG, NAMES)
    assert read_run(str(new_run)) == (CONFIG, NAMES)


def test_an_editor_may_save_the_names_in_its_own_way(new_run):
    (new_run / "classes.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode() + b"\r\n\r\n")
    assert read_run(str(new_run)) == (CONFIG, NAMES)


# ---------------------------------------------------------------------------------------------- the run goes on


def test_a_lost_config_is_restored_only_for_the_same_config(old_run):
    before = read_config(str(old_run))
    (old_run / "config.yaml").unlink()
    changed = override_config(CONFIG, ["train.seed=5"])
    with pytest.raises(UserError, match=r"another config.*\n  train.seed: 0 -> 5\n.*add allow_change=train.seed"):
        open_model_dir(str(old_run), changed, NAMES)
    assert not (old_run / "config.yaml").exists()
    with pytest.raises(UserError, match="Its checkpoints hold the config: the command `train`"):
        restore_model(str(old_run))
    assert open_model_dir(str(old_run), CONFIG, NAMES) is None
    assert read_config(str(old_run)) == before


def test_a_config_that_was_edited_to_fit_the_flags_is_found(old_run):
    edit(old_run, lambda content: content["train"].update(seed=5))
    changed = override_config(CONFIG, ["train.seed=5"])
    with pytest.raises(UserError, match=r"another config.*\n  train.seed: 0 -> 5\n"):
        open_model_dir(str(old_run), changed, NAMES)


def test_a_default_that_another_key_decides_is_no_change(tmp_path):
    """A run of an older version, whose default was a number at every size, can go on if the number is the same."""
    model_dir = tmp_path / "run"
    before = override_config(CONFIG, ["data.crop_padding=5"])
    open_model_dir(str(model_dir), before, NAMES)
    save(model_dir, 5, before)
    assert open_model_dir(str(model_dir), override_config(CONFIG, ["data.crop_padding=null"]), NAMES) is None
    edit(model_dir, lambda content: content["data"].update(crop_padding=None))
    assert read_run(str(model_dir))[0].crop_padding == 5
    with pytest.raises(UserError, match="data.crop_padding: 5 -> 32"):
        open_model_dir(str(model_dir), override_config(CONFIG, ["data.crop_padding=32"]), NAMES)
    assert diff_config(before, override_config(CONFIG, ["data.crop_padding=null", "data.image_size=64"])) == [
        "data.image_size: 32 -> 64",
        "data.crop_padding: 5 -> 9",
    ]


@pytest.mark.parametrize("config_is_there", [True, False])
def test_an_allowed_change_is_recorded(old_run, config_is_there):
    model_dir = str(old_run)
    changed = override_config(CONFIG, ["train.epochs=3", "data.crop_padding=8"])
    if not config_is_there:
        (old_run / "config.yaml").unlink()
    before = open_model_dir(model_dir, changed, NAMES, ["train.epochs", "data.crop_padding", "data.dir"])
    assert before == CONFIG and read_config(model_dir) == CONFIG
    for _ in range(2):  # The second time after a kill before the config was written.
        change_config(model_dir, 45, before, changed)
    (entry,) = read_history(model_dir)
    assert entry["step"] == 45
    assert entry["changes"] == {"train.epochs": [2.0, 3.0], "data.crop_padding": [0, 8]}
    # The newest checkpoint is still that of the config before, and both know about the change.
    assert read_run(model_dir)[0] == changed
    assert open_model_dir(model_dir, changed, NAMES) is None  # The flag is not needed again.
    edit(old_run, lambda content: content["data"].update(crop_padding=9))
    with pytest.raises(UserError, match="data.crop_padding: 0 -> 9"):
        read_run(model_dir)


def test_a_damaged_history_is_no_obstacle(old_run, caplog):
    for content in (b"\xff", b"[1, 2", b"7", b"- 5", b"- {changes: 3}", b"- {}"):
        (old_run / "config_history.yaml").write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert read_run(str(old_run)) == (CONFIG, NAMES)
        assert "history of the config cannot be read" in caplog.text


# ------------------------------------------------------------------------------------- next to a running training


def test_a_checkpoint_that_training_deletes_meanwhile_is_not_called_damaged(new_run, caplog):
    save(new_run, 10)
    value = tf.Variable(0)

    def check(stored):
        if stored.prefix.endswith("step-10"):
            for path in (new_run / "checkpoints").glob("step-10.*"):
                path.unlink()
            save(new_run, 15)

    with caplog.at_level(logging.WARNING):
        assert read_newest_checkpoint(str(new_run), tf.train.Checkpoint(value=value), check) == 15
    assert int(value.numpy()) == 15
    assert caplog.text == ""


def test_a_checkpoint_under_the_name_of_another_step_is_not_used(old_run, caplog):
    for path in (old_run / "checkpoints").glob("step-22.*"):
        os.link(path, path.with_name(path.name.replace("step-22", "step-99")))
    iteration = tf.Variable(0, dtype=tf.int64)
    with caplog.at_level(logging.WARNING):
        parts = tf.train.Checkpoint(optimizer=tf.train.Checkpoint(iteration=iteration))
        assert read_newest_checkpoint(str(old_run), parts) == 45
    assert "step-99 is damaged (it holds step 22)" in caplog.text

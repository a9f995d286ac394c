"""What is known about a model directory without TensorFlow: its names, its config, and what is refused at once."""

import os

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_config, load_config, override_config
from efficientnet_tf.models.run_directory import (
    check_allowed,
    check_run,
    format_class_names,
    list_checkpoints,
    parse_class_names,
    read_class_names,
    read_config,
    write_class_names,
)

CONFIG = load_config("b0", "digits")


def make_run(path, config=CONFIG):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(dump_config(config))
    return str(path)


@pytest.mark.parametrize(
    "content",
    [b"cat\ndog\n", b"cat\ndog", b"\xef\xbb\xbfcat\r\ndog\r\n", b"cat\r\ndog\r\n\r\n\r\n", b"cat\ndog\n\n"],
)
def test_class_names_are_read_however_an_editor_saved_them(tmp_path, content):
    (tmp_path / "classes.txt").write_bytes(content)
    assert read_class_names(str(tmp_path)) == ["cat", "dog"]


@pytest.mark.parametrize(
    "names", [["a\u2028b", "c"], ["a\x0bb", "c\x0c"], ["a\x85", "\u2029b"], ["\x1c", "\x1d", "\x1e"], [" a ", "a"]]
)
def test_only_the_end_of_a_line_ends_a_name(tmp_path, names):
    write_class_names(str(tmp_path), names)
    assert read_class_names(str(tmp_path)) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a\nb"], r"contains the character U\+000A"),
        (["a", "b\r"], r"contains the character U\+000D"),
        (["\udcff"], r"contains the character U\+DCFF"),
        (["\ufeffa"], r"contains the character U\+FEFF"),
        (["a", ""], "empty"),
        (["a", "b", "a"], "line 3: the class 'a' is already on line 1"),
    ],
)
def test_names_that_would_be_read_as_others_are_not_written(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        write_class_names(str(tmp_path), names)
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError):
        format_class_names(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: this line is empty"),
        ("a\n\nb\n", "line 2: this line is empty"),
        ("a\nb\na\n", "line 3: the class"),
    ],
)
def test_damaged_class_names(text, message):
    with pytest.raises(UserError, match=f"^classes.txt, {message}"):
        parse_class_names(text, "classes.txt")


def test_class_names_that_are_no_file(tmp_path):
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(UserError, match="this is a FIFO"):
        read_class_names(str(tmp_path))


def test_only_complete_checkpoints_are_listed(tmp_path):
    names = ["step-3.index", "step-20.index", "step-7.data-00000-of-00001", "step-30.tmp.index", "step-x.index"]
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    assert list_checkpoints(str(tmp_path)) == {20: str(folder / "step-20"), 3: str(folder / "step-3")}
    assert list_checkpoints(str(tmp_path / "other")) == {}


@pytest.mark.parametrize(
    ("model_dir", "message"),
    [
        ("", "model_dir= is empty"),
        ("  ", "is empty"),
        ("a\0b", "null character"),
        ("s3://bucket/run", "on s3://, which is not supported"),
        ("https://host/run", "on https://, which is not supported"),
        ("hf://owner/run", "on hf://, which is not supported"),
        ("run*", "TensorFlow cannot read checkpoints"),
        ("a\x1b[31m", "TensorFlow cannot read checkpoints"),
        ("a\x1bb", r"model_dir=a\\x1bb contains the character U\+001B"),
        ("a\nb", r"U\+000A"),
        ("a\u202eb", r"U\+202E"),
        ("a\udcffb", r"U\+DCFF"),
        ("n" * 300, "longer than 255 bytes"),
        (f"{__file__}", "is a file, not a folder"),
        (f"{__file__}/run/x", "is a file, not a folder"),
    ],
)
def test_paths_that_cannot_be_a_model_directory(model_dir, message):
    with pytest.raises(UserError, match=message):
        check_run(model_dir, CONFIG)


def test_a_link_to_nothing_and_a_fifo_are_no_model_directory(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    for name, kind in (("link", "a link to nothing"), ("fifo", "a file")):
        with pytest.raises(UserError, match=f"is {kind}, not a folder"):
            check_run(str(tmp_path / name))
    check_run(str(tmp_path / "new" / "run"), CONFIG)
    assert not (tmp_path / "new").exists()


def test_another_config_names_the_way_forward(tmp_path):
    model_dir = make_run(tmp_path)
    check_run(model_dir, CONFIG)
    changed = override_config(CONFIG, ["train.epochs=99", "data.cache=memory"])
    with pytest.raises(
        UserError, match="another config.*\n  data.cache: 'none' -> 'memory'\n  train.epochs: "
    ) as caught:
        check_run(model_dir, changed)
    assert str(caught.value).endswith("add allow_change=data.cache,train.epochs")
    with pytest.raises(UserError, match="add allow_change=data.cache,train.epochs") as caught:
        check_run(model_dir, changed, ["train.epochs"])
    assert "train.epochs: " not in str(caught.value)
    check_run(model_dir, changed, ["train.epochs", "data.cache", "train.seed"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.width=2.0", "A run cannot change model.width. A new run can start from its weights"),
        ("optimizer.name=sgd", "A run cannot change optimizer.name"),
        ("train.ema_decay=0", "cannot begin or end its moving average"),
    ],
)
def test_what_cannot_change_in_a_run(tmp_path, override, message):
    changed = load_config("b0", "digits", [override, "train.epochs=99"])
    with pytest.raises(UserError, match=message):
        check_run(make_run(tmp_path), changed, ["train.epochs", "train.ema_decay"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train.epoch", "no such key.*Did you mean 'train.epochs'"),
        ("epochs", "no such key"),
        ("train", "no such key"),
        ("", "no such key"),
        ("model.stages", "cannot change in a run"),
        ("data.channels", "cannot change in a run"),
        ("train.adversarial_steps", "cannot change in a run"),
    ],
)
def test_keys_that_cannot_be_allowed(key, message):
    with pytest.raises(UserError, match=message):
        check_allowed([key, "train.epochs"])


def test_a_lost_config_can_be_restored(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-3.index").touch()
    with pytest.raises(UserError, match="has no config.yaml. Its checkpoints hold the config"):
        read_config(str(tmp_path))

"""Tests of output files that cannot be written: one sentence, and nothing under the final name."""

import os

import pytest
from outputs import full_disk

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.files import check_output, write_output


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "old.txt"
    path.write_text("old")
    for name in ("old.txt", "new.txt"):
        with full_disk(), pytest.raises(UserError, match=f"^output=.*{name} cannot be written: File too large.$"):
            write_output("output", str(tmp_path / name), b"x" * 2000)
    assert os.listdir(tmp_path) == ["old.txt"] and path.read_text() == "old"


def test_only_files_are_overwritten(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "folder.png").mkdir()
    for name, kind in (("fifo.png", "a FIFO"), ("folder.png", "a folder")):
        with pytest.raises(UserError, match=f"output=.*{name} cannot be written because it is {kind}"):
            check_output("output", str(tmp_path / name), [".png"])
    for path in ("/dev/null", "/dev/full"):
        with pytest.raises(UserError, match="it is a device"):
            write_output("output", path, b"")
    with pytest.raises(UserError, match="File name too long"):
        write_output("output", str(tmp_path / ("x" * 300)), b"")
    assert sorted(os.listdir(tmp_path)) == ["fifo.png", "folder.png"]


def test_inputs_are_not_overwritten(tmp_path):
    (tmp_path / "model.png").write_bytes(b"")
    os.link(tmp_path / "model.png", tmp_path / "link.png")
    os.symlink(tmp_path, tmp_path / "same")
    for name in ("model.png", "same/model.png", "./model.png", "link.png"):
        with pytest.raises(UserError, match="is also an input"):
            check_output("output", f"{tmp_path}/{name}", [".png"], [None, str(tmp_path / "model.png")])
    check_output("output", str(tmp_path / "other.png"), [".png"], [str(tmp_path / "model.png")])

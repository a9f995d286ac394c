"""Files are written in one step, and paths are checked before the work."""

import os
import socket

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.files import (
    atomic_output,
    check_file,
    check_output,
    check_path,
    read_bytes,
    read_text,
    write_bytes,
    write_text,
)


@pytest.mark.tensorflow
def test_text_round_trip_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "text"
    write_text(str(path), "café\n")
    assert read_text(str(path)) == "café\n" and path.read_bytes() == "café\n".encode()
    write_bytes(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [file.name for file in path.parent.iterdir()] == ["text"]  # no temporary file is left


@pytest.mark.tensorflow
def test_remote_files_go_through_tensorflow():
    path = "ram://folder/text"  # a file system of TensorFlow's in memory
    write_text(path, "old")
    write_text(path, "new")
    assert read_text(path) == "new"


@pytest.mark.parametrize("path", [None, "table.csv", "gs://bucket/none/table.json"])
def test_allowed_output(path):
    check_output("output", path, (".csv", ".json"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("table.txt", "^output=table.txt has an unknown file type. Use a name that ends in .csv or .json.$"),
        ("/dev/null/table.csv", "^output=/dev/null/table.csv cannot be written because '/dev/null' is not a folder."),
    ],
)
def test_refused_output(path, message):
    with pytest.raises(UserError, match=message):
        check_output("output", path, (".csv", ".json"))


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        tmp_path / "fifo": "this is a FIFO, not a file",
        tmp_path / "socket": "this is a socket, not a file",
        tmp_path / "folder.jpg": "this is a folder, not a file",
        "/dev/zero": "this is a device, not a file",
        tmp_path / "nothing": "no such file or folder",
        tmp_path / "loop": "Too many levels of symbolic links",
    }
    for path, message in cases.items():
        for function in (read_bytes, check_file):
            with pytest.raises(UserError, match=message):
                function(str(path))


def test_limits_and_encodings(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfcat\r\ndog\rowl\n")
    assert read_text(str(path)) == "cat\ndog\nowl\n"
    with pytest.raises(UserError, match="the file has 16 bytes, more than the 14 that are allowed"):
        read_bytes(str(path), limit=14)
    path.write_bytes(b"good\nb\xe4d\n")
    with pytest.raises(UserError, match="line 2: the byte 0xe4 is not UTF-8"):
        read_text(str(path))


def test_a_failed_output_leaves_nothing(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"), atomic_output(str(path)) as temporary:
        assert temporary.endswith(".png")
        with open(temporary, "wb") as file:
            file.write(b"part of the new")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "model_dir= is empty"),
        (" ", "model_dir= is empty"),
        ("s3://bucket/run", "is on s3://, which is not supported"),
        ("hf://model", "is on hf://"),
        ("https://host/run", "is on https://"),
        ("a\0b", "contains a null character"),
    ],
)
def test_paths_that_cannot_be(path, message):
    with pytest.raises(UserError, match=message):
        check_path("model_dir", path)


@pytest.mark.parametrize("path", ["hf://user/name", "hf://user/name@v1.0", "hf://user/a-b_c.d/", "run", "gs://b/x"])
def test_models_on_the_hub(path):
    check_path("model_dir", path, hub=True)


@pytest.mark.parametrize(
    "path", ["hf://", "hf://user", "hf://user/", "hf://a/b/c", "hf://a/b@", "hf://a b/c", "hf://a/..\n", "hf:///a/b"]
)
def test_what_names_no_model_on_the_hub(path):
    with pytest.raises(UserError, match="Use hf://user/name"):
        check_path("model_dir", path, hub=True)


@pytest.mark.parametrize("path", ["run", "/a/b c", "gs://bucket/run", "c:/run", "r\u00e9sultats"])
def test_paths_that_can_be(path):
    check_path("model_dir", path)

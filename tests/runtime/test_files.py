"""Files are written in one step, and paths are checked before the work."""

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.files import check_output, read_text, write_bytes, write_text


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

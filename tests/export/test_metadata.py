"""Exported files from strangers, before a runtime opens them: damaged, large, and with more than an export has."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.export.check import check_model
from efficientnet_tf.export.metadata import (
    RECORD,
    TEXTS,
    append_record,
    check_size,
    check_texts,
    list_files,
    read_metadata,
)
from efficientnet_tf.export.record import check_record, make_record
from efficientnet_tf.models.run_directory import read_class_names, read_config

FIXTURES = Path(__file__).parents[1] / "fixtures"
SUFFIXES = (".tflite", ".onnx", ".xml")


@pytest.fixture
def copy(tmp_path):
    """Return a function that copies an export which an earlier version wrote, and returns its path."""

    def copy_export(suffix):
        for part in list_files(str(FIXTURES / "old_exports" / f"net{suffix}")):
            shutil.copy(part, tmp_path)
        return tmp_path / f"net{suffix}"

    return copy_export


@pytest.fixture
def run():
    folder = str(FIXTURES / "old_run")
    return read_config(folder), read_class_names(folder)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exports_of_earlier_versions_are_read(copy, suffix):
    path = str(copy(suffix))
    metadata = read_metadata(path)
    assert sorted(metadata.texts) == sorted(TEXTS)
    assert metadata.texts["classes.txt"].split() == [str(i) for i in range(10)]
    assert 0 < metadata.size <= os.path.getsize(list_files(path)[0])
    assert check_model(path) == "file"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_truncated_file_is_accepted(copy, suffix):
    path = copy(suffix)
    whole = path.read_bytes()
    # The last bytes of an .xml file are a tag and a line end; everything else is needed.
    for length in [*range(0, len(whole) - 1, 311), *range(max(0, len(whole) - 40), len(whole) - 1)]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged|no such file"):
            read_metadata(str(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"garbage" * 99, b"\xff" * 5000, b"PK\3\4" + b"\0" * 99, b"<net/>", b"\x80" * 64]
)
def test_garbage_is_refused(copy, suffix, content):
    path = copy(suffix)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        check_model(str(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_record_is_found_and_does_not_change_the_digest(copy, run, suffix):
    path = str(copy(suffix))
    before = read_metadata(path)
    record = make_record(*run, before.compute_digest())
    append_record(path, record)
    after = read_metadata(path)
    assert after.texts == before.texts | {RECORD: record}
    assert after.compute_digest() == before.compute_digest()
    check_record(path, record, *run, after.compute_digest())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_changed_byte_of_the_network_changes_the_digest(copy, suffix):
    path = copy(suffix)
    network = Path(list_files(str(path))[0])  # the weights of OpenVINO
    expected, whole = read_metadata(str(path)).compute_digest(), network.read_bytes()
    end = whole.index(b"PK\3\4") if suffix == ".tflite" else len(whole) - 3000 * (suffix == ".onnx")
    for position in range(100, end, end // 40):
        network.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        try:
            assert read_metadata(str(path)).compute_digest() != expected
        except UserError:
            pass  # the damage is found earlier


def test_changes_after_the_export_are_named(run):
    config, class_names = run
    record = make_record(config, class_names, "digest")
    moved = config.model_copy(update={"data": config.data.model_copy(update={"dir": "/elsewhere"})})
    check_record("net", record, moved, class_names, "digest")
    check_record("net", None, config, class_names, "other")  # of an earlier version

    changed = config.model_copy(update={"model": config.model.model_copy(update={"mean": (923.0,)})})
    with pytest.raises(UserError, match=r"net: its config.yaml was changed .*\n  model.mean: \[.*\] -> \[923.0\]"):
        check_record("net", record, changed, class_names, "digest")
    other = config.model_copy(update={"data": config.data.model_copy(update={"interpolation": "bilinear"})})
    with pytest.raises(UserError, match="data.interpolation: 'bicubic' -> 'bilinear'"):
        check_record("net", record, other, class_names, "digest")
    with pytest.raises(UserError, match=r"net: its classes.txt was changed"):
        check_record("net", record, config, class_names[::-1], "digest")
    with pytest.raises(UserError, match="its network is not the one that was exported"):
        check_record("net", record, config, class_names, "other")
    for text in ("", "[]", "null", "{", "[" * 100_000, '{"network": 1}', '{"network": 1, "classes": 2, "config": 3}'):
        with pytest.raises(UserError, match="its record is not readable"):
            check_record("net", text, config, class_names, "digest")


# -------------------------------------------------------------------------------------------------------------- LiteRT


def append(path, name, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr(name, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_bombs_and_duplicates_behind_a_network_are_refused(copy):
    path = copy(".tflite")
    append(path, "classes.txt", "other")
    with pytest.raises(UserError, match="occurs twice"):
        read_metadata(str(path))
    path = copy(".tflite")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"PK\3\4")])
    for name in TEXTS:
        append(path, name, bytes(17 * 2**20), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="declares 17,825,792 bytes, more than the 16,777,216 allowed"):
        read_metadata(str(path))
    path.write_bytes(whole[: whole.index(b"PK\3\4")])
    for i in range(101):
        append(path, str(i), "")
    with pytest.raises(UserError, match="has 101 entries"):
        read_metadata(str(path))


def test_entries_of_other_tools_are_not_read(copy):
    path = copy(".tflite")
    append(path, "labels.txt", b"\xff\xfe")
    assert sorted(read_metadata(str(path)).texts) == sorted(TEXTS)


# -------------------------------------------------------------------------------------------------------- ONNX Runtime


def field(number, data):
    """Return a field of a protocol buffer: bytes, or a number."""

    def varint(value):
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    if isinstance(data, int):
        return varint(number << 3) + varint(data)
    return varint(number << 3 | 2) + varint(len(data)) + data


def insert_into_graph(path, data):
    """Add fields to the graph of an ONNX file. Protocol buffers merge two graphs."""
    import onnx

    model = onnx.load(path)
    graph = model.graph.SerializeToString() + data
    model.ClearField("graph")
    path.write_bytes(model.SerializeToString() + field(7, graph))


LOCATION = field(13, field(1, b"location") + field(2, b"../../etc/passwd"))
TENSORS = {
    "external data": (LOCATION, "is stored in another file"),
    "external location": (field(1, 4) + field(14, 1), "is stored in another file"),
    "dims": (field(1, 2**31) + field(1, 2**31), "elements, more than the file can hold"),
    "packed dims": (field(1, b"\xff\xff\xff\xff\x0f" * 3), "elements, more than the file can hold"),
}


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("place", ["initializer", "sparse", "attribute", "subgraph", "tensors of an attribute"])
def test_tensors_elsewhere_and_huge_tensors_are_refused(copy, tensor, place):
    pytest.importorskip("onnx")
    path = copy(".onnx")
    content, message = TENSORS[tensor]
    places = {
        "initializer": field(5, content),
        "sparse": field(15, field(1, content)),
        "attribute": field(1, field(5, field(5, content))),
        "subgraph": field(1, field(5, field(6, field(5, content)))),
        "tensors of an attribute": field(1, field(5, field(10, content))),
    }
    insert_into_graph(path, places[place])
    with pytest.raises(UserError, match=message):
        read_metadata(str(path))


def test_deep_and_double_networks_are_refused(copy):
    path = copy(".onnx")
    whole = path.read_bytes()
    nested = b""
    for _ in range(40):
        nested = field(1, field(5, field(6, nested)))
    path.write_bytes(field(7, nested))
    with pytest.raises(UserError, match="nested too deeply"):
        read_metadata(str(path))
    path.write_bytes(whole + field(7, b""))
    with pytest.raises(UserError, match="it has 2 networks"):
        read_metadata(str(path))
    path.write_bytes(whole + field(14, field(1, b"classes.txt") + field(2, b"cat")))
    with pytest.raises(UserError, match=r"the text classes.txt occurs twice"):
        read_metadata(str(path))


# ------------------------------------------------------------------------------------------------------------ OpenVINO


def test_entities_and_offsets_outside_of_the_weights_are_refused(copy):
    path = copy(".xml")
    whole = path.read_bytes()
    for declaration in (
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
        b"<!DOCTYPE net>",
        b"<!ENTITY a 'b'>",
    ):
        path.write_bytes(whole.replace(b"<net ", declaration + b"<net ", 1))
        with pytest.raises(UserError, match="it defines entities"):
            read_metadata(str(path))
    for old, new in (
        (b'offset="0"', b'offset="999999999999"'),
        (b'offset="0"', b'offset="-1"'),
        (b'size="', b'size="99999999'),
    ):
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(UserError, match="but the network needs|does not say where"):
            read_metadata(str(path))
    path.write_bytes(whole)
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"net.bin is damaged .* but the network needs"):
        read_metadata(str(path))
    weights.unlink()
    with pytest.raises(UserError, match=r"net.bin: no such file"):
        read_metadata(str(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "cp037"])
def test_entities_in_other_encodings_are_refused(copy, encoding):
    path = copy(".xml")
    declaration = "" if encoding == "cp037" else f"<?xml version='1.0' encoding='{encoding[:6]}'?>"
    content = f"{declaration}<!DOCTYPE net [<!ENTITY a 'b'>]><net>&a;</net>".encode(encoding)
    if encoding == "cp037":
        content = b"<?xml version='1.0' encoding='cp037'?>" + content
    path.write_bytes(content)
    with pytest.raises(UserError, match="it is not XML in UTF-8"):
        read_metadata(str(path))


def test_text_that_xml_cannot_hold_is_refused_before_the_work():
    texts = {"classes.txt": "cat\nd\x1bog\n"}
    with pytest.raises(UserError, match=r"classes.txt contains the character U\+001B, which files of OpenVINO"):
        check_texts("net.xml", texts)
    check_texts("net.onnx", texts)
    check_texts("net.xml", {"classes.txt": "a\u2028b\nc\x85d\te\n"})


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sparse_files_of_gigabytes_are_refused_at_once(copy, suffix):
    path = copy(suffix)
    os.truncate(path, 3 * 2**30)
    with pytest.raises(UserError, match="3,221,225,472 bytes"):
        check_model(str(path))


def test_a_network_is_not_larger_than_its_config_says(copy):
    path = str(copy(".onnx"))
    metadata = read_metadata(path)
    check_size(path, metadata, 10)
    with pytest.raises(UserError, match="but a network of 10 parameters has at most"):
        check_size(path, metadata.__class__(metadata.texts, 2**31, ()), 10)


# --------------------------------------------------------------------------------------------------------------- paths


def test_odd_paths_are_named(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "fifo.onnx")
    (tmp_path / "folder.tflite").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    os.symlink("nothing", tmp_path / "dangling")
    cases = {
        "fifo": "this is a FIFO",
        "fifo.onnx": "this is a FIFO",
        "folder.tflite": "this is a folder",
        "file": "is a file. Pass the model directory .*Convert a file of weights by `efficientnet-tf weights` first",
        "empty": "is not a model directory: it has no config.yaml",
        "loop": "symbolic links",
        "dangling": "no such file",
        "none": "no such file",
        "none.keras": "no such file",
        "none.xml": "no such file",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message):
            check_model(tmp_path / name)
    for path in ("", "  ", "a\0b", "s3://bucket/run", "https://host/net.onnx"):
        with pytest.raises(UserError, match="model_dir="):
            check_model(path)
    with pytest.raises(UserError, match="must be a path, received NoneType"):
        check_model(None)


def write_run(folder, config=None, classes=b"0\n1\n"):
    """Write a folder that looks like a model directory."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("step-1.index", "step-1.data-00000-of-00001"):
        (folder / "checkpoints" / name).write_text("content")
    if config is None:
        config = (FIXTURES / "old_run" / "config.yaml").read_bytes()
    (folder / "config.yaml").write_bytes(config)
    (folder / "classes.txt").write_bytes(classes)
    return folder


def test_side_files_are_checked(tmp_path):
    assert check_model(write_run(tmp_path / "good")) == "model_dir"
    assert check_model(write_run(tmp_path / "crlf", classes=b"\xef\xbb\xbf0\r\n1\r\n")) == "model_dir"
    cases = {
        "latin": ({"classes": b"caf\xe9\n"}, "classes.txt, line 1: the byte 0xe9 is not UTF-8"),
        "nothing": ({"config": b""}, "config.yaml"),
        "broken": ({"config": b"a: ["}, "config.yaml"),
        "huge": ({"classes": b"x" * (17 * 2**20)}, "more than the 16,777,216 that are allowed"),
    }
    for name, (options, message) in cases.items():
        with pytest.raises(UserError, match=message):
            check_model(write_run(tmp_path / name, **options))
    for name in ("config.yaml", "classes.txt"):
        folder = write_run(tmp_path / f"fifo-{name}")
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"no .*{name}"):
            check_model(folder)
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=f"{name}: this is a FIFO"):
            check_model(folder)
    shutil.rmtree(tmp_path / "good" / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        check_model(tmp_path / "good")


def test_names_of_files_are_escaped(tmp_path):
    with pytest.raises(UserError) as caught:
        check_model(tmp_path / "a\x1b[31m\nb")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)

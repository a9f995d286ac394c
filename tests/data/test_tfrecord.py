"""Test record files in the official layout, written here field by field, and copies in memory and on disk."""

import json
import os
import struct
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.open import Order, open_source
from efficientnet_tf.data.pipeline import Failures, eval_dataset
from efficientnet_tf.runtime.failures import explain

PER_FILE = (7, 0, 12, 5)
TOTAL = sum(PER_FILE)


def png(number):
    return tf.io.encode_png(np.full([6, 6, 3], number, np.uint8)).numpy()


def record(number, label, image_key="image/encoded"):
    """Return an example as the official tools write it, with labels from 1 and keys that are not read."""
    feature = tf.train.Feature
    features = {
        image_key: feature(bytes_list=tf.train.BytesList(value=[png(number)])),
        "image/class/label": feature(int64_list=tf.train.Int64List(value=[label])),
        "image/class/synset": feature(bytes_list=tf.train.BytesList(value=[b"n01440764"])),
        "image/colorspace": feature(bytes_list=tf.train.BytesList(value=[b"RGB"])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_split(folder, split="train", per_file=PER_FILE, label=lambda number: number % 3 + 1, **keys):
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for index, count in enumerate(per_file):
        with tf.io.TFRecordWriter(str(folder / f"{split}-{index:05d}-of-{len(per_file):05d}")) as writer:
            for _ in range(count):
                writer.write(record(number, label(number), **keys))
                number += 1


def open_records(folder, split="train", **keys):
    return open_source(schema.DataConfig(source="records", dir=str(folder), **keys), split, split == "train")


def contents(source):
    """Return [(name, number in the pixels, label), ...] in evaluation order."""
    examples = source.stream(Order(batch=1, steps=source.size)).map(lambda p, i, x: (p, i, *source.load(x)))
    return [
        (source.describe(int(id_)), int(tf.io.decode_image(encoded)[0, 0, 0]), int(label))
        for _, id_, encoded, label in examples
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    write_split(root)
    write_split(root, "validation", (4, 5))
    (root / "classes.txt").write_text("newt\naxolotl\nolm\n")
    (root / "train-00000-of-00004.json.tmp-17").write_text("not a record file")
    (root / "train_extra-00000-of-00001").write_text("of another split")
    return root


def test_records_are_read_as_written(folder):
    source = open_records(folder)
    assert source.size == TOTAL
    assert source.class_names == ("newt", "axolotl", "olm")
    rows = contents(source)
    assert {number: label for _, number, label in rows} == {n: n % 3 for n in range(TOTAL)}
    first = np.cumsum([0, *PER_FILE])
    for name, number, _ in rows:
        file = int(np.searchsorted(first, number, "right")) - 1
        assert name == f"{folder}/train-{file:05d}-of-00004 record {number - first[file]}"


def test_autograph_converts_no_function(folder):
    # It would write files, which fails where the folder of temporary files is full.
    before = {name for name in sys.modules if "autograph_generated" in name}
    for split in ("train", "validation"):
        source = open_records(folder, split)
        next(iter(source.stream(Order(batch=1, steps=source.size, shuffle=split == "train"))))
    assert {name for name in sys.modules if "autograph_generated" in name} == before


def test_number_of_classes_replaces_missing_names(tmp_path):
    write_split(tmp_path)
    assert open_records(tmp_path, classes=4).class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize("hosts", [1, 2])
def test_hosts_share_files_and_epochs(folder, hosts):
    source, seen = open_records(folder), []
    for host in range(hosts):
        order = Order(batch=hosts, shuffle=True, host=host, hosts=hosts)
        ids = [int(i) for i in source.stream(order).map(lambda p, i, x: i).take(2 * TOTAL).as_numpy_iterator()]
        own = sorted({i for i in ids})
        assert {i >> 32 for i in own} == {i for i in range(host, 4, hosts) if PER_FILE[i]}
        assert sorted(ids[: len(own)]) == own == sorted(ids[len(own) : 2 * len(own)])
        seen += own
    assert len(seen) == len(set(seen)) == TOTAL


def test_local_files_are_counted_whatever_the_summary_says(tmp_path):
    write_split(tmp_path)
    sizes = [(tmp_path / f"train-{i:05d}-of-00004").stat().st_size for i in range(4)]
    summary = {"records_per_file": [6, 0, 12, 5], "bytes_per_file": sizes}
    for text in (json.dumps(summary), "{}", "[", "[" * 10_000, "\xff"):
        (tmp_path / "train.json").write_bytes(text.encode("latin-1"))
        assert open_records(tmp_path, classes=3).size == TOTAL


def test_remote_summary_is_used_only_if_it_describes_the_files(tmp_path):
    write_split(tmp_path)
    folder = "ram://records"
    for path in tmp_path.iterdir():
        tf.io.gfile.copy(str(path), f"{folder}/{path.name}")
    sizes = [(tmp_path / f"train-{i:05d}-of-00004").stat().st_size for i in range(4)]
    summary = {"records_per_file": [6, 0, 12, 5], "bytes_per_file": sizes}
    for change, size in (
        ({}, TOTAL - 1),  # as the summary says
        ({"bytes_per_file": [sizes[0] + 1, *sizes[1:]]}, TOTAL),
        ({"records_per_file": [6, 0, 12]}, TOTAL),
        ({"records_per_file": [6, 0, 12, "5"]}, TOTAL),
        ({"records_per_file": [6, 0, 12, -5]}, TOTAL),
        ({"records_per_file": 6}, TOTAL),
    ):
        with tf.io.gfile.GFile(f"{folder}/train.json", "w") as file:
            file.write(json.dumps(summary | change))
        assert open_records(folder, classes=3).size == size


def records_error(folder, split="train", **keys):
    with pytest.raises(UserError) as caught:
        open_records(folder, split, **keys)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def test_no_files(folder, tmp_path):
    assert "has no file train-00000-of-..." in records_error(tmp_path / "nowhere")
    message = records_error(folder, "val")
    assert "has no file val-00000-of-... for the split 'val'. Set data.train_split and data.eval_split" in message
    assert "It has files of 'train', 'train_extra', 'validation'." in message
    assert records_error(folder, "vaildation").endswith("Did you mean 'validation'?")


def test_missing_file(tmp_path):
    write_split(tmp_path)
    for index in (1, 3):
        (tmp_path / f"train-{index:05d}-of-00004").unlink()
    message = records_error(tmp_path, classes=3)
    assert "lacks train-00001-of-00004, train-00003-of-00004. It has 2 of 4 files." in message


def test_files_of_two_sets(tmp_path):
    write_split(tmp_path)
    write_split(tmp_path, per_file=(3, 3))
    assert "has files of 'train' from several sets: of 00002, 00004" in records_error(tmp_path, classes=3)


@pytest.mark.parametrize("cut", [1, 4, 30, 200])
@pytest.mark.parametrize("summary", [False, True])
def test_truncated_file(tmp_path, cut, summary):
    write_split(tmp_path)
    path = tmp_path / "train-00002-of-00004"
    whole = path.read_bytes()
    if summary:
        sizes = [(tmp_path / f"train-{i:05d}-of-00004").stat().st_size for i in range(4)]
        (tmp_path / "train.json").write_text(json.dumps({"records_per_file": PER_FILE, "bytes_per_file": sizes}))
    path.write_bytes(whole[:-cut])
    assert records_error(tmp_path, classes=3) == f"{path} is truncated: its last record is incomplete."


def test_file_without_records(tmp_path):
    write_split(tmp_path, per_file=(3,))
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(struct.pack("<Q", 16) + bytes(24))  # The length is valid, the checksum is not.
    message = records_error(tmp_path, classes=3)
    assert message == f"{path}: record 0 at byte 0 is damaged, or this is no TFRecord file."
    path.write_bytes(b"")
    assert "the files of 'train' have no records." in records_error(tmp_path, classes=3)


def checksum(data):
    """Return the masked CRC-32C of a few bytes, bit by bit."""
    crc = 0xFFFFFFFF
    for bit in (byte >> place & 1 for byte in data for place in range(8)):
        crc = crc >> 1 ^ (0x82F63B78 if (crc ^ bit) & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def frame(data, length=None):
    """Return a record with right checksums, which may declare another length than it has."""
    header = struct.pack("<Q", len(data) if length is None else length)
    return header + struct.pack("<I", checksum(header)) + data + struct.pack("<I", checksum(data))


@pytest.mark.parametrize("length", [2**20, 3 * 2**30, 2**40, 2**60, 2**64 - 1, 2**64 - 16])
def test_absurd_lengths_are_refused_before_tensorflow_allocates_them(tmp_path, length):
    """TensorFlow itself crashes."""
    write_split(tmp_path, per_file=(3,))
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(path.read_bytes() + frame(b"abc", length))
    assert records_error(tmp_path, classes=3) == f"{path} is truncated: its last record is incomplete."


def test_a_record_larger_than_any_image(tmp_path):
    write_split(tmp_path, per_file=(3,))
    path = tmp_path / "train-00000-of-00001"
    with path.open("ab") as file:
        file.write(frame(b"", 2**30)[:12])
        file.truncate(2**31)  # a sparse file
    assert "record 3 declares 1,073,741,824 bytes, more than the 268,435,456 that are" in records_error(
        tmp_path, classes=3
    )


@pytest.mark.parametrize("where", ["length", "checksum", "data"])
def test_damaged_records(tmp_path, where):
    write_split(tmp_path)
    path = tmp_path / "train-00000-of-00004"
    content = bytearray(path.read_bytes())
    content[{"length": 0, "checksum": 8, "data": 20}[where]] ^= 1
    path.write_bytes(content)
    assert "damaged" in records_error(tmp_path, classes=3) and str(path) in records_error(tmp_path, classes=3)


def test_damage_after_the_first_records_is_explained(tmp_path):
    write_split(tmp_path, per_file=(80,))
    path = tmp_path / "train-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    source = open_records(tmp_path, classes=3)
    with pytest.raises(tf.errors.DataLossError) as caught:
        contents(source)
    sentence = explain(caught.value)
    assert sentence.startswith("A record file or a checkpoint is damaged: corrupted record at ") and "[" not in sentence


@pytest.mark.parametrize("content", [b"", b"no example", b"\x0a\xff\xff\xff\xff\x0f", bytes(100)])
def test_records_that_are_no_examples(tmp_path, content):
    (tmp_path / "train-00000-of-00001").write_bytes(frame(content))
    message = records_error(tmp_path, classes=3)
    assert "train-00000-of-00001 must have records with image/encoded and image/class/label: " in message
    assert "\n" not in message and "function_node" not in message


@pytest.mark.parametrize("kind", ["text label", "number as image", "two labels", "no label"])
def test_features_of_another_type(tmp_path, kind):
    feature = tf.train.Feature
    image, label = feature(bytes_list=tf.train.BytesList(value=[png(1)])), tf.train.Int64List(value=[1])
    features = {"image/encoded": image, "image/class/label": feature(int64_list=label)}
    if kind == "text label":
        features["image/class/label"] = feature(bytes_list=tf.train.BytesList(value=[b"cat"]))
    elif kind == "number as image":
        features["image/encoded"] = feature(int64_list=label)
    elif kind == "two labels":
        features["image/class/label"] = feature(int64_list=tf.train.Int64List(value=[1, 2]))
    else:
        del features["image/class/label"]
    content = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    (tmp_path / "train-00000-of-00001").write_bytes(frame(content))
    message = records_error(tmp_path, classes=3)
    assert "train-00000-of-00001 must have records with image/encoded and image/class/label: " in message


def test_files_that_are_not_regular(tmp_path):
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        make(tmp_path / "train-00000-of-00001")
        assert "train-00000-of-00001: this is a " in records_error(tmp_path, classes=3)
        os.rename(tmp_path / "train-00000-of-00001", tmp_path / f"other{make}")


def test_absurd_numbers_of_files(tmp_path):
    (tmp_path / "train-00000-of-99999999999999").touch()
    assert "It has 1 of 99999999999999 files." in records_error(tmp_path, classes=3)
    os.rename(tmp_path / "train-00000-of-99999999999999", tmp_path / "train-00000-of-00000")
    assert "has 1 files of 'train', more than 0" in records_error(tmp_path, classes=3)


def test_records_in_another_layout(tmp_path):
    write_split(tmp_path, image_key="image")
    message = records_error(tmp_path, classes=3)
    assert "must have records with image/encoded and image/class/label" in message and "image/encoded" in message


@pytest.mark.parametrize(("label", "classes"), [(0, 3), (4, 3), (-1, 3), (2**32 + 1, 3)])
def test_labels_out_of_range(tmp_path, label, classes):
    write_split(tmp_path, label=lambda number: label if number == 5 else 1)
    message = records_error(tmp_path, classes=classes)
    assert f"train-00000-of-00004: a record has label {label}. Labels must be from 1 to 3." in message


def test_later_label_out_of_range_is_a_recorded_failure(tmp_path):
    write_split(tmp_path, label=lambda number: 9 if number == 20 else 1)
    source = open_records(tmp_path, classes=3)
    run = load_config("b0", "folder", [f"data.dir={tmp_path}", "data.image_size=8", "eval.batch_size=8"])
    failures = Failures(source)
    weights = [w.numpy() for _, _, w in eval_dataset(source, run, failures, tf.distribute.InputContext())]
    assert np.sum(weights) == TOTAL - 1
    assert failures.names() == [f"{tmp_path}/train-00003-of-00004 record 1"]
    with pytest.raises(UserError, match="1 of 24 images cannot be read or decoded.*train-00003-of-00004 record 1"):
        failures.check(1e-3)


def test_classes_txt_with_another_number_of_classes(folder, tmp_path):
    assert "data.classes=5, but" in records_error(folder, classes=5)
    write_split(tmp_path)
    assert "has no classes.txt. Give the number of classes, for example --set data.classes=1000." in records_error(
        tmp_path
    )


@pytest.mark.parametrize(
    "content", [b"newt\r\naxolotl\r\nolm\r\n", b"\xef\xbb\xbfnewt\naxolotl\nolm", b"newt \naxolotl\nolm\n\n\n"]
)
def test_classes_txt_of_other_systems(folder, tmp_path, content):
    write_split(tmp_path)
    (tmp_path / "classes.txt").write_bytes(content)
    assert open_records(tmp_path).class_names == ("newt", "axolotl", "olm")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb\n", "the name of class 1 is empty"),
        (b"a\nb\na\n", "the classes 0 and 2 are both named 'a'"),
        ("a\u2028a\nb\n".encode(), "\\u2028"),
        ("a\u2028\nb\n".encode(), "\\u2028"),
        (b"a\x1b\nb", "\\x1b"),
        (b"a\nb\xff\n", "line 2: the byte 0xff is not UTF-8"),
        (b"", "the name of class 0 is empty"),
    ],
)
def test_classes_txt_with_names_that_cannot_be_used(tmp_path, content, message):
    write_split(tmp_path)
    (tmp_path / "classes.txt").write_bytes(content)
    assert message in records_error(tmp_path)


def test_more_hosts_than_files(folder):
    with pytest.raises(UserError, match="4 record files cannot be divided among 5 hosts"):
        open_records(folder).stream(Order(batch=5, shuffle=True, hosts=5))


# ----------------------------------------------------------------------------------------------------- copies


def test_copy_in_memory_has_the_same_examples(folder):
    plain, cached = open_records(folder), open_records(folder, cache="memory")
    assert not plain.indexed and cached.indexed
    assert contents(cached) == contents(plain)
    assert (cached.size, cached.class_names) == (plain.size, plain.class_names)


@pytest.mark.parametrize("hosts", [1, 3])
def test_copy_in_memory_is_shuffled_in_every_epoch(folder, hosts):
    source, epochs = open_records(folder, cache="memory"), []
    for epoch in range(3):
        parts = []
        for host in range(hosts):
            order = Order(batch=TOTAL, shuffle=True, seed=1, first_step=epoch, steps=1, host=host, hosts=hosts)
            parts += [int(i) for i in source.stream(order).map(lambda p, i, x: i).as_numpy_iterator()]
        epochs.append(parts)
    assert all(sorted(epoch) == list(range(TOTAL)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_copy_in_memory_reads_the_files_once_and_names_missing_ones(tmp_path):
    names = [f"train/{c}/{i}.png" for c in "ab" for i in range(4)]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full([8, 8, 3], number, np.uint8)).save(tmp_path / name)
    (tmp_path / "train/b/2.png").unlink()
    (tmp_path / "train/b/2.png").symlink_to("nowhere")
    source = open_source(schema.DataConfig(source="folder", dir=str(tmp_path), cache="memory"), "train", training=True)
    for name in names:
        (tmp_path / name).unlink()
    run = load_config("b0", "folder", [f"data.dir={tmp_path}", "data.image_size=8", "eval.batch_size=8"])
    failures = Failures(source)
    ((images, labels, weights),) = eval_dataset(source, run, failures, tf.distribute.InputContext())
    assert failures.names() == [str(tmp_path / "train/b/2.png")]
    assert weights.numpy().tolist() == [1, 1, 1, 1, 1, 1, 0, 1]
    assert images[:, 0, 0, 0].numpy().round().tolist() == [0, 1, 2, 3, 4, 5, 0, 7]
    assert labels.numpy().tolist()[:6] == [0, 0, 0, 0, 1, 1]


def test_copy_on_disk_is_made_once_and_belongs_to_its_source(folder, tmp_path):
    plain, cached = open_records(folder), open_records(folder, cache=str(tmp_path))
    assert not plain.indexed and cached.indexed
    assert contents(cached) == contents(plain)
    copied = next(p for p in tmp_path.rglob("0*") if p.is_file())
    copied.write_bytes(tf.io.encode_png(np.full([2, 2, 3], 251, np.uint8)).numpy())  # Nothing is copied twice.
    assert 251 in [number for _, number, _ in contents(open_records(folder, cache=str(tmp_path)))]
    with pytest.raises(UserError, match="has a copy of other images"):
        digits = schema.DataConfig(source="digits", cache=str(tmp_path))
        open_source(digits, "train", training=True)
    with pytest.raises(UserError, match="cannot be written"):
        open_records(folder, cache="/dev/null/cache")


def test_copy_of_changed_labels_is_another_copy(tmp_path):
    for number in range(4):
        PIL.Image.fromarray(np.full([8, 8, 3], number, np.uint8)).save(tmp_path / f"{number}.png")
    data = schema.DataConfig(source="table", dir=str(tmp_path), cache=str(tmp_path / "copy"))
    for labels in ("abab", "aabb"):  # The first and the last image stay the same.
        rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
        (tmp_path / "train.csv").write_text(f"path,label\n{rows}")
        if labels == "abab":
            assert len(contents(open_source(data, "train", training=True))) == 4
    with pytest.raises(UserError, match="has a copy of other images than table train. Use another folder."):
        open_source(data, "train", training=True)


@pytest.fixture(scope="module")
def copy_index(folder, tmp_path_factory):
    """Return the index of a copy that is valid."""
    cache = tmp_path_factory.mktemp("copy")
    open_records(folder, cache=str(cache))
    index = json.loads((cache / "train/copy.json").read_text())
    assert len(index["ids"]) == len(index["labels"]) == TOTAL
    return index


@pytest.mark.parametrize(
    "change",
    [
        *({"ids": value} for value in (None, [], "ids", [0.5] * TOTAL, [-1] * TOTAL, [2**70] * TOTAL, {})),
        *({"labels": value} for value in (None, [0], [3] * TOTAL, [-1] * TOTAL, ["0"] * TOTAL, [True] * TOTAL)),
        *({"classes": value} for value in (None, 3, ["newt"])),
        *({"first_and_last": value} for value in (None, [], "x")),
        {"ids": [2**62] * TOTAL},
    ],
)
def test_index_of_a_copy_with_nonsense(folder, copy_index, tmp_path, change):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/copy.json").write_text(json.dumps(copy_index | change))
    message = records_error(folder, cache=str(tmp_path))
    assert "is damaged, or belongs to other images" in message or "has a copy of other images" in message


def test_copies_at_odd_places(folder, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    for name in ("fifo", "file"):
        assert f"data.cache={tmp_path / name}/train cannot be written" in records_error(
            folder, cache=str(tmp_path / name)
        )
    (tmp_path / "copy/train").mkdir(parents=True)
    for content, part in ((b"[]", "expected a JSON object"), (b"{", "not valid JSON"), (b"\xff", "not UTF-8")):
        (tmp_path / "copy/train/copy.json").write_bytes(content)
        assert part in records_error(folder, cache=str(tmp_path / "copy"))
    (tmp_path / "copy/train/copy.json").unlink()
    os.mkfifo(tmp_path / "copy/train/copy.json")
    assert "copy.json: this is a FIFO, not a file." in records_error(folder, cache=str(tmp_path / "copy"))

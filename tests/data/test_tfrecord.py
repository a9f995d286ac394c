"""Test record files in the official layout, written here field by field, and copies in memory and on disk."""

import json
import struct

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.open import Order, open_source
from efficientnet_tf.data.pipeline import Failures, eval_dataset

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


def test_summary_is_used_only_if_it_describes_the_files(tmp_path):
    write_split(tmp_path)
    sizes = [(tmp_path / f"train-{i:05d}-of-00004").stat().st_size for i in range(4)]
    summary = {"records_per_file": [6, 0, 12, 5], "bytes_per_file": sizes}
    (tmp_path / "train.json").write_text(json.dumps(summary))
    assert open_records(tmp_path, classes=3).size == TOTAL - 1  # as the summary says
    summary["bytes_per_file"][0] += 1
    (tmp_path / "train.json").write_text(json.dumps(summary))
    assert open_records(tmp_path, classes=3).size == TOTAL
    (tmp_path / "train.json").write_text("{}")
    assert open_records(tmp_path, classes=3).size == TOTAL


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
    assert message.startswith(f"{path} must have records with image/encoded and image/class/label: ")
    path.write_bytes(b"")
    assert "the files of 'train' have no records." in records_error(tmp_path, classes=3)


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

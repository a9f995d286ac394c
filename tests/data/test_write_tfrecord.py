"""Test that the record files of `prepare` contain the same images, even if it is killed on the way."""

import collections
import hashlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data import write_tfrecord
from efficientnet_tf.data.open import Order, open_source
from efficientnet_tf.data.source import indexed_source
from efficientnet_tf.prepare import main, make_parser

COMMAND = [sys.executable, "-m", "efficientnet_tf.prepare"]


def data_config(source, **keys):
    return schema.DataConfig(source=source, **keys)


def write(data, split, output, shards=3, workers=2):
    return write_tfrecord.write_records(data, split, str(output), shards, workers)


def examples(source):
    """Return a Counter of (digest of the encoded image, class name) over all examples of a source."""
    stream = source.stream(Order(batch=1, steps=source.size)).map(lambda p, i, x: source.load(x))
    return collections.Counter(
        (hashlib.sha256(encoded).hexdigest(), source.class_names[label])
        for encoded, label in stream.as_numpy_iterator()
    )


def read_back(output, split):
    return open_source(data_config("records", dir=str(output)), split, split == "train")


def files(folder):
    """Return {name: bytes} of all files except the hidden summaries."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make train/ with three classes of 10, 3 and 7 images in every format, and val/ with two of the classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    names = [f"train/{c}/{i}" for c, n in (("ant", 10), ("bee", 3), ("cow", 7)) for i in range(n)]
    names += [f"val/{c}/{i}" for c in ("ant", "cow") for i in range(4)]
    for i, name in enumerate(names):
        path = root / (name + (".jpg", ".png", ".bmp", ".gif", ".webp")[i % 5])
        path.parent.mkdir(parents=True, exist_ok=True)
        image = PIL.Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
        image.convert("CMYK" if i == 10 else "RGB").save(path)
    return root


def test_records_of_a_folder_have_the_same_bytes(folder, tmp_path):
    source = data_config("folder", dir=str(folder))
    train, val = (write(source, split, tmp_path, shards) for split, shards in (("train", 4), ("val", 2)))
    assert train["examples_per_class"] == {"ant": 10, "bee": 3, "cow": 7}
    assert val["examples_per_class"] == {"ant": 4, "bee": 0, "cow": 4}
    assert train["records_per_file"] == [5, 5, 5, 5] and val["records_per_file"] == [4, 4]
    assert train["unreadable"] == val["unreadable"] == []
    assert (tmp_path / "classes.txt").read_text() == "ant\nbee\ncow\n"
    assert json.loads((tmp_path / "train.json").read_text()) == train
    for split in ("train", "val"):
        back = read_back(tmp_path, split)
        assert back.class_names == ("ant", "bee", "cow")
        expected = collections.Counter(
            (hashlib.sha256(path.read_bytes()).hexdigest(), path.parent.name)
            for path in (folder / split).rglob("*")
            if path.is_file()
        )
        assert examples(back) == expected and back.size == sum(expected.values())


def test_records_of_arrays_hold_the_same_images(tmp_path):
    """Files that were written from other pixels are refused."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 7), np.uint8)
    path, output = tmp_path / "own.npz", tmp_path / "records"
    np.savez(path, x_train=pixels, y_train=np.arange(12) % 2, classes=["cat", "dog"])
    data = data_config("arrays", dir=str(path))
    summary = write(data, "train", output)
    assert summary["examples_per_class"] == {"cat": 6, "dog": 6} and not summary["unreadable"]
    assert examples(read_back(output, "train")) == examples(open_source(data, "train", True))
    np.savez(path, x_train=pixels[::-1], y_train=np.arange(12) % 2, classes=["cat", "dog"])
    with pytest.raises(UserError, match="has files of 'train' from other images"):
        write(data, "train", output)


def test_records_are_in_the_official_layout(folder, tmp_path):
    write(data_config("folder", dir=str(folder)), "train", tmp_path, 1)
    kinds = collections.Counter()
    for serialized in tf.data.TFRecordDataset(str(tmp_path / "train-00000-of-00001")).as_numpy_iterator():
        feature = tf.train.Example.FromString(serialized).features.feature
        text = {k: feature[f"image/{k}"].bytes_list.value[0].decode() for k in ("format", "filename", "class/text")}
        numbers = {k: feature[f"image/{k}"].int64_list.value[0] for k in ("class/label", "height", "width", "channels")}
        original = folder / "train" / text["class/text"] / text["filename"]
        assert feature["image/encoded"].bytes_list.value[0] == original.read_bytes()
        assert numbers == {
            "class/label": ["ant", "bee", "cow"].index(text["class/text"]) + 1,
            "height": 8,
            "width": 9,
            "channels": 3,
        }
        kinds[text["format"]] += 1
    assert kinds == {"JPEG": 4, "PNG": 4, "BMP": 4, "GIF": 4, "WEBP": 4}


def test_classes_are_mixed_in_every_file(tmp_path):
    source = data_config("synthetic", synthetic_examples=120, synthetic_classes=3)
    write(source, "train", tmp_path, 3)
    for path in sorted(tmp_path.glob("train-*")):
        records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
        labels = [
            tf.train.Example.FromString(r).features.feature["image/class/label"].int64_list.value[0] for r in records
        ]
        assert len(labels) == 40 and np.bincount(labels, minlength=4)[1:].min() > 4
        assert np.count_nonzero(np.diff(labels)) > 15


def test_records_of_digits_have_the_same_images(tmp_path):
    summary = write(data_config("digits"), "test", tmp_path, 5)
    assert sum(summary["examples_per_class"].values()) == 360
    original = open_source(data_config("digits"), "test", training=False)
    assert examples(read_back(tmp_path, "test")) == examples(original)


class Spots(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["red", "green", "blue"])
        image, name = tfds.features.Image(shape=(5, 5, 3)), tfds.features.Text()
        features = tfds.features.FeaturesDict({"image": image, "label": label, "file_name": name})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(23):
            yield i, {"image": np.full((5, 5, 3), i, np.uint8), "label": i % 3, "file_name": f"spot_{i}.png"}


@pytest.fixture(scope="module")
def spots(tmp_path_factory):
    tfds.disable_progress_bar()
    root = str(tmp_path_factory.mktemp("tfds"))
    Spots(data_dir=root).download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=4))
    return data_config("tfds:spots", dir=root)


@pytest.mark.parametrize("shards", [1, 3, 23])
def test_records_of_a_tfds_dataset_have_the_same_images(spots, tmp_path, shards):
    summary = write(spots, "train", tmp_path, shards)
    assert sum(summary["records_per_file"]) == 23 and min(summary["records_per_file"]) >= 23 // shards
    assert summary["examples_per_class"] == {"red": 8, "green": 8, "blue": 7}
    back = read_back(tmp_path, "train")
    assert examples(back) == examples(open_source(spots, "train", training=True))
    payloads = [payload for *_, payload in back.stream(Order(batch=1, steps=23))]
    assert {back.file_name(payload).numpy().decode() for payload in payloads} == {f"spot_{i}.png" for i in range(23)}


# ------------------------------------------------------------------------------------------------------ kills


@pytest.mark.slow
def test_killed_several_times_it_writes_the_same_files(tmp_path, capsys):
    """Each run is killed after a few files. The next one keeps the complete files and writes the others."""
    images, whole, killed = tmp_path / "images", tmp_path / "whole", tmp_path / "killed"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 400, 400, 3), dtype=np.uint8)
    for number in range(600):
        path = images / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.roll(pixels[number % 6], number, axis=0)).save(path)
    (images / "train/a/broken.jpg").write_bytes(b"\xff\xd8\xff")
    command = [*COMMAND, f"--data_dir={images}", "--splits=train", "--shards=30", "--workers=2"]
    write(data_config("folder", dir=str(images)), "train", whole, 30)

    done, kills = 0, 0
    for _ in range(3):
        process = subprocess.Popen(
            [*command, f"--output={killed}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = {path: path.stat().st_mtime_ns for path in killed.glob("train-*")}
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(killed.glob("train-*"))) >= done + 4:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait(timeout=60) == -signal.SIGKILL
        assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
        done = len(list(killed.glob("train-*")))
        assert not (killed / "train.json").exists()
    assert kills == 3 and 12 <= done < 30
    main(make_parser().parse_args([*command[3:], f"--output={killed}"]))
    last = capsys.readouterr().out
    assert f"{killed}: train, 600 images of 2 classes, 30 files" in last
    assert f"left out: {images}/train/a/broken.jpg: " in last
    assert "1 image could not be decoded and left out. train.json lists them all." in last
    assert files(killed) == files(whole) and len(files(whole)) == 32


def test_a_second_call_writes_only_missing_files(folder, tmp_path):
    source = data_config("folder", dir=str(folder))
    first = write(source, "train", tmp_path, 4)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("train-*")}
    assert write(source, "train", tmp_path, 4) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("train-*")} == stamps
    lost = tmp_path / "train-00002-of-00004"
    content = lost.read_bytes()
    lost.unlink()
    assert write(source, "train", tmp_path, 4) == first
    assert lost.read_bytes() == content


# ----------------------------------------------------------------------------------------------------- errors


def test_unreadable_images_are_listed_and_left_out(tmp_path):
    images = tmp_path / "images/train"
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.zeros([4, 4, 3], np.uint8)).save(images / name)
    (images / "a/empty.jpg").write_bytes(b"")
    (images / "a/text.jpg").write_text("no image")
    (images / "b/cut.png").write_bytes((images / "a/1.png").read_bytes()[:40])
    (images / "b/gone.png").symlink_to("nowhere")
    PIL.Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P").quantize(4).save(images / "b/p.bmp")
    summary = write(data_config("folder", dir=str(images.parent)), "train", tmp_path / "out", 2)
    assert summary["examples_per_class"] == {"a": 2, "b": 3} and sum(summary["records_per_file"]) == 5
    reasons = {os.path.basename(line.partition(": ")[0]): line.partition(": ")[2] for line in summary["unreadable"]}
    assert sorted(reasons) == ["cut.png", "empty.jpg", "gone.png", "text.jpg"]
    assert reasons["gone.png"] == "no such file" and "truncated" in reasons["cut.png"]
    assert all(len(reason) > 10 for reason in reasons.values())
    assert read_back(tmp_path / "out", "train").size == 5


def error(data, split, output, shards=3):
    with pytest.raises(UserError) as caught:
        write(data, split, output, shards)
    return str(caught.value)


DIGITS = data_config("digits")
SMALL = data_config("synthetic", synthetic_examples=8, synthetic_classes=2)


def test_another_number_of_files_is_an_error(tmp_path):
    write(DIGITS, "test", tmp_path, 3)
    assert "has files of 'test' with another number of shards, for example test-0000" in error(
        DIGITS, "test", tmp_path, 4
    )
    assert len(files(tmp_path)) == 5


def test_a_folder_with_files_of_other_images_is_an_error(folder, tmp_path):
    """The existing files would be kept, although they have other images."""
    few, more = (data_config("synthetic", synthetic_examples=n, synthetic_classes=2) for n in (20, 30))
    write(few, "train", tmp_path / "a", 2)
    assert "has files of 'train' from other images" in error(more, "train", tmp_path / "a", 2)
    write(data_config("folder", dir=str(folder)), "train", tmp_path / "b", 2)
    assert "names other classes than data.source=digits, split 'test'" in error(DIGITS, "test", tmp_path / "b")


def test_more_files_than_images(spots, tmp_path):
    assert "has 23 images, too few for shards=24" in error(spots, "train", tmp_path, 24)


@pytest.mark.parametrize(("source", "split"), [("records", "train"), ("tfds:spots", "train[:50%]")])
def test_sources_and_splits_that_cannot_be_written(spots, tmp_path, source, split):
    data = data_config(source, dir=spots.dir)
    assert f"data.source={source}, split {split!r}: only whole splits of other sources" in error(data, split, tmp_path)


@pytest.mark.parametrize("where", ["a file", "inside a file"])
def test_folder_that_cannot_be_written(tmp_path, where):
    (tmp_path / "file").write_text("in the way")
    output = tmp_path / "file" if where == "a file" else tmp_path / "file/output"
    assert f"{output}: cannot write 'test' to this folder: " in error(DIGITS, "test", output)


def test_a_full_disk_stops_all_threads(tmp_path, monkeypatch):
    class Full(tf.io.TFRecordWriter):
        def write(self, _):
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.io, "TFRecordWriter", Full)
    assert "cannot write 'train' to this folder: No space left on device" in error(DIGITS, "train", tmp_path, 8)
    assert not list(tmp_path.glob("train-*"))


def test_a_full_disk_leaves_no_file_with_a_final_name(tmp_path):
    """A limit on the size of files fails the same system calls as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        message = error(SMALL, "val", tmp_path / "out", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message.startswith(f"{tmp_path}/out: cannot write 'val' to this folder: ") and "\n" not in message
    assert files(tmp_path / "out") == {}
    assert sum(write(SMALL, "val", tmp_path / "out", 2)["records_per_file"]) == 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 10_000,
        b"{}",
        b'{"records": "5", "bytes": 3, "classes": [], "unreadable": []}',
        b'{"records": -1, "bytes": 3, "classes": {}, "unreadable": null}',
        None,
    ],
)
def test_a_file_with_a_damaged_summary_is_written_again(tmp_path, content):
    first = write(SMALL, "val", tmp_path, 2)
    whole = files(tmp_path)
    summary, path = tmp_path / ".progress/val-00001-of-00002.json", tmp_path / "val-00001-of-00002"
    if content is None:  # The file itself is truncated.
        path.write_bytes(path.read_bytes()[:-10])
    else:
        summary.write_bytes(content)
    assert write(SMALL, "val", tmp_path, 2) == first
    assert files(tmp_path) == whole


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{}", b'{"sha256": 3}'])
def test_a_damaged_fingerprint_is_an_error(tmp_path, content):
    write(SMALL, "val", tmp_path, 2)
    (tmp_path / ".progress/val.json").write_bytes(content)
    message = error(SMALL, "val", tmp_path, 2)
    assert str(tmp_path) in message and message.endswith(".")


def test_fingerprints_of_earlier_versions_are_accepted(tmp_path):
    first = write(SMALL, "val", tmp_path, 2)
    path = tmp_path / ".progress/val.json"
    path.write_text(json.dumps({key: json.loads(path.read_text())[key] for key in ("images", "sha256")}))
    assert write(SMALL, "val", tmp_path, 2) == first


def test_changed_labels_are_other_images(tmp_path):
    for number in range(4):
        PIL.Image.fromarray(np.full([8, 8, 3], number, np.uint8)).save(tmp_path / f"{number}.png")
    data = data_config("table", dir=str(tmp_path))
    for labels in ("abab", "aabb"):
        rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
        (tmp_path / "train.csv").write_text(f"path,label\n{rows}")
        if labels == "abab":
            write(data, "train", tmp_path / "out", 1)
    assert "has files of 'train' from other images" in error(data, "train", tmp_path / "out", 1)


def test_odd_things_at_the_output(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert f"{tmp_path}/fifo: cannot write 'val' to this folder: " in error(SMALL, "val", tmp_path / "fifo")
    (tmp_path / "out/.progress").mkdir(parents=True)
    os.mkfifo(tmp_path / "out/.progress/val-00000-of-00001")
    os.mkfifo(tmp_path / "out/val-00000-of-00001")
    (tmp_path / "out/val-notes.txt").touch()
    assert write(SMALL, "val", tmp_path / "out", 1)["records_per_file"] == [8]
    os.mkfifo(tmp_path / "out/.progress/train.json")
    assert "train.json: this is a FIFO, not a file." in error(SMALL, "train", tmp_path / "out", 1)


@pytest.mark.parametrize("split", ["../train", "a/b", "", ".hidden", "train[:1]", "a\0b"])
def test_splits_that_cannot_be_file_names(tmp_path, split):
    assert "only whole splits of other sources can be written" in error(SMALL, split, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_file_names_with_any_byte(tmp_path):
    names = [b"\xff\xfe.png", b"a\nb.png", b"%s*?[a].png", b"\x1b[31m.png", "\u2028.png".encode()]
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(tmp_path), b"train", b"ab"[number % 2 : number % 2 + 1], name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            PIL.Image.fromarray(np.full([4, 4, 3], number, np.uint8)).save(file, "PNG")
    (tmp_path / "train/a/bad\x1b.jpg").write_bytes(b"no image")
    summary = write(data_config("folder", dir=str(tmp_path)), "train", tmp_path / "out", 1)
    assert summary["examples_per_class"] == {"a": 3, "b": 2}
    (line,) = summary["unreadable"]
    assert "bad\\x1b.jpg: " in line and line.isprintable()
    back = read_back(tmp_path / "out", "train")
    payloads = [payload for *_, payload in back.stream(Order(batch=1, steps=5))]
    assert sorted(back.file_name(payload).numpy() for payload in payloads) == sorted(names)


def test_an_error_of_the_storage_is_not_an_unreadable_image(tmp_path):
    def load(index):
        raise tf.errors.UnavailableError(None, None, "try again")

    source = indexed_source(4, ["a", "b"], load, describe=str)
    (tmp_path / ".progress").mkdir()
    with pytest.raises(tf.errors.UnavailableError, match="try again"):
        write_tfrecord.write_shard(DIGITS, "test", str(tmp_path), 1, 0, source)
    assert not list(tmp_path.glob("test-*"))


def test_numbers_of_files_that_do_not_match_the_splits(tmp_path):
    arguments = [f"--output={tmp_path}", "--source=digits", "--splits=train,test", "--shards=1,2,3"]
    with pytest.raises(UserError, match="--shards=1,2,3 does not match --splits=train,test. Give one number, or one"):
        main(make_parser().parse_args(arguments))


def test_beam_is_not_installed(tmp_path):
    if importlib.util.find_spec("apache_beam"):
        pytest.skip("Apache Beam is installed")
    with pytest.raises(UserError, match=r"Apache Beam is .*not installed. Run pip install 'efficientnet_tf\[beam\]'"):
        write_tfrecord.write_records(DIGITS, "test", str(tmp_path), 2, 1, [])


def test_beam_writes_the_same_files(tmp_path):
    pytest.importorskip("apache_beam")
    threads, beam = tmp_path / "threads", tmp_path / "beam"
    common = ["--source=digits", "--splits=test", "--shards=4"]
    for output, more in ((threads, []), (beam, ["--beam=--runner=DirectRunner"])):
        command = [*COMMAND, f"--output={output}", *common, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    assert files(beam) == files(threads) and len(files(beam)) == 6

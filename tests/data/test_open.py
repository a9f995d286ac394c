"""Compare every source with the data it was made from, and test the order of its images and its errors."""

import io
import os
import shutil

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data import open as open_lib
from efficientnet_tf.data.open import Order
from efficientnet_tf.data.pipeline import Failures, eval_dataset, train_dataset

TRAIN_RECORDS, TEST_RECORDS, SHARDS = 53, 17, 5


def open_source(source, split="train", training=True, **keys):
    return open_lib.open_source(schema.DataConfig(source=source, **keys), split, training)


def open_folder(root, split="train", training=True, **keys):
    return open_source("folder", split, training, dir=str(root), **keys)


def write_images(root, names, shape=(6, 9, 3), seed=0):
    """Write random images under `root` in the format of their suffix. Return {name: pixels}."""
    rng = np.random.default_rng(seed)
    pixels = {}
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels[name] = rng.integers(0, 256, shape, dtype=np.uint8)
        PIL.Image.fromarray(pixels[name]).save(path)
    return pixels


def read_stream(source, count, **order):
    """Return the first `count` (positions, ids) of a host's stream."""
    order = Order(**order)
    pairs = source.stream(order).map(lambda position, id_, _: (position, id_))
    return next(iter(pairs.batch(count))) if count else (tf.zeros([0], tf.int64),) * 2


def read_ids(source, steps, batch, hosts=1, **order):
    """Return the ids of the first steps of all hosts together, [steps, batch], after checking the positions."""
    share = batch // hosts
    parts = []
    for host in range(hosts):
        positions, ids = read_stream(source, steps * share, batch=batch, host=host, hosts=hosts, **order)
        first = order.get("first_step", 0)
        expected = np.arange(first * batch, (first + steps) * batch).reshape(steps, hosts, share)[:, host]
        np.testing.assert_array_equal(positions, expected.ravel())
        parts.append(np.reshape(ids, [steps, share]))
    return np.concatenate(parts, axis=1)


def read_examples(source):
    """Return (names, encoded images, labels) of a source in its own order."""
    order = Order(batch=source.size, steps=1)
    examples = source.stream(order).map(lambda _, id_, payload: (id_, *source.load(payload)))
    ids, images, labels = next(iter(examples.batch(source.size)))
    return [source.describe(int(id_)) for id_ in ids], images.numpy(), labels.numpy()


def decode(encoded):
    return np.asarray(PIL.Image.open(io.BytesIO(encoded)))


def labels_by_name(source):
    """Return {file name without folders: class name}."""
    names, _, labels = read_examples(source)
    return {os.path.basename(n): source.class_names[i] for n, i in zip(names, labels, strict=True)}


# ------------------------------------------------------------------------------------------- digits, synthetic


def test_digits_are_those_of_scikit_learn():
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    expected = {}
    for image, label in zip(np.round(pixels * 255 / 16).astype(np.uint8), labels, strict=True):
        expected.setdefault((image.tobytes(), label), []).append(None)
    assert sum(map(len, expected.values())) == 1797

    for split, size in (("train", 1437), ("test", 360)):
        source = open_source("digits", split)
        names, encoded, found = read_examples(source)
        assert source.size == len(names) == len(set(names)) == size
        assert source.class_names == tuple("0123456789")
        # Stratified: each class has its share, rounded up or down.
        share = np.bincount(labels) * size / 1797
        assert np.all(np.abs(np.bincount(found) - share) <= 1)
        for image, label in zip(encoded, found, strict=True):
            image = decode(image)
            assert image.shape == (8, 8)
            expected[image.tobytes(), label].pop()  # The splits are disjoint.
    assert not any(expected.values())


def test_synthetic_images_depend_on_their_class():
    train, val = (open_source("synthetic", s, synthetic_examples=30, synthetic_classes=4) for s in ("train", "val"))
    means = []
    for source in (train, val):
        _, encoded, labels = read_examples(source)
        images = np.stack([decode(image) for image in encoded])
        assert images.shape == (30, 64, 64, 3)
        assert source.class_names == ("class0", "class1", "class2", "class3")
        assert np.bincount(labels).tolist() == [8, 8, 7, 7]
        means.append(np.stack([images[labels == c].mean((0, 1, 2)) for c in range(4)]))
        assert encoded[0].startswith(b"\xff\xd8\xff")
    assert np.abs(means[0] - means[1]).max() < 2
    assert min(np.abs(means[0][a] - means[0][b]).max() for a in range(4) for b in range(a)) > 5
    assert read_examples(train)[1][0] != read_examples(val)[1][0]
    again = open_source("synthetic", "train", synthetic_examples=30, synthetic_classes=4)
    assert read_examples(again)[1].tolist() == read_examples(train)[1].tolist()


# ---------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("shape", [(30, 9, 7), (30, 5, 8, 3)])
def test_arrays_are_read_bit_for_bit(tmp_path, shape):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, shape, np.uint8), rng.permutation(30) % 3
    np.savez(tmp_path / "own.npz", x_train=pixels, y_train=labels, classes=["cat", "dog", "owl"])
    path = str(tmp_path / "own.npz")
    source = open_source("arrays", dir=path)
    names, encoded, found = read_examples(source)
    assert source.class_names == ("cat", "dog", "owl") and source.size == 30
    assert names == [f"{path}, array x_train, image {i}" for i in range(30)]
    np.testing.assert_array_equal([decode(image) for image in encoded], pixels)
    np.testing.assert_array_equal(found, labels)
    # In the shuffled order, each id is the index in the array.
    stream = source.stream(Order(batch=10, shuffle=True, seed=1)).map(
        lambda _, id_, payload: (id_, source.load(payload))
    )
    for id_, (image, label) in stream.take(60):
        np.testing.assert_array_equal(decode(image.numpy()), pixels[id_])
        assert label == labels[id_]
    held = open_source("arrays", "val", False, dir=path, val_fraction=0.2)
    names, encoded, found = read_examples(held)
    rows = [int(name.rpartition(" ")[2]) for name in names]
    assert np.bincount(found).tolist() == [2, 2, 2]
    np.testing.assert_array_equal([decode(image) for image in encoded], pixels[rows])
    np.testing.assert_array_equal(found, labels[rows])
    assert held.fingerprint != source.fingerprint == open_source("arrays", dir=path).fingerprint


# ---------------------------------------------------------------------------------------------------- folder


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory):
    """Write train/ with three classes and val/ with two: every format, nested files, and files that are not images."""
    root = tmp_path_factory.mktemp("split")
    names = [
        *("train/ant/a1.jpg", "train/ant/a2.JPEG", "train/ant/deep/er/a3.png"),
        *("train/bee/b1.bmp", "train/bee/b2.gif", "train/bee/b3.PNG"),
        *("train/cow/c1.png",),
        *("val/ant/v1.png", "val/cow/v2.jpg"),
    ]
    pixels = write_images(root, names)
    gray = np.arange(54, dtype=np.uint8).reshape(6, 9)
    PIL.Image.fromarray(gray).save(root / "train/cow/c2.png")
    PIL.Image.fromarray(gray).save(root / "train/cow/c3.jpg")
    (root / "train/ant/notes.txt").write_text("no image")
    (root / "train/ant/Thumbs.db").write_bytes(b"\0")
    (root / "train/README.md").write_text("next to the classes")
    (root / "train/.cache").mkdir()
    (root / "train/ant/._a1.jpg").write_bytes(b"metadata of macOS")
    (root / "train/ant/.ipynb_checkpoints").mkdir()
    shutil.copy(root / "train/ant/a1.jpg", root / "train/ant/.ipynb_checkpoints/a1.jpg")
    return root, pixels


def test_folder_reads_every_image_and_nothing_else(split_folder):
    root, pixels = split_folder
    source = open_folder(root)
    names, encoded, labels = read_examples(source)
    assert source.class_names == ("ant", "bee", "cow")
    relative = [os.path.relpath(name, root) for name in names]
    assert sorted(relative) == sorted(
        [n for n in pixels if n[:5] == "train"] + ["train/cow/c2.png", "train/cow/c3.jpg"]
    )
    assert [source.class_names[label] for label in labels] == [name.split("/")[1] for name in relative]
    for name, image in zip(relative, encoded, strict=True):
        assert image == (root / name).read_bytes()


def test_training_folder_determines_the_labels(split_folder):
    root, _ = split_folder
    source = open_folder(root, "val", training=False)
    assert source.class_names == ("ant", "bee", "cow")
    assert labels_by_name(source) == {"v1.png": "ant", "v2.jpg": "cow"}
    # If it is the training split itself, under another name, its own folder determines the labels.
    assert open_folder(root, "val", train_split="val").class_names == ("ant", "cow")


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """Write classes of 10, 25 and 3 images without split folders."""
    root = tmp_path_factory.mktemp("plain")
    counts = {"x": 10, "y": 25, "z": 3}
    write_images(root, [f"{c}/{c}{i:02}.png" for c, n in counts.items() for i in range(n)], shape=(2, 2, 3))
    return root, counts


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_val_fraction_holds_out_a_share_of_every_class(plain_folder, fraction):
    root, counts = plain_folder
    train, val = (labels_by_name(open_folder(root, "any", t, val_fraction=fraction)) for t in (True, False))
    assert not set(train) & set(val)
    assert train | val == {f"{c}{i:02}.png": c for c, n in counts.items() for i in range(n)}
    for name, count in counts.items():
        held = list(val.values()).count(name)
        assert held == max(1, round(count * fraction))
    assert val == labels_by_name(open_folder(root, "other", False, val_fraction=fraction))


def test_val_fraction_does_not_hold_out_consecutive_files(plain_folder):
    root, _ = plain_folder
    held = sorted(labels_by_name(open_folder(root, "val", False, val_fraction=0.2)))
    assert [n for n in held if n[0] == "y"] not in ([f"y{i:02}.png" for i in r] for r in (range(5), range(20, 25)))


@pytest.mark.parametrize("moved", [False, True])
def test_val_fraction_depends_only_on_the_names(plain_folder, tmp_path, moved):
    """Files that are listed in another order, or moved to another folder, stay in their part."""
    root, _ = plain_folder
    copy = tmp_path / ("elsewhere" if moved else root.name)
    for path in sorted(root.rglob("*.png"), reverse=True):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.parent.name)
    held = [labels_by_name(open_folder(r, "val", False, val_fraction=0.2)) for r in (root, copy)]
    assert held[0] == held[1]


def test_folder_without_a_directory_is_an_error_of_the_config():
    with pytest.raises(UserError, match=r"data.source=folder needs data.dir, .*Set data.dir=PATH"):
        load_config("b0", "folder")


def folder_error(root, *arguments, **keys):
    with pytest.raises(UserError) as caught:
        open_folder(root, *arguments, **keys)
    return str(caught.value)


def test_missing_folder(tmp_path):
    missing = tmp_path / "missing"
    assert folder_error(missing) == f"data.dir={str(missing)!r} is not a folder."
    missing.write_text("a file")
    assert folder_error(missing) == f"data.dir={str(missing)!r} is not a folder."


def test_folder_without_the_split(plain_folder, tmp_path):
    root, _ = plain_folder
    message = folder_error(root, "train")
    assert f"{str(root)!r} has no subfolder 'train'; it has x, y, z." in message
    assert "Put the images into train/<class>/" in message and "--set data.val_fraction=0.2" in message
    assert "it has no subfolder." in folder_error(tmp_path, "train")


def test_empty_folders(tmp_path):
    root = tmp_path
    assert "has no class folder. Put the images into <class>/ in this folder." in folder_error(root, val_fraction=0.2)
    write_images(root, ["train/a/1.png", "train/b/2.png"])
    (root / "val").mkdir()
    assert f"{str(root / 'val')!r} has no class folder" in folder_error(root, "val", False)
    (root / "val/loose.png").write_bytes(b"")
    assert "has no class folder" in folder_error(root, "val", False)


def test_class_without_an_image(tmp_path):
    write_images(tmp_path, ["train/a/1.png", "train/b/2.png"])
    (tmp_path / "train/c").mkdir()
    (tmp_path / "train/c/readme.txt").write_text("no image")
    message = folder_error(tmp_path)
    assert f"class folder {str(tmp_path / 'train/c')!r} has no image" in message
    assert message.endswith("It has 1 .txt.") and ".jpg, .jpeg, " in message


def test_one_class_only(tmp_path):
    write_images(tmp_path, ["train/alone/1.png"])
    assert "found only one class, 'alone'. A classifier needs at least two." in folder_error(tmp_path)


def test_class_too_small_for_val_fraction(tmp_path):
    write_images(tmp_path, ["a/1.png", "b/1.png", "b/2.png"])
    message = folder_error(tmp_path, "train", val_fraction=0.2)
    assert f"data.val_fraction=0.2 leaves no training image in {str(tmp_path / 'a')!r}, which has 1." in message


def test_validation_class_that_training_does_not_have(tmp_path):
    write_images(tmp_path, ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/wasp/1.png"])
    message = folder_error(tmp_path, "val", False)
    assert f"{str(tmp_path / 'val')!r} has classes that 'train' does not have: wasp" in message


@pytest.mark.parametrize("source", ["digits", "synthetic"])
def test_unknown_split_names_the_nearest(source):
    allowed = {"digits": "train, test", "synthetic": "train, val"}[source]
    with pytest.raises(
        UserError,
        match=rf"data.source={source} has no split 'trian'. Set data.train_split .* one of {allowed}. Did .* 'train'\?",
    ):
        open_source(source, "trian")


# ----------------------------------------------------------------------------------------- order of positions


@pytest.fixture(scope="module")
def indexed():
    """Return a function from a size to an indexed source of as many examples."""
    made = {}

    def make(size):
        if size not in made:
            made[size] = open_source("synthetic", synthetic_examples=size)
        return made[size]

    return make


@settings(max_examples=6)
@given(
    size=st.sampled_from([1, 2, 7, 37, 100]),
    share=st.integers(1, 12),
    first_step=st.integers(0, 30),
    seed=st.integers(0, 2**31 - 1),
    shuffle=st.booleans(),
)
def test_steps_do_not_depend_on_hosts_or_the_first_step(indexed, size, share, first_step, seed, shuffle):
    source, steps, batch = indexed(size), 3, 4 * share
    whole = read_ids(source, first_step + steps, batch, shuffle=shuffle, seed=seed)
    for hosts in (1, 2, 4):
        part = read_ids(source, steps, batch, hosts, shuffle=shuffle, seed=seed, first_step=first_step)
        np.testing.assert_array_equal(part, whole[first_step:])


@settings(max_examples=10)
@given(size=st.sampled_from([1, 2, 7, 37, 100]), seed=st.integers(0, 2**31 - 1))
def test_every_epoch_has_each_image_once(indexed, size, seed):
    epochs = read_ids(indexed(size), 5, size, shuffle=True, seed=seed)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(size))


def test_images_come_in_order_without_shuffle(indexed):
    ids = read_ids(indexed(37), 3, 20)
    np.testing.assert_array_equal(ids.ravel(), np.arange(60) % 37)


def test_order_with_a_number_of_steps(indexed, dots):
    for source in (indexed(37), dots):
        positions, _ = read_stream(source, 1000, batch=8, steps=3, first_step=2, host=1, hosts=2)
        assert positions.numpy().tolist() == [20, 21, 22, 23, 28, 29, 30, 31, 36, 37, 38, 39]


def test_epochs_and_seeds_have_different_orders(indexed):
    """The permutation uses only a few bits of its key, so many epochs are tested."""
    source = indexed(19)
    epochs = read_ids(source, 350, 19, shuffle=True, seed=3)
    assert len({tuple(epoch) for epoch in epochs}) >= 345  # With 16 bits of key, two may be equal by chance.
    first = [tuple(read_ids(source, 1, 19, shuffle=True, seed=seed)[0]) for seed in (0, 1, 2, 256, 65536, 2**31 - 1)]
    assert len(set(first)) == len(first)
    assert tuple(epochs[1]) not in first


def test_the_order_is_random(indexed):
    """Over many epochs, every image is at every place equally often, and neighbors do not stay neighbors."""
    size, count = 100, 200
    epochs = read_ids(indexed(size), count, size, shuffle=True)
    blocks = np.zeros([10, 10])
    np.add.at(blocks, (np.tile(np.arange(size) // 10, count), epochs.ravel() // 10), 1)
    expected = count * size / 100
    assert np.all(np.abs(blocks - expected) < 5 * np.sqrt(expected))
    kept = np.mean(np.diff(epochs, axis=1) == 1) * size
    assert kept < 1.5  # 1 by chance


# ------------------------------------------------------------------------------------------------------ TFDS


class Dots(tfds.core.GeneratorBasedBuilder):
    """A dataset in several files. The pixels of an image are its number."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("good", "no_label", "number", "sound")]

    def _info(self):
        image, label = tfds.features.Image(shape=(5, 5, 3)), tfds.features.ClassLabel(names=["red", "green", "blue"])
        features = {
            "good": {"image": image, "label": label},
            "no_label": {"image": image, "objects": label},
            "number": {"image": image, "label": tfds.features.Scalar(np.int64)},
            "sound": {"image": tfds.features.Tensor(shape=(5, 5, 3), dtype=np.uint8), "label": label},
        }[self.builder_config.name]
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {
            "train": self._generate_examples(0, TRAIN_RECORDS),
            "test": self._generate_examples(TRAIN_RECORDS, TRAIN_RECORDS + TEST_RECORDS),
        }

    def _generate_examples(self, first, end):
        for i in range(first, end):
            image = np.full((5, 5, 3), i, np.uint8)
            yield i, {name: image if name == "image" else i % 3 for name in self.info.features}


@pytest.fixture(scope="module")
def dots_dir(tmp_path_factory):
    tfds.disable_progress_bar()
    root = str(tmp_path_factory.mktemp("tfds"))
    for name in ("good", "no_label", "number", "sound"):
        shards = tfds.download.DownloadConfig(num_shards=SHARDS if name == "good" else 1)
        Dots(config=name, data_dir=root).download_and_prepare(download_config=shards)
    return root


@pytest.fixture(scope="module")
def dots(dots_dir):
    return open_source("tfds:dots/good", dir=dots_dir)


def contents(source):
    """Return {number in the pixels: label}, for every example of a source."""
    _, encoded, labels = read_examples(source)
    images = [decode(image) for image in encoded]
    assert all(image.shape == (5, 5, 3) and np.ptp(image) == 0 for image in images)
    return {int(image[0, 0, 0]): int(label) for image, label in zip(images, labels, strict=True)}


def test_tfds_records_are_read_as_written(dots_dir, dots):
    test = open_source("tfds:dots/good", "test", dir=dots_dir)
    assert dots.class_names == test.class_names == ("red", "green", "blue")
    assert (dots.size, test.size) == (TRAIN_RECORDS, TEST_RECORDS)
    assert contents(dots) == {i: i % 3 for i in range(TRAIN_RECORDS)}
    assert contents(test) == {i: i % 3 for i in range(TRAIN_RECORDS, TRAIN_RECORDS + TEST_RECORDS)}


@pytest.mark.parametrize(
    "split",
    [
        "train[:50%]",
        "train[50%:]",
        "train[7:31]",
        "train[-3:]",
        "train[2:3]",
        "test[:9]",
        "train+test",
        "train[-3:]+test",
    ],
)
def test_slices_of_splits_match_tfds(dots_dir, split):
    source = open_source("tfds:dots/good", split, dir=dots_dir)
    expected = tfds.builder("dots/good", data_dir=dots_dir).as_dataset(split=split, shuffle_files=False)
    expected = {int(e["image"][0, 0, 0]): int(e["label"]) for e in expected}
    assert source.size == len(expected) and contents(source) == expected


def test_halves_of_a_split_make_the_whole(dots_dir):
    halves = [contents(open_source("tfds:dots/good", s, dir=dots_dir)) for s in ("train[:50%]", "train[50%:]")]
    assert not set(halves[0]) & set(halves[1])
    assert set(halves[0]) | set(halves[1]) == set(range(TRAIN_RECORDS))


def test_tfds_examples_are_named_by_file_and_record(dots_dir):
    source = open_source("tfds:dots/good", "train[13:40]", dir=dots_dir)
    names, encoded, _ = read_examples(source)
    assert len(set(names)) == 27
    for name, image in zip(names, encoded, strict=True):
        path, _, ordinal = name.partition(" record ")
        record = next(iter(tf.data.TFRecordDataset(path).skip(int(ordinal)))).numpy()
        assert image in record


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_every_epoch_has_each_record_once(dots, hosts):
    epochs = []
    for host in range(hosts):
        records = read_stream(dots, 4 * TRAIN_RECORDS, batch=hosts, host=host, hosts=hosts, shuffle=True)[1].numpy()
        files = {record >> 32 for record in records}
        assert files == set(range(host, SHARDS, hosts))  # Each host reads its own files.
        size = len(set(records))
        epochs.append(records[: 3 * size].reshape(3, size))
        for epoch in epochs[-1]:
            assert set(epoch) == set(records)
    assert sum(e.shape[1] for e in epochs) == TRAIN_RECORDS
    assert len({tuple(epoch) for epoch in epochs[0]}) == 3


@pytest.mark.parametrize(("hosts", "buffer"), [(1, 1000), (2, 4)])
def test_resumed_records_continue_where_they_were(dots_dir, hosts, buffer):
    """Two epochs end on the way, because a step has 12 of 53 records."""
    source = open_source("tfds:dots/good", dir=dots_dir, shuffle_buffer=buffer)
    whole = read_ids(source, 12, 12, hosts, shuffle=True, seed=5)
    for first_step in (4, 9):
        resumed = read_ids(source, 12 - first_step, 12, hosts, shuffle=True, seed=5, first_step=first_step)
        np.testing.assert_array_equal(resumed, whole[first_step:])


def test_order_of_records_depends_only_on_the_seed(dots):
    """It does not depend on TensorFlow's global seed, and does not change it."""
    orders = []
    for global_seed in (0, 1, 2**31 - 1):
        tf.random.set_seed(global_seed)
        expected = tf.random.uniform([2]).numpy().tolist()
        tf.random.set_seed(global_seed)
        orders.append(read_ids(dots, 2, TRAIN_RECORDS, shuffle=True, seed=0).tolist())
        assert tf.random.uniform([2]).numpy().tolist() == expected
    assert orders[0] == orders[1] == orders[2]
    seeds = (0, 1, 2, 2**31 - 1)
    epochs = [tuple(epoch) for seed in seeds for epoch in read_ids(dots, 2, TRAIN_RECORDS, shuffle=True, seed=seed)]
    assert len(set(epochs)) == 2 * len(seeds)


def test_records_of_a_file_are_mixed_with_those_of_others(dots):
    ids = read_ids(dots, 1, TRAIN_RECORDS, shuffle=True)[0]
    changes = np.count_nonzero(np.diff(ids >> 32))
    assert changes > TRAIN_RECORDS / 2  # 4/5 of them by chance. Reading file by file would give 4 changes.


@pytest.mark.parametrize("hosts", [1, 2, 3])
@pytest.mark.parametrize("batch", [6, 60])
def test_evaluation_counts_each_record_once_over_all_hosts(dots, hosts, batch):
    steps = -(-TRAIN_RECORDS // batch)
    parts = []
    for host in range(hosts):
        positions, ids = read_stream(dots, 1000, batch=batch, steps=steps, host=host, hosts=hosts)
        expected = np.arange(steps * batch).reshape(steps, hosts, -1)[:, host]
        np.testing.assert_array_equal(positions, expected.ravel())
        parts.append(np.reshape(ids, expected.shape))
    counted = np.concatenate(parts, axis=1).ravel()[:TRAIN_RECORDS]
    np.testing.assert_array_equal(counted, read_stream(dots, TRAIN_RECORDS, batch=TRAIN_RECORDS, steps=1)[1])
    assert len(set(counted)) == TRAIN_RECORDS


def test_more_hosts_than_record_files(dots):
    with pytest.raises(UserError, match="5 record files cannot be divided among 6 hosts"):
        dots.stream(Order(batch=6, shuffle=True, hosts=6))


def test_records_go_through_the_pipelines(dots_dir, dots):
    """Training resumes bit for bit, and evaluation reads every record."""
    settings = [f"data.dir={dots_dir}", "data.image_size=8", "train.batch_size=10", "eval.batch_size=20"]
    run = load_config(
        "b0", "cifar10", [*settings, "data.source=tfds:dots/good", "augment.flip=false", "augment.erase=0"]
    )
    context = tf.distribute.InputContext()
    whole, resumed = (
        list(train_dataset(dots, run, Failures(dots), first, context).take(8 - first)) for first in (0, 5)
    )
    for one, other in zip(whole[5:], resumed, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    images, labels = (np.concatenate(parts) for parts in zip(*whole, strict=True))
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 3, labels)
    images, _, weights = (
        np.concatenate(p) for p in zip(*eval_dataset(dots, run, Failures(dots), context), strict=True)
    )
    numbers = images[weights == 1].reshape(TRAIN_RECORDS, -1).mean(1).round().astype(int)
    assert sorted(numbers) == list(range(TRAIN_RECORDS))


# ----------------------------------------------------------------------------------------------- TFDS: errors


def tfds_error(name, split="train", **keys):
    with pytest.raises(UserError) as caught:
        open_source(f"tfds:{name}", split, **keys)
    return str(caught.value)


def test_unknown_dataset(tmp_path):
    message = tfds_error("cifer10", dir=str(tmp_path))
    assert message == "data.source=tfds:cifer10: Dataset cifer10 not found. Did you mean 'cifar10'?"
    message = tfds_error("imagenette/320px-v3", dir=str(tmp_path))
    assert "BuilderConfig 320px-v3 not found" in message and "\n" not in message


@pytest.mark.parametrize("split", ["trian", "trian[:10]"])
def test_unknown_tfds_split(dots_dir, split):
    message = tfds_error("dots/good", split, dir=dots_dir)
    assert "data.source=tfds:dots/good has no split 'trian'. Set" in message and "one of train, test." in message
    assert message.endswith("Did you mean 'train'?")


def test_invalid_and_empty_slices(dots_dir):
    assert "Error parsing split 'train[:50'" in tfds_error("dots/good", "train[:50", dir=dots_dir)
    assert "split 'train[:0%]' is empty" in tfds_error("dots/good", "train[:0%]", dir=dots_dir)


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("no_label", "image (Image), objects (ClassLabel)"),
        ("number", "image (Image), label (Scalar)"),
        ("sound", "image (Tensor), label (ClassLabel)"),
    ],
)
def test_dataset_of_another_kind(dots_dir, name, has):
    message = tfds_error(f"dots/{name}", dir=dots_dir)
    assert f"data.source=tfds:dots/{name} is not an image-classification dataset" in message
    assert message.endswith(f"has {has}.")


def test_dataset_in_another_format(tmp_path):
    Dots(config="good", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    message = tfds_error("dots/good", dir=str(tmp_path))
    assert message == "data.source=tfds:dots/good is stored as array_record. Only tfrecord can be read."


def test_unprepared_dataset_without_a_network_fails_at_once(tmp_path, monkeypatch):
    """TensorFlow Datasets itself would retry for more than three minutes."""
    calls = []
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", lambda *_, **__: calls.append(1))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    message = tfds_error("mnist", dir=str(tmp_path))
    assert not calls
    assert f"data.source=tfds:mnist is not prepared under {tmp_path / 'mnist'}" in message
    assert "could not be downloaded: URLError: " in message and "\n" not in message


def test_dataset_that_must_be_downloaded_by_hand(tmp_path):
    message = tfds_error("imagenet2012", dir=str(tmp_path))
    assert "data.source=tfds:imagenet2012 is not prepared under" in message
    assert "ILSVRC2012_img_train.tar" in message and "register on https://image-net.org" in message

"""Where images come from: each source gives encoded image bytes and a label for every position of a run.

A *position* counts the images that a run has used: position p lies in epoch p // size. A source that can be indexed
answers for any position at once (seed and position alone decide the image), so that a resumed run finds its place
without reading what it has seen; a source of records reads on from the start of its epoch.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from efficientnet_tf.config import UserError, nearest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


@dataclass(frozen=True)
class Order:
    """Which positions of a run this host reads, and in which order the images stand behind them.

    `batch` images over all hosts form a step; this host takes its share of each, images
    [host * batch / hosts, (host + 1) * batch / hosts) of it.
    """

    batch: int
    shuffle: bool = False
    seed: int = 0
    first_step: int = 0
    steps: int | None = None  # None: without end
    host: int = 0
    hosts: int = 1

    def positions(self):
        """Return a tf.data.Dataset of int64 positions."""
        share = self.batch // self.hosts
        end = np.iinfo(np.int64).max if self.steps is None else (self.first_step + self.steps) * share
        local = tf.data.Dataset.range(self.first_step * share, end)
        return local.map(lambda i: i // share * self.batch + self.host * share + i % share)


@dataclass(frozen=True)
class Source:
    """The examples of one split.

    Attributes:
        size: number of examples.
        class_names: name of every label, 0 ... len - 1.
        stream: from an Order to a dataset of (position, id, payload): int64, int64, and what `load` takes.
        load: from a payload to (encoded image, string scalar; label, int32 scalar). Runs inside tf.data.
        describe: from an id to the example's name, for messages.
    """

    size: int
    class_names: tuple[str, ...]
    stream: Callable
    load: Callable
    describe: Callable


def open_source(data, split, training):
    """Open a split of the configured data set.

    Args:
        data: config.DataConfig.
        split: str, the split's name.
        training: bool; with `data.val_fraction` it tells the two parts of a folder apart.

    Returns:
        A Source with at least two classes and one example.

    Raises:
        UserError: for data that is not there, is empty, or has one class only.
    """
    kind, _, name = data.source.partition(":")
    if kind == "digits":
        source = _digits(split)
    elif kind == "synthetic":
        source = _synthetic(data, split)
    elif kind == "folder":
        source = _folder(data, split, training)
    else:
        source = _tfds(name, data, split)
    if len(source.class_names) < 2:
        raise UserError(
            f"data.source={data.source}: found one class only, {source.class_names[0]!r}; "
            "a classifier needs two or more"
        )
    return source


def _check_split(split, allowed, what):
    if split not in allowed:
        raise UserError(
            f"{what} has no split {split!r}: allowed are {', '.join(allowed)} (keys data.train_split, data.eval_split)."
            + nearest(split, allowed)
        )


def _indexed(size, class_names, load, describe):
    """Make a source of examples that can be read in any order: a permutation an epoch, computed by index."""

    def stream(order):
        def with_index(position):
            index = position % size
            if order.shuffle:
                # The shuffle reads a few low bits of its key, 8 for small sets: spread seed and epoch over all of them.
                seed = tf.stack([tf.constant(order.seed, tf.int64), position // size])
                key = tf.random.stateless_uniform([2], seed, minval=None, maxval=None, dtype=tf.int32)
                last = tf.constant(size - 1, tf.int64)
                index = tf.random.experimental.index_shuffle(index, seed=key, max_index=last)
            return position, index, index

        return order.positions().map(with_index)

    return Source(size, tuple(class_names), stream, load, describe)


# ------------------------------------------------------------------------------------------- digits, synthetic


def _encoded(images, labels, class_names, name):
    """Make a source of images held in memory as encoded bytes."""
    images, labels = tf.constant(images), tf.constant(labels, tf.int32)
    return _indexed(
        len(labels),
        class_names,
        load=lambda index: (tf.gather(images, index), tf.gather(labels, index)),
        describe=lambda index: f"{name} {index}",
    )


def _digits(split):
    """1,797 handwritten digits, 8x8 pixels, shipped with scikit-learn: 1,437 to train on, 360 to test, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _check_split(split, ["train", "test"], "data.source=digits")
    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=360, random_state=0, stratify=labels)
    chosen = train if split == "train" else test
    pixels = np.round(images[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    encoded = [tf.io.encode_png(image).numpy() for image in pixels]
    return _encoded(encoded, labels[chosen], [str(digit) for digit in range(10)], f"digit {split}")


def _synthetic(data, split):
    """Noise of 64x64 pixels around a colour that tells the class: learnable, made in a moment, JPEG like photos."""
    _check_split(split, ["train", "val"], "data.source=synthetic")
    rng = np.random.default_rng(0 if split == "train" else 1)
    classes, count = data.synthetic_classes, data.synthetic_examples
    labels = np.arange(count) % classes
    colours = np.random.default_rng(2).uniform(64, 192, (classes, 1, 1, 3))
    noise = rng.normal(0, 32, (count, 64, 64, 3))
    images = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)
    encoded = [tf.io.encode_jpeg(image).numpy() for image in images]
    return _encoded(encoded, labels, [f"class{i}" for i in range(classes)], f"synthetic {split}")


# ---------------------------------------------------------------------------------------------------- folder


def _listdir(path):
    """Return (sub-folders, files) of a folder, local or gs://, sorted, hidden names left out."""
    names = sorted(n.rstrip("/") for n in tf.io.gfile.listdir(path) if not n.startswith("."))
    folders = [n for n in names if tf.io.gfile.isdir(os.path.join(path, n))]
    return folders, [n for n in names if n not in set(folders)]


def _class_images(folder, class_names):
    """Return the image paths of every class folder, {class name: [path, ...]}."""
    found = {}
    for name in class_names:
        files = []
        for root, _, names in tf.io.gfile.walk(os.path.join(folder, name)):
            paths = [os.path.join(root, n) for n in names if n.lower().endswith(IMAGE_SUFFIXES)]
            files += [path for path in paths if "/." not in path.removeprefix(folder)]  # hidden, as in `_listdir`
        if not files:
            raise UserError(
                f"class folder {os.path.join(folder, name)!r} holds no image; "
                f"looked for files that end in {', '.join(IMAGE_SUFFIXES)}"
            )
        found[name] = sorted(files)
    return found


def _hold_out(paths, fraction, training):
    """Split a class's files: every example keeps its side, for the choice depends on the sorted names alone."""
    held = max(1, round(len(paths) * fraction))
    if held >= len(paths):
        raise UserError(
            f"data.val_fraction={fraction} leaves no training image in {os.path.dirname(paths[0])!r}, "
            f"which holds {len(paths)}"
        )
    shuffled = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    return sorted(shuffled[held:] if training else shuffled[:held])


def _folder(data, split, training):
    """Class per sub-folder: DIR/<split>/<class>/..., or DIR/<class>/... with `data.val_fraction`."""
    root = data.dir
    if not tf.io.gfile.isdir(root):
        raise UserError(f"data.dir={root!r} is not a folder")
    present, _ = _listdir(root)
    if data.val_fraction is None:
        if split not in present:
            raise UserError(
                f"{root!r} has no sub-folder {split!r}; it has {', '.join(present[:10]) or 'no sub-folder'}. Expected "
                f"{split}/<class>/images; for <class>/images alone pass --set data.val_fraction=0.2"
            )
        root = os.path.join(root, split)
        present, _ = _listdir(root)
    if not present:
        raise UserError(f"{root!r} holds no class folder; expected <class>/images in it")
    classes, train_root = present, os.path.join(data.dir, data.train_split)
    if data.val_fraction is None and split != data.train_split and tf.io.gfile.isdir(train_root):
        classes, _ = _listdir(train_root)  # the training folder says what the labels are
        unknown = sorted(set(present) - set(classes))
        if unknown:
            raise UserError(f"{root!r} has classes that {data.train_split!r} lacks: {', '.join(unknown[:10])}")
    images = _class_images(root, present)
    if data.val_fraction is not None:
        images = {name: _hold_out(paths, data.val_fraction, training) for name, paths in images.items()}
    label = {name: i for i, name in enumerate(classes)}
    paths = [path for files in images.values() for path in files]
    labels = tf.constant([label[name] for name, files in images.items() for _ in files], tf.int32)
    path_tensor = tf.constant(paths)
    return _indexed(
        len(paths),
        classes,
        load=lambda index: (tf.io.read_file(tf.gather(path_tensor, index)), tf.gather(labels, index)),
        describe=lambda index: paths[index],
    )


# ------------------------------------------------------------------------------------------------------ TFDS


def _prepare(builder, what):
    """Download and prepare a data set that is not there yet."""
    import requests

    try:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            # Left to itself TFDS tries for minutes to reach a server that cannot be reached; one try tells.
            for url in [url for url in builder.url_infos or () if url.startswith("http")][:1]:
                requests.get(url, stream=True, timeout=30).close()
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"{what} is not prepared under {builder.data_dir} and could not be downloaded: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from None


def _tfds(name, data, split):
    """Any image-classification set of TensorFlow Datasets, read as encoded bytes."""
    import tensorflow_datasets as tfds

    what = f"data.source=tfds:{name}"
    try:
        builder = tfds.builder(name, data_dir=data.dir)
    except (AssertionError, ValueError) as error:
        base = name.split("/")[0].split(":")[0]
        known = tfds.list_builders(with_community_datasets=False)
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{what}: {first.rstrip('.')}." + nearest(base, known)) from None
    if not builder.info.splits:
        _prepare(builder, what)
    info = builder.info
    _check_split(split.split("[")[0], list(info.splits), what)
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(f"{what} is stored as {info.file_format.value}, only tfrecord can be read")
    features = dict(info.features)
    wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(key), kind) for key, kind in wanted.items()):
        has = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise UserError(
            f"{what} is not an image-classification set: needs the features image (Image) and label (ClassLabel), "
            f"has {has}"
        )
    try:
        shards = [(i.filename, i.skip, i.take, i.examples_in_shard) for i in info.splits[split].file_instructions]
    except ValueError as error:
        raise UserError(f"{what}: {str(error).splitlines()[0]}") from None
    if not shards:
        raise UserError(f"{what}: split {split!r} holds no example")
    decoders = {"image": tfds.decode.SkipDecoding()}

    def load(record):
        example = info.features.deserialize_example(record, decoders=decoders)
        return example["image"], tf.cast(example["label"], tf.int32)

    return _records(shards, features["label"].names, load, data.shuffle_buffer)


def _records(shards, class_names, load, shuffle_buffer):
    """Make a source of TFRecord files, given (path, records to skip, records to take or -1, records in it) each.

    Training shuffles files and records anew every epoch, from seed and epoch alone. With several hosts each reads its
    own files in training; in evaluation each reads all and decodes its share.
    """
    paths, skips, takes, lengths = (list(column) for column in zip(*shards, strict=True))
    takes = [length - skip if take == -1 else take for take, skip, length in zip(takes, skips, lengths, strict=True)]

    def read(shard):
        records = tf.data.TFRecordDataset(tf.gather(paths, shard)).enumerate()
        records = records.skip(tf.gather(tf.constant(skips, tf.int64), shard))
        records = records.take(tf.gather(tf.constant(takes, tf.int64), shard))
        return records.map(lambda ordinal, record: (shard * 2**32 + ordinal, record))

    def epoch(order, shards, number):
        shards = tf.constant(shards, tf.int64)
        if order.shuffle:
            shards = tf.random.experimental.stateless_shuffle(shards, seed=tf.stack([order.seed, number]))
        files = tf.data.Dataset.from_tensor_slices(shards)
        records = files.interleave(read, cycle_length=16, block_length=16, num_parallel_calls=tf.data.AUTOTUNE)
        if order.shuffle:
            # Shuffle mixes in the global seed. Here, where a function is traced, that is set for this function alone.
            tf.random.set_seed(order.seed % (2**31 - 2) + 1)  # zero fails: it is compared with, in a graph
            records = records.shuffle(shuffle_buffer, seed=number + 1)
        return records

    def stream(order):
        share = order.batch // order.hosts
        if not order.shuffle:
            records = epoch(order, list(range(len(paths))), 0)
            last = records.take(1).repeat()  # stands in for the positions past the end, which are masked
            records = records.concatenate(last).enumerate().take((order.first_step + order.steps) * order.batch)
            records = records.filter(lambda position, _: position % order.batch // share == order.host)
            return records.skip(order.first_step * share).map(lambda position, record: (position, *record))
        if len(paths) < order.hosts:
            raise UserError(f"{len(paths)} record files cannot be divided among {order.hosts} hosts")
        mine = list(range(order.host, len(paths), order.hosts))
        size = sum(takes[i] for i in mine)
        first_epoch, skip = divmod(order.first_step * share, size)
        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        records = epochs.flat_map(functools.partial(epoch, order, mine)).skip(skip)
        return tf.data.Dataset.zip(order.positions(), records).map(lambda position, record: (position, *record))

    return Source(
        sum(takes),
        tuple(class_names),
        stream,
        load,
        describe=lambda id_: f"{paths[id_ >> 32]} record {id_ & 0xFFFFFFFF}",
    )

"""Images in TFRecord files: any set of TensorFlow Datasets, and the layout of the official EfficientNet tools."""

import functools
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.data.source import Source, check_split
from efficientnet_tf.runtime.files import read_text


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


def open_tfds(name, data, split):
    """Any image-classification set of TensorFlow Datasets, read as encoded bytes."""
    import tensorflow_datasets as tfds

    what = f"data.source=tfds:{name}"
    try:
        builder = tfds.builder(name, data_dir=data.dir)
    except (AssertionError, ValueError) as error:
        base = name.split("/")[0].split(":")[0]
        known = tfds.list_builders(with_community_datasets=False)
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{what}: {first.rstrip('.')}." + suggest(base, known)) from None
    if not builder.info.splits:
        _prepare(builder, what)
    info = builder.info
    for part in split.split("+"):
        check_split(part.split("[")[0], list(info.splits), what)
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

    def file_name(record):
        return info.features.deserialize_example(record, decoders=decoders)["file_name"]

    named = isinstance(features.get("file_name"), tfds.features.Text)
    return _records(shards, features["label"].names, load, data.shuffle_buffer, file_name if named else None)


def open_records(data, split):
    """Open DIR/<split>-00000-of-00128 ..., in the layout of the official tools: labels count from 1.

    Class names come from DIR/classes.txt; without it `data.classes` says how many there are.
    """
    paths = _record_files(data.dir, split)
    names_file = os.path.join(data.dir, "classes.txt")
    if tf.io.gfile.exists(names_file):
        class_names = read_text(names_file).removesuffix("\n").split("\n")
        if data.classes not in (None, len(class_names)):
            raise UserError(f"{names_file} names {len(class_names)} classes, but data.classes={data.classes}")
    elif data.classes:
        class_names = [str(number) for number in range(data.classes)]
    else:
        raise UserError(f"{data.dir!r} has no classes.txt: say how many classes there are, --set data.classes=1000")
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }

    def load(record):
        example = tf.io.parse_single_example(record, features)
        label = example["image/class/label"]
        in_range = tf.debugging.Assert((label >= 1) & (label <= len(class_names)), [label])
        with tf.control_dependencies([in_range]):
            return example["image/encoded"], tf.cast(label, tf.int32) - 1

    def file_name(record):
        feature = {"image/filename": tf.io.FixedLenFeature([], tf.string, "")}
        return tf.io.parse_single_example(record, feature)["image/filename"]

    lengths = _count_records(paths, os.path.join(data.dir, f"{split}.json"))
    if not sum(lengths):
        raise UserError(f"data.dir={data.dir!r}: the files of {split!r} hold no record")
    _check_first(paths[int(np.flatnonzero(lengths)[0])], features, len(class_names))
    shards = [(path, 0, length, length) for path, length in zip(paths, lengths, strict=True)]
    return _records(shards, class_names, load, data.shuffle_buffer, file_name)


def _record_files(folder, split):
    """Return the paths of a split's files, all that their names promise."""
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    of_split = re.escape(split) + r"-\d{5}-of-\d{5,}"
    found = {name: name.rpartition("-")[2] for name in names if re.fullmatch(of_split, name)}
    if not found:
        others = sorted({match[1] for name in names if (match := re.fullmatch(r"(.+)-\d{5}-of-\d{5,}", name))})
        hint = f" It has files of {', '.join(map(repr, others))}." + suggest(split, others) if others else ""
        raise UserError(
            f"data.dir={folder!r} has no file {split}-00000-of-..., which data.train_split and data.eval_split name."
            + hint
        )
    counts = sorted(set(found.values()))
    if len(counts) > 1:
        raise UserError(f"data.dir={folder!r} holds files of {split!r} of several sets: of {', '.join(counts)}")
    expected = [f"{split}-{index:05d}-of-{counts[0]}" for index in range(int(counts[0]))]
    missing = [name for name in expected if name not in found]
    if missing or len(found) > len(expected):
        what = f"lacks {', '.join(missing[:10])}" if missing else f"has more than {len(expected)} files of {split!r}"
        raise UserError(f"data.dir={folder!r} {what}: {len(found)} files, where their names promise {len(expected)}")
    return [os.path.join(folder, name) for name in expected]


def _check_first(path, features, classes):
    """Refuse records of another layout, or with labels counted otherwise, by a look at the first few."""
    try:
        for record in tf.data.TFRecordDataset(path).take(64):
            label = int(tf.io.parse_single_example(record, features)["image/class/label"])
            if not 1 <= label <= classes:
                raise UserError(f"{path}: label {label} in a record, where {classes} classes are counted from 1")
    except tf.errors.OpError as error:
        raise UserError(f"{path}: expected records with image/encoded and image/class/label: {error.message}") from None


def _count_records(paths, summary):
    """Return the number of records of each file: from the summary that `prepare` writes, else by a look at each."""

    def size(path):
        return tf.io.gfile.stat(path).length

    def count(path):
        records = 0
        with tf.io.gfile.GFile(path, "rb") as file:
            size = file.size()
            at = 0
            while at < size:
                file.seek(at)
                # A record is its length (8 bytes), a checksum (4), the data, and another checksum (4).
                at += int.from_bytes(file.read(8), "little") + 16
                records += 1
        if at != size:
            raise UserError(f"{path}: the last record is cut short")
        return records

    with ThreadPoolExecutor(16) as pool:
        if tf.io.gfile.exists(summary):
            written = json.loads(read_text(summary))
            if written.get("bytes_per_file") == list(pool.map(size, paths)):  # else the files are others
                return written["records_per_file"]
        return list(tqdm(pool.map(count, paths), total=len(paths), desc="counting records", unit="file"))


def _records(shards, class_names, load, shuffle_buffer, file_name):
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
        first_epoch, skip = divmod(order.first_position // order.hosts + order.first_step * share, size)
        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        records = epochs.flat_map(functools.partial(epoch, order, mine)).skip(skip)
        return tf.data.Dataset.zip(order.positions(), records).map(lambda position, record: (position, *record))

    return Source(
        sum(takes),
        tuple(class_names),
        stream,
        load,
        describe=lambda id_: f"{paths[id_ >> 32]} record {id_ & 0xFFFFFFFF}",
        file_name=file_name,
    )

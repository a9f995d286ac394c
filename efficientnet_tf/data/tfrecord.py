"""Sources of TFRecord files: any image-classification dataset of TensorFlow Datasets, and the official layout."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import escape, find_reason
from efficientnet_tf.data.listing import check_split
from efficientnet_tf.data.record_files import count_records, find_record_files, read_record_classes
from efficientnet_tf.data.shard_reader import ShardReader
from efficientnet_tf.data.source import Source

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_CHECKED_RECORDS = 64
_PROBE_SECONDS = 30

# --------------------------------------------------------------------------------------------- TensorFlow Datasets


def open_tfds(name: str, data: DataConfig, split: str) -> Source:
    """Open an image-classification dataset of TensorFlow Datasets. Downloads and prepares it if necessary.

    Args:
        name: Name of the dataset, for example imagenet2012 or imagenette/320px-v2.
        data: The section `data` of the configuration.
        split: Name of the split. Slices such as train[:90%] are allowed.

    Raises:
        UserError: If there is no such dataset or split, or if it is not for image classification.
    """
    import tensorflow_datasets as tfds

    what = f"data.source=tfds:{name}"
    info: Any = _prepare_tfds(name, data, what).info
    for part in split.split("+"):
        check_split(part.split("[")[0], list(info.splits), what)
    if info.file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(f"{what} is stored as {info.file_format.value}. Only tfrecord can be read.")
    features: dict[str, Any] = dict(info.features)
    needed = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(features.get(key), kind) for key, kind in needed.items()):
        has = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise UserError(
            f"{what} is not an image-classification dataset. It needs the features image (Image) and label "
            f"(ClassLabel), but has {has}."
        )
    try:
        shards = [_Shard(i.filename, i.skip, i.take, i.examples_in_shard) for i in info.splits[split].file_instructions]
    except ValueError as error:
        raise UserError(f"{what}: {str(error).splitlines()[0]}") from None
    if not shards:
        raise UserError(f"{what}: split {split!r} is empty.")
    decoders = {"image": tfds.decode.SkipDecoding()}

    def load(record):
        example = info.features.deserialize_example(record, decoders=decoders)
        return example["image"], tf.cast(example["label"], tf.int32)

    def file_name(record):
        return info.features.deserialize_example(record, decoders=decoders)["file_name"]

    has_file_names = isinstance(features.get("file_name"), tfds.features.Text)
    class_names = features["label"].names
    return _make_record_source(shards, class_names, load, data.shuffle_buffer, file_name if has_file_names else None)


def _prepare_tfds(name, data, what):
    """Return the builder of a dataset whose files exist."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data.dir)
    except (AssertionError, ValueError) as error:
        base = name.split("/")[0].split(":")[0]
        known = tfds.list_builders(with_community_datasets=False)
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{what}: {first.rstrip('.')}." + suggest(base, known)) from None
    if builder.info.splits:
        return builder
    try:
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            _probe_server(builder.url_infos or ())
        builder.download_and_prepare()
    except Exception as error:
        raise UserError(
            f"{what} is not prepared under {builder.data_dir} and could not be downloaded: "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from None
    return builder


def _probe_server(urls):
    """Connect to the first web address. TensorFlow Datasets would try for minutes to reach an unreachable server."""
    for url in [url for url in urls if url.startswith("http")][:1]:
        try:
            urllib.request.urlopen(url, timeout=_PROBE_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()  # The server answered.


# ------------------------------------------------------------------------------------------------ official layout


def open_records(data: DataConfig, split: str) -> Source:
    """Open record files in the layout of the official tools: DIR/<split>-00000-of-00128 ..., with labels from 1.

    The class names are read from DIR/classes.txt. If it is missing, `data.classes` is the number of classes.

    Args:
        data: The section `data` of the configuration.
        split: Name of the split.

    Raises:
        UserError: If files are missing, truncated, or have another layout.
    """
    paths = find_record_files(str(data.dir), split)
    class_names = read_record_classes(data)
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

    counts = count_records(paths, os.path.join(str(data.dir), f"{split}.json"))
    if not sum(counts):
        raise UserError(f"data.dir='{escape(str(data.dir))}': the files of {split!r} have no records.")
    _check_first_records(paths[int(np.flatnonzero(counts)[0])], features, len(class_names))
    shards = [_Shard(path, 0, count, count) for path, count in zip(paths, counts, strict=True)]
    return _make_record_source(shards, class_names, load, data.shuffle_buffer, file_name)


def _check_first_records(path, features, classes):
    """Raise UserError if the first records of a file have another layout or labels out of range."""
    try:
        for record in tf.data.TFRecordDataset(path).take(_CHECKED_RECORDS):
            label = int(tf.io.parse_single_example(record, features)["image/class/label"])
            if not 1 <= label <= classes:
                raise UserError(f"{escape(path)}: a record has label {label}. Labels must be from 1 to {classes}.")
    except tf.errors.DataLossError:
        raise UserError(f"{escape(path)}: one of the first {_CHECKED_RECORDS} records is damaged.") from None
    except UnicodeDecodeError:  # The message of TensorFlow quotes the bytes of the record.
        raise UserError(
            f"{escape(path)}: one of the first {_CHECKED_RECORDS} records is no tf.train.Example."
        ) from None
    except tf.errors.OpError as error:
        raise UserError(
            f"{escape(path)} must have records with image/encoded and image/class/label: {escape(find_reason(error))}"
        ) from None


# --------------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class _Shard:
    """The records of one file that belong to a split. `take` is -1 for all records after the skipped ones."""

    path: str
    skip: int
    take: int
    records_in_file: int

    @property
    def size(self) -> int:
        return self.records_in_file - self.skip if self.take == -1 else self.take


def _make_record_source(
    shards: Sequence[_Shard],
    class_names: Sequence[str],
    load: Callable,
    shuffle_buffer: int,
    file_name: Callable | None,
) -> Source:
    """Return a source of record files."""
    with tf.device("CPU:0"):
        paths = tf.constant([shard.path for shard in shards])
        skips, sizes = (tf.constant([getattr(shard, key) for shard in shards], tf.int64) for key in ("skip", "size"))

    def read(shard):
        records = tf.data.TFRecordDataset(tf.gather(paths, shard)).enumerate()
        return records.skip(tf.gather(skips, shard)).take(tf.gather(sizes, shard))

    too_few = "record files cannot be divided among {hosts} hosts. Write more files with `prepare --shards`."
    reader = ShardReader([shard.size for shard in shards], read, shuffle_buffer, too_few)
    return Source(
        sum(reader.sizes),
        tuple(class_names),
        reader.stream,
        load,
        describe=lambda id_: f"{shards[id_ >> 32].path} record {id_ & 0xFFFFFFFF}",
        file_name=file_name,
    )

"""Sources of TFRecord files: any image-classification dataset of TensorFlow Datasets, and the official layout."""

from __future__ import annotations

import functools
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
from efficientnet_tf.data.source import Order, Source

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


# -------------------------------------------------------------------------------------------------------- streams


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


class _RecordReader:
    """Reads the records of several files in the order of training or of evaluation.

    Training shuffles files and records again in every epoch, as seed and epoch determine. In training, each host reads
    its own files. In evaluation, each host reads all files and decodes its share.
    """

    def __init__(self, shards: Sequence[_Shard], shuffle_buffer: int) -> None:
        self.sizes = [shard.size for shard in shards]
        self._paths = [shard.path for shard in shards]
        self._skips = [shard.skip for shard in shards]
        self._shuffle_buffer = shuffle_buffer

    @tf.autograph.experimental.do_not_convert  # It would write files: see `add_up` in runtime/strategy.py.
    def stream(self, order: Order) -> tf.data.Dataset:
        """Return a dataset of (position, id, record): the `stream` of a source."""
        return self._stream_training(order) if order.shuffle else self._stream_evaluation(order)

    def _stream_evaluation(self, order):
        share = order.batch // order.hosts
        records = self._read_epoch(order, list(range(len(self._paths))), 0)
        padding = records.take(1).repeat()  # for the positions after the end, which have weight 0
        records = records.concatenate(padding).enumerate().take((order.first_step + order.steps) * order.batch)

        def is_of_host(position: Any, _: Any) -> Any:
            return position % order.batch // share == order.host

        records = records.filter(is_of_host)  # pyright: ignore[reportArgumentType]
        return records.skip(order.first_step * share).map(lambda position, record: (position, *record))

    def _stream_training(self, order):
        if len(self._paths) < order.hosts:
            raise UserError(
                f"{len(self._paths)} record files cannot be divided among {order.hosts} hosts. Write more files with "
                "`prepare --shards`."
            )
        own = list(range(order.host, len(self._paths), order.hosts))
        size = sum(self.sizes[i] for i in own)
        images_before = order.first_position // order.hosts + order.first_step * (order.batch // order.hosts)
        first_epoch, skip = divmod(images_before, size)
        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        records = epochs.flat_map(functools.partial(self._read_epoch, order, own)).skip(skip)
        return tf.data.Dataset.zip(order.positions(), records).map(lambda position, record: (position, *record))

    def _read_epoch(self, order, shards, epoch):
        """Return a dataset of (id, record) of some files, given by their indices."""
        shards = tf.constant(shards, tf.int64)
        if order.shuffle:
            seed = tf.stack([order.seed, epoch])
            shards = tf.random.experimental.stateless_shuffle(shards, seed=seed)  # pyright: ignore[reportAttributeAccessIssue]
        files = tf.data.Dataset.from_tensor_slices(shards)
        records = files.interleave(
            self._read_file, cycle_length=16, block_length=16, num_parallel_calls=tf.data.AUTOTUNE
        )
        if order.shuffle:
            # `shuffle` also uses the global seed. Inside a traced function, it is only set for this function. It must
            # not be zero, because then the graph would have to compare the other seed with zero, which fails.
            tf.random.set_seed(order.seed % (2**31 - 2) + 1)
            records = records.shuffle(self._shuffle_buffer, seed=epoch + 1)
        return records

    def _read_file(self, shard):
        """Return a dataset of (id, record) of one file. The id is file index * 2**32 + record index."""
        records = tf.data.TFRecordDataset(tf.gather(self._paths, shard)).enumerate()
        records = records.skip(tf.gather(tf.constant(self._skips, tf.int64), shard))
        records = records.take(tf.gather(tf.constant(self.sizes, tf.int64), shard))
        return records.map(lambda index, record: (shard * 2**32 + index, record))


def _make_record_source(
    shards: Sequence[_Shard],
    class_names: Sequence[str],
    load: Callable,
    shuffle_buffer: int,
    file_name: Callable | None,
) -> Source:
    """Return a source of record files."""
    reader = _RecordReader(shards, shuffle_buffer)
    return Source(
        sum(reader.sizes),
        tuple(class_names),
        reader.stream,
        load,
        describe=lambda id_: f"{shards[id_ >> 32].path} record {id_ & 0xFFFFFFFF}",
        file_name=file_name,
    )

"""Sources of images in Parquet files and in tar files of WebDataset, which are read in place."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.text import escape
from efficientnet_tf.data.labels import add_weights
from efficientnet_tf.data.parquet_files import list_parquet, read_images
from efficientnet_tf.data.shard_reader import ShardReader
from efficientnet_tf.data.source import Source, indexed_source, make_label_reader
from efficientnet_tf.data.tar_files import list_tar

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_GROUP_BYTES_AT_ONCE = 2**29  # of row groups that are in memory together

_logger = logging.getLogger(__name__)


def open_webdataset(data: DataConfig, split: str) -> Source:
    """Open a split of tar files, as `tar_files.list_tar` lists it. Its images can be read in any order.

    Raises:
        UserError: If the files are missing, damaged or malformed.
    """
    listing = list_tar(data, split)
    _log(listing.remarks)
    rows = add_weights(listing.labels, listing.weights)
    find_label = make_label_reader(rows)

    def read_bytes(index):
        # TensorFlow's FixedLengthRecordDataset could also read a part of a file, but takes three times as long.
        with open(listing.paths[listing.files[index]], "rb") as file:
            return os.pread(file.fileno(), int(listing.sizes[index]), int(listing.offsets[index]))

    def load(index):
        encoded = tf.ensure_shape(tf.numpy_function(read_bytes, [index], tf.string), [])
        return encoded, find_label(index)

    source = indexed_source(
        len(listing.names),
        listing.class_names,
        load,
        describe=lambda index: escape(f"{listing.paths[listing.files[index]]}: {listing.names[index]}"),
        labels=listing.labels,
        weights=listing.weights,
    )
    return dataclasses.replace(source, fingerprint=_digest(listing.class_names, listing.names, rows))


def open_parquet_source(data: DataConfig, split: str) -> Source:
    """Open a split of Parquet files, as `parquet_files.list_parquet` lists it. Row groups are read one after another.

    Raises:
        UserError: If the files are missing, damaged or malformed.
    """
    listing = list_parquet(data, split)
    _log(listing.remarks)
    rows = add_weights(listing.labels, listing.weights)
    groups, find_label = listing.groups, make_label_reader(rows)
    sizes = [group.rows for group in groups]
    firsts = np.cumsum([0, *sizes])
    with tf.device("CPU:0"):
        first_rows, counts = (tf.constant(values, tf.int64) for values in (firsts[:-1], sizes))

    def read_bytes(group):
        try:
            images = read_images(groups[group], listing.column)
        except Exception as error:  # pyarrow has its own types. The images then count as unreadable.
            _logger.warning("%s: a row group cannot be read: %s", escape(groups[group].path), escape(str(error)[:300]))
            images = [b""] * groups[group].rows
        return np.array(images, object)

    def read(group):
        encoded = tf.ensure_shape(tf.numpy_function(read_bytes, [group], tf.string), [None])
        numbers = tf.gather(first_rows, group) + tf.range(tf.gather(counts, group))
        return tf.data.Dataset.from_tensor_slices((encoded, numbers)).enumerate()

    def describe(id_):
        group = groups[id_ >> 32]
        before = sum(other.rows for other in groups[: id_ >> 32] if other.path == group.path)
        return f"{escape(group.path)}, row {before + (id_ & 0xFFFFFFFF)}"

    too_few = "row groups cannot be divided among {hosts} hosts. Write the files with smaller ones."
    at_once = max(1, min(16, _GROUP_BYTES_AT_ONCE // max(group.bytes for group in groups)))
    reader = ShardReader(sizes, read, data.shuffle_buffer, too_few, at_once)
    files = [f"{os.path.basename(group.path)} {group.number} {group.rows}" for group in groups]
    return Source(
        len(rows),
        tuple(listing.class_names),
        reader.stream,
        lambda payload: (payload[0], find_label(payload[1])),
        describe,
        label_shape=rows.shape[1:],
        label_dtype=tf.int32 if rows.ndim == 1 else tf.float32,
        labels=listing.labels,
        fingerprint=_digest(listing.class_names, files, rows),
    )


def _log(remarks: Iterable[str]) -> None:
    for remark in remarks:
        _logger.warning("%s", remark)


def _digest(class_names, names, labels):
    digest = hashlib.sha256("\n".join([*class_names, *names]).encode(errors="surrogateescape"))
    digest.update(labels.tobytes())
    return digest.hexdigest()

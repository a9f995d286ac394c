"""Sources of image files: a folder with one subfolder per class, or a table of paths and labels."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from typing import TYPE_CHECKING

import tensorflow as tf

from efficientnet_tf.config.text import escape
from efficientnet_tf.data.labels import add_weights
from efficientnet_tf.data.listing import list_split
from efficientnet_tf.data.scan import find_images
from efficientnet_tf.data.source import Source, indexed_source, make_label_reader

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

__all__ = ["find_images", "open_files"]

_logger = logging.getLogger(__name__)


def open_files(data: DataConfig, split: str, training: bool) -> Source:
    """Open a split of a folder or a table, as `listing.list_split` lists it, and log its remarks.

    Args:
        data: The section `data` of the configuration. Its source is "folder" or "table".
        split: Name of the split.
        training: Which part to open if `data.val_fraction` is set.

    Raises:
        UserError: If the folders or tables do not have the structure of a data set.
    """
    listing = list_split(data, split, training)
    for remark in listing.remarks:
        _logger.warning("%s", remark)
    paths = listing.paths
    folder = os.path.join(str(data.dir), "")
    names = [path.removeprefix(folder) for path in paths]  # They stay the same if the folder is moved.
    rows = add_weights(listing.labels, listing.weights)
    single = rows.ndim == 1
    text = "\n".join([*listing.class_names, *names, *(map(str, rows) if single else ())])
    digest = hashlib.sha256(text.encode(errors="surrogateescape"))
    digest.update(b"" if single else rows.tobytes())
    path_tensor = tf.constant([os.fsencode(path) for path in paths])  # A name can have bytes that are not UTF-8.
    find_label = make_label_reader(rows)
    source = indexed_source(
        len(paths),
        listing.class_names,
        load=lambda index: (tf.io.read_file(tf.gather(path_tensor, index)), find_label(index)),
        describe=lambda index: escape(paths[index]),
        file_name=lambda index: tf.gather(path_tensor, index),
        labels=listing.labels,
        weights=listing.weights,
    )
    return dataclasses.replace(source, fingerprint=digest.hexdigest(), channels=data.channels)

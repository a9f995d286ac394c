"""Copies of all encoded images of a source, in memory or on a disk, whose images can be read in any order."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.json_text import parse_json_object
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.data.source import (
    Order,
    Source,
    indexed_source,
    make_label_reader,
    map_with_fallback,
    source_from_bytes,
    to_label_array,
    without_tuning,
)
from efficientnet_tf.runtime.files import exists, read_text, write_text
from efficientnet_tf.runtime.terminal import track

_FILES_PER_FOLDER = 1000  # of a copy on disk


def _read_all(source, what):
    """Yield (id, encoded, label) of every image. An image that cannot be read is empty, which fails to decode later."""
    stream = source.stream(Order(batch=1, steps=source.size))
    fallback = b"", source.empty_label
    images = map_with_fallback(stream, lambda _position, _id, payload: source.load(payload), fallback)
    images = without_tuning(images)
    for _, id_, encoded, label, _ in track(images.as_numpy_iterator(), source.size, f"reading {what}", "images"):
        yield int(id_), encoded, label


def cache_in_memory(source: Source, what: str) -> Source:
    """Read all encoded images into memory and return an indexed source. `what` names the source in messages."""
    ids, images, labels = zip(*_read_all(source, what), strict=True)
    cached = source_from_bytes(list(images), np.stack(labels), source.class_names, what)
    return _keep_facts(dataclasses.replace(cached, describe=lambda index: source.describe(ids[index])), source)


def _keep_facts(copy, source):
    copy = dataclasses.replace(copy, channels=source.channels)
    return copy if source.labels is None else dataclasses.replace(copy, labels=source.labels)


def cache_on_disk(source: Source, what: str, folder: str) -> Source:
    """Copy all encoded images into a folder, once, and return an indexed source.

    Args:
        source: The images.
        what: Name of the source in messages.
        folder: Where the copy is or will be, local or gs://. It has one file per image.

    Raises:
        UserError: If the folder has the copy of another source, or cannot be written.
    """
    index_file = os.path.join(folder, "copy.json")  # It is written last, and marks a complete copy.
    if not exists(index_file):
        _copy_images(source, what, folder, index_file)
    copy = _read_index(index_file, source)
    same = copy["classes"] == list(source.class_names) and len(copy["ids"]) == source.size
    # The names are only looked up if the ids are valid. Copies of older versions have no fingerprint.
    same = same and copy["first_and_last"] == _first_and_last(source, copy["ids"])
    if not same or ("fingerprint" in copy and copy["fingerprint"] != source.fingerprint):
        raise UserError(f"data.cache={escape(folder)} has a copy of other images than {what}. Use another folder.")
    labels = to_label_array(copy["labels"])
    find_label = make_label_reader(labels)

    def load(index):
        name = tf.strings.as_string(index, width=9, fill="0")
        subfolder = tf.strings.as_string(index // _FILES_PER_FOLDER, width=6, fill="0")
        return tf.io.read_file(tf.strings.join([folder, subfolder, name], "/")), find_label(index)

    def describe(index):
        return source.describe(copy["ids"][index])

    return _keep_facts(indexed_source(source.size, source.class_names, load, describe, labels=labels), source)


def _read_index(path, source):
    """Return the content of the index file of a copy, after checking everything that is used."""
    copy = parse_json_object(read_text(path), path)
    ids: Any = copy.get("ids")
    labels: Any = copy.get("labels")
    if isinstance(ids, list) and isinstance(labels, list) and ids and len(ids) == len(labels):
        are_valid = all(map(_is_count, ids)) and all(_is_label(label, source) for label in labels)
        if are_valid and {"classes", "first_and_last"} <= set(copy):
            return copy
    raise UserError(f"{escape(path)} is damaged, or belongs to other images. Delete this folder, or use another.")


def _is_count(value, end=2**63):
    return type(value) is int and 0 <= value < end


def _is_label(value, source):
    if not source.label_shape:
        return _is_count(value, len(source.class_names))
    return (
        isinstance(value, list)
        and len(value) == source.label_shape[0]
        and all(type(number) is float and abs(number) < 1e38 for number in value)
    )


def _first_and_last(source, ids):
    try:
        return [source.describe(ids[0]), source.describe(ids[-1])]
    except IndexError:  # an index of other images
        return None


def _copy_images(source, what, folder, index_file):
    """Write one file per image, then the index file."""
    ids, labels = [], []
    try:
        for index, (id_, encoded, label) in enumerate(_read_all(source, what)):
            subfolder = os.path.join(folder, f"{index // _FILES_PER_FOLDER:06d}")
            if index % _FILES_PER_FOLDER == 0:
                tf.io.gfile.makedirs(subfolder)
            with tf.io.gfile.GFile(os.path.join(subfolder, f"{index:09d}"), "wb") as file:
                file.write(encoded)
            ids.append(id_)
            labels.append(label.tolist())
        copy = {"first_and_last": _first_and_last(source, ids), "classes": source.class_names}
        copy |= {"fingerprint": source.fingerprint, "ids": ids, "labels": labels}
        write_text(index_file, json.dumps(copy))
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"data.cache={escape(folder)} cannot be written: {escape(shorten(str(error), 300))}") from None

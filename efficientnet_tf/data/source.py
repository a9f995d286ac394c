"""Sources of labeled images: encoded bytes and a label for every position of a run.

A *position* counts the images that a run has used, so position p is in epoch p // size. An indexed source can return
the image of any position directly, because seed and position alone determine it. A resumed run therefore continues
without reading what it has already seen. A source of record files must read from the start of its epoch.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.json_text import parse_json_object
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.data.labels import add_weights
from efficientnet_tf.data.shuffle import shuffle_index
from efficientnet_tf.runtime.files import exists, read_text, write_text
from efficientnet_tf.runtime.terminal import track

GROUP_SIZE = 64  # images that are converted together, to share the cost of one inner dataset
_FILES_PER_FOLDER = 1000  # of a copy on disk


@dataclass(frozen=True)
class Order:
    """The positions of a run that this host reads, and whether the images are shuffled.

    A step uses `batch` images over all hosts. This host reads its share of each step, the images from
    host * batch / hosts to (host + 1) * batch / hosts.
    """

    batch: int
    shuffle: bool = False
    seed: int = 0
    first_step: int = 0
    steps: int | None = None
    """Number of steps, or None for infinitely many."""
    host: int = 0
    hosts: int = 1
    first_position: int = 0
    """Number of images that were used before step 0."""

    @tf.autograph.experimental.do_not_convert  # It would write files: see `add_up` in runtime/strategy.py.
    def positions(self) -> tf.data.Dataset:
        """Return a dataset of positions, int64. It starts with a range of steps, which the data service distributes."""
        share = self.batch // self.hosts
        end = np.iinfo(np.int64).max if self.steps is None else self.first_step + self.steps

        def positions_of_step(step):
            first = self.first_position + step * self.batch + self.host * share
            return tf.data.Dataset.range(first, first + share)

        return tf.data.Dataset.range(self.first_step, end).flat_map(positions_of_step)


@dataclass(frozen=True)
class Source:
    """The labeled images of one split.

    Attributes:
        size: Number of images.
        class_names: Names of the classes 0, 1, ..., or of the labels or numbers of an image.
        stream: Function of an Order that returns a dataset of (position, id, payload): int64, int64, and the argument
            of `load` and `file_name`.
        load: Function of a payload that returns the encoded image, string scalar, and its label, of `label_shape` and
            `label_dtype`. Runs inside tf.data.
        describe: Function of an id, int, that returns the name of an image for messages.
        indexed: Whether ids and payloads are indices in [0, size).
        file_name: Function of a payload that returns the file name of an image, string scalar, inside tf.data. None if
            the images have no file names.
        label_shape: () for one class. In evaluation also (1 + K,): one class, and up to K classes that count as
            correct, padded with -1. (K,) for K labels, each 0 or 1, or K numbers. With `data.weight_column`, the weight
            follows the class, labels or numbers.
        label_dtype: int32 for classes, float32 for labels, numbers, and classes with a weight.
        labels: Labels of all images, where they are known without reading them: int32 [N], uint8 [N, K] for labels, or
            float32 [N, K] for numbers. Weights are left out.
        fingerprint: Digest of the names and labels of all images, where it is known without reading them.
    """

    size: int
    class_names: tuple[str, ...]
    stream: Callable[[Order], tf.data.Dataset]
    load: Callable
    describe: Callable[[int], str]
    indexed: bool = False
    file_name: Callable | None = None
    label_shape: tuple[int, ...] = ()
    label_dtype: tf.DType = tf.int32
    labels: np.ndarray | None = None
    fingerprint: str | None = None

    @property
    def empty_label(self) -> tf.Tensor:
        """A label that stands in for that of an image that cannot be read."""
        return tf.zeros(self.label_shape, self.label_dtype)


def indexed_source(
    size: int,
    class_names: Sequence[str],
    load: Callable,
    describe: Callable[[int], str],
    file_name: Callable | None = None,
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Source:
    """Return a source of images that can be read in any order. Every epoch is a new permutation, computed by index.

    Args:
        size: Number of images.
        class_names: Names of the labels 0, 1, ...
        load: Function of an index, int64 scalar, that returns the encoded image and its label.
        describe: Function of an index, int, that returns the name of an image for messages.
        file_name: Function of an index, int64 scalar, that returns the file name of an image, or None.
        labels: Labels of all images, as `Source` has them, which `load` reads with `make_label_reader`. None means
            classes that are not known yet.
        weights: Weight of each image, float32 [N], which `load` returns after its labels, or None.
    """

    @tf.autograph.experimental.do_not_convert
    def stream(order):
        def add_index(position):
            index = position % size
            if order.shuffle:
                index = shuffle_index(index, size, [order.seed, position // size])
            return position, index, index

        return order.positions().map(add_index)

    source = Source(size, tuple(class_names), stream, load, describe, indexed=True, file_name=file_name, labels=labels)
    rows = None if labels is None else add_weights(labels, weights)
    if rows is None or rows.ndim == 1:
        return source
    return dataclasses.replace(source, label_shape=rows.shape[1:], label_dtype=tf.float32)


def make_label_reader(labels: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function of an index, int64 scalar, that returns the label of an image inside tf.data.

    Args:
        labels: Labels of all images, as `Source` has them, or what `add_weights` returns.
    """
    with tf.device("CPU:0"):
        tensor = tf.constant(labels)
    dtype = tf.int32 if labels.ndim == 1 else tf.float32
    return lambda index: tf.cast(tf.gather(tensor, index), dtype)


def source_from_bytes(
    images: Sequence[bytes], labels: Sequence[int] | np.ndarray, class_names: Sequence[str], name: str
) -> Source:
    """Return a source of encoded images in memory. `name` is the start of the names of the images in messages."""
    image_tensor, labels = tf.constant(images), _to_array(labels)
    find_label = make_label_reader(labels)
    return indexed_source(
        len(labels),
        class_names,
        load=lambda index: (tf.gather(image_tensor, index), find_label(index)),
        describe=lambda index: f"{name} {index}",
        labels=labels,
    )


def source_from_pixels(
    pixels: np.ndarray, labels: Sequence[int] | np.ndarray, class_names: Sequence[str], name: str
) -> Source:
    """Return a source of images in memory that are not encoded.

    An image is encoded when it is loaded, as PNG without compression, which is faster than to compress it. All images
    are therefore decoded in the same way, wherever they come from.

    Args:
        pixels: uint8 [N, H, W, C] with 1 or 3 channels.
        labels: Label of each image, as `Source` has them.
        class_names: Names of the classes 0, 1, ..., or of the labels or numbers.
        name: Start of the names of the images in messages.
    """
    with tf.device("CPU:0"):
        pixel_tensor, labels = tf.constant(pixels), _to_array(labels)
    find_label = make_label_reader(labels)

    def load(index):
        return tf.io.encode_png(tf.gather(pixel_tensor, index), compression=0), find_label(index)

    return indexed_source(len(labels), class_names, load, describe=lambda index: f"{name} {index}", labels=labels)


def _to_array(labels):
    """Return labels as an array. One label for each image is a class."""
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return labels.astype(np.int32)
    return labels if labels.dtype == np.uint8 else labels.astype(np.float32)


@tf.autograph.experimental.do_not_convert
def map_with_fallback(stream: tf.data.Dataset, convert: Callable, fallback: tuple) -> tf.data.Dataset:
    """Convert the images of a stream, and replace those that fail by a fallback. The order and the count stay the same.

    tf.data can only drop an element that fails. Images are therefore converted in groups. Each group is a separate
    dataset that ends with the fallback, and every image that was dropped from its group takes that last element.

    Args:
        stream: Dataset of (position, id, payload), from the `stream` of a source.
        convert: Function of (position, id, payload) that returns a tuple of tensors with fixed shapes.
        fallback: Tuple of tensors with the shapes and types of those tensors.

    Returns:
        A dataset of (position, id, *converted, ok). `ok` is False where the fallback was used.
    """

    def convert_group(positions, ids, payloads):
        count = tf.size(positions)
        group = tf.data.Dataset.from_tensor_slices((tf.range(count), positions, ids, payloads))
        good = group.map(lambda row, *element: (row, *convert(*element))).ignore_errors()
        last = tf.data.Dataset.from_tensors((count, *fallback))
        rows, *converted = good.concatenate(last).batch(GROUP_SIZE + 1).get_single_element()
        found = tf.size(rows) - 1
        places = tf.tensor_scatter_nd_update(tf.fill([count], found), rows[:-1, None], tf.range(found))
        return positions, ids, *(tf.gather(values, places) for values in converted), places < found

    groups = stream.batch(GROUP_SIZE)
    return groups.map(convert_group, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).unbatch()


def without_tuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a dataset that is read in a deterministic order, with all cores from the start, and ends at once.

    In TensorFlow 2.21, the thread that tunes a pipeline is woken before the end of an iterator is marked, and may then
    sleep for up to a minute. It is not needed, because the pipelines have a single parallel step.
    """
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.autotune.initial_parallelism = 2**31 - 1  # limited to the number of cores
    return dataset.with_options(options)


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
    return _without_weights(dataclasses.replace(cached, describe=lambda index: source.describe(ids[index])), source)


def _without_weights(copy, source):
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
    labels = _to_array(copy["labels"])
    find_label = make_label_reader(labels)

    def load(index):
        name = tf.strings.as_string(index, width=9, fill="0")
        subfolder = tf.strings.as_string(index // _FILES_PER_FOLDER, width=6, fill="0")
        return tf.io.read_file(tf.strings.join([folder, subfolder, name], "/")), find_label(index)

    def describe(index):
        return source.describe(copy["ids"][index])

    return _without_weights(indexed_source(source.size, source.class_names, load, describe, labels=labels), source)


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
    is_row = isinstance(value, list) and len(value) == source.label_shape[0]
    return is_row and all(type(number) is float and abs(number) < 1e38 for number in value)


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

"""Sources of labeled images: encoded bytes and a label for every position of a run.

A *position* counts the images that a run has used, so position p is in epoch p // size. An indexed source can return
the image of any position directly, because seed and position alone determine it. A resumed run therefore continues
without reading what it has already seen. A source of record files must read from the start of its epoch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from efficientnet_tf.data.labels import add_weights
from efficientnet_tf.data.shuffle import shuffle_index

GROUP_SIZE = 64  # images that are converted together, to share the cost of one inner dataset


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
        channels: Number of channels to which images are decoded, for messages.
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
    channels: int = 3
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
    image_tensor, labels = tf.constant(images), to_label_array(labels)
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
        pixel_tensor, labels = tf.constant(pixels), to_label_array(labels)
    find_label = make_label_reader(labels)

    def load(index):
        return tf.io.encode_png(tf.gather(pixel_tensor, index), compression=0), find_label(index)

    return indexed_source(len(labels), class_names, load, describe=lambda index: f"{name} {index}", labels=labels)


def to_label_array(labels: Sequence[int] | np.ndarray) -> np.ndarray:
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

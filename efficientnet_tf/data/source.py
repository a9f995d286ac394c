"""What a source of examples is: encoded image bytes and a label for every position of a run.

A *position* counts the images that a run has used: position p lies in epoch p // size. A source that can be indexed
answers for any position at once (seed and position alone decide the image), so that a resumed run finds its place
without reading what it has seen; a source of records reads on from the start of its epoch.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.runtime.files import read_text, write_text


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
    first_position: int = 0  # images used before step 0

    def positions(self):
        """Return a tf.data.Dataset of int64 positions. It counts steps first: the data service deals out these."""
        share = self.batch // self.hosts
        end = np.iinfo(np.int64).max if self.steps is None else self.first_step + self.steps

        def of_step(step):
            first = self.first_position + step * self.batch + self.host * share
            return tf.data.Dataset.range(first, first + share)

        return tf.data.Dataset.range(self.first_step, end).flat_map(of_step)


@dataclass(frozen=True)
class Source:
    """The examples of one split.

    Attributes:
        size: number of examples.
        class_names: name of every label, 0 ... len - 1.
        stream: from an Order to a dataset of (position, id, payload): int64, int64, and what `load` takes.
        load: from a payload to (encoded image, string scalar; label, int32 of `label_shape`). Runs inside tf.data.
        describe: from an id to the example's name, for messages.
        indexed: whether the id is an index in [0, size), and the payload, too.
        file_name: from a payload to the name of the example's file, string scalar, inside tf.data; None where examples
            have none.
        label_shape: () for one label; for evaluation also (1 + K,), one and up to K that count as right, then -1.
    """

    size: int
    class_names: tuple[str, ...]
    stream: Callable
    load: Callable
    describe: Callable
    indexed: bool = False
    file_name: Callable | None = None
    label_shape: tuple[int, ...] = ()


def check_split(split, allowed, what):
    """Raise UserError where a data set has no such split."""
    if split not in allowed:
        raise UserError(
            f"{what} has no split {split!r}: allowed are {', '.join(allowed)} (keys data.train_split, data.eval_split)."
            + suggest(split, allowed)
        )


def indexed_source(size, class_names, load, describe, file_name=None):
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

    return Source(size, tuple(class_names), stream, load, describe, indexed=True, file_name=file_name)


def source_from_bytes(images, labels, class_names, name):
    """Make a source of images held in memory as encoded bytes."""
    images, labels = tf.constant(images), tf.constant(labels, tf.int32)
    return indexed_source(
        len(labels),
        class_names,
        load=lambda index: (tf.gather(images, index), tf.gather(labels, index)),
        describe=lambda index: f"{name} {index}",
    )


GROUP = 64  # examples that are converted together: the price of a data set of their own is shared


def map_or_blank(examples, convert, blank):
    """Map (position, id, payload) to (position, id, *converted, ok); what fails gives `blank` and ok = False.

    A group of examples is a data set of its own, for that is where tf.data lets an error be dropped; the blank stands
    behind it, and every example that did not come through takes that. Order and count thus stay those of the positions.

    Args:
        examples: dataset, as a source's `stream` gives it.
        convert: from (position, id, payload) to a tuple of tensors, of the same shapes for every example.
        blank: tuple of tensors like those.
    """

    def convert_group(positions, ids, payloads):
        count = tf.size(positions)
        group = tf.data.Dataset.from_tensor_slices((tf.range(count), positions, ids, payloads))
        good = group.map(lambda row, *example: (row, *convert(*example))).ignore_errors()
        last = tf.data.Dataset.from_tensors((count, *blank))
        rows, *converted = good.concatenate(last).batch(GROUP + 1).get_single_element()
        found = tf.size(rows) - 1
        places = tf.tensor_scatter_nd_update(tf.fill([count], found), rows[:-1, None], tf.range(found))
        return positions, ids, *(tf.gather(values, places) for values in converted), places < found

    groups = examples.batch(GROUP)
    return groups.map(convert_group, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).unbatch()


def _read_all(source, what):
    """Yield (id, encoded, label) of every example; one that cannot be read is empty, which no decoder takes later."""
    stream = source.stream(Order(batch=1, steps=source.size))
    read = map_or_blank(stream, lambda _position, _id, payload: source.load(payload), (b"", 0))
    rows = tqdm(read.as_numpy_iterator(), total=source.size, desc=f"reading {what}", unit="image")
    for _, id_, encoded, label, _ in rows:
        yield int(id_), encoded, int(label)


def cache_in_memory(source, what):
    """Read all of a source into memory, still encoded: it can be indexed then, whatever it was."""
    ids, images, labels = zip(*_read_all(source, what), strict=True)
    cached = source_from_bytes(list(images), list(labels), source.class_names, what)
    return dataclasses.replace(cached, describe=lambda index: source.describe(ids[index]))


def cache_on_disk(source, what, folder):
    """Copy all of a source into a folder, a file an image, once: it can be indexed then, whatever it was.

    Raises:
        UserError: when the folder holds the copy of another source, or cannot be written.
    """
    marker = os.path.join(folder, "copy.json")  # written last: without it the copy is not whole

    def path(index):
        return os.path.join(folder, f"{index // 1000:06d}", f"{index:09d}")

    if not tf.io.gfile.exists(marker):
        ids, labels = [], []
        try:
            for index, (id_, encoded, label) in enumerate(_read_all(source, what)):
                if index % 1000 == 0:
                    tf.io.gfile.makedirs(os.path.dirname(path(index)))
                with tf.io.gfile.GFile(path(index), "wb") as file:
                    file.write(encoded)
                ids.append(id_)
                labels.append(label)
            names = [source.describe(ids[0]), source.describe(ids[-1])]
            copy = {"first_and_last": names, "classes": source.class_names, "ids": ids, "labels": labels}
            write_text(marker, json.dumps(copy))
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"data.cache={folder}: cannot be written: {str(error)[:300]}") from None
    copy = json.loads(read_text(marker))
    names = [source.describe(copy["ids"][0]), source.describe(copy["ids"][-1])]
    same = copy["classes"] == list(source.class_names) and copy["first_and_last"] == names
    if not same or len(copy["ids"]) != source.size:
        raise UserError(f"data.cache={folder} holds a copy of other images than {what}: take another folder")
    labels = tf.constant(copy["labels"], tf.int32)

    def load(index):
        digits = tf.strings.as_string(index, width=9, fill="0")
        thousands = tf.strings.as_string(index // 1000, width=6, fill="0")
        return tf.io.read_file(tf.strings.join([folder, thousands, digits], "/")), tf.gather(labels, index)

    return indexed_source(source.size, source.class_names, load, lambda index: source.describe(copy["ids"][index]))

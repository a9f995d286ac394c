"""Reads the images of shards, parts of a data set that are read from their start, in the order of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.source import Order

_SHARDS_AT_ONCE = 16


class ShardReader:
    """Reads the images of several shards in the order of training or of evaluation.

    Training shuffles shards and images again in every epoch, as seed and epoch determine. In training, each host reads
    its own shards. In evaluation, each host reads all shards and decodes its share.

    Args:
        sizes: Number of images of each shard.
        read: Function of the index of a shard, int64 scalar, that returns a dataset of (index, payload) of its images,
            the first an int64 below 2**32.
        shuffle_buffer: Number of images that are shuffled together.
        too_few: Sentence for the user if there are fewer shards than hosts.
        at_once: Number of shards that are read at the same time.

    Attributes:
        sizes: Number of images of each shard.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        read: Callable[[tf.Tensor], tf.data.Dataset],
        shuffle_buffer: int,
        too_few: str,
        at_once: int = _SHARDS_AT_ONCE,
    ) -> None:
        self.sizes = list(sizes)
        self._read = read
        self._shuffle_buffer, self._too_few, self._at_once = shuffle_buffer, too_few, at_once

    @tf.autograph.experimental.do_not_convert  # It would write files: see `add_up` in runtime/strategy.py.
    def stream(self, order: Order) -> tf.data.Dataset:
        """Return a dataset of (position, id, payload): the `stream` of a source.

        The id is the index of the shard * 2**32 + the index of the image.
        """
        return self._stream_training(order) if order.shuffle else self._stream_evaluation(order)

    def _stream_evaluation(self, order):
        share = order.batch // order.hosts
        images = self._read_epoch(order, list(range(len(self.sizes))), 0)
        padding = images.take(1).repeat()  # for the positions after the end, which have weight 0
        images = images.concatenate(padding).enumerate().take((order.first_step + order.steps) * order.batch)

        def is_of_host(position: Any, _: Any) -> Any:
            return position % order.batch // share == order.host

        images = images.filter(is_of_host)  # pyright: ignore[reportArgumentType]
        return images.skip(order.first_step * share).map(lambda position, image: (position, *image))

    def _stream_training(self, order):
        if len(self.sizes) < order.hosts:
            raise UserError(f"{len(self.sizes)} {self._too_few.format(hosts=order.hosts)}")
        own = list(range(order.host, len(self.sizes), order.hosts))
        size = sum(self.sizes[i] for i in own)
        images_before = order.first_position // order.hosts + order.first_step * (order.batch // order.hosts)
        first_epoch, skip = divmod(images_before, size)
        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        images = epochs.flat_map(functools.partial(self._read_epoch, order, own)).skip(skip)
        return tf.data.Dataset.zip(order.positions(), images).map(lambda position, image: (position, *image))

    def _read_epoch(self, order, shards, epoch):
        """Return a dataset of (id, payload) of some shards, given by their indices."""
        shards = tf.constant(shards, tf.int64)
        if order.shuffle:
            seed = tf.stack([order.seed, epoch])
            shards = tf.random.experimental.stateless_shuffle(shards, seed=seed)  # pyright: ignore[reportAttributeAccessIssue]
        images = tf.data.Dataset.from_tensor_slices(shards).interleave(
            self._read_shard, cycle_length=self._at_once, block_length=16, num_parallel_calls=tf.data.AUTOTUNE
        )
        if order.shuffle:
            # `shuffle` also uses the global seed. Inside a traced function, it is only set for this function. It must
            # not be zero, because then the graph would have to compare the other seed with zero, which fails.
            tf.random.set_seed(order.seed % (2**31 - 2) + 1)
            images = images.shuffle(self._shuffle_buffer, seed=epoch + 1)
        return images

    def _read_shard(self, shard):
        """Return a dataset of (id, payload) of one shard."""
        return self._read(shard).map(lambda index, payload: (shard * 2**32 + index, payload))

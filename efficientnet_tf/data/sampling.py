"""Sampling that shows every class equally often, however many images it has."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.shuffle import shuffle_index
from efficientnet_tf.data.source import Order, Source


def balance_classes(source: Source, name: str) -> Source:
    """Return a source whose shuffled order shows every class equally often.

    An epoch still has as many images as the source. They are divided among the classes that have images. So an image of
    a rare class comes several times in an epoch, differently augmented each time, and a part of the images of a
    frequent class is left out. At the end of an epoch, two images of a class differ by one at most in how often they
    have been shown so far. Which image is at a position follows from the seed alone, so a run can be resumed anywhere
    and on any number of hosts.

    Args:
        source: Images with classes, or with probabilities of classes, of which the largest counts.
        name: `data.source`, for the message.

    Raises:
        UserError: If the source cannot be read in any order, or its labels are not known.
    """
    if not source.indexed or source.labels is None:
        raise UserError(
            f"data.sampling=balanced needs images that can be read in any order and whose labels are known, which is "
            f"not so for data.source={name}. Set data.cache=memory or data.cache=DIR, which keep a copy that can, or "
            "use train.class_weights."
        )
    labels = source.labels if source.labels.ndim == 1 else source.labels.argmax(axis=1)
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    size, classes = source.size, len(present)
    with tf.device("CPU:0"):
        members = tf.constant(np.argsort(labels, kind="stable"))  # images by class
        starts = tf.constant((np.cumsum(counts) - counts)[present])
        sizes = tf.constant(counts[present])
        turns = tf.constant([len(range(i, size, classes)) for i in range(classes)], tf.int64)  # of a class in an epoch

    @tf.autograph.experimental.do_not_convert
    def stream(order: Order) -> tf.data.Dataset:
        if not order.shuffle:
            return source.stream(order)

        def choose(position):
            epoch = position // size
            place: Any = shuffle_index(position % size, size, [order.seed, epoch])
            number = place % classes
            turn = epoch * tf.gather(turns, number) + place // classes
            count: Any = tf.gather(sizes, number)
            round_: Any = turn // count  # how often all images of the class were shown before
            member = shuffle_index(turn % count, count, [order.seed + 1 + number, round_])
            index = tf.gather(members, tf.gather(starts, number) + member)
            # The seed of the augmentation follows from the round, so no two copies of an image are alike.
            return round_ * size + position % size, index, index

        return order.positions().map(choose)

    return dataclasses.replace(source, stream=stream)

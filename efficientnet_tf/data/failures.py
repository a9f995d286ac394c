"""The images that cannot be read or decoded: which, how many, and why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.data.image_formats import read_file
from efficientnet_tf.data.pillow_decoder import explain_failure
from efficientnet_tf.runtime.files import is_remote

if TYPE_CHECKING:
    from efficientnet_tf.data.source import Source

_MOST_NAMED = 10


def shorten_error(error: tf.errors.OpError) -> str:
    """Return the reason from a TensorFlow error message, without its locations in the code and the graph."""
    lines = error.message.partition("\n\t [[")[0].splitlines()
    return lines[-1] if lines else type(error).__name__


class Failures:
    """Collects the images that cannot be read or decoded. It is filled inside tf.data and queried from Python."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._ids = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)

    def record(self, ids: tf.Tensor) -> None:
        """Add ids, int64 [N]. Runs inside tf.data."""
        self._ids.insert(ids, ids)

    def clear(self) -> None:
        """Forget all images."""
        self._ids.remove(self._ids.export()[0])

    def names(self) -> list[str]:
        """Return the sorted names of the failed images."""
        return sorted(self._by_name())

    def describe(self) -> str:
        """Return the names and the causes of up to ten failed images, in one line for people."""
        by_name = self._by_name()
        named = [
            f"{escape(name)}: {cause}" if (cause := _find_cause(self.source, by_name[name], name)) else escape(name)
            for name in sorted(by_name)[:_MOST_NAMED]
        ]
        more = [f"and {len(by_name) - _MOST_NAMED} more"] if len(by_name) > _MOST_NAMED else []
        return "; ".join([*named, *more])

    def check(self, max_fraction: float) -> None:
        """Raise UserError if more than `max_fraction` of the images of the source have failed."""
        self.check_count(int(self._ids.size()), max_fraction)

    def check_count(self, count: int, max_fraction: float) -> None:
        """Raise UserError if `count`, the number of images that have failed on all hosts, is more than allowed."""
        size = self.source.size
        if count > max_fraction * size:
            raise UserError(
                f"{count} of {size} images cannot be read or decoded, more than data.max_bad_fraction={max_fraction:g}"
                f" allows: {self.describe()}."
            )

    def _by_name(self):
        return {self.source.describe(int(i)): int(i) for i in self._ids.export()[0].numpy()}


def _find_cause(source, id_, name):
    """Read an image again, and return why it cannot be decoded, or None if the source reads in its own order only."""
    if os.path.lexists(name) or is_remote(name):
        encoded, error = read_file(name)
        return error or explain_failure(encoded, source.channels)
    if not source.indexed:
        return None
    try:
        encoded, _ = source.load(tf.constant(id_, tf.int64))
    except tf.errors.NotFoundError:
        return "no such file"
    except tf.errors.OpError as error:
        return shorten_error(error)
    return explain_failure(encoded.numpy(), source.channels)

"""Makes the examples of record files, in the layout of the official EfficientNet tools."""

from __future__ import annotations

import os

import tensorflow as tf

from efficientnet_tf.config.text import escape
from efficientnet_tf.data.decode import decode_window, whole_window
from efficientnet_tf.data.failures import shorten_error
from efficientnet_tf.data.image_formats import find_kind, read_size
from efficientnet_tf.data.pillow_decoder import explain_failure
from efficientnet_tf.data.source import Source


def explain_reading(source: Source, payload: tf.Tensor, error: tf.errors.OpError) -> str:
    """Return why `read_example` failed, as the end of a sentence."""
    if isinstance(error, tf.errors.NotFoundError):
        return "no such file"
    try:
        encoded = source.load(payload)[0].numpy()
    except tf.errors.OpError:
        return escape(shorten_error(error))
    return explain_failure(encoded)


def read_example(name: str, source: Source, payload: tf.Tensor) -> tuple[bytes, int]:
    """Return the serialized example of an image of a source, and its label. `name` names the image.

    Raises:
        tf.errors.OpError: If the image cannot be read or decoded.
    """
    encoded, label = (tensor.numpy() for tensor in source.load(payload))
    file_name = source.file_name(payload).numpy().decode(errors="surrogateescape") if source.file_name else name
    label = int(label)
    return make_example(encoded, label, source.class_names[label], os.path.basename(file_name)), label


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _decode_shape(encoded):
    """Decode an image as in training, and return its shape, int32 [3]."""
    return tf.shape(decode_window(encoded, 3, whole_window))


def make_example(encoded: bytes, label: int, class_name: str, name: str) -> bytes:
    """Return an example in the official layout, serialized.

    Args:
        encoded: Bytes of an image file. It is decoded here, to make sure that this is possible.
        label: Label >= 0. It is written as label + 1, as the official tools count.
        class_name: Name of the class.
        name: Name of the file.

    Raises:
        tf.errors.OpError: If the image cannot be decoded.
    """
    height, width, channels = _decode_shape(tf.constant(encoded)).numpy()
    width, height = read_size(encoded) or (width, height)  # as stored, as the official tools do

    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode(errors="surrogateescape")]))

    def number(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/format": text((find_kind(encoded) or "").upper()),
        "image/filename": text(name),
        "image/class/label": number(label + 1),
        "image/class/text": text(class_name),
        "image/height": number(height),
        "image/width": number(width),
        "image/channels": number(channels),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)

"""Builds the model that a config describes. It needs Keras, but no TensorFlow."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.data_format import channels_last_scope
from efficientnet_tf.runtime.strategy import dtype_policy


def build_from_config(config: Config, classes: int) -> keras.Model:
    """Build the model that a config describes, with random weights and `classes` logits.

    It takes images as the input pipeline reads them, with channels last, whatever Keras is set to.
    """
    with channels_last_scope():
        return build_model(config.model, classes, (config.image_size, config.image_size, config.data.channels))


@contextlib.contextmanager
def precision_scope(config: Config, strategy: Any) -> Iterator[None]:
    """Build models with the precision that a config asks for, within the block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy(config.train.precision, strategy))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

"""Builds the model that a config describes. It needs Keras, but no TensorFlow."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.data_format import channels_last_scope
from efficientnet_tf.runtime.strategy import dtype_policy

TARGETS = "targets"  # name of the layer that computes numbers


def build_from_config(config: Config, outputs: int) -> keras.Model:
    """Build the model that a config describes, with random weights.

    It takes images as the input pipeline reads them, with channels last, whatever Keras is set to. It returns a logit
    for each class or label. For regression it returns the numbers themselves: the last layer computes them from their
    distance to the mean of the training images, in units of the standard deviation.

    Args:
        config: The config.
        outputs: Number of classes, labels or numbers.
    """
    with channels_last_scope():
        model = build_model(config.model, outputs, config.input_shape)
        if config.data.target_std is None:
            return model
        scale: Any = list(config.data.target_std)
        offset: Any = list(config.data.target_mean or ())
        numbers = keras.layers.Rescaling(scale, offset, dtype="float32", name=TARGETS)(model.output)
        return keras.Model(model.input, numbers, name=model.name)


@contextlib.contextmanager
def precision_scope(config: Config, strategy: Any) -> Iterator[None]:
    """Build models with the precision that a config asks for, within the block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy(config.train.precision, strategy))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)

"""Reads Keras variables inside a replica of `tf.distribute`, and finds their resource handles."""

from collections.abc import Iterable

import keras
import tensorflow as tf


def read_values(variables: Iterable[keras.Variable]) -> list[tf.Tensor]:
    """Return the current value of each variable, as this replica sees it."""
    return [tf.convert_to_tensor(variable.value) for variable in variables]


def resource_handle(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    """Return the resource handle of a variable, which TensorFlow's raw operations take."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle

"""Reads Keras variables inside a replica of `tf.distribute`, finds their resource handles, and copies them.

Checkpoints are TensorFlow's, also if Keras computes with JAX. The variables are then copied to and from TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from efficientnet_tf.runtime.backend import uses_jax

if TYPE_CHECKING:
    import tensorflow as tf


def read_values(variables: Iterable[keras.Variable]) -> list[Any]:
    """Return the current value of each variable, as this replica sees it."""
    if uses_jax():
        return [variable.value for variable in variables]
    import tensorflow as tf

    return [tf.convert_to_tensor(variable.value) for variable in variables]


def resource_handle(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    """Return the resource handle of a variable, which TensorFlow's raw operations take."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def copy_values(variables: Any) -> Any:
    """Return TensorFlow variables in the host's memory with the current values of a structure of Keras variables."""
    import tensorflow as tf

    def copy(variable):
        value: Any = _to_numpy(variable) if uses_jax() else tf.identity(variable.value)
        return tf.Variable(value, trainable=False)

    with tf.device("CPU:0"):
        return tf.nest.map_structure(copy, variables)


def restorable(variables: Any) -> Any:
    """Return the TensorFlow variables that restoring a structure of Keras variables writes to.

    With JAX they are copies, and `take_restored` must be called after that.
    """
    return copy_values(variables) if uses_jax() else keras.tree.map_structure(lambda v: v.value, variables)


def take_restored(variables: Any, restored: Any) -> None:
    """Give Keras variables the values that were restored to `restorable` variables."""
    if uses_jax():
        keras.tree.map_structure(lambda variable, value: variable.assign(value.numpy()), variables, restored)


def _to_numpy(variable):
    value = np.asarray(variable.value)
    return value.astype(np.int64) if value.dtype.kind == "i" else value  # as Keras's own are with TensorFlow

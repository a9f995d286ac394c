"""Read and address variables inside a replica of `tf.distribute`."""

import keras
import tensorflow as tf


def read_values(variables):
    """Return the current value of each Keras variable, as this replica sees it."""
    return [tf.convert_to_tensor(v.value) for v in variables]


def resource_handle(variable):
    """Return the resource handle that TensorFlow's raw operations take for a Keras or TensorFlow variable."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle

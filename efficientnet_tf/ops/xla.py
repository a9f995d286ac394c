"""TODO docstring (from image_ops)."""

import functools

import tensorflow as tf


@functools.cache
def has_xla():
    """Try whether this TensorFlow compiles for the processor: a build may leave it out."""
    try:
        with tf.init_scope(), tf.device("CPU:0"):
            return bool(tf.function(lambda: tf.constant(1) > 0, jit_compile=True)())
    except tf.errors.OpError:
        return False


def compile_for_cpu(function):
    """Compile a function of tensors, where that can be done; its results are the same either way."""
    by_xla = tf.function(function, autograph=False, jit_compile=True)
    return functools.wraps(function)(lambda *tensors: (by_xla if has_xla() else function)(*tensors))

"""Compile functions of tensors for the CPU with XLA, if this build of TensorFlow can."""

import functools
from collections.abc import Callable

import tensorflow as tf


@functools.cache
def has_xla() -> bool:
    """Return whether TensorFlow can compile for the CPU. Some builds lack the compiler."""
    try:
        with tf.init_scope(), tf.device("CPU:0"):
            return bool(tf.function(lambda: tf.constant(1) > 0, autograph=False, jit_compile=True)())
    except tf.errors.OpError:
        return False


def compile_for_cpu(function: Callable) -> Callable:
    """Return a function compiled by XLA, or the function itself if XLA is missing.

    Args:
        function: Function of tensors and of constants such as texts. Its results must not depend on whether it is
            compiled.

    Returns:
        A function with the same arguments and results.
    """
    compiled = tf.function(function, autograph=False, jit_compile=True)
    return functools.wraps(function)(lambda *arguments: (compiled if has_xla() else function)(*arguments))

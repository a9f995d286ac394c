"""Chooses the library that Keras computes with, before Keras is imported."""

import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, shorten

BACKENDS = ("tensorflow", "jax")


def choose_backend(backend: str | None) -> None:
    """Let Keras compute with a library from now on. Call this before anything imports Keras.

    Args:
        backend: One of `BACKENDS`. None leaves the choice to the environment variable KERAS_BACKEND, which defaults to
            TensorFlow.

    Raises:
        UserError: If the library is unknown or not installed, or Keras already computes with another one.
    """
    chosen = backend or os.environ.get("KERAS_BACKEND") or "tensorflow"
    if chosen not in BACKENDS:
        raise UserError(
            f"Keras uses the backend '{escape(shorten(chosen))}', but this needs TensorFlow or JAX. Set the "
            "environment variable KERAS_BACKEND=tensorflow."
        )
    if chosen == "jax" and importlib.util.find_spec("jax") is None:
        raise UserError("backend=jax needs JAX, which is not installed. Run pip install 'efficientnet_tf[jax-cpu]'.")
    if "keras" in sys.modules and uses_jax() != (chosen == "jax"):
        raise UserError(f"backend={chosen} cannot be chosen any more, because Keras already uses another backend.")
    os.environ["KERAS_BACKEND"] = chosen


def uses_jax() -> bool:
    """Return whether this process computes with JAX. A strategy is then a `jax_strategy.JaxStrategy`."""
    if "keras" not in sys.modules and "KERAS_BACKEND" in os.environ:
        return os.environ["KERAS_BACKEND"] == "jax"  # An answer without importing Keras, which takes seconds.
    import keras

    return keras.backend.backend() == "jax"


def gradient(function: Callable[[Any], Any], at: Any) -> Any:
    """Return the gradient of a function of one tensor, whose result is a scalar, at some values."""
    if uses_jax():
        import jax

        return jax.grad(function)(at)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(at)  # which also records the computation if no variable is trainable
        result = function(at)
    return tape.gradient(result, at)

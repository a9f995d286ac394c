"""Models whose variables have shapes but no values, to inspect large networks without time and memory."""

import contextlib

import keras


@contextlib.contextmanager
def unallocated():
    """Build models without allocating their weights, within the block."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        keras.backend.clear_session(free_memory=False)  # drop the variables that wait for a value

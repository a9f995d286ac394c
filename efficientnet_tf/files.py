"""Small text files, local or gs://, that are always whole."""

import os

import tensorflow as tf


def write_text(path, text):
    """Write a file in one go: a reader, or a restart after a kill, sees the old text or the new, never a part."""
    temporary = f"{path}.tmp-{os.getpid()}"
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write(text)
    tf.io.gfile.rename(temporary, path, overwrite=True)


def read_text(path):
    """Read a file, local or gs://."""
    with tf.io.gfile.GFile(path) as file:
        return file.read()

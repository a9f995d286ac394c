"""Small text files, local or gs://, that are always whole."""

import os

import tensorflow as tf

from efficientnet_tf.config.errors import UserError


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


def check_output(flag, path, suffixes):
    """Refuse a file that could not be written, before the work.

    Args:
        flag: str, the flag that named it.
        path: str, local or gs://; or None, where nothing is to be written.
        suffixes: tuple of str, the endings allowed.

    Raises:
        UserError: for another ending, or a folder that is not there.
    """
    if path is None:
        return
    if not path.endswith(suffixes):
        raise UserError(f"{flag}={path}: the name must end in {' or '.join(suffixes)}")
    folder = os.path.dirname(path) or "."
    if "://" not in path and not os.path.isdir(folder):
        raise UserError(f"{flag}={path} cannot be written: {folder!r} is not a folder")

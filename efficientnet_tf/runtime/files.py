"""Reads and writes small files, local or on gs://, so that readers never see a partly written file."""

import os
from collections.abc import Sequence

from efficientnet_tf.config.errors import UserError


def write_bytes(path: str, data: bytes) -> None:
    """Write a file in one step, and create its folder if it is missing.

    Readers, other processes and a run that restarts after a kill see either the old content or the new content, never a
    part of it.

    Args:
        path: Path of the file, local or gs://.
        data: The whole content.

    Raises:
        OSError: If a local file cannot be written.
        tf.errors.OpError: If a remote file cannot be written.
    """
    temporary = f"{path}.tmp-{os.getpid()}"  # each process has its own, so that concurrent writers do not mix
    if "://" not in path:  # the common case, which must not import TensorFlow
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
        return
    import tensorflow as tf

    with tf.io.gfile.GFile(temporary, "wb") as file:
        file.write(data)
    tf.io.gfile.rename(temporary, path, overwrite=True)


def write_text(path: str, text: str) -> None:
    """Write a text file in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode())


def read_text(path: str) -> str:
    """Return the text of a file, local or gs://.

    Raises:
        tf.errors.OpError: If the file cannot be read.
    """
    import tensorflow as tf

    with tf.io.gfile.GFile(path) as file:
        return file.read()


def check_output(argument: str, path: str | None, suffixes: Sequence[str]) -> None:
    """Check before the work starts that a file can be written at its end.

    Args:
        argument: Name of the argument that holds the path, for the error message.
        path: Path of the file, local or gs://. None means that no file is written.
        suffixes: Allowed file name endings, for example [".png"].

    Raises:
        UserError: If the name has another ending, or the folder does not exist.
    """
    if path is None:
        return
    if not path.endswith(tuple(suffixes)):
        raise UserError(f"{argument}={path} has an unknown file type. Use a name that ends in {' or '.join(suffixes)}.")
    folder = os.path.dirname(path) or "."
    if "://" not in path and not os.path.isdir(folder):
        raise UserError(f"{argument}={path} cannot be written because {folder!r} is not a folder. Create it first.")

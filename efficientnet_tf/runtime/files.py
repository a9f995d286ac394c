"""Reads and writes files, local or on gs://.

Only a path on gs:// imports TensorFlow. A reader never sees a partly written file, and a file that cannot be read is a
`UserError` that names the cause.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.local_files import KINDS, check_local_file, check_size, explain_reading, read_local_bytes
from efficientnet_tf.config.paths import check_path as check_path
from efficientnet_tf.config.paths import is_hub
from efficientnet_tf.config.paths import is_remote as is_remote
from efficientnet_tf.config.text import decode_text, escape

TEXT_LIMIT_BYTES = 256 * 2**20  # of a text file, for example a table of 14 million images has about 1 GB in 4 files

# ------------------------------------------------------------------------------------------------------------ paths


def exists(path: str) -> bool:
    """Return whether there is a file or a folder at a path."""
    return _gfile().exists(path) if is_remote(path) else os.path.exists(path)


def is_folder(path: str) -> bool:
    """Return whether there is a folder at a path."""
    return _gfile().isdir(path) if is_remote(path) else os.path.isdir(path)


def list_folder(path: str) -> list[str]:
    """Return the sorted names in a folder, without a slash at their end.

    Raises:
        UserError: If the folder cannot be read.
    """
    try:
        names = _gfile().listdir(path) if is_remote(path) else os.listdir(path)
    except Exception as error:
        raise explain_reading(path, error) from None
    return sorted(name.rstrip("/") for name in names)


def check_output(argument: str, path: str | None, suffixes: Sequence[str], inputs: Iterable[str | None] = ()) -> None:
    """Check before the work starts that a file can be written at its end.

    Args:
        argument: Name of the argument that holds the path, for the error message.
        path: Path of the file, local or gs://. None means that no file is written.
        suffixes: Allowed file name endings, for example [".png"]. [""] allows every name.
        inputs: Files that are read, which must not be overwritten.

    Raises:
        UserError: If the name has another ending, the folder does not exist or cannot be written to, there is something
            other than a file at the path, or the file is an input.
    """
    if path is None:
        return
    check_path(argument, path)
    if not path.endswith(tuple(suffixes)):
        raise UserError(
            f"{argument}={escape(path)} has an unknown file type. Use a name that ends in {' or '.join(suffixes)}."
        )
    reason = None if is_remote(path) else _find_obstacle(path)
    if reason:
        raise UserError(f"{argument}={escape(path)} cannot be written because {reason}.")
    for other in inputs:
        if other is not None and _is_same(path, other):
            raise UserError(
                f"{argument}={escape(path)} is also an input, which would be overwritten. Use another name."
            )


def _find_obstacle(path):
    """Return why a local file cannot be written, or None."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"'{escape(folder)}' is not a folder. Create it first"
    if not os.access(folder, os.W_OK):
        return f"nothing can be written to '{escape(folder)}'"
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"of this error: {error.strerror}"
    if not stat.S_ISREG(mode):
        return f"it is {KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file"
    return None if os.access(path, os.W_OK) else "it is a read-only file"


def _is_same(path, other):
    if is_remote(path) or is_remote(other):
        return path == other
    return os.path.realpath(path) == os.path.realpath(other) or (
        os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)
    )


# ---------------------------------------------------------------------------------------------------------- reading


def check_file(path: str) -> None:
    """Raise UserError unless there is a regular file at a path. Opening a FIFO or a device could wait forever.

    Call this before a library gets the path of a local file. It costs one system call. gs:// has regular files only.
    """
    if not is_remote(path):
        check_local_file(path)


def check_weights_path(argument: str, path: str) -> None:
    """Raise UserError unless there is a regular file, a folder, or a checkpoint of TensorFlow at a path.

    The path of a checkpoint is the prefix of its files. gs:// is not checked, because this would import TensorFlow,
    and neither is the Hugging Face Hub.

    Args:
        argument: Name of the argument that holds the path, for the error message.
        path: The path.
    """
    check_path(argument, path, hub=True)
    if is_remote(path) or is_hub(path) or os.path.isdir(path) or os.path.exists(f"{path}.index"):
        return
    if not os.path.lexists(path):
        raise UserError(f"{argument}={escape(path)}: no such file or folder.")
    check_local_file(path)


def read_bytes(path: str, limit: int | None = None) -> bytes:
    """Return the content of a regular file, local or on gs://.

    Args:
        path: Path of the file.
        limit: Largest number of bytes that is accepted, or None.

    Raises:
        UserError: If there is no file, it is not a regular file, it is too large, or it cannot be read.
    """
    if not is_remote(path):
        return read_local_bytes(path, limit)
    try:
        with _gfile().GFile(path, "rb") as file:
            check_size(path, file.size(), limit)
            return file.read()
    except UserError:
        raise
    except Exception as error:  # TensorFlow has its own types
        raise explain_reading(path, error) from None


def read_text(path: str, limit: int | None = TEXT_LIMIT_BYTES) -> str:
    r"""Return the text of a file in UTF-8, local or on gs://, without a byte-order mark and with `\n` as line ending.

    Raises:
        UserError: As `read_bytes`, or if the file is not UTF-8.
    """
    return decode_text(read_bytes(path, limit), path)


# ---------------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def atomic_output(path: str) -> Iterator[str]:
    """Give the block a temporary name for a file, and rename the file at the end of the block.

    Readers, other processes and a run that restarts after a kill see either the old content or the new content, never a
    part of it. If the block fails, for example because the disk is full, nothing is left behind.

    Args:
        path: Path of the file, local or gs://. A local folder is created if it is missing.

    Yields:
        A path in the same folder, with the same ending, that does not exist yet.

    Raises:
        OSError: If a local file cannot be written.
        tf.errors.OpError: If a remote file cannot be written.
    """
    folder, name = os.path.split(path)
    root, ending = os.path.splitext(name)
    # Each process has its own name, so that concurrent writers do not mix.
    temporary = os.path.join(folder, f"{root}.tmp-{os.getpid()}{ending}")
    if is_remote(path):
        yield temporary
        _gfile().rename(temporary, path, overwrite=True)
        return
    if folder:
        os.makedirs(folder, exist_ok=True)
    try:
        yield temporary
        sync(temporary)  # Otherwise a power failure can leave the new name with no content.
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = path  # for the message. A failed write does not know the name of its file.
        raise


@contextlib.contextmanager
def atomic_writer(path: str) -> Iterator[Any]:
    """Open a file for writing bytes that gets its name at the end of the block, as `atomic_output` does."""
    with atomic_output(path) as temporary:
        with _gfile().GFile(temporary, "wb") if is_remote(path) else open(temporary, "wb") as file:
            yield file


def write_bytes(path: str, data: bytes) -> None:
    """Write a file in one step, as `atomic_output` does, and create its folder if it is missing."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: str, text: str) -> None:
    """Write a text file in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_output(argument: str, path: str, data: bytes | str) -> None:
    """Write the file that an argument names, as `write_bytes` does, but do not create its folder.

    Args:
        argument: Name of the argument that holds the path, for the error message.
        path: Path of the file, local or gs://.
        data: Its content.

    Raises:
        UserError: If it cannot be written, for example because the disk is full. No part of it is left behind.
    """
    check_output(argument, path, [""])
    try:
        write_bytes(path, data.encode() if isinstance(data, str) else data)
    except Exception as error:  # TensorFlow has its own types
        code = getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error)[:300]
        raise UserError(f"{argument}={escape(path)} cannot be written: {escape(reason).rstrip('.')}.") from None


def sync(path: str) -> None:
    """Wait until the content of a local file, or the names in a local folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _gfile():
    import tensorflow as tf

    return tf.io.gfile

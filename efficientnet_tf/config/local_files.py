"""Reads local files, and says why one cannot be read. `runtime.files` adds writing, and gs://."""

import errno
import os
import stat

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import decode_text, escape

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_local_file(path: str) -> None:
    """Raise UserError unless there is a regular file at a path. Opening a FIFO or a device could wait forever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise explain_reading(path, error) from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{escape(path)}: this is {KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file.")


def read_local_bytes(path: str, limit: int | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: Path of the file.
        limit: Largest number of bytes that is accepted, or None.

    Raises:
        UserError: If there is no file, it is not a regular file, it is too large, or it cannot be read.
    """
    check_local_file(path)
    try:
        with open(path, "rb") as file:
            check_size(path, os.fstat(file.fileno()).st_size, limit)
            data = file.read(-1 if limit is None else limit + 1)
    except OSError as error:
        raise explain_reading(path, error) from None
    check_size(path, len(data), limit)  # The sizes of files in /proc are not their lengths.
    return data


def read_local_text(path: str, limit: int | None = None) -> str:
    r"""Return the text of a regular file in UTF-8, without a byte-order mark and with `\n` as line ending.

    Raises:
        UserError: As `read_local_bytes`, or if the file is not UTF-8.
    """
    return decode_text(read_local_bytes(path, limit), path)


def check_size(path: str, size: int, limit: int | None) -> None:
    """Raise UserError if a file has more bytes than are allowed."""
    if limit is not None and size > limit:
        raise UserError(f"{escape(path)}: the file has {size:,} bytes, more than the {limit:,} that are allowed.")


def explain_reading(path: str, error: Exception) -> UserError:
    """Return the UserError for an OSError or an error of TensorFlow."""
    code = getattr(error, "errno", None) or {"NotFoundError": errno.ENOENT}.get(type(error).__name__)
    if code in (errno.ENOENT, errno.ENOTDIR):
        return UserError(f"{escape(path)}: no such file or folder.")
    if code == errno.ENXIO:  # a socket cannot be opened
        return UserError(f"{escape(path)}: this is a socket, not a file.")
    reason = os.strerror(code) if code else str(error)[:300]
    return UserError(f"{escape(path)}: cannot be read: {reason}.")

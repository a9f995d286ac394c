"""Reads arrays of numbers from .npz archives of NumPy and from the idx files of MNIST. Nothing in a file is trusted.

What a header declares is compared with the size of the file before memory is allocated, and pickled Python objects are
never loaded. Imports no TensorFlow, so that a command can check its data at once.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.local_files import explain_reading
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.runtime.archives import open_archive, stream_member
from efficientnet_tf.runtime.files import check_file

MOST_BYTES = 2**33  # of one array. All of it is kept in memory.
_MOST_RATIO = 200  # of compressed images. Drawings of thin white lines on black compress to about a hundredth.
_SMALL_BYTES = 2**25  # of an array that may compress to nothing, for example sorted labels
_MOST_HEADER_BYTES = 10_000  # as NumPy allows
_MOST_AXES = 8
_PART_BYTES = 2**20
_BYTE = 0x08  # the type of the values in an idx file


@dataclass(frozen=True)
class StoredArray:
    """An array in a file. Its values are read when they are needed.

    Attributes:
        path: Path of the file.
        member: Name of the array in an .npz archive, or None for an idx file.
        shape: Its shape.
        dtype: Type of its values: booleans, numbers or text.
        column_major: Whether the first index varies fastest in the file.
        start: Number of bytes before the values.
    """

    path: str
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    column_major: bool
    start: int

    @property
    def name(self) -> str:
        """Its name in messages."""
        return _name(self.path, self.member)

    @property
    def bytes(self) -> int:
        """Size of its values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Return the values, in the order of rows.

        Raises:
            UserError: If the file cannot be read or is damaged.
        """
        values = np.empty(self.bytes, np.uint8)
        view, filled = values.data, 0
        with _open(self.path, self.member) as (file, _):
            file.read(self.start)
            while part := file.read(min(_PART_BYTES, self.bytes - filled)):
                view[filled : filled + len(part)] = part
                filled += len(part)
            if filled < self.bytes:
                raise ValueError(f"it ends after {filled:,} of {self.bytes:,} bytes")
            if file.read(1):  # At the end, the checksum is checked, too.
                raise ValueError(f"it has more than the {self.bytes:,} bytes that it declares")
        values = values.view(self.dtype)
        if self.column_major:
            return np.ascontiguousarray(values.reshape(self.shape[::-1]).T)
        return values.reshape(self.shape)


def list_members(path: str) -> list[str]:
    """Return the names of the arrays in an .npz archive.

    Raises:
        UserError: If the file cannot be read, or is no zip archive or a damaged one.
    """
    check_file(path)
    with _explain(path, None), open_archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def open_array(path: str, member: str | None) -> StoredArray:
    """Return an array after reading its header, and checking that the file can hold what it declares.

    Args:
        path: Path of an .npz archive, or of an idx file, which may be compressed by gzip.
        member: Name of the array in an archive. None for an idx file.

    Raises:
        UserError: If the file cannot be read, is damaged, holds Python objects, or declares too many bytes.
    """
    with _open(path, member) as (file, size):
        form, shape, column_major, start = _read_idx_header(file) if member is None else read_npy_header(file)
        if form.endswith("O"):
            raise UserError(
                f"{_name(path, member)} has Python objects, which are not loaded because they can run any code. Save a "
                "plain array of numbers. For images of several sizes, use data.source=folder."
            )
        if len(shape) > _MOST_AXES:
            raise ValueError(f"it has {len(shape)} axes, more than the {_MOST_AXES} allowed")
        array = StoredArray(path, member, shape, _find_dtype(form), column_major, start)
        if size is None:  # gzip does not say it in a way that could be trusted.
            most = max(_SMALL_BYTES, _MOST_RATIO * os.path.getsize(path))
            if array.bytes > most:
                raise ValueError(f"it declares {array.bytes:,} bytes, more than the {most:,} that its size allows")
        elif start + array.bytes != size:
            raise ValueError(f"it declares {array.bytes:,} bytes but has {size - start:,}")
    if array.bytes > MOST_BYTES:
        raise UserError(
            f"{array.name} has {array.bytes:,} bytes, more than the {MOST_BYTES:,} that data.source=arrays reads into "
            "memory. Use data.source=folder or data.source=records."
        )
    return array


# --------------------------------------------------------------------------------------------------------- headers


def read_npy_header(file: IO[bytes]) -> tuple[str, tuple[int, ...], bool, int]:
    """Read the header of an array of NumPy; return (type, shape, column_major, number of bytes).

    Raises:
        ValueError: If it is damaged or describes no plain array.
    """
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or len(start) < 8:
        raise ValueError("it is no array of NumPy")
    width = 2 if start[6] == 1 else 4  # bytes of the length, by version of the format
    length = int.from_bytes(file.read(width), "little")
    if length > _MOST_HEADER_BYTES:
        raise ValueError(f"its header declares {length:,} bytes, more than the {_MOST_HEADER_BYTES:,} allowed")
    text = file.read(length).decode("latin-1")
    # NumPy evaluates this text as a Python literal. The three values that it must have are searched for instead.
    form = re.search(r"'descr': *'([^']*)'", text)
    order = re.search(r"'fortran_order': *(True|False)", text)
    sizes = re.search(r"'shape': *\(([0-9L, ]*)\)", text)
    if form is None or order is None or sizes is None:
        raise ValueError("its header does not describe a plain array")
    numbers = re.findall(r"\d+", sizes[1])
    if any(len(number) > 18 for number in numbers):
        raise ValueError("its header declares a size of more than 18 digits")
    return form[1], tuple(map(int, numbers)), order[1] == "True", 8 + width + length


def _read_idx_header(file):
    """Read the header of an idx file, as `read_npy_header` does."""
    magic = file.read(4)
    if magic[:2] != b"\0\0" or len(magic) < 4:
        raise ValueError(f"it is no idx file: it begins with 0x{magic.hex() or '0'} and not with two zeros")
    if magic[2] != _BYTE:
        raise ValueError(f"its values have the type 0x{magic[2]:02x}, and only bytes (0x{_BYTE:02x}) are read")
    rank = magic[3]
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError("it ends within its header")
    return "|u1", struct.unpack(f">{rank}I", sizes), False, 4 + 4 * rank


def _find_dtype(form):
    """Return the type of values that a header names: booleans, numbers, or text."""
    if re.fullmatch(r"[<>|=][biufcSU][1-9]\d{0,8}", form):
        with contextlib.suppress(TypeError):
            return np.dtype(form)
    raise ValueError(f"its values have the type '{escape(shorten(form))}', and only numbers and text are read")


# ----------------------------------------------------------------------------------------------------------- files


def _name(path, member):
    return escape(path) if member is None else f"{escape(path)}, array {escape(shorten(member))}"


@contextlib.contextmanager
def _open(path: str, member: str | None) -> Iterator[tuple[IO[bytes], int | None]]:
    """Open an array at the start of its header. Also yield its size in bytes, None if the file does not say it."""
    check_file(path)
    with _explain(path, member), contextlib.ExitStack() as stack:
        if member is not None:
            archive = stack.enter_context(open_archive(path))
            name = f"{member}.npy"
            file = stack.enter_context(stream_member(archive, name, _MOST_RATIO, _SMALL_BYTES))
            yield file, archive.getinfo(name).file_size
            return
        file = stack.enter_context(open(path, "rb"))
        is_packed = file.read(2) == b"\x1f\x8b"  # Some browsers unpack a file and keep its name.
        file.seek(0)
        if is_packed:
            yield cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=file))), None
        else:
            yield file, os.path.getsize(path)


@contextlib.contextmanager
def _explain(path, member):
    """Turn what a damaged file raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = escape(shorten(str(error), 300)).rstrip(".")
        raise UserError(f"{_name(path, member)} cannot be read: {reason}. Download or write it again.") from None
    except OSError as error:
        raise explain_reading(path, error) from None

"""Opens single members of a zip archive from a stranger, without extracting anything."""

import contextlib
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

MAX_DIRECTORY = 16 * 2**20  # bytes of an archive's list of members
MAX_RATIO = 10  # of a compressed member that holds weights, which hardly compress


@contextlib.contextmanager
def open_archive(path: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive and check its list of members.

    Raises:
        ValueError: If the archive is damaged, or its members overlap, are not in the file, or have unusual names.
    """
    with open(path, "rb") as file:
        _check_directory_size(file)
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, OverflowError) as error:
            raise ValueError(f"a damaged zip archive ({error})") from None
        with archive:
            _check_members(archive.infolist(), os.fstat(file.fileno()).st_size)
            yield archive


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Return the content of a small member.

    Raises:
        ValueError: If it declares or has more bytes than the limit, or is damaged.
    """
    member = archive.getinfo(name)
    if member.file_size > limit:
        raise ValueError(f"its member {name} declares {member.file_size:,} bytes, more than the {limit:,} allowed")
    try:
        with archive.open(member) as file:
            data = file.read(member.file_size + 1)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"its member {name} is damaged ({error})") from None
    if len(data) != member.file_size:
        raise ValueError(f"its member {name} is damaged: it has another size than it declares")
    return data


@contextlib.contextmanager
def stream_member(
    archive: zipfile.ZipFile, name: str, max_ratio: int = MAX_RATIO, small: int = 0
) -> Iterator[IO[bytes]]:
    """Open a large member for reading from its start to its end, where its checksum is checked.

    Args:
        archive: From `open_archive`.
        name: Name of the member.
        max_ratio: How many times its size a compressed member may expand to.
        small: Number of bytes that a member may expand to in any case.

    Raises:
        ValueError: If it is damaged, is not compressed as usual, or expands to more than that.
    """
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its member {name} is compressed in an unusual way, not by deflate")
    is_stored = member.compress_type == zipfile.ZIP_STORED
    if not is_stored and member.file_size > max(small, max_ratio * member.compress_size):
        raise ValueError(
            f"its member {name} expands from {member.compress_size:,} to {member.file_size:,} bytes, more than the "
            f"{max_ratio} times allowed"
        )
    try:
        with archive.open(member) as file:
            yield file
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise ValueError(f"its member {name} is damaged ({error})") from None


@contextlib.contextmanager
def open_member(archive: zipfile.ZipFile, name: str) -> Iterator[BinaryIO]:
    """Open a large member for reading at any position, after a check of its checksum.

    A member that is stored as it is, is read in place. A compressed one is written to a temporary file first.

    Raises:
        ValueError: As for `stream_member`.
    """
    member = archive.getinfo(name)
    is_stored = member.compress_type == zipfile.ZIP_STORED
    with contextlib.ExitStack() as stack:
        copy = None if is_stored else stack.enter_context(tempfile.TemporaryFile())
        copied = 0
        with stream_member(archive, name) as file:
            while part := file.read(2**20):
                copied += len(part)
                if copy is not None:
                    copy.write(part)
        if copied != member.file_size:
            raise ValueError(f"its member {name} is damaged: it has another size than it declares")
        yield cast(BinaryIO, copy or _Slice(cast(BinaryIO, archive.fp), data_offset(archive, name), member.file_size))


def data_offset(archive: zipfile.ZipFile, name: str) -> int:
    """Return where the content of a member that is stored as it is begins in the archive's file."""
    file, start = cast(BinaryIO, archive.fp), archive.getinfo(name).header_offset
    file.seek(start)
    header = file.read(30)
    return start + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


class _Slice(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        self.inner, self.start, self.size, self.position = file, start, size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.size - self.position)
        self.inner.seek(self.start + self.position)
        data = self.inner.read(left if size < 0 else min(size, left))
        self.position += len(data)
        return data


def _check_directory_size(file):
    """Raise ValueError if the list of members is too long to be kept in memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 70_000))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0:
        raise ValueError("a damaged zip archive: it has no end")
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    large = tail.rfind(b"PK\6\6", 0, end)  # the same for archives of more than 4 GB
    if large >= 0:
        length = max(length if length < 2**32 - 1 else 0, int.from_bytes(tail[large + 40 : large + 48], "little"))
    if length > MAX_DIRECTORY:
        raise ValueError(f"its list of members has {length:,} bytes, more than the {MAX_DIRECTORY:,} allowed")


def _check_members(members, size):
    end, names = 0, set()
    for member in sorted(members, key=lambda m: m.header_offset):
        name = member.filename
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name in names:
            raise ValueError(f"its member {name} has a name that leads out of the archive or occurs twice")
        names.add(name)
        if member.flag_bits & 1:
            raise ValueError(f"its member {name} is encrypted")
        if member.header_offset < end or member.header_offset + member.compress_size > size:
            raise ValueError(f"its member {name} overlaps another one or is not in the file")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ValueError(f"its member {name} declares another size than it has")
        end = member.header_offset + member.compress_size

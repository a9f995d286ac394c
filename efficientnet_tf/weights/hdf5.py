"""Lists the arrays of an HDF5 file from a stranger, and reads single ones.

HDF5 can do more than weights need: it follows links into other files, keeps arrays in other files, loads filters from
plugins, and allocates whatever size a file declares. Nothing of that happens here. A file that asks for it is refused.
"""

import contextlib
import io
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from efficientnet_tf.weights.tensors import StoredTensor

MAX_OBJECTS = 100_000  # the largest network has about 15,000 groups and arrays, with the state of an optimizer
MAX_DEPTH = 32
MAX_READ = 640 * 2**20  # bytes that HDF5 may ask for at once
MAX_TEXT = 2**20  # bytes of a text attribute
MAX_CHUNKS = 10_000  # of one array


@dataclass(frozen=True)
class H5Content:
    """What an HDF5 file contains.

    Attributes:
        tensors: {path in the file: array that can be read while the file is open}.
        attributes: {path of a group: names of its attributes}, for the root "" and its groups.
        names: {path of a group: its attribute `name`}.
        file: The open file, for `read_text`.
    """

    tensors: dict[str, StoredTensor]
    attributes: dict[str, list[str]]
    names: dict[str, str]
    file: Any

    def read_text(self, name: str, limit: int = MAX_TEXT) -> str | None:
        """Return a text attribute of the root, or None if there is none.

        Raises:
            ValueError: If it is no text, or longer than `limit` bytes.
        """
        return _read_text(self.file, name, limit)


@contextlib.contextmanager
def open_h5(file: BinaryIO) -> Iterator[H5Content]:
    """List the content of an open HDF5 file.

    Yields:
        The content. Its arrays can be read within the block.

    Raises:
        ValueError: If the file is damaged, or uses a feature of HDF5 that is refused. The message names the object.
    """
    import h5py

    with h5py.File(_BoundedReader(file), "r") as opened:
        tensors, names = {}, {}
        attributes = {"": _attribute_names(opened)}
        seen, count = {_address(opened)}, 0
        pending: list[tuple[str, Any]] = [("", opened)]
        while pending:
            path, group = pending.pop()
            count += len(group)
            if count > MAX_OBJECTS:
                raise ValueError(f"it contains more than {MAX_OBJECTS:,} objects")
            for name in list(group):
                inner = f"{path}/{name}" if path else name
                item = _open_link(group, name, inner)
                if isinstance(item, h5py.Dataset):
                    tensors[inner] = _describe(item, inner)
                elif isinstance(item, h5py.Group):
                    address = _address(item)
                    if address in seen:
                        raise ValueError(f"the group {inner} contains itself or has two names")
                    if inner.count("/") >= MAX_DEPTH:
                        raise ValueError(f"the group {inner} is nested too deeply")
                    seen.add(address)
                    pending.append((inner, item))
                    if not path:
                        attributes[inner] = _attribute_names(item)
                    if (text := _read_text(item, "name")) is not None:
                        names[inner] = text
        yield H5Content(tensors, attributes, names, opened)


class _BoundedReader(io.RawIOBase):
    """A file for HDF5 that refuses to read what is not there, and too much at once."""

    def __init__(self, file: BinaryIO):
        self.inner = file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.inner.seek(offset, whence)

    def tell(self) -> int:
        return self.inner.tell()

    def readinto(self, buffer) -> int:
        if len(buffer) > MAX_READ:
            raise ValueError(f"it declares an object of {len(buffer):,} bytes")
        view, start = memoryview(buffer).cast("B"), 0
        while start < len(view):
            part = self.inner.read(min(len(view) - start, 2**24))
            if not part:
                raise ValueError("it is cut off")
            view[start : start + len(part)] = part
            start += len(part)
        return start

    def write(self, data) -> int:
        raise ValueError("the file is open for reading")

    def truncate(self, size=None) -> int:
        raise ValueError("the file is open for reading")

    def flush(self) -> None:
        pass


def _address(item):
    import h5py

    low_level: Any = h5py
    return low_level.h5o.get_info(item.id).addr


def _attribute_names(item):
    import h5py

    if h5py.h5a.get_num_attrs(item.id) > 1000:
        raise ValueError("it contains more than 1,000 attributes")
    return list(item.attrs)


def _open_link(group, name, path):
    """Return the object behind a hard link. Other links can lead into other files, and Keras writes none."""
    import h5py

    kind = group.get(name, getlink=True)  # TypeError for the links that a program has defined
    if isinstance(kind, h5py.ExternalLink):
        raise ValueError(f"{path} is a link to another file, {kind.filename}. Links are refused, because they can copy "
                         "the content of other files into the weights")  # fmt: skip
    if not isinstance(kind, h5py.HardLink):
        raise ValueError(f"{path} is a link. Links are refused, because they can lead into other files")
    return group[name]


def _read_text(item, name, limit=MAX_TEXT):
    """Return an attribute that is one text, or None if there is none."""
    import h5py

    if not h5py.h5a.exists(item.id, name.encode()):
        return None
    attribute = h5py.h5a.open(item.id, name.encode())
    points, kind = attribute.get_space().get_simple_extent_npoints(), attribute.get_type()
    if points != 1 or kind.get_class() != h5py.h5t.STRING:
        raise ValueError(f"its attribute {name} is not a text")
    if attribute.get_storage_size() > limit:
        raise ValueError(f"its attribute {name} is longer than {limit:,} bytes")
    value = item.attrs[name]
    value = value.item() if isinstance(value, np.ndarray) else value
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if len(value) > limit:
        raise ValueError(f"its attribute {name} is longer than {limit:,} bytes")
    return value


def _describe(dataset, name):
    """Return what the metadata says about an array, without reading the array."""
    import h5py

    properties = dataset.id.get_create_plist()
    if properties.get_external_count():
        files = os.fsdecode(properties.get_external(0)[0])
        raise ValueError(
            f"the array {name} is stored in another file, {files}. This is refused, because it can copy the content of "
            "other files into the weights"
        )
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"the array {name} is composed of arrays in other files, which is refused")
    kind = dataset.id.get_type().get_class()
    if dataset.shape is None or kind not in (h5py.h5t.FLOAT, h5py.h5t.INTEGER):
        return StoredTensor(dataset.shape or (), _TYPES.get(kind, "of an unknown type"), None)
    return StoredTensor(dataset.shape, str(dataset.dtype), lambda: _read(dataset, name))


def _read(dataset, name):
    """Return an array whose shape the caller has checked."""
    import h5py

    if dataset.size and dataset.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        raise ValueError(f"the array {name} has no stored values")
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    allowed = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
    if set(filters) - allowed or filters.count(h5py.h5z.FILTER_DEFLATE) > 1:
        raise ValueError(f"the array {name} is compressed by another method than gzip, which is refused")
    if dataset.chunks is not None:
        size = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if size > 2 * dataset.nbytes + MAX_TEXT or dataset.id.get_num_chunks() > MAX_CHUNKS:
            raise ValueError(f"the array {name} is stored in chunks that do not fit its shape")
        if h5py.h5z.FILTER_DEFLATE in filters:
            _check_compressed_chunks(dataset, name, size)
    return dataset[()]


def _check_compressed_chunks(dataset, name, size):
    """Raise ValueError if a compressed chunk holds more than its shape says: HDF5 would inflate all of it."""
    for i in range(dataset.id.get_num_chunks()):
        info = dataset.id.get_chunk_info(i)
        if info.size > 2 * size + MAX_TEXT:
            raise ValueError(f"the array {name} is stored in chunks that do not fit its shape")
        mask, raw = dataset.id.read_direct_chunk(info.chunk_offset)
        if mask == 0 and len(zlib.decompressobj().decompress(raw, size + 65)) > size + 64:
            raise ValueError(f"the array {name} is larger than it declares")


_TYPES = {
    3: "text",
    2: "a time",
    4: "bits",
    5: "opaque bytes",
    6: "compound values, for example complex numbers",
    7: "references to other objects",
    8: "an enumeration, for example truth values",
    9: "lists of different lengths",
    10: "an array type",
}

"""Reads the texts of exported files, and checks the files, before a runtime opens them.

The runtimes are written in C++. They get a file only if it has the texts of this package, is not larger than its
network can be, and reads no other file. Nothing here imports a runtime, and everything that is read has a limit.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import xml.etree.ElementTree
import xml.sax.saxutils
import zipfile
from dataclasses import dataclass

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import check_file

SECTION = "efficientnet_tf"  # of the texts in an OpenVINO file
RECORD = "record.json"  # text of `record`, which files of earlier versions do not have
TEXTS = ("config.yaml", "classes.txt", "precision")
_TEXT_LIMIT_BYTES = 16 * 2**20
_FILE_LIMIT_BYTES = 2**31  # of flatbuffers and of protocol buffers
_XML_LIMIT_BYTES = 8 * 2**20  # that of L2, the deepest network, has about 2 MB
_FIELDS_LIMIT = 1_000_000  # L2, the deepest network, has about 100,000


@dataclass(frozen=True)
class Metadata:
    """What a file says about itself.

    Attributes:
        texts: Its texts by name: those of `TEXTS` and others of this package.
        size: Bytes of the network.
        parts: Where the network is: (path, first byte, end).
    """

    texts: dict[str, str]
    size: int
    parts: tuple[tuple[str, int, int], ...]

    def compute_digest(self) -> str:
        """Return the SHA-256 of the network, for `record`."""
        digest = hashlib.sha256()
        for path, start, end in self.parts:
            with open(path, "rb") as file:
                file.seek(start)
                while (left := end - file.tell()) > 0 and (block := file.read(min(left, 2**22))):
                    digest.update(block)
        return digest.hexdigest()


def read_metadata(path: str) -> Metadata:
    """Read the texts of an exported file and check the file.

    Args:
        path: Path of a local file that ends in .tflite, .onnx or .xml.

    Raises:
        UserError: If the file is damaged, was not written by this package, or needs something that no export uses.
    """
    for part in list_files(path):
        check_file(part)
        size = os.path.getsize(part)
        limit = _XML_LIMIT_BYTES if part.endswith(".xml") else _FILE_LIMIT_BYTES
        if not 0 < size <= limit:
            raise _damaged(part, f"it has {size:,} bytes; at least 1 and at most {limit:,} are possible")
    read = {".tflite": _read_tflite, ".onnx": _read_onnx, ".xml": _read_openvino}[os.path.splitext(path)[1]]
    try:
        metadata = read(path)
    except OSError as error:
        raise UserError(f"{escape(path)}: cannot be read: {error.strerror or error}.") from None
    missing = [name for name in TEXTS if name not in metadata.texts]
    if missing:
        raise UserError(
            f"{escape(path)} is damaged or was not written by efficientnet_tf.export, because it does not contain "
            f"{', '.join(missing)}."
        )
    return metadata


def list_files(path: str) -> list[str]:
    """Return the files of an export. The one that is opened comes last."""
    return ([f"{path.removesuffix('.xml')}.bin"] if path.endswith(".xml") else []) + [path]


def check_size(path: str, metadata: Metadata, parameters: int) -> None:
    """Raise UserError if the network in a file is larger than its config says.

    Args:
        path: Path of the file.
        metadata: Its metadata.
        parameters: Parameters of the network that its config describes.
    """
    limit = 2 * 4 * parameters + 64 * 2**20
    if metadata.size > limit:
        raise _damaged(
            path, f"it has {metadata.size:,} bytes, but a network of {parameters:,} parameters has at most {limit:,}"
        )


def check_texts(output: str, texts: dict[str, str]) -> None:
    """Raise UserError if the format of a file cannot hold a text: XML has no control characters."""
    if not output.endswith(".xml"):
        return
    for name, text in texts.items():
        found = re.search("[\0-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]", text)
        if found:
            raise UserError(
                f"{name} contains the character U+{ord(found[0]):04X}, which files of OpenVINO cannot hold. Use a name "
                "that ends in .tflite or .onnx, or a folder."
            )


def append_record(path: str, record: str) -> None:
    """Add the text `RECORD` to a file that was just written. This does not change the digest of the network.

    Args:
        path: Path of the file.
        record: The text, in ASCII.
    """
    if path.endswith(".tflite"):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(RECORD, record)
        return
    if path.endswith(".onnx"):
        # Concatenated protocol buffers are merged, so this adds one more property to the model.
        key, value = (make_field(number, text.encode()) for number, text in ((1, RECORD), (2, record)))
        with open(path, "ab") as file:
            file.write(make_field(14, key + value))
        return
    with open(path, "rb") as file:
        content = file.read()
    head, end, tail = content.rpartition(f"</{SECTION}>".encode())
    entry = f"<{RECORD} value={xml.sax.saxutils.quoteattr(record)} />"
    with open(path, "wb") as file:
        file.write(head + entry.encode() + end + tail)


def make_field(number: int, data: bytes) -> bytes:
    """Return a field of a protocol buffer that holds bytes or a message."""

    def varint(value):
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    return varint(number << 3 | 2) + varint(len(data)) + data


def _damaged(path, reason):
    return UserError(
        f"{escape(path)} is damaged or was not written by efficientnet_tf.export: {reason}. Export the model again."
    )


def _decode(path, name, data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _damaged(path, f"{name} is not UTF-8") from None


# ------------------------------------------------------------------------------------------------------------- LiteRT


def _read_tflite(path):
    """Read the zip archive after the network."""
    from efficientnet_tf.runtime.archives import open_archive, read_member

    if not zipfile.is_zipfile(path):  # reads the end of the file only
        return Metadata({}, os.path.getsize(path), ())
    try:
        with open_archive(path) as archive:
            entries = archive.infolist()
            if not 0 < len(entries) <= 100:
                raise ValueError(f"the archive at its end has {len(entries)} entries")
            known = [entry.filename for entry in entries if entry.filename in (*TEXTS, RECORD)]
            texts = {name: _decode(path, name, read_member(archive, name, _TEXT_LIMIT_BYTES)) for name in known}
    except UserError:
        raise
    except ValueError as error:
        raise _damaged(path, f"the texts after its network cannot be read: {escape(str(error))}") from None
    start = min(entry.header_offset for entry in entries)
    with open(path, "rb") as file:
        if file.read(8)[4:] != b"TFL3":
            raise _damaged(path, "it does not begin like a file of LiteRT")
    return Metadata(texts, start, ((path, 0, start),))


# ------------------------------------------------------------------------------------------------------- ONNX Runtime

# The numbers of the fields of onnx.proto that hold other messages, by message. Tensors are where files are named.
_MESSAGES = {
    "model": {7: "graph", 14: "property", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
    "property": {},
}
_DIMS, _EXTERNAL_DATA, _DATA_LOCATION = 1, 13, 14  # fields of a tensor


def _read_onnx(path):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _walk_onnx(path, content)
        except IndexError:
            raise _damaged(path, "it ends within the network, or is not a file of ONNX") from None


def _walk_onnx(path, content):
    """Walk through the messages of a file. Only the texts are read, and everything else is skipped."""
    texts, graphs, count = {}, [], 0
    todo = [("model", 0, len(content), 0)]
    while todo:
        message, start, end, depth = todo.pop()
        if depth > 64:
            raise _damaged(path, "its messages are nested too deeply")
        if message == "property":
            name, text = _read_property(path, content, start, end)
            if name in texts or len(texts) > 100:
                raise _damaged(path, f"the text {escape(name)} occurs twice, or there are too many texts")
            texts[name] = text
            continue
        if message == "tensor":
            _check_tensor(path, content, start, end)
            continue
        for field, _, inner, inner_end in _fields(content, start, end):
            count += 1
            if count > _FIELDS_LIMIT:
                raise _damaged(path, f"it has more than {_FIELDS_LIMIT:,} fields")
            kind = _MESSAGES[message].get(field)
            if kind and inner >= 0:
                todo.append((kind, inner, inner_end, depth + 1))
                if message == "model" and kind == "graph":
                    graphs.append((inner, inner_end))
    if len(graphs) != 1:
        raise _damaged(path, f"it has {len(graphs)} networks")
    return Metadata(texts, len(content), ((path, *graphs[0]),))


def _read_property(path, content, start, end):
    """Return the name and the value of a text."""
    if end - start > _TEXT_LIMIT_BYTES:
        raise _damaged(path, f"a text has {end - start:,} bytes")
    pair = {field: content[inner:inner_end] for field, _, inner, inner_end in _fields(content, start, end)}
    return _decode(path, "a text", pair.get(1, b"")), _decode(path, "a text", pair.get(2, b""))


def _check_tensor(path, content, start, end):
    """Refuse a tensor that is in another file, or has more elements than the file can hold."""
    elements = 1
    for field, value, inner, inner_end in _fields(content, start, end):
        if field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value):
            raise UserError(
                f"{escape(path)}: a tensor is stored in another file. Exports of this package hold all their tensors, "
                "and other files are not read."
            )
        if field == _DIMS:
            for dim in [value] if inner < 0 else _varints(content, inner, inner_end):
                elements *= dim
    if elements > 2 * len(content):
        raise _damaged(path, f"a tensor has {elements:,} elements, more than the file can hold")


def _fields(content, start, end):
    """Yield (number, value, start, end) of each field of a message. Only bytes have a start, others have -1."""
    position = start
    while position < end:
        key, position = _varint(content, position)
        number, wire = key >> 3, key & 7
        value, size, is_bytes = 0, {1: 8, 5: 4}.get(wire, 0), wire == 2
        if wire == 0:
            value, position = _varint(content, position)
        elif is_bytes:
            size, position = _varint(content, position)
        elif not size:
            raise IndexError  # no such type
        if not number or position + size > end:
            raise IndexError
        yield number, value, position if is_bytes else -1, position + size
        position += size


def _varint(content, position):
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise IndexError


def _varints(content, start, end):
    while start < end:
        value, start = _varint(content, start)
        yield value


# ------------------------------------------------------------------------------------------------------------ OpenVINO


def _read_openvino(path):
    weights = f"{path.removesuffix('.xml')}.bin"
    with open(path, "rb") as file:
        content = file.read()
    declaration = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([^\"']*)", content)
    if (
        b"\0" in content
        or content.startswith((b"\xff", b"\xfe"))
        or (declaration and declaration[1].lower() != b"utf-8")
    ):
        raise _damaged(path, "it is not XML in UTF-8")
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise _damaged(path, "it defines entities, which no export does")
    try:
        root = xml.etree.ElementTree.fromstring(content)
    except (xml.etree.ElementTree.ParseError, ValueError, LookupError) as error:
        raise _damaged(path, f"it is not XML ({error})") from None
    size = os.path.getsize(weights)
    for data in root.iterfind("./layers/layer[@type='Const']/data"):
        offset, length = (data.get(name, "") for name in ("offset", "size"))
        if not re.fullmatch(r"[0-9]{1,15}", offset) or not re.fullmatch(r"[0-9]{1,15}", length):
            raise _damaged(path, "a constant does not say where its values are")
        if int(offset) + int(length) > size:
            raise _damaged(weights, f"it has {size:,} bytes, but the network needs {int(offset) + int(length):,}")
    sections = root.findall(f"./rt_info/{SECTION}")
    names = [text.tag for section in sections for text in section]
    if len(set(names)) != len(names):
        raise _damaged(path, "a text occurs twice")
    texts = {text.tag: text.get("value", "") for section in sections for text in section}
    # The record is in the section rt_info, which comes after the network.
    return Metadata(texts, size, ((path, 0, content.rfind(b"<rt_info>")), (weights, 0, size)))

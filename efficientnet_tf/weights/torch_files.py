"""Lists the tensors of a PyTorch file without PyTorch, and without running anything that the file asks for.

A .pth file is a pickle, which can call any function. Here only those that describe a tensor are known, and they only
describe it. The numbers are read later, if the model needs them.
"""

import contextlib
import math
import os
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from efficientnet_tf.runtime.archives import data_offset, open_archive, read_member
from efficientnet_tf.weights.tensors import MAX_TENSORS, StoredTensor

MAX_PICKLE = 64 * 2**20  # bytes of the description of all tensors
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of files written by PyTorch before 1.6
_ADVICE = (
    "Convert the file to safetensors in a place where running its code does no harm, and read that: load it there with "
    "PyTorch and call safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}


@contextlib.contextmanager
def open_torch(path: str) -> Iterator[dict[str, StoredTensor]]:
    """List the tensors of a state dict, or of a checkpoint that contains one.

    Yields:
        {name: tensor that can be read within the block}.

    Raises:
        ValueError: If the file is damaged, or contains something else than tensors, numbers and texts.
    """
    with open(path, "rb") as file:
        is_archive = file.read(2) == b"PK"
        if not is_archive:
            file.seek(0)
            yield _state_of(_load_legacy(file))
            return
    with open_archive(path) as archive:
        yield _state_of(_load_archive(archive))


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Return the numbers whose upper halves are given as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _state_of(content) -> dict[str, StoredTensor]:
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"it contains a {type(content).__name__} instead of tensors with names")
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise ValueError(f"{name!r} is not a tensor with a name")
        tensors[name.removeprefix("module.")] = value
    if len(tensors) != len(content):
        raise ValueError("it contains a tensor both with and without the prefix module.")
    return tensors


def _load_archive(archive):
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError("the archive contains neither a Keras model nor a PyTorch state dict")
    folder = pickles[0].removesuffix("data.pkl")
    if any(member.compress_type for member in archive.infolist()):
        raise ValueError("the archive is compressed, which PyTorch never does")
    if f"{folder}byteorder" in names and read_member(archive, f"{folder}byteorder", 100) != b"little":
        raise ValueError("its numbers have the byte order of another machine")
    members = {member.filename: member.file_size for member in archive.infolist()}

    def find(storage):
        name = f"{folder}data/{storage.key}"
        if name not in members:
            raise ValueError(f"its member {name} is missing")
        return archive.fp, data_offset(archive, name), members[name]

    return _Description(read_member(archive, pickles[0], MAX_PICKLE), find).value


def _load_legacy(file: BinaryIO):
    """Read a file that PyTorch wrote before 1.6: a number, a version, a machine, the tensors, the keys, the numbers."""
    data, start, values, places = file.read(MAX_PICKLE), 0, [], {}

    def find(storage):
        if storage.key not in places:
            raise ValueError(f"the numbers of storage {storage.key} are missing")
        return file, *places[storage.key]

    storages = {}
    for _ in range(5):
        part = _Description(data[start:], find)
        values.append(part.value)
        storages |= part.storages
        start += part.length
        if values[0] != _LEGACY_MAGIC:
            raise ValueError(f"it is a pickle of something else than a PyTorch state dict. {_ADVICE}")
    end = file.seek(0, os.SEEK_END)
    for key in values[4] if isinstance(values[4], list) else []:
        if key not in storages:
            raise ValueError(f"its storage {key} belongs to no tensor")
        file.seek(start)
        size = int.from_bytes(file.read(8), "little") * storages[key].item_size
        if start + 8 + size > end:
            raise ValueError(f"the numbers of storage {key} are cut off")
        places[key] = start + 8, size
        start += 8 + size
    return values[3]


@dataclass(frozen=True)
class _Storage:
    """A row of numbers that tensors share."""

    kind: str  # "FloatStorage"
    key: str

    @property
    def item_size(self) -> int:
        return 2 if self.kind == "BFloat16Storage" else np.dtype(_DTYPES[self.kind]).itemsize


def _read_opcodes(data):
    """Yield what `pickletools.genops` yields. A damaged pickle is a ValueError that says so."""
    try:
        yield from pickletools.genops(data)
    except ValueError:
        raise ValueError("its pickle is damaged or ends early") from None


class _Description:
    """The content of a pickle, in which `StoredTensor` stands for each tensor.

    Attributes:
        value: The content: tensors, dicts, lists, tuples, numbers and texts.
        storages: {key: storage} of all tensors.
        length: Length of the pickle in bytes.
    """

    def __init__(self, data: bytes, find: Callable[[_Storage], tuple[BinaryIO, int, int]]):
        """Interpret a pickle.

        Args:
            data: The pickle, and what follows it.
            find: Function that returns the file of a storage, where it begins, and its length in bytes.

        Raises:
            ValueError: If the pickle is damaged, or calls a function that does not belong to tensors.
        """
        self.find, self.storages = find, {}
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        try:
            for opcode, argument, position in _read_opcodes(data):
                if opcode.name == "STOP":
                    self.value, self.length = self.stack.pop(), (position or 0) + 1
                    return
                self._run(opcode.name, argument)
        except (IndexError, KeyError) as error:
            raise ValueError(f"its pickle is damaged ({type(error).__name__})") from None
        raise ValueError("its pickle is cut off")

    def _run(self, name, argument):
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(argument)
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT"):
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "POP":
            stack.pop()
        elif name in ("TUPLE", "LIST", "DICT", "POP_MARK"):
            items = self._pop_to_mark()
            if name != "POP_MARK":
                stack.append({"TUPLE": tuple, "LIST": list, "DICT": _to_dict}[name](items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(items)))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._add_items(name)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = [stack.pop(), stack.pop()][::-1] if name == "STACK_GLOBAL" else argument.split(" ", 1)
            stack.append(self._find_function(".".join(map(str, words))))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            if not isinstance(function, _Function) or not isinstance(arguments, tuple):
                raise ValueError(f"it calls something that is not a function. {_ADVICE}")
            stack.append(function.call(*arguments))
        elif name == "BUILD":  # sets attributes, which tensors do not need
            stack.pop()
        elif name == "BINPERSID":
            stack.append(self._find_storage(stack.pop()))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle contains the operation {name}, which tensors do not need. {_ADVICE}")

    def _pop_to_mark(self):
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _add_items(self, name):
        if name.endswith("S"):
            items = self._pop_to_mark()
        else:
            items = [self.stack.pop() for _ in range(1 if name == "APPEND" else 2)][::-1]
        target = self.stack[-1]
        if name.startswith("APPEND") and isinstance(target, list):
            target.extend(items)
        elif name.startswith("SETITEM") and isinstance(target, dict):
            target.update(_to_dict(items))
        else:
            raise ValueError("its pickle is damaged")

    def _find_function(self, name):
        if name.startswith("torch.") and name.removeprefix("torch.") in _DTYPES:
            return name.removeprefix("torch.")
        functions = {
            "collections.OrderedDict": lambda pairs=(): _to_dict([value for pair in pairs for value in pair]),
            "torch.Size": lambda sizes=(): tuple(sizes),
            "torch._utils._rebuild_tensor": self._describe,
            "torch._utils._rebuild_tensor_v2": self._describe,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
        }
        if name not in functions:
            raise ValueError(f"it contains an object of the kind {name}, which could run code, and was not loaded. "
                             f"{_ADVICE}")  # fmt: skip
        return _Function(functions[name])

    def _find_storage(self, identifier):
        if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] != "storage":
            raise ValueError("its pickle refers to something else than numbers")
        _, kind, key = identifier[:3]
        if kind not in _DTYPES or not isinstance(key, str):
            raise ValueError("its pickle refers to numbers of an unknown type")
        self.storages[key] = _Storage(kind, key)
        return self.storages[key]

    def _describe(self, storage=None, offset=None, shape=None, strides=None, *_):
        """Return the tensor of `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, ...)`."""
        impossible = ValueError("its pickle describes a tensor that is not possible")
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise impossible
        if len(shape) != len(strides) or len(shape) > 32 or not all(map(_is_count, (offset, *shape, *strides))):
            raise impossible
        dtype = _DTYPES[storage.kind]
        return StoredTensor(shape, dtype, lambda: self._read(storage, offset, shape, strides))

    def _read(self, storage, offset, shape, strides):
        file, start, size = self.find(storage)
        item = storage.item_size
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if 0 in shape:
            return np.zeros(shape, np.float32)
        if (last + 1) * item > size:
            raise ValueError(f"the numbers of storage {storage.key} are cut off")
        if last + 1 - offset > 2 * math.prod(shape) + MAX_TENSORS:
            raise ValueError(f"the numbers of storage {storage.key} do not fit the shape {shape}")
        file.seek(start + offset * item)
        data = file.read((last + 1 - offset) * item)
        if storage.kind == "BFloat16Storage":
            flat = bfloat16_to_float32(np.frombuffer(data, "<u2"))
        else:
            flat = np.frombuffer(data, _DTYPES[storage.kind])
        return np.lib.stride_tricks.as_strided(flat, shape, [stride * flat.itemsize for stride in strides]).copy()


@dataclass(frozen=True)
class _Function:
    """A function that a pickle may call."""

    call: Callable[..., Any]


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _to_dict(items):
    """Return {items[0]: items[1], ...}."""
    keys = items[::2]
    if len(items) % 2 or not all(isinstance(key, str | int) for key in keys):
        raise ValueError("its pickle contains a dict whose keys are neither texts nor numbers")
    return dict(zip(keys, items[1::2], strict=True))

"""Lists the tensors of a safetensors file: a header in JSON, and then the numbers."""

import contextlib
import json
import math
import os
from collections.abc import Iterator

import numpy as np

from efficientnet_tf.weights.tensors import MAX_TENSORS, StoredTensor
from efficientnet_tf.weights.torch_files import bfloat16_to_float32

MAX_HEADER = 32 * 2**20  # bytes. 100,000 tensors need about 10 MB.
MAX_RANK = 32
_ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_ITEM_SIZES |= {"U64": 8, "U32": 4, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8}
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@contextlib.contextmanager
def open_safetensors(path: str) -> Iterator[dict[str, StoredTensor]]:
    """List the tensors of a safetensors file.

    Yields:
        {name: tensor that can be read within the block}.

    Raises:
        ValueError: If the header is damaged, or describes tensors that overlap or are not in the file.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER or length + 8 > size:
            raise ValueError(f"its header declares {length:,} bytes, but the file has {size:,}, and {MAX_HEADER:,} are "
                             "allowed")  # fmt: skip
        header = json.loads(file.read(length).decode(), object_pairs_hook=_to_dict)
        if not isinstance(header, dict):
            raise ValueError("its header is not a list of tensors")
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise ValueError(f"it contains {len(header):,} tensors, more than the {MAX_TENSORS:,} allowed")
        tensors, places = {}, []
        for name, entry in header.items():
            shape, (begin, end) = _check_entry(name, entry, size - 8 - length)
            places.append((begin, end, name))
            tensors[name] = _describe(file, entry["dtype"], shape, 8 + length + begin)
        for (_, end, _), (begin, _, name) in zip(sorted(places), sorted(places)[1:], strict=False):
            if begin < end:
                raise ValueError(f"the tensor {name} overlaps another one")
        yield tensors


def _check_entry(name, entry, size):
    """Return the shape of a tensor, and where it begins and ends."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_SIZES:
        raise ValueError(f"its header describes the tensor {name} with an unknown type")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"its header describes the tensor {name} as something that is not possible")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62 for n in (*shape, *offsets)):
        raise ValueError(f"its header describes the tensor {name} with numbers that are not possible")
    if len(shape) > MAX_RANK:
        raise ValueError(f"its header describes the tensor {name} with {len(shape)} axes")
    begin, end = offsets
    if not begin <= end <= size:
        raise ValueError(f"the tensor {name} is not in the file, which is cut off or damaged")
    if math.prod(shape) * _ITEM_SIZES[dtype] != end - begin:
        raise ValueError(f"the tensor {name} has the shape {shape}, but {end - begin:,} bytes")
    return tuple(shape), (begin, end)


def _describe(file, dtype, shape, start):
    def read():
        file.seek(start)
        numbers = np.frombuffer(file.read(math.prod(shape) * _ITEM_SIZES[dtype]), _DTYPES[dtype])
        return (bfloat16_to_float32(numbers) if dtype == "BF16" else numbers).reshape(shape)

    return StoredTensor(shape, dtype, read if dtype in _DTYPES else None)


def _to_dict(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("its header contains a name twice")
    return result

"""Lists and reads the tensors of TensorFlow checkpoints: those of the official code, of runs and of exports.

TensorFlow verifies the checksums of what it reads, but believes every size in the index. So the index is checked first.
"""

import logging
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime import files
from efficientnet_tf.weights.loaded import LoadedWeights, needs_of
from efficientnet_tf.weights.names import model_variables, official_names
from efficientnet_tf.weights.tensors import MAX_TENSORS, Shapes, StoredTensor, put_tensor, read_needed

_LOGGER = logging.getLogger(__name__)
MAX_INDEX = 64 * 2**20  # bytes of an index file
_MAGIC = 0xDB4775248B80FB57  # at the end of an index file
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def read_tf1(path: str, variables: Sequence[str], shapes: Shapes, average: bool = True, **_: Any) -> LoadedWeights:
    """List the tensors of a checkpoint of the official code, or of google/automl's code of EfficientNetV2."""
    ema = "/ExponentialMovingAverage"
    stored = list_checkpoint(find_tf1_prefix(path))
    reads_ema = average and any(name.endswith(ema) for name in stored)
    ours = official_names(variables)
    tensors, skipped = {}, 0
    for name in sorted(stored):
        # The other set of weights, the slot variables of the optimizer, and the step.
        if name.endswith(ema) != reads_ema or re.search(r"/(RMSProp|Momentum)(_\d+)?$|^global_step$", name):
            skipped += 1
            continue
        plain = name.removesuffix(ema)
        local = re.sub(r"^.*?(?=(stem|head|blocks_\d+)/)", "", plain)
        local = re.sub(r"/batch_normalization", "/tpu_batch_normalization", local)
        put_tensor(tensors, ours[local] if local in ours else plain, stored[name])
    kind = "the EMA of the weights" if reads_ema else "the raw weights"
    notes = (f"read {kind} and skipped {skipped} other variables of training",)
    values = read_needed(tensors, shapes)
    return LoadedWeights("a TensorFlow 1 checkpoint of the official code", values, {}, notes)


def find_tf1_prefix(path: str) -> str:
    """Return the prefix of a checkpoint, given the prefix, the index file, or the folder of a single checkpoint."""
    if not files.is_folder(path):
        return path.removesuffix(".index")
    found = [name for name in files.list_folder(path) if name.endswith(".index")]
    if len(found) != 1 and "checkpoint" in files.list_folder(path):
        text = files.read_text(os.path.join(path, "checkpoint"), 2**20)
        newest = re.search(r'^model_checkpoint_path: "([^"]*)"', text, re.MULTILINE)
        if newest and f"{os.path.basename(newest[1])}.index" in found:  # never a file in another folder
            return os.path.join(path, os.path.basename(newest[1]))
    if len(found) != 1:
        names = ", ".join(map(escape, found[:10]))
        raise UserError(f"{escape(path)} contains {len(found)} checkpoints. Pass the prefix of one: {names}.")
    return os.path.join(path, found[0].removesuffix(".index"))


def read_model_dir(
    path: str, variables: Sequence[str], shapes: Shapes, average: bool = True, **_: Any
) -> LoadedWeights:
    """Read a checkpoint of a model directory: the best one if it has chosen one, or else the newest intact one."""
    from efficientnet_tf.models.model_dir import read_config

    config = read_config(path)
    part = "average" if average and config.train.ema_decay else "model"
    reason = "there is none yet"
    for prefix in _list_best_first(path):
        try:
            stored = list_checkpoint(prefix)
            tensors = {}
            for name, tensor in stored.items():
                if name.startswith(f"{part}/") and name.endswith(_VALUE):
                    ours = re.sub(r"\.(.)", lambda m: "/" if m[1] == "S" else m[1], name[len(part) + 1 : -len(_VALUE)])
                    tensors[ours] = tensor
            values = read_needed(tensors, shapes)
        except Exception as error:  # TensorFlow raises many types for damaged files
            reason = f"{escape(prefix)}: {escape(str(error)[:200])}"
            _LOGGER.warning("A checkpoint is damaged. Trying the one before it. %s", reason)
            continue
        return LoadedWeights("a model directory", values, needs_of(config))
    raise UserError(f"{escape(path)} has no checkpoint that can be read: {reason}.")


def _list_best_first(path: str) -> list[str]:
    """Return the prefixes of the checkpoints of a model directory: the best one, then the others from the newest on."""
    from efficientnet_tf.models.model_dir import list_checkpoints
    from efficientnet_tf.models.stored import read_stored

    prefixes = list_checkpoints(path)
    for prefix in prefixes.values():
        try:
            stored = list_checkpoint(prefix)  # Only what this accepts is opened by TensorFlow.
            selection = read_stored(prefix).selection if f"selection{_VALUE}" in stored else None
        except Exception as error:  # Reading it warns.
            _LOGGER.debug("%s: %s", prefix, error)
            continue
        best = selection.best_step if selection else None
        return [prefixes[step] for step in sorted(prefixes, key=lambda step: (step != best, -step))]
    return list(prefixes.values())


def read_export(path: str, variables: Sequence[str], shapes: Shapes, **_: Any) -> LoadedWeights:
    """Read an export. Its variables have no names, but the order of the model that its config describes."""
    from efficientnet_tf.models.from_config import build_from_config
    from efficientnet_tf.models.model_dir import read_class_names, read_config

    assets = os.path.join(path, "assets")
    config, class_names = read_config(assets), read_class_names(assets)
    model = build_from_config(config, len(class_names))
    stored = list_checkpoint(os.path.join(path, "variables", "variables"))
    names = {v.path: f"weights/{i}{_VALUE}" for i, v in enumerate(model.variables) if v.path in model_variables(model)}
    missing = [name for name in names.values() if name not in stored]
    if missing:
        raise ValueError(f"its variables lack {missing[0]}")
    values = read_needed({ours: stored[name] for ours, name in names.items()}, shapes)
    return LoadedWeights("an export", values, needs_of(config))


def list_checkpoint(prefix: str) -> dict[str, StoredTensor]:
    """List the tensors of a TensorFlow checkpoint, local or on gs://.

    Raises:
        UserError: If a file is missing.
        ValueError: If the index is damaged, or declares tensors that are not in the data files.
    """
    files.check_file(f"{prefix}.index")
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import tensor_bundle_pb2

    index = files.read_bytes(f"{prefix}.index", MAX_INDEX)
    entries = dict(_read_table(index))
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"it contains {len(entries):,} tensors, more than the {MAX_TENSORS:,} allowed")
    try:
        header = tensor_bundle_pb2.BundleHeaderProto.FromString(entries.pop(b"", b""))
        protos = {key: tensor_bundle_pb2.BundleEntryProto.FromString(value) for key, value in entries.items()}
    except DecodeError:
        raise ValueError("its index is damaged") from None
    sizes = {}
    for shard in {entry.shard_id for entry in protos.values()}:
        sizes[shard] = _file_size(f"{prefix}.data-{shard:05d}-of-{header.num_shards:05d}")
    for key, entry in protos.items():
        _check_entry(key, entry, sizes[entry.shard_id])
    reader = tf.train.load_checkpoint(prefix)
    tensors = {}
    for key, entry in protos.items():
        try:
            name = key.decode()
        except UnicodeDecodeError:
            if entry.slices or key.startswith(b"\0"):  # a part of a variable, which is read with the whole
                continue
            raise ValueError(f"the name of a tensor, {key!r}, is not UTF-8") from None
        if name.startswith("\0"):
            continue
        dtype = tf.dtypes.as_dtype(entry.dtype)
        shape = tuple(dim.size for dim in entry.shape.dim)
        is_number = dtype.is_floating or dtype.is_integer
        tensors[name] = StoredTensor(shape, dtype.name, _reader_of(reader, name) if is_number else None)
    return tensors


def _reader_of(reader, name):
    def read():
        array = reader.get_tensor(name)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

    return read


def _file_size(path):
    if not files.exists(path):
        raise UserError(f"{escape(path)}: no such file. The checkpoint is incomplete.")
    files.check_file(path)
    if not files.is_remote(path):
        return os.stat(path).st_size
    import tensorflow as tf

    return tf.io.gfile.stat(path).length


def _check_entry(key, entry, size):
    """Raise ValueError if a tensor is not in its data file, or has another size than its shape says."""
    import tensorflow as tf

    shape = [dim.size for dim in entry.shape.dim]
    is_possible = entry.shape.unknown_rank is False and len(shape) <= 32 and all(0 <= n < 2**62 for n in shape)
    if not is_possible or entry.dtype not in _KNOWN_TYPES or min(entry.offset, entry.size, entry.shard_id) < 0:
        raise ValueError(f"its index describes the tensor {key!r} as something that is not possible")
    if entry.offset + entry.size > size:
        raise ValueError(f"the tensor {key!r} is not in the data file, which is cut off or damaged")
    dtype = tf.dtypes.as_dtype(entry.dtype)
    if dtype.size and dtype != tf.string and not entry.slices and entry.size != math.prod(shape) * dtype.size:
        raise ValueError(f"the tensor {key!r} has the shape {shape}, but {entry.size:,} bytes")


_KNOWN_TYPES = set(range(1, 24)) - {20, 21}  # types of TensorFlow without resources and variants


def _read_table(data: bytes):
    """Yield (key, value) of a table as TensorFlow writes it, in which all offsets must lie in the file."""
    if len(data) < 48 or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError("its index is damaged or cut off")
    footer = data[-48:-8]
    _, at = _read_handle(footer, 0)
    index, _ = _read_handle(footer, at)
    for _, handle in _read_block(data, index):
        yield from _read_block(data, _read_handle(handle, 0)[0])


def _read_block(data, handle):
    """Yield (key, value) of a block. A key repeats the beginning of the one before it."""
    offset, size = handle
    if offset + size + 5 > len(data) or size < 4 or data[offset + size] != 0:
        raise ValueError("its index is damaged or compressed")
    block = data[offset : offset + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    if end < 0:
        raise ValueError("its index is damaged")
    at, key = 0, b""
    while at < end:
        shared, at = _read_varint(block, at)
        added, at = _read_varint(block, at)
        length, at = _read_varint(block, at)
        if shared > len(key) or at + added + length > end:
            raise ValueError("its index is damaged")
        key = key[:shared] + block[at : at + added]
        yield key, block[at + added : at + added + length]
        at += added + length


def _read_handle(data, at):
    offset, at = _read_varint(data, at)
    size, at = _read_varint(data, at)
    return (offset, size), at


def _read_varint(data, at):
    value, shift = 0, 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("its index is damaged")
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at

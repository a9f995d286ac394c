"""Lists the images of tar files in the format of WebDataset. Imports no TensorFlow.

A sample is the members with the same name up to the first dot: `0001.jpg` and `0001.cls`. The content of a member lies
in the file as it is, so every image can be read by its place.
"""

from __future__ import annotations

import functools
import os
import re
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.json_text import parse_json_object
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.data.columns import convert_columns, convert_weight_column, label_columns
from efficientnet_tf.data.image_formats import LARGEST_FILE_BYTES, READABLE_SUFFIXES
from efficientnet_tf.data.labels import describe_labels
from efficientnet_tf.data.scan import is_junk
from efficientnet_tf.data.shards import download_shards, find_shards, read_classes
from efficientnet_tf.runtime.files import check_file

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_LARGEST_LABEL_BYTES = 2**20
_CACHED_FILES = 2**14
_NUMBER = re.compile(r"-?\d{1,9}")


class _Sample(NamedTuple):
    """The place of an image in its file, and the texts of the other members by their ending."""

    name: str
    offset: int
    size: int
    texts: dict[str, str]


@dataclass(frozen=True)
class TarListing:
    """The images of a split.

    Attributes:
        paths: The files.
        files: Index in `paths` of each image, int32 [N].
        offsets: Where each image starts in its file, int64 [N].
        sizes: Number of bytes of each image, int64 [N].
        names: Name of each sample.
        labels: Label of each image, as `listing.Listing` has them.
        class_names: Names of the classes 0, 1, ..., or of the labels or numbers.
        remarks: Sentences that the user should read.
    """

    paths: list[str]
    files: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: list[str]
    labels: np.ndarray
    class_names: list[str]
    remarks: list[str]
    weights: np.ndarray | None


def list_tar(data: DataConfig, split: str) -> TarListing:
    """List the images of a split, and check all labels. The images are not read.

    `shards.find_shards` says which files a split has. A label is in the member `.cls`, as a number or a text, or in the
    JSON of the member `.json` under the names `data.label_columns`, by default `label`. Classes with numbers are named
    by `classes.txt` or `data.class_names`.

    Args:
        data: The section `data` of the configuration. Its source is "webdataset".
        split: Name of the split.

    Raises:
        UserError: If there are no such files, they are damaged or compressed, or a sample has no image or no label.
    """
    data = download_shards(data, ".tar")
    train = find_shards(data, data.train_split, ".tar")
    labels, class_names, where = _read_labels(data, train, None)
    paths, remarks = train, describe_labels(labels, class_names, escape(where))
    if split != data.train_split:
        paths, remarks = find_shards(data, split, ".tar"), []
        labels, _, where = _read_labels(data, paths, class_names)
    samples, weights = [_scan(path) for path in paths], None
    if data.weight_column is not None and split == data.train_split:
        weights = convert_weight_column(_read_values(data.weight_column, paths, "weight_column"), data, where)
    every = [sample for found in samples for sample in found]
    return TarListing(
        paths=paths,
        files=np.repeat(np.arange(len(paths), dtype=np.int32), [len(found) for found in samples]),
        offsets=np.array([sample.offset for sample in every], np.int64),
        sizes=np.array([sample.size for sample in every], np.int64),
        names=[sample.name for sample in every],
        labels=labels,
        class_names=class_names,
        remarks=remarks,
        weights=weights,
    )


# ----------------------------------------------------------------------------------------------------------- labels


def _read_labels(data, paths, names):
    """Return the labels of some files, the names of the classes, and what to call the files in messages."""
    columns = {name: _read_values(name, paths, "label_columns") for name in label_columns(data)}
    where = paths[0] if len(paths) == 1 else f"{os.path.dirname(paths[0])}, {len(paths):,} files"
    if not next(iter(columns.values())):
        raise UserError(f"{escape(where)} has no images.")
    return *convert_columns(columns, data, where, read_classes(data), names), where


def _read_values(column, paths, key) -> list[Any]:
    """Return what the samples of some files have for a column, which the setting `key` names."""
    return [_find_value(sample, column, path, key) for path in paths for sample in _scan(path)]


def _find_value(sample, column, path, key):
    """Return what a sample has for a column: a number, a text, or what its JSON has."""
    where = f"{escape(path)}: {escape(sample.name)}"
    ending = "cls" if column == "label" and "cls" in sample.texts else column
    if ending in sample.texts and ending != "json":
        text = sample.texts[ending].strip()
        return int(text) if _NUMBER.fullmatch(text) else text
    if "json" not in sample.texts:
        has = ", ".join(f".{escape(name)}" for name in sample.texts) or "nothing else"
        raise UserError(f"{where} has an image but no label. It needs a member .cls or .json; it has {has}.")
    values = parse_json_object(sample.texts["json"], f"{path}: {sample.name}.json")
    if column not in values:
        keys = ", ".join(map(escape, list(values)[:10])) or "nothing"
        raise UserError(f"{where}.json has no key {escape(column)}; it has {keys}. Set data.{key}.")
    return values[column]


# ------------------------------------------------------------------------------------------------------------ files


def _scan(path):
    """Return the samples of a file that have an image. A file that has not changed is read once."""
    check_file(path)
    status = os.stat(path)
    return _scan_version(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(_CACHED_FILES)
def _scan_version(path: str, _time: int, file_bytes: int) -> list[_Sample]:
    places: dict[str, dict[str, tuple[int, int]]] = {}
    texts: dict[str, dict[str, str]] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, base = os.path.split(member.name)
                if not member.isreg() or member.sparse is not None or is_junk(base):
                    continue
                stem, _, ending = base.partition(".")
                name, ending = os.path.join(folder, stem), ending.lower()
                if member.offset_data + member.size > file_bytes:
                    raise UserError(f"{escape(path)} is truncated: the content of {escape(member.name)} is missing.")
                if f".{ending}" in READABLE_SUFFIXES:
                    places.setdefault(name, {})[ending] = member.offset_data, member.size
                elif member.size <= _LARGEST_LABEL_BYTES:
                    content = os.pread(file.fileno(), member.size, member.offset_data)
                    texts.setdefault(name, {})[ending] = content.decode(errors="ignore")
    except UserError:
        raise
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        compressed = " A compressed file must be unpacked." if _is_compressed(path) else ""
        reason = escape(shorten(str(error), 200))
        raise UserError(f"{escape(path)} is no tar file, or is damaged: {reason}.{compressed}") from None
    for name, found in places.items():
        if len(found) > 1:
            endings = " and ".join(f".{escape(ending)}" for ending in found)
            raise UserError(f"{escape(path)}: {escape(name)} has several images, {endings}. Keep one of them.")
        size = next(iter(found.values()))[1]
        if size > LARGEST_FILE_BYTES:
            raise UserError(f"{escape(path)}: {escape(name)} has {size:,} bytes, more than an image can have.")
    return [_Sample(name, *next(iter(found.values())), texts.get(name, {})) for name, found in places.items()]


def _is_compressed(path):
    with open(path, "rb") as file:
        return file.read(4)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")

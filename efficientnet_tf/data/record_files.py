"""Finds the record files of a split and counts their records, before TensorFlow reads them.

TensorFlow allocates the length that a record declares, and crashes if it is absurd. The lengths are therefore checked
here. Imports no TensorFlow for local files, so that a command can check its data at once.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.json_text import parse_json_object
from efficientnet_tf.config.text import check_class_names, escape, normalize_name
from efficientnet_tf.runtime.files import check_file, check_path, exists, is_folder, is_remote, list_folder, read_text
from efficientnet_tf.runtime.terminal import track

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_FILE_NAME = r"-\d{5}-of-\d{5,}"  # what follows the split in the name of a record file
_HEADER = struct.Struct("<QI")  # the length of a record and its checksum
_MOST_RECORD_BYTES = 2**28  # of one image. The largest image that is decoded has about as many uncompressed.
_THREADS = 16


def check_new_records(source: str, split: str, folder: str, shards: int, images: int | None) -> None:
    """Raise UserError if a split cannot be written as record files, as far as this can be known without TensorFlow.

    Args:
        source: The value of `data.source`.
        split: Name of the split.
        folder: Where the files go, local or gs://.
        shards: Number of files.
        images: Number of images of the split, or None if it is not known.
    """
    check_path("output", folder)
    if not re.fullmatch(r"[^/\\.\0\[\]][^/\\\0\[\]]*", split) or source in ("records", "parquet"):
        raise UserError(
            f"data.source={source}, split {split!r}: only whole splits of other sources can be written as records."
        )
    if images is not None and shards > images:
        raise UserError(f"split {split!r} has {images} images, too few for shards={shards}. Use fewer shards.")
    if not is_remote(folder) and os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"{escape(folder)}: cannot write {split!r} to this folder: it is not a folder.")


def find_record_files(folder: str, split: str) -> list[str]:
    """Return the paths of all files of a split, after checking that none is missing.

    Args:
        folder: The folder `data.dir`, local or gs://.
        split: Name of the split.

    Raises:
        UserError: If files are missing, belong to several sets, or are not regular.
    """
    names = list_folder(folder) if is_folder(folder) else []
    where = f"data.dir='{escape(folder)}'"
    found = {name: name.rpartition("-")[2] for name in names if re.fullmatch(re.escape(split) + _FILE_NAME, name)}
    if not found:
        others = sorted({match[1] for name in names if (match := re.fullmatch("(.+)" + _FILE_NAME, name))})
        listed = ", ".join(f"'{escape(other)}'" for other in others)
        hint = f" It has files of {listed}." + suggest(split, others) if others else ""
        raise UserError(
            f"{where} has no file {split}-00000-of-... for the split {split!r}. Set data.train_split and "
            f"data.eval_split to splits that exist.{hint}"
        )
    totals = sorted(set(found.values()))
    if len(totals) > 1:
        raise UserError(f"{where} has files of {split!r} from several sets: of {', '.join(totals)}. Keep one set.")
    expected = (f"{split}-{index:05d}-of-{totals[0]}" for index in range(int(totals[0])))
    missing = list(itertools.islice((name for name in expected if name not in found), 10))
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}. It has {len(found)} of {int(totals[0])} files.")
    if len(found) > int(totals[0]):
        raise UserError(f"{where} has {len(found)} files of {split!r}, more than {int(totals[0])}.")
    paths = [os.path.join(folder, name) for name in sorted(found, key=lambda name: (len(name), name))]
    for path in paths:
        check_file(path)
    return paths


def read_class_file(path: str) -> list[str]:
    """Return the class names of a `classes.txt`, which has one per line, in the order of the labels.

    Raises:
        UserError: If the file cannot be read, or a name cannot be a class name.
    """
    lines = [line.strip(" \t") for line in read_text(path).rstrip("\n\t ").split("\n")]
    check_class_names(lines, escape(path))
    return [normalize_name(line) for line in lines]


def read_record_classes(data: DataConfig) -> list[str]:
    """Return the class names of record files, from DIR/classes.txt, or else numbers up to `data.classes`.

    Raises:
        UserError: If there is neither, they contradict each other, or a name cannot be a class name.
    """
    path = os.path.join(str(data.dir), "classes.txt")
    if exists(path):
        class_names = read_class_file(path)
        if data.classes not in (None, len(class_names)):
            raise UserError(
                f"data.classes={data.classes}, but {escape(path)} names {len(class_names)} classes. Leave data.classes "
                "out."
            )
        return class_names
    if data.classes:
        return [str(number) for number in range(data.classes)]
    raise UserError(
        f"'{escape(str(data.dir))}' has no classes.txt. Give the number of classes, for example --set "
        "data.classes=1000."
    )


def count_records(paths: list[str], summary: str) -> list[int]:
    """Return the number of records of each file.

    Local files are read from one record to the next. On gs://, that would be a request for each record, so the summary
    that `prepare` writes is used if it describes files of these sizes.

    Args:
        paths: The files.
        summary: Path of the summary.

    Raises:
        UserError: If a file is no record file, is truncated, or declares a record that is larger than any image.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        if is_remote(summary):
            sizes = list(pool.map(_remote_size, paths))
            counts = _read_summary(summary, sizes)
            if counts is not None:
                return counts
        return list(track(pool.map(_count_in_file, paths), len(paths), "counting records", "files"))


def _read_summary(path: str, sizes: list[int]) -> list[int] | None:
    """Return the numbers in a summary, or None if there is none for files of these sizes."""
    if not exists(path):
        return None
    try:
        written = parse_json_object(read_text(path), path)
    except UserError:
        return None  # The files can be counted without it.
    counts: Any = written.get("records_per_file")
    is_valid = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
    return counts if is_valid and len(counts) == len(sizes) and written.get("bytes_per_file") == sizes else None


def _remote_size(path):
    import tensorflow as tf

    return tf.io.gfile.stat(path).length


def _count_in_file(path):
    records, position = 0, 0
    with _open(path) as file:
        size = _remote_size(path) if is_remote(path) else os.path.getsize(path)
        while position < size:
            file.seek(position)
            header = file.read(_HEADER.size)
            # A record consists of its length (8 bytes), a checksum (4), the data, and another checksum (4).
            if len(header) == _HEADER.size:
                length, checksum = _HEADER.unpack(header)
                if _checksum(header[:8]) != checksum:
                    raise UserError(
                        f"{escape(path)}: record {records} at byte {position:,} is damaged, or this is no TFRecord "
                        "file."
                    )
                if _MOST_RECORD_BYTES < length <= size:
                    raise UserError(
                        f"{escape(path)}: record {records} declares {length:,} bytes, more than the "
                        f"{_MOST_RECORD_BYTES:,} that are allowed for an image."
                    )
                position += length
            position += 16
            records += 1
    if position != size:
        raise UserError(f"{escape(path)} is truncated: its last record is incomplete.")
    return records


def _open(path) -> Any:
    if not is_remote(path):
        return open(path, "rb", buffering=0)  # Only headers are read.
    import tensorflow as tf

    return tf.io.gfile.GFile(path, "rb")


def _make_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _make_table()


def _checksum(data):
    """Return the masked CRC-32C that TFRecord files have."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

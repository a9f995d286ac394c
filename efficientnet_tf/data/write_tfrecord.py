"""Write the files that `data.source=records` reads: TFRecords in the layout of the official EfficientNet tools.

    DIR/train-00000-of-00128 ...   tf.train.Example: image/encoded, image/class/label (from 1), ...
    DIR/train.json                 images per class, records and bytes per file, images that cannot be decoded
    DIR/classes.txt                the class names, one per line
    DIR/.progress/                 a summary of each file, so that an interrupted run can continue

A file gets its final name only when it is complete.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.json_text import parse_json_object
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.data.open import Order, Source, open_source
from efficientnet_tf.data.record_examples import explain_reading, read_example
from efficientnet_tf.data.record_files import check_new_records
from efficientnet_tf.runtime.files import (
    check_file,
    exists,
    is_remote,
    list_folder,
    read_text,
    sync,
    write_text,
)
from efficientnet_tf.runtime.terminal import ProgressBar

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import DataConfig

_MOST_THREADS = 256
# Errors of the storage, not of the image. The image must not be left out because of them.
_STORAGE_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.ResourceExhaustedError,
)


def write_records(
    data: DataConfig,
    split: str,
    folder: str,
    shards: int,
    workers: int,
    beam_arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Write a split of a source as record files.

    Args:
        data: The section `data` of the configuration that names the source.
        split: Name of the split. The names of the files start with it.
        folder: Where the files go, local or gs://. It is created if it does not exist.
        shards: Number of files, >= 1.
        workers: Number of threads, >= 1.
        beam_arguments: Flags of Apache Beam. If given, Beam writes the files, on several machines.

    Returns:
        The contents of <split>.json.

    Raises:
        UserError: If the source does not exist or has fewer images than `shards`, if the folder cannot be written, or
            if it has files of other data or of another number of shards of this split.
    """
    check_new_records(data.source, split, folder, shards, images=None)
    source = _open_split(data, split)
    check_new_records(data.source, split, folder, shards, source.size)
    try:
        tf.io.gfile.makedirs(os.path.join(folder, ".progress"))
        _check_folder(folder, data, split, source, shards)
        if beam_arguments is not None:
            _write_with_beam(functools.partial(write_shard, data, split, folder, shards), shards, beam_arguments)
            parts = [write_shard(data, split, folder, shards, shard, source) for shard in range(shards)]
        else:
            parts = _write_with_threads(data, split, folder, shards, source, workers)
        summary = _summarize(parts, source)
        write_text(os.path.join(folder, f"{split}.json"), json.dumps(summary, indent=1))
        write_text(os.path.join(folder, "classes.txt"), _format_class_names(source))
    except (tf.errors.OpError, OSError) as error:
        reason = escape(shorten(getattr(error, "message", None) or str(error), 300))
        raise UserError(f"{escape(folder)}: cannot write {split!r} to this folder: {reason}") from error
    return summary


def _summarize(parts, source):
    counts = collections.Counter()
    for part in parts:
        counts.update(part["classes"])
    return {
        "examples_per_class": {name: counts[str(label)] for label, name in enumerate(source.class_names)},
        "records_per_file": [part["records"] for part in parts],
        "bytes_per_file": [part["bytes"] for part in parts],
        "unreadable": [line for part in parts for line in part["unreadable"]],
    }


def _format_class_names(source):
    return "".join(f"{name}\n" for name in source.class_names)


def _check_folder(folder, data, split, source, shards):
    """Raise UserError if the folder has files that do not belong with those to be written."""
    pattern = re.escape(split) + r"-\d{5}-of-\d{5,}"
    names = [name for name in list_folder(folder) if re.fullmatch(pattern, name)]
    other = [name for name in names if not name.endswith(f"-of-{shards:05d}")]
    if other:
        raise UserError(
            f"{escape(folder)} has files of {split!r} with another number of shards, for example {other[0]}. "
            f"Use another folder or the same number, not shards={shards}."
        )
    classes = os.path.join(folder, "classes.txt")
    if exists(classes) and read_text(classes) != _format_class_names(source):
        raise UserError(
            f"{escape(classes)} names other classes than data.source={data.source}, split {split!r}. Use another "
            "folder."
        )
    # Files of an earlier call are kept, so they must come from the same images.
    names = [source.describe(i) for i in range(source.size)] if source.indexed else []
    digest = hashlib.sha256("\n".join([data.source, *names, *source.class_names]).encode()).hexdigest()
    fingerprint = {"images": source.size, "sha256": digest, "labels": source.fingerprint}
    path = os.path.join(folder, ".progress", f"{split}.json")
    if exists(path):
        found = parse_json_object(read_text(path), path)
        # Earlier versions did not write all keys.
        if "sha256" not in found or found != {key: value for key, value in fingerprint.items() if key in found}:
            raise UserError(
                f"{escape(folder)} has files of {split!r} from other images than data.dir={data.dir!r} has now. Use "
                "another folder."
            )
    write_text(path, json.dumps(fingerprint))


# --------------------------------------------------------------------------------------------------------- one file


def write_shard(
    data: DataConfig,
    split: str,
    folder: str,
    shards: int,
    shard: int,
    source: Source | None = None,
    on_images: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write one record file, unless it exists already.

    Args:
        data: The section `data` of the configuration that names the source.
        split: Name of the split.
        folder: Where the file goes, local or gs://.
        shards: Number of files of the split.
        shard: Index of this file, in [0, shards).
        source: The source that `data` names. If None, it is opened, once per process.
        on_images: Called with the number of images done since the last call. An exception from it stops the work.

    Returns:
        {"records": int, "bytes": int, "classes": {label: count}, "unreadable": [name: reason, ...]}.
    """
    path = shard_path(folder, split, shard, shards)
    summary_path = os.path.join(folder, ".progress", os.path.basename(path) + ".json")
    summary = _read_summary(path, summary_path)
    if summary is not None:
        on_images(summary["records"] + len(summary["unreadable"]))
        return summary
    classes, unreadable = collections.Counter(), []
    unfinished = os.path.join(folder, ".progress", os.path.basename(path))
    if exists(unfinished):
        tf.io.gfile.remove(unfinished)  # Opening what is not a regular file could wait forever.
    with tf.io.TFRecordWriter(unfinished) as writer:
        for name, part, payload in _read_shard(data, split, source or _open_split_once(data, split), shards, shard):
            on_images(1)
            try:
                example, label = read_example(name, part, payload)
            except _STORAGE_ERRORS:
                raise
            except tf.errors.OpError as error:
                unreadable.append(f"{name}: {explain_reading(part, payload, error)}")
                continue
            writer.write(example)
            classes[label] += 1
    summary = {
        "records": sum(classes.values()),
        "bytes": tf.io.gfile.stat(unfinished).length,
        "classes": {str(label): count for label, count in sorted(classes.items())},
        "unreadable": unreadable,
    }
    if not is_remote(folder):
        sync(unfinished)
    write_text(summary_path, json.dumps(summary))
    tf.io.gfile.rename(unfinished, path, overwrite=True)
    return summary


def _read_summary(path, summary_path):
    """Return the summary of a complete file, or None if it has to be written again."""
    if not exists(path) or not exists(summary_path):
        return None
    try:
        summary = parse_json_object(read_text(summary_path), summary_path)
        check_file(path)
    except UserError:
        return None
    classes, unreadable = summary.get("classes"), summary.get("unreadable")
    is_valid = (
        isinstance(classes, dict)
        and all(type(count) is int for count in classes.values())
        and summary.get("records") == sum(classes.values())
        and isinstance(unreadable, list)
        and all(isinstance(line, str) for line in unreadable)
    )
    return summary if is_valid and summary.get("bytes") == tf.io.gfile.stat(path).length else None


def shard_path(folder: str, split: str, index: int, count: int) -> str:
    """Return the path of a record file: DIR/train-00003-of-00128."""
    return os.path.join(folder, f"{split}-{index:05d}-of-{count:05d}")


def _open_split(data, split):
    return open_source(data, split, training=split == data.train_split)


_open_split_once: Any = functools.lru_cache(maxsize=1)(_open_split)


def _read_shard(data, split, source, shards, shard) -> Iterator[tuple[str, Source, tf.Tensor]]:
    """Yield (name, source, payload) of the images of a shard: a share of all classes, the same in every call."""
    if source.indexed:
        # Shuffle once, because a reader shuffles only within its buffer.
        for index in np.random.default_rng(0).permutation(source.size)[shard::shards].tolist():
            yield source.describe(index), source, tf.constant(index, tf.int64)
    else:
        # The records of the dataset are already shuffled. A slice of the split can be found without reading the others.
        first, last = (source.size * i // shards for i in (shard, shard + 1))
        part = _open_split(data, f"{split}[{first}:{last}]")
        for _, id_, record in part.stream(Order(batch=1, steps=part.size)):
            yield part.describe(int(id_)), part, record


# --------------------------------------------------------------------------------------------------------- all files


def _write_with_threads(data, split, folder, shards, source, workers):
    """Write all files on this machine. Threads suffice, because TensorFlow decodes and writes outside Python's lock."""
    stop, lock = threading.Event(), threading.Lock()
    with (
        ThreadPoolExecutor(min(workers, shards, _MOST_THREADS)) as pool,
        ProgressBar(source.size, split, "images") as bar,
    ):

        def on_images(count):
            if stop.is_set():
                raise InterruptedError("another file failed")
            with lock:
                bar.advance(count)

        futures = [pool.submit(write_shard, data, split, folder, shards, i, source, on_images) for i in range(shards)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            stop.set()  # Stops the other threads if one has failed. Otherwise all are done.
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _write_with_beam(write, shards, arguments):
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise UserError(
            "Apache Beam is needed to write with Beam, and is not installed. Run pip install 'efficientnet_tf[beam]'."
        ) from None
    with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        _ = pipeline | beam.Create(range(shards)) | beam.Reshuffle() | beam.Map(lambda shard: bool(write(shard)))

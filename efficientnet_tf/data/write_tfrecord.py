"""Writes what `data.source=records` reads: TFRecord files in the layout of the official EfficientNet and ResNet tools.

    DIR/train-00000-of-00128 ...   tf.train.Example: image/encoded, image/class/label (counted from 1), ...
    DIR/train.json                 examples of each class, records of each file, images that cannot be decoded
    DIR/classes.txt                the class names, one a line
    DIR/.progress/                 notes on each file, for a run that is killed and started again

A file comes to its name only when it is whole.
"""

import collections
import functools
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.decode import check_bitmap
from efficientnet_tf.data.open import Order, open_source
from efficientnet_tf.runtime.files import read_text, write_text

# The storage is at fault, not the image: to leave the image out would be wrong.
_PASSING = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.ResourceExhaustedError,
)


def shard_path(folder, split, index, count):
    """Return the path of a record file: DIR/train-00003-of-00128."""
    return os.path.join(folder, f"{split}-{index:05d}-of-{count:05d}")


def make_example(encoded, label, class_name, name):
    """Return an example of the official layout, serialized.

    Args:
        encoded: bytes of an image file; decoded here, to be sure that it can be.
        label: int >= 0; written as label + 1, as the official tools count.
        class_name: str.
        name: str, the file's name.

    Raises:
        tf.errors.OpError: when the image cannot be decoded.
    """
    if encoded.startswith(b"BM"):
        check_bitmap(encoded)
    height, width, channels = tf.io.decode_image(encoded, channels=3, expand_animations=False).shape
    kind = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"BM": "BMP", b"GI": "GIF", b"RI": "WEBP"}[encoded[:2]]

    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))

    def number(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "image/format": text(kind),
        "image/filename": text(name),
        "image/class/label": number(label + 1),
        "image/class/text": text(class_name),
        "image/height": number(height),
        "image/width": number(width),
        "image/channels": number(channels),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _open(data, split):
    return open_source(data, split, training=split == data.train_split)


_open_once = functools.lru_cache(maxsize=1)(_open)


def _examples(data, split, source, shards, shard):
    """Yield (name, source, payload) of a shard's examples: a share of all classes, the same at every call."""
    if source.indexed:
        # Shuffled once, for a reader shuffles no further than its buffer.
        for index in np.random.default_rng(0).permutation(source.size)[shard::shards].tolist():
            yield source.describe(index), source, tf.constant(index, tf.int64)
    else:
        # The data set's own records are shuffled already; a slice of the split is found without reading the others.
        first, last = (source.size * i // shards for i in (shard, shard + 1))
        part = _open(data, f"{split}[{first}:{last}]")
        for _, id_, record in part.stream(Order(batch=1, steps=part.size)):
            yield part.describe(int(id_)), part, record


def write_shard(data, split, folder, shards, shard, source=None, tick=lambda images: None):
    """Write one record file, unless it is there.

    Args:
        data: schema.DataConfig of a source.
        split: str.
        folder: str, local or gs://.
        shards: int, number of files of the split.
        shard: int in [0, shards).
        source: sources.Source, what `data` describes; None opens it, once a process.
        tick: called with the number of images done since the last call; what it raises ends the work.

    Returns:
        {"records": int, "bytes": int, "classes": {label: count}, "unreadable": [name: why, ...]}.
    """
    path = shard_path(folder, split, shard, shards)
    notes = os.path.join(folder, ".progress", os.path.basename(path) + ".json")
    if tf.io.gfile.exists(path) and tf.io.gfile.exists(notes):
        summary = json.loads(read_text(notes))
        tick(summary["records"] + len(summary["unreadable"]))
        return summary
    classes, unreadable = collections.Counter(), []
    unfinished = os.path.join(folder, ".progress", os.path.basename(path))
    with tf.io.TFRecordWriter(unfinished) as writer:
        for name, part, payload in _examples(data, split, source or _open_once(data, split), shards, shard):
            tick(1)
            try:
                encoded, label = (tensor.numpy() for tensor in part.load(payload))
                file_name = part.file_name(payload).numpy().decode() if part.file_name else name
                example = make_example(encoded, int(label), part.class_names[label], os.path.basename(file_name))
            except _PASSING:
                raise
            except tf.errors.OpError as error:
                unreadable.append(f"{name}: {(error.message.splitlines() or ['cannot be read'])[0]}")
                continue
            writer.write(example)
            classes[int(label)] += 1
    summary = {
        "records": sum(classes.values()),
        "bytes": tf.io.gfile.stat(unfinished).length,
        "classes": {str(label): count for label, count in sorted(classes.items())},
        "unreadable": unreadable,
    }
    write_text(notes, json.dumps(summary))
    tf.io.gfile.rename(unfinished, path, overwrite=True)
    return summary


def write_records(data, split, folder, shards, workers, beam_arguments=None):
    """Write a split of a source as record files.

    Args:
        data: schema.DataConfig.
        split: str, also the first part of the files' names.
        folder: str, local or gs://; made where it is not there.
        shards: int >= 1.
        workers: int >= 1, threads.
        beam_arguments: None, or a list of Apache Beam's own flags: then Beam runs the shards, on many machines.

    Returns:
        dict, what comes to stand in <split>.json.

    Raises:
        UserError: for a source that is not there or has fewer images than `shards`, a folder that cannot be written, or
            one with files of other data or another number of shards of this split.
    """
    if data.source == "records" or "[" in split:
        raise UserError(f"data.source={data.source}, split {split!r}: only whole splits that are not records yet")
    source = _open(data, split)
    if shards > source.size:
        raise UserError(f"split {split!r} has {source.size} images, which cannot fill {shards} files: give fewer")
    try:
        tf.io.gfile.makedirs(os.path.join(folder, ".progress"))
        _check_folder(folder, data, split, source, shards)
        if beam_arguments is not None:
            _run_beam(functools.partial(write_shard, data, split, folder, shards), shards, beam_arguments)
            parts = [write_shard(data, split, folder, shards, shard, source) for shard in range(shards)]
        else:
            parts = _run_threads(data, split, folder, shards, source, workers)
        counts = collections.Counter()
        for part in parts:
            counts.update(part["classes"])
        summary = {
            "examples_per_class": {name: counts[str(label)] for label, name in enumerate(source.class_names)},
            "records_per_file": [part["records"] for part in parts],
            "bytes_per_file": [part["bytes"] for part in parts],
            "unreadable": [line for part in parts for line in part["unreadable"]],
        }
        write_text(os.path.join(folder, f"{split}.json"), json.dumps(summary, indent=1))
        write_text(os.path.join(folder, "classes.txt"), _class_lines(source))
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{folder}: cannot write {split!r} there: {error}") from error
    return summary


def _class_lines(source):
    return "".join(f"{name}\n" for name in source.class_names)


def _check_folder(folder, data, split, source, shards):
    """Refuse a folder whose files would not go together with those to come."""
    other = [
        n for n in tf.io.gfile.listdir(folder) if n.startswith(f"{split}-") and not n.endswith(f"-of-{shards:05d}")
    ]
    if other:
        raise UserError(
            f"{folder} holds files of {split!r} in another number of shards, {other[0]} for one; "
            "take another folder or the same number"
        )
    classes = os.path.join(folder, "classes.txt")
    if tf.io.gfile.exists(classes) and read_text(classes) != _class_lines(source):
        raise UserError(f"{classes} names other classes than data.source={data.source}, split {split!r}")
    # Files that an earlier call wrote are kept: they must be of the same images.
    names = [source.describe(i) for i in range(source.size)] if source.indexed else []
    digest = hashlib.sha256("\n".join([data.source, *names, *source.class_names]).encode()).hexdigest()
    begun, now = os.path.join(folder, ".progress", f"{split}.json"), {"images": source.size, "sha256": digest}
    if tf.io.gfile.exists(begun) and json.loads(read_text(begun)) != now:
        raise UserError(
            f"{folder} holds files of {split!r} from other images than data.dir={data.dir!r} has now; "
            "take another folder"
        )
    write_text(begun, json.dumps(now))


def _run_threads(data, split, folder, shards, source, workers):
    """Write all shards on this machine: TensorFlow decodes and writes outside Python's lock, so threads do."""
    failed, lock = threading.Event(), threading.Lock()
    with ThreadPoolExecutor(workers) as pool, tqdm(total=source.size, unit="image", desc=split) as bar:

        def tick(images):
            if failed.is_set():
                raise InterruptedError("another file failed")
            with lock:
                bar.update(images)

        futures = [pool.submit(write_shard, data, split, folder, shards, i, source, tick) for i in range(shards)]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            failed.set()  # nothing runs any more, or nothing shall
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _run_beam(write, shards, arguments):
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError:
        raise UserError("--beam needs Apache Beam: pip install 'efficientnet_tf[beam]'") from None
    with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        _ = pipeline | beam.Create(range(shards)) | beam.Reshuffle() | beam.Map(lambda shard: bool(write(shard)))

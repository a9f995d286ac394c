"""Parquet files, tar files of WebDataset and files of labels, as people download them or a stranger could make them."""

import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from robustness.kit import picture, write_irregular, write_photos

ITEM = "data in Parquet and tar files"
SUFFIXES = {"parquet": "parquet", "webdataset": "tar"}


def _png():
    file = io.BytesIO()
    picture().save(file, "png")
    return file.getvalue()


PNG = _png()


def _parquet(labels=(0, 1, 2, 0), images=None, metadata=None, **columns):
    images = [{"bytes": PNG, "path": None}] * len(labels) if images is None else images
    table = pa.table({"image": images, "label": list(labels), **columns})
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


def _features(label):
    return {"huggingface": json.dumps({"info": {"features": {"label": label}}})}


def _tar(members, kind=tarfile.REGTYPE, size=None):
    """Return a tar file. A `size` is what the headers say, whatever the content is."""
    file = io.BytesIO()
    for name, content in members.items():
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, len(content) if size is None else size
        member.linkname = "" if kind == tarfile.REGTYPE else "/etc/passwd"
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.write(content + bytes(-len(content) % 512))
    return file.getvalue() + bytes(1024)


def _samples(*labels):
    found = {}
    for number, label in enumerate(labels):
        found |= {f"{number}.png": PNG, f"{number}.cls": label if isinstance(label, bytes) else str(label).encode()}
    return found


def containers(write):
    """Damaged files, files of other layouts, and labels that cannot be right."""
    _parquet_files(write)
    _tar_files(write)
    _pseudo_labels(write)


def _add(write, source, name, content, says):
    folder = write.folder(f"{source} {name}")
    (folder / "data").mkdir()
    for split in ("train", "val"):
        (folder / f"data/{split}.{SUFFIXES[source]}").write_bytes(content)
    argv = write.kit.train("data", f"--set=data.source={source}")
    write.add(folder, f"train: {source}, {name}", argv, says=says, light=True, item=ITEM)


def _add_irregular(write, source):
    folder = write.folder(f"{source} irregular")
    places = write_irregular(folder)
    for name in ("fifo", "socket", "zero", "loop", "dangling", "folder"):
        (folder / name.upper()).mkdir()
        os.symlink(places[name], folder / name.upper() / f"train.{SUFFIXES[source]}")
        argv = write.kit.train(name.upper(), f"--set=data.source={source}")
        write.add(folder, f"train: {source}, {name}", argv, light=True, item=ITEM)


def _parquet_files(write):
    good = _parquet()
    bad = {
        "empty": (b"", "no Parquet file"),
        "text": (b"<html>404 Not Found</html>", "no Parquet file"),
        "truncated": (good[: len(good) // 2], "no Parquet file"),
        "a footer of 2 GiB": (good[:-8] + b"\xff\xff\xff\x7fPAR1", "no Parquet file"),
        "noise in the footer": (good[:-60] + b"\xff" * 52 + good[-8:], "no Parquet file|damaged"),
        "no rows": (_parquet(labels=()), "no rows"),
        "no image": (_parquet(images=[{"bytes": None, "path": "a.png"}] * 4), "only paths"),
        "urls": (_parquet(images=["http://x/a.png"] * 4), "no column has images"),
        "labels unknown": (_parquet((-1, -1, -1, -1)), "label is not known"),
        "a gap": (_parquet((0, 2, 2, 0)), "no training image has the label 1"),
        "huge numbers": (_parquet((0, 2**60, 1, 0)), "classes count from 0"),
        "decimals": (_parquet((0.5, 1.5, 2.5, 3.5)), "data.task=regression"),
        "lists": (_parquet(([0], [1], [0, 1], [])), "data.task=multilabel"),
        "nothing": (_parquet((None, "a", "b", "a")), "received None"),
        "bytes": (_parquet((b"a", b"b", b"a", b"b"), images=[{"bytes": PNG, "path": ""}] * 4), "image|label"),
        "one class": (_parquet(("a", "a", "a", "a")), "only one class"),
        "escape in a class": (_parquet(("a", "\x1b[31m", "b", "a")), ""),
        "U+2028 in a class": (_parquet(("a", "b\u2028c", "c", "a")), ""),
        "a class twice": (_parquet(metadata=_features({"names": ["a", "a", "b"]})), "both named"),
        "fewer names": (_parquet(metadata=_features({"names": ["a", "b"]})), "there are 2 classes"),
        "names of another type": (_parquet((0, 2, 2, 0), metadata=_features({"names": [1, 2, 3]})), "label 1"),
        "features that are no JSON": (_parquet((0, 2, 2, 0), metadata={"huggingface": "{"}), "label 1"),
        "nested features": (_parquet((0, 2, 2, 0), metadata={"huggingface": "[" * 50_000}), "label 1"),
    }
    for name, (content, says) in bad.items():
        _add(write, "parquet", name, content, says)
    _add_irregular(write, "parquet")


def _tar_files(write):
    deep = b'{"label": ' + b"[" * 50_000
    bad = {
        "empty": (b"", "no images|no tar file"),
        "text": (b"<html>404 Not Found</html>" * 40, "no tar file"),
        "compressed": (b"\x1f\x8b\x08" + bytes(2000), "must be unpacked"),
        "truncated": (_tar(_samples(0, 1, 0, 1))[:-12_000], "truncated|damaged|no label"),
        "a size of 8 GiB": (_tar({"0.png": PNG}, size=2**33 - 1), "truncated"),
        "links": (_tar({"0.png": b""}, tarfile.SYMTYPE), "no images"),
        "devices": (_tar({"0.png": b""}, tarfile.CHRTYPE), "no images"),
        "FIFOs": (_tar({"0.png": b""}, tarfile.FIFOTYPE), "no images"),
        "no labels": (_tar({"0.png": PNG, "0.txt": b"a cat"}), "no label"),
        "two images": (_tar({"0.png": PNG, "0.jpg": PNG, "0.cls": b"0"}), "several images"),
        "an empty label": (_tar(_samples(0, "", 1)), "label"),
        "a negative label": (_tar(_samples(0, -1, 1)), "label is -1"),
        "9,000 digits": (_tar(_samples(0, "9" * 9000, 1)), "label"),
        "escape in a class": (_tar(_samples("a", "\x1b[31m", "b")), ""),
        "bytes as a class": (_tar(_samples("a", b"\xff\xfe", "b")), "label|empty|class"),
        "JSON that is cut": (_tar({"0.png": PNG, "0.json": b'{"label": '}), "json"),
        "nested JSON": (_tar({"0.png": PNG, "0.json": deep}), "json"),
        "a list in JSON": (_tar({"0.png": PNG, "0.json": b"[1]"}), "json"),
        "another key": (_tar({"0.png": PNG, "0.json": b'{"class": 1}'}), "no key label"),
        "dots and slashes": (_tar({"../../0.png": PNG, "/1.cls": b"0"}), "no label"),
    }
    for name, (content, says) in bad.items():
        _add(write, "webdataset", name, content, says)
    _add_irregular(write, "webdataset")


def _pseudo_labels(write):
    names = {"class_names": json.dumps(["cat", "dog", "owl"])}
    rows = {"path": ["/nowhere/a.png"], "probabilities": [[0.5, 0.25, 0.25]]}

    def table(notes=None, **columns):
        file = io.BytesIO()
        pq.write_table(pa.table(rows | columns).replace_schema_metadata(names if notes is None else notes), file)
        return file.getvalue()

    bad = {
        "empty": (b"", "no Parquet file"),
        "a table of images": (_parquet(), "predict --soft"),
        "missing images": (table(), "are missing"),
        "a sum of 2": (table(probabilities=[[1.0, 0.5, 0.5]]), "sum of 1"),
        "NaN": (table(probabilities=[[np.nan, 0.5, 0.5]]), "sum of 1"),
        "texts": (table(probabilities=[["a", "b", "c"]]), "sum of 1"),
        "no path": (table(path=[None]), "without a path"),
        "a number as path": (table(path=[7]), "without a path"),
        "other classes": (table({"class_names": '["cat", "dog", "elk"]'}), "elk, owl"),
        "classes that are no list": (table({"class_names": "7"}), "predict --soft"),
        "nested classes": (table({"class_names": "[" * 50_000}), "predict --soft"),
        "NUL in a path": (table(path=["a\0b"]), "missing|path"),
    }
    for name, (content, says) in bad.items():
        folder = write.folder(f"pseudo {name}")
        write_photos(folder / "data")
        (folder / "labels.parquet").write_bytes(content)
        argv = write.kit.train("data", "--set=data.pseudo_labels=labels.parquet")
        write.add(folder, f"train: labels of a network, {name}", argv, says=says, light=True, item=ITEM)

"""Files of arrays as people save and download them, and as a stranger could make them."""

import gzip
import io
import os
import struct
import zipfile

import numpy as np
from robustness.harness import OK
from robustness.kit import write_irregular

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 9, 8, 3), np.uint8)
LABELS = np.arange(12) % 3
SPLITS = ("--set=data.eval_split=test",)


def _npz(save=np.savez, **changes):
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:6], "y_test": LABELS[:6]} | changes
    file = io.BytesIO()
    save(file, **{name: values for name, values in arrays.items() if values is not None})
    return file.getvalue()


def _zip(compression=zipfile.ZIP_DEFLATED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def _npy(header):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + bytes(500)


def _idx(values, rank=None):
    shape = values.shape
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, rank or len(shape), *shape) + values.astype(np.uint8).tobytes()


def _train(write, name):
    return write.kit.train(name, "--set=data.source=arrays", *SPLITS)


def arrays(write):
    """Archives of NumPy and idx files: damaged, of other types and shapes, too large, and with hostile names."""
    header = "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"
    bad = {
        "empty": (b"", "zip"),
        "text": (b"<html>404 Not Found</html>", "zip"),
        "truncated": (_npz()[:-300], "zip"),
        "no arrays": (_zip(), "no array"),
        "other names": (_npz(x_train=None, y_train=None, x_test=None, arr_0=IMAGES), "arr_0"),
        "floats": (_npz(x_train=IMAGES / 255), "uint8"),
        "nan": (_npz(x_train=np.full(IMAGES.shape, np.nan, np.float32)), "uint8"),
        "channels first": (_npz(x_train=IMAGES.transpose(0, 3, 1, 2)), "transpose"),
        "one-hot": (_npz(y_train=np.eye(3)[LABELS].astype(int)), "argmax"),
        "objects": (_npz(y_train=np.array([{}] * 12)), "Python objects"),
        "negative label": (_npz(y_train=LABELS - 1), "image 0 is -1"),
        "gap": (_npz(y_train=LABELS * 2), "label 1"),
        "huge label": (_npz(y_train=LABELS + 2**40), ""),
        "fewer labels": (_npz(y_train=LABELS[:-1]), "12 images"),
        "a label only in test": (_npz(y_test=LABELS[:6] + 1), "image 2"),
        "one class": (_npz(y_train=LABELS * 0, y_test=LABELS[:6] * 0), "one class"),
        "bomb": (_npz(np.savez_compressed, x_train=np.zeros((50, 1000, 1000), np.uint8)), "expands"),
        "declares much": (
            _zip(x_train=_npy(header % ("|u1", "2147483648, 28, 28")), y_train=_npy("")),
            "declares|type",
        ),
        "declares an absurd size": (_zip(x_train=_npy(header % ("|u1", "9" * 5000)), y_train=_npy("")), "digits"),
        "deep header": (_zip(x_train=_npy("(" * 9000), y_train=_npy("")), "header"),
        "absurd type": (_zip(x_train=_npy(header % ("<U999999999", "1, 1, 1")), y_train=_npy("")), "declares|type"),
        "lzma": (_zip(zipfile.ZIP_LZMA, x_train=b"", y_train=b""), "deflate"),
        "leads out": (_zip(**{"../../x_train": b"", "y_train": b""}), "leads out"),
        "escape as a name": (_npz(**{"x_\x1b[31mred": IMAGES, "x_train": None}), ""),
    }
    for character, text in {"escape": "a\x1b[31mb", "newline": "a\nb", "U+2028": "a\u2028b", "empty": ""}.items():
        bad[f"class name with {character}"] = (_npz(classes=["cat", "dog", text]), "class")
    item = "D arrays"
    for name, (content, says) in bad.items():
        folder = write.folder(name)
        (folder / "own.npz").write_bytes(content)
        write.add(folder, f"train: arrays, {name}", _train(write, "own.npz"), light=True, says=says, item=item)
    _idx_files(write, item)
    folder = write.folder("irregular")
    places = write_irregular(folder)
    for name in ("fifo", "socket", "zero", "loop", "dangling"):
        (folder / name.upper()).mkdir()
        os.symlink(places[name], folder / name.upper() / "own.npz")
        argv = _train(write, name.upper())
        write.add(folder, f"train: {name} named own.npz", argv, light=True, item=item)
    _whole(write, item)


def _idx_files(write, item):
    good = {"train": (IMAGES[..., 0], LABELS), "t10k": (IMAGES[:6, ..., 0], LABELS[:6])}
    images = _idx(IMAGES[..., 0])
    bad = {
        "declare 2^31 images": (struct.pack(">4I", 0x803, 2**31, 28, 28) + images[16:], "declares"),
        "packed, declare 2^31 images": (gzip.compress(struct.pack(">4I", 0x803, 2**31, 28, 28)), "declares"),
        "wrong magic number": (b"\x89PNG" + images[4:], "no idx file"),
        "truncated": (images[:-9], "declares"),
        "200 axes": (_idx(IMAGES[..., 0], 200), "200 axes"),
        "a bomb": (gzip.compress(_idx(np.zeros((60, 1000, 1000), np.uint8))), "declares"),
    }
    for name, (content, says) in bad.items():
        folder = write.folder(name)
        for split, (pixels, labels) in good.items():
            (folder / f"{split}-images-idx3-ubyte").write_bytes(_idx(pixels))
            (folder / f"{split}-labels-idx1-ubyte").write_bytes(_idx(labels))
        (folder / "train-images-idx3-ubyte").write_bytes(content)
        write.add(folder, f"train: idx files, {name}", _train(write, "."), light=True, says=says, item=item)


def _whole(write, item):
    """Files that are read, or whose pixels alone are damaged."""
    settings = {"status": (0, 1), "writes": ("records*",), "item": item}
    argv = ["prepare", "--source=arrays", "--output=records", "--splits=train", "--shards=1"]
    for number in range(write.count):
        content = bytearray(_npz(np.savez_compressed if number % 2 else np.savez))
        for _ in range(2):
            content[write.random.randrange(len(content))] = write.random.randrange(256)
        folder = write.folder(f"random {number}")
        (folder / "own.npz").write_bytes(content)
        write.add(folder, f"prepare: arrays, random bytes {number}", [*argv, "--data_dir=own.npz"], **settings)
    folder = write.folder("cut")
    for split, count in (("train", 12), ("t10k", 6)):
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(IMAGES[:count, ..., 0]))[:-20])
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(LABELS[:count])))
    write.add(folder, "prepare: cut idx files", [*argv, "--data_dir=."], **settings | {"status": (1,)})
    folder = write.folder("good")
    (folder / "own.npz").write_bytes(_npz(np.savez_compressed))
    write.add(folder, "prepare: arrays", [*argv, "--data_dir=own.npz"], **settings | {"status": OK})
    run = {"status": OK, "writes": ("run*",), "item": item}
    write.add(folder, "train: arrays", _train(write, "own.npz"), **run)
    argv = ["show", *write.kit.config, "--set=data.source=arrays", "--data_dir=own.npz", "--output=grid.png", *SPLITS]
    write.add(folder, "show: arrays", [*argv, "--rows=1", "--columns=1"], status=OK, writes=("grid.png",), item=item)

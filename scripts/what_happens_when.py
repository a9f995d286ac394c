"""Runs odd, broken and hostile inputs and writes what each command says: `python scripts/what_happens_when.py`.

Every row of docs/what_happens_when.md is a command that this script ran. The inputs are made in a temporary folder.
With the titles of sections as arguments, only these are run again: `python scripts/what_happens_when.py Tables`.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "what_happens_when.md"
TINY = ROOT / "tests" / "tiny.yaml"
COLORS = {"cat": (200, 60, 60), "dog": (60, 200, 60), "owl": (60, 60, 200)}
# One pass over a few images, which is enough to get to the end of a run.
SHORT = (
    "--set data.image_size=32 --set train.epochs=1 --set train.batch_size=12 --set eval.batch_size=12 "
    "--set schedule.warmup_epochs=0"
)
LONG = f"train --variant=tiny.yaml --recipe=folder {SHORT.replace('epochs=1 ', 'epochs=10000 ')}"
TRAIN = f"train --variant=tiny.yaml --recipe=folder {SHORT}"
PREDICT = "predict --model_dir=run --top=1"
TASK = f"{TRAIN} --set data.source=table --set data.task={{}} --data_dir={{}} --model_dir=new"
PHOTOS = f"{TRAIN} --data_dir=photos --model_dir=new"
WEIGHTED = f"{TRAIN} --set data.source=table --set data.weight_column=weight --data_dir={{}} --model_dir=new"
SOURCE = f"{TRAIN} --set data.source={{}} --data_dir={{}} --model_dir=new"
CLUSTER = '{"cluster": {"worker": ["host:99999", "other:1"]}, "task": {"type": "worker", "index": 0}}'
EXPLANATION = """# What happens when

Someone else's folder, a file from the internet, a full disk: this page lists what the commands do with inputs that are
odd, broken or hostile. `python scripts/what_happens_when.py` made the inputs, ran every command below and wrote this
page. A command that refuses something exits with status 1 and leaves nothing behind, or with status 2 if a flag is
wrong. Status 75 means that a training run was stopped, is saved, and continues with the same command. See
[SECURITY.md](../SECURITY.md) for what is trusted.

The output is shortened to the lines that matter, and `...` marks what was cut.
"""


@dataclass
class Case:
    """An input, and the command that gets it."""

    title: str
    command: str  # of the package, or a line for the shell that contains the word efficientnet-tf
    make: Callable[[], None] = lambda: None
    kept: str = (
        r"(^|: )(error|warning):|^step|^\S+\.(jpg|png|gif|bmp|webp|tif)|Finished|not used|left out|continues|^  \S"
    )
    """Pattern of the output lines to show, if there are many."""


# ------------------------------------------------------------------------------------------------------------ inputs


def picture(color, height=80, width=100):
    """Return an image of noise around a color."""
    noise = np.random.default_rng(sum(color)).normal(color, 40, (height, width, 3))
    return Image.fromarray(np.clip(noise, 0, 255).astype("uint8"))


def photos(folder, counts):
    """Write folders of photos: {split or "": photos per class}."""
    for split, count in counts.items():
        for label, color in COLORS.items():
            target = Path(folder, split, label)
            target.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(color).save(target / f"{i}.jpg")


def table(folder, rows, encoding="utf-8"):
    """Write the two tables of a data set whose images are those of `photos`."""
    Path(folder).mkdir()
    os.symlink(os.path.abspath("photos/train"), f"{folder}/train")
    for split in ("train", "val"):
        Path(folder, f"{split}.csv").write_bytes(("path,label\n" + "\n".join(rows) + "\n").encode(encoding))


def copy_of(source, target, *changes):
    """Copy a folder and change the copy: {file: new content, or None to delete it}."""
    subprocess.run(["cp", "-r", source, target], check=True)
    for name, content in changes:
        path = Path(target, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink() if content is None else path.write_bytes(content)


def edit(path, old, new):
    """Replace a text in a file. It must be there."""
    text = Path(path).read_text()
    if old not in text:
        raise ValueError(f"{path} has no {old!r}")
    Path(path).write_text(text.replace(old, new))


def external_weights():
    """Write weights whose first dataset is stored in another file of this machine."""
    with h5py.File("external.weights.h5", "w") as file:
        file.create_dataset("stem_conv/kernel", (3, 3, 3, 8), "f4", external=[("/etc/hostname", 0, 864)])


def declared_weights():
    """Write weights that declare more numbers than memory holds. The file has a few kilobytes."""
    with h5py.File("declared.weights.h5", "w") as file:
        file.create_dataset("stem_conv/kernel", (2**31,), "f4", chunks=(2**16,), compression="gzip")


def other_networks():
    """Write weights that do not fit: of another network, in a model around one, and with a classifier of 21,843."""
    import keras

    from efficientnet_tf import build_model

    build_model("v2-b0", 7, (32, 32, 3)).save_weights("v2.weights.h5")
    build_model("tiny.yaml", 21_843, (32, 32, 3)).save_weights("in21k.weights.h5")
    networks = {
        "mobile.keras": keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3)),
        "rescaled.weights.h5": build_model("tiny.yaml", include_top=False, input_shape=(32, 32, 3)),
    }
    for name, network in networks.items():
        head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
        model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 127.5), network, *head])
        model.save_weights(name) if name.endswith(".weights.h5") else model.save(name)


def zip_bomb():
    """Write a .keras file of 3 MB that unpacks to 3 GiB."""
    zeros = bytes(2**24)
    with (
        zipfile.ZipFile("bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("model.weights.h5", "w", force_zip64=True) as member,
    ):
        for _ in range(192):
            member.write(zeros)


def pixel_bomb():
    """Write a PNG of a few bytes that declares 60,000 x 60,000 pixels."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    Path("bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def transparent():
    """Write a picture whose invisible pixels have random colors, and the same picture on white."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 4), dtype="uint8")
    pixels[..., 3] = 0
    pixels[26:38, 26:38] = (200, 60, 60, 255)
    image = Image.fromarray(pixels)
    image.save("rgba.png")
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel(3))
    flat.save("flat.png")


def turned():
    """Write a PNG that Exif says is turned, and the upright picture."""
    from PIL import ImageOps

    y, x = np.mgrid[:48, :64]
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(np.stack([x * 4, y * 5, x + y], -1).astype("uint8")).save("turned.png", exif=exif)
    ImageOps.exif_transpose(Image.open("turned.png")).save("upright.png")


def pickled_weights():
    """Write weights of PyTorch that would run a program when they are unpickled."""
    import pickle

    class Attack:
        def __reduce__(self):
            return os.system, ("touch attacked",)

    with zipfile.ZipFile("pickled.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Attack()}))
        archive.writestr("archive/version", "3")


def thumbnails():
    """Add the thumbnails of a NAS, a Mac and a notebook to a folder of photos."""
    copy_of("photos", "thumbnails")
    for folder in ("train/@eaDir", "train/__MACOSX", "train/.ipynb_checkpoints", "train/cat/@eaDir"):
        os.makedirs(f"thumbnails/{folder}")
        picture(COLORS["cat"]).save(f"thumbnails/{folder}/0.jpg")


def damaged_study():
    """Make a folder whose database of trials is damaged."""
    Path("damaged_study").mkdir()
    Path("damaged_study/trials.db").write_bytes(b"SQLite format 3\0" + bytes(4000))


def many_tiffs():
    """Add TIFF, .jfif and HEIC files and loose pictures to a folder of photos."""
    copy_of("photos", "endings")
    for i in range(5):
        picture(COLORS["cat"]).save(f"endings/train/cat/t{i}.tif")
        picture(COLORS["cat"]).save(f"endings/train/loose{i}.jpg")
    for ending in ("jfif", "heic"):
        subprocess.run(["cp", "photos/train/cat/0.jpg", f"endings/train/cat/x.{ending}"], check=True)


def tasks(name, cells):
    """Write tables whose labels are these cells, for the good pictures."""
    paths = [row.partition(",")[0] for row in rows()]
    for split in ("train", "val"):
        lines = [f"{path},{cells[number % len(cells)]}" for number, path in enumerate(paths)]
        path = Path(name, f"{split}.csv")
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["path,label", *lines]) + "\n")
    Path(name, "train").symlink_to(Path("photos/train").resolve())


def parquet(name, labels=(0, 1, 2), image=None, file="train.parquet"):
    """Write a Parquet file with three images."""
    images = [Path(f"photos/train/{label}/0.jpg").read_bytes() for label in COLORS]
    column = [{"bytes": content, "path": None} for content in images] if image is None else [image] * 3
    Path(name).mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": column, "label": list(labels)}), Path(name, file))


def tar(name, members, cut=0):
    """Write a tar file with these members."""
    Path(name).mkdir(exist_ok=True)
    path = Path(name, "train.tar")
    with tarfile.open(path, "w") as archive:
        for member_name, content in members.items():
            member = tarfile.TarInfo(member_name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - cut])


def soft_labels(name, probabilities, classes=tuple(COLORS)):
    """Write a file as `predict --soft` does, for a picture that has no label."""
    picture(COLORS["cat"]).save("unlabeled.jpg")
    columns = {"path": [str(Path("unlabeled.jpg").resolve())], "probabilities": [list(probabilities)]}
    pq.write_table(pa.table(columns).replace_schema_metadata({"class_names": json.dumps(list(classes))}), name)


def stacks(name, channels=5, files="tif", spoil=None):
    """Write folders of images with several channels. `spoil` changes the content of one training file."""
    for split in ("train", "val"):
        for label in COLORS:
            folder = Path(name, split, label)
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 256, (40, 40, channels), dtype=np.uint8)
                if files == "tif":
                    tifffile.imwrite(folder / f"{i}.tif", pixels, photometric="minisblack", planarconfig="contig")
                else:
                    np.save(folder / f"{i}.npy", pixels)
    if spoil is not None:
        path = Path(name, "train", "cat", "0.npy")
        path.write_bytes(spoil(path.read_bytes()))


def saved(array):
    """Return the content of a .npy file."""
    with io.BytesIO() as file:
        np.save(file, array, allow_pickle=True)
        return file.getvalue()


def weighted(name, weights):
    """Write tables with a column of weights, for the good pictures."""
    tasks(name, ["cat", "dog", "owl"])
    for split in ("train", "val"):
        path = Path(name, f"{split}.csv")
        header, *lines = path.read_text().splitlines()
        cells = [f"{line},{weights[number % len(weights)]}" for number, line in enumerate(lines)]
        path.write_text("\n".join([f"{header},weight", *cells]) + "\n")


def rows(*more):
    """Return rows of a good table, and more rows."""
    return [f"train/{label}/{i}.jpg,{label}" for label in COLORS for i in range(4)] + list(more)


# ------------------------------------------------------------------------------------------------------------- cases

SECTIONS: dict[str, list[Case]] = {
    "Folders of photos": [
        Case(
            "`train` and `test` folders, no `val`",
            f"{TRAIN} --data_dir=kaggle --model_dir=new",
            lambda: photos("kaggle", {"train": 4, "test": 2}),
        ),
        Case(
            "the same, with `data.val_fraction`",
            f"{TRAIN} --data_dir=kaggle --set data.val_fraction=0.2 --model_dir=new",
        ),
        Case(
            "the evaluation folder is called `validation`",
            f"{TRAIN} --data_dir=validation --model_dir=run_validation",
            lambda: photos("validation", {"train": 4, "validation": 2}),
        ),
        Case(
            "TIFF, .jfif and HEIC files, and pictures next to the class folders",
            f"{TRAIN} --data_dir=endings --model_dir=run_endings",
            many_tiffs,
        ),
        Case(
            "a folder that contains a link to itself",
            f"{TRAIN} --data_dir=loop --model_dir=run_loop",
            lambda: (copy_of("photos", "loop"), os.symlink("..", "loop/train/cat/again")),
        ),
        Case(
            "an empty file among the evaluation images",
            f"{TRAIN} --data_dir=bad_val --model_dir=run_bad_val",
            lambda: copy_of("photos", "bad_val", ("val/owl/e.jpg", b"")),
        ),
        Case(
            "the same, allowed",
            f"{TRAIN} --data_dir=bad_val --set data.max_bad_fraction=0.5 --model_dir=run_bad_val_allowed",
        ),
        Case(
            "a class name with a line separator",
            f"{TRAIN} --data_dir=separator --model_dir=new",
            lambda: (copy_of("photos", "separator"), os.rename("separator/train/owl", "separator/train/o\u2028wl")),
        ),
        Case(
            "thumbnails of a NAS, a Mac and a notebook",
            f"{TRAIN} --data_dir=thumbnails --model_dir=run_thumbnails",
            thumbnails,
        ),
        Case(
            "a folder, a FIFO and a link to a device that are named like pictures",
            f"{TRAIN} --data_dir=irregular --model_dir=run_irregular",
            lambda: (
                copy_of("photos", "irregular"),
                os.mkdir("irregular/train/cat/folder.jpg"),
                os.mkfifo("irregular/train/cat/fifo.jpg"),
                os.symlink("/dev/zero", "irregular/train/cat/device.jpg"),
            ),
        ),
    ],
    "Tables": [
        Case(
            "two labels in one cell",
            f"{TRAIN} --set data.source=table --data_dir=multi --model_dir=new",
            lambda: table("multi", rows("train/owl/0.jpg,cat;dog")),
        ),
        Case(
            "a number for each image",
            f"{TRAIN} --set data.source=table --data_dir=numbers --model_dir=new",
            lambda: table("numbers", [f"{row.split(',')[0]},{1.5 + i / 7:.2f}" for i, row in enumerate(rows())]),
        ),
        Case(
            "labels with blanks around them, and in two Unicode forms",
            f"{TRAIN} --set data.source=table --data_dir=blanks --model_dir=run_blanks",
            lambda: table(
                "blanks", [*rows(), *(f"train/cat/{i}.jpg,{name}" for i, name in ((8, " cat"), (9, "cat ")))]
            ),
        ),
        Case(
            "a file that does not exist",
            f"{TRAIN} --set data.source=table --data_dir=missing --model_dir=new",
            lambda: table("missing", rows("train/cat/nope.jpg,cat")),
        ),
        Case(
            "one image with two different labels",
            f"{TRAIN} --set data.source=table --data_dir=conflict --model_dir=new",
            lambda: table("conflict", rows("train/cat/0.jpg,dog")),
        ),
        Case(
            "a table in Latin-1",
            f"{TRAIN} --set data.source=table --data_dir=latin --model_dir=new",
            lambda: table("latin", rows("train/cat/0.jpg,K\u00e4tzchen"), "latin-1"),
        ),
    ],
    "Pictures": [
        Case(
            "random colors under transparency, and the same picture on white",
            f"{PREDICT} rgba.png flat.png",
            transparent,
        ),
        Case("a PNG that Exif turns, and the upright picture", f"{PREDICT} turned.png upright.png", turned),
        Case(
            "a web page called .jpg, an empty file, and a picture",
            f"{PREDICT} page.jpg empty.jpg flat.png",
            lambda: (Path("page.jpg").write_text("<!DOCTYPE html><html>"), Path("empty.jpg").touch()),
            ".",
        ),
        Case("no file", f"{PREDICT} nothing.jpg"),
        Case("a FIFO", f"{PREDICT} fifo.jpg", lambda: os.mkfifo("fifo.jpg"), "."),
        Case("a PNG of a few bytes that declares 60,000 x 60,000 pixels", f"{PREDICT} bomb.png", pixel_bomb, "."),
        Case(
            "a file name with control characters",
            f"{PREDICT} {shlex.quote('photo' + chr(27) + '[2J.jpg')}",
            lambda: picture(COLORS["cat"]).save("photo\x1b[2J.jpg"),
            ".",
        ),
    ],
    "Model directories": [
        Case(
            "another configuration",
            f"{TRAIN} --data_dir=photos --model_dir=run --set train.epochs=2",
        ),
        Case(
            "the same, allowed",
            f"{TRAIN} --data_dir=photos --model_dir=run_copy --set train.epochs=2 --allow_change=train.epochs",
            lambda: copy_of("run", "run_copy"),
        ),
        Case(
            "another configuration, and `config.yaml` is gone",
            f"{TRAIN} --data_dir=photos --model_dir=run_no_config --set train.label_smoothing=0.2",
            lambda: copy_of("run", "run_no_config", ("config.yaml", None)),
        ),
        Case(
            "a mean of 923 in `config.yaml`",
            "evaluate --model_dir=run_mean",
            lambda: (copy_of("run", "run_mean"), edit("run_mean/config.yaml", "123.675", "923.0")),
        ),
        Case(
            "two class names swapped",
            "evaluate --model_dir=run_swapped",
            lambda: copy_of("run", "run_swapped", ("classes.txt", b"dog\ncat\nowl\n")),
        ),
        Case(
            "a byte that is not UTF-8 in `metrics.jsonl`",
            f"{TRAIN} --data_dir=photos --model_dir=run_metrics",
            lambda: copy_of("run", "run_metrics", ("metrics.jsonl", b'{"step": 1\xff\n')),
        ),
        Case(
            "`classes.txt` from Windows, with a byte-order mark",
            "predict --model_dir=run_windows --top=3 photos/val/owl/0.jpg",
            lambda: copy_of("run", "run_windows", ("classes.txt", b"\xef\xbb\xbfcat\r\ndog\r\nowl\r\n")),
        ),
        Case("three classes have no top-5 accuracy", "evaluate --model_dir=run", kept="top-1"),
        Case("a folder that is not a model directory", "evaluate --model_dir=photos"),
        Case("no path", "evaluate --model_dir="),
        Case("a path on S3", "evaluate --model_dir=s3://bucket/run"),
        Case("an incomplete name on the Hugging Face Hub", "evaluate --model_dir=hf://user"),
    ],
    "Several labels, and numbers": [
        Case(
            "several labels in a cell, without `data.task`",
            TASK.format("classification", "several"),
            lambda: tasks("several", ["new;sale", "sale", "new"]),
        ),
        Case(
            "measured numbers, without `data.task`",
            TASK.format("classification", "measured"),
            lambda: tasks("measured", [f"{4.25 + 1.5 * n:g}" for n in range(12)]),
        ),
        Case(
            "labels with another separator than the one that is set",
            TASK.format("multilabel", "bars"),
            lambda: tasks("bars", ["new|sale", "sale|old", "old|new"]),
        ),
        Case(
            "a price with its currency",
            TASK.format("regression", "prices"),
            lambda: tasks("prices", ["4.99", "12 EUR", "3"]),
        ),
        Case(
            "a decimal comma",
            TASK.format("regression", "commas"),
            lambda: tasks("commas", ['"4,99"', '"12,50"', '"3,10"']),
        ),
        Case("an infinite number", TASK.format("regression", "inf"), lambda: tasks("inf", ["1", "inf", "3"])),
        Case("the same number for all images", TASK.format("regression", "same"), lambda: tasks("same", ["7"])),
        Case(
            "the loss of classes for labels", TASK.format("multilabel", "several") + " --set train.loss=cross_entropy"
        ),
        Case(
            "several labels in class folders", f"{TRAIN} --set data.task=multilabel --data_dir=photos --model_dir=new"
        ),
    ],
    "Parquet, WebDataset, and labels of a network": [
        Case(
            "a download that is a page of HTML",
            SOURCE.format("parquet", "html"),
            lambda: (Path("html").mkdir(), Path("html/train.parquet").write_text("<html>404 Not Found</html>")),
        ),
        Case(
            "only one of four files",
            SOURCE.format("parquet", "part"),
            lambda: parquet("part", file="train-00000-of-00004.parquet"),
        ),
        Case(
            "paths in place of the images",
            SOURCE.format("parquet", "paths"),
            lambda: parquet("paths", image={"bytes": None, "path": "cat.jpg"}),
        ),
        Case(
            "labels of -1, as test sets on the Hub have them",
            SOURCE.format("parquet", "unknown"),
            lambda: parquet("unknown", labels=(-1, -1, -1)),
        ),
        Case(
            "classes that do not count from 0",
            SOURCE.format("parquet", "gap"),
            lambda: parquet("gap", labels=(1, 2, 3)),
        ),
        Case(
            "a compressed tar file",
            SOURCE.format("webdataset", "packed"),
            lambda: (Path("packed").mkdir(), Path("packed/train.tar").write_bytes(b"\x1f\x8b\x08" + bytes(2000))),
        ),
        Case(
            "a truncated tar file",
            SOURCE.format("webdataset", "cut"),
            lambda: tar("cut", {"0.cls": b"0", "0.jpg": bytes(60_000)}, cut=40_000),
        ),
        Case(
            "an image without a label",
            SOURCE.format("webdataset", "bare"),
            lambda: tar("bare", {"0.jpg": b"x", "0.txt": b"a cat"}),
        ),
        Case(
            "labels of a network with other classes",
            f"{TRAIN} --data_dir=photos --set data.pseudo_labels=elk.parquet --model_dir=new",
            lambda: soft_labels("elk.parquet", [0.5, 0.25, 0.25], ["cat", "dog", "elk"]),
        ),
        Case(
            "probabilities that are none",
            f"{TRAIN} --data_dir=photos --set data.pseudo_labels=sum.parquet --model_dir=new",
            lambda: soft_labels("sum.parquet", [0.5, 0.9, 0.9]),
        ),
        Case(
            "a network that is not sure of any image",
            f"{TRAIN} --data_dir=photos --set data.pseudo_labels=sure.parquet --set data.pseudo_confidence=0.9 "
            "--model_dir=new",
            lambda: soft_labels("sure.parquet", [0.5, 0.25, 0.25]),
        ),
        Case("`predict --soft` without a table", "predict --model_dir=run --soft photos"),
        Case("a calibrated model in a folder that exists", "calibrate --model_dir=run --output=photos"),
    ],
    "Sizes, channels, and weights of images": [
        Case("a size with an x", f"{PHOTOS} --set data.image_size=224x320"),
        Case("a size of three numbers", f"{PHOTOS} --set 'data.image_size=[224, 320, 3]'"),
        Case(
            "a shift that moves images out of sight",
            f"{PHOTOS} --set 'data.image_size=[64, 32]' --set augment.shift=32",
        ),
        Case(
            "images of five channels, read as color",
            f"{TRAIN} --model_dir=run_five --data_dir=five",
            lambda: stacks("five"),
        ),
        Case(
            "images of five channels, read as six", f"{TRAIN} --model_dir=run_six --data_dir=five --set data.channels=6"
        ),
        Case(
            "photos, read as images of five channels",
            f"{TRAIN} --model_dir=run_jpeg --data_dir=photos --set data.channels=5",
        ),
        Case(
            "color augmentation of images of five channels",
            f"{TRAIN} --model_dir=new --data_dir=five --set data.channels=5 --set augment.policy=randaugment",
        ),
        Case(
            "a .npy file that ends early",
            f"{TRAIN} --model_dir=run_npy_cut --data_dir=npy_cut --set data.channels=5",
            lambda: stacks("npy_cut", files="npy", spoil=lambda content: content[:4000]),
        ),
        Case(
            "a .npy file of objects, which Python would have to execute",
            f"{TRAIN} --model_dir=run_npy_object --data_dir=npy_object --set data.channels=5",
            lambda: stacks("npy_object", files="npy", spoil=lambda _: saved(np.array([{}, {}], object))),
        ),
        Case(
            "a .npy file of fractions",
            f"{TRAIN} --model_dir=run_npy_float --data_dir=npy_float --set data.channels=5",
            lambda: stacks("npy_float", files="npy", spoil=lambda _: saved(np.zeros([40, 40, 5]))),
        ),
        Case(
            "a column of weights that the table does not have",
            WEIGHTED.format("plain"),
            lambda: tasks("plain", ["cat", "dog", "owl"]),
        ),
        Case("a negative weight", WEIGHTED.format("negative"), lambda: weighted("negative", ["1", "-1"])),
        Case("a weight that is no number", WEIGHTED.format("words"), lambda: weighted("words", ["1", "high"])),
        Case("weights that are all 0", WEIGHTED.format("zeros"), lambda: weighted("zeros", ["0"])),
        Case("weights of images in class folders", f"{PHOTOS} --set data.weight_column=weight"),
        Case(
            "two settings that both balance the classes",
            f"{PHOTOS} --set data.sampling=balanced --set train.class_weights=balanced",
        ),
        Case(
            "two weights for three classes",
            f"{TRAIN} --data_dir=photos --model_dir=run_weights --set 'train.class_weights=[1, 2]'",
        ),
        Case("a validation fraction for a table", f"{WEIGHTED.format('zeros')} --set data.val_fraction=0.2"),
        Case(
            "a model in place of a data set on the Hugging Face Hub",
            f"{TRAIN} --set data.source=parquet --data_dir=hf://user/name --model_dir=new",
        ),
    ],
    "Teachers, fine-tuning, and trained networks": [
        Case(
            "a teacher for other classes",
            "train --variant=tiny.yaml --recipe=digits --model_dir=new_digits --set train.teacher=run",
        ),
        Case("a teacher that is no model", f"{PHOTOS} --set train.teacher=photos"),
        Case("features without a teacher", f"{PHOTOS} --set train.teacher_features=1"),
        Case("stages frozen at random weights", f"{PHOTOS} --set train.freeze=stage2"),
        Case("more stages frozen than there are", f"{PHOTOS} --set train.freeze=stage9 --init_from=run"),
        Case("a layer decay above 1", f"{PHOTOS} --set optimizer.layer_decay=1.5"),
        Case(
            "training for int8 from random weights",
            f"{TRAIN} --data_dir=photos --model_dir=run_int8 --set train.quantize=int8",
        ),
        Case(
            "training for int8 with blocks that are recomputed",
            f"{PHOTOS} --set train.quantize=int8 --set train.remat=true --init_from=run",
        ),
        Case(
            "adversarial images for a frozen network",
            f"{PHOTOS} --set train.adversarial_steps=1 --set train.freeze=body --init_from=run",
        ),
        Case("a probability of 2", "predict --model_dir=run --threshold=2 photos"),
        Case("a similarity above 1", "embed --model_dir=run --output=v.npz --similarity=1.5 photos"),
        Case("vectors written to a picture file", "embed --model_dir=run --output=v.png photos"),
        Case("no neighbors", "probe --model_dir=run --neighbors=0"),
        Case("a report with the wrong file type", "evaluate --model_dir=run --report=report.pdf"),
    ],
    "Weights": [
        Case(
            "HDF5 that reads another file of this machine",
            "weights --variant=tiny.yaml --input=external.weights.h5 --output=w1",
            external_weights,
        ),
        Case(
            "HDF5 that declares 8 GiB",
            "weights --variant=tiny.yaml --input=declared.weights.h5 --output=w2",
            declared_weights,
        ),
        Case("a zip bomb", "weights --variant=tiny.yaml --input=bomb.keras --output=w3", zip_bomb),
        Case(
            "a damaged zip",
            "weights --variant=tiny.yaml --input=damaged.keras --output=w4",
            lambda: Path("damaged.keras").write_bytes(b"PK\x03\x04" + bytes(100)),
        ),
        Case("a FIFO", "weights --variant=tiny.yaml --input=fifo.jpg --output=w5"),
        Case(
            "a file of PyTorch that runs a program when it is read",
            "weights --variant=tiny.yaml --input=pickled.pth --output=w7",
            pickled_weights,
        ),
        Case(
            "an old file of PyTorch that ends early",
            "weights --variant=tiny.yaml --input=short.pth --output=w8",
            lambda: Path("short.pth").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
        ),
        Case(
            "a safetensors header of 2^60 bytes",
            "weights --variant=tiny.yaml --input=header.safetensors --output=w6",
            lambda: Path("header.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"),
        ),
        Case(
            "weights of EfficientNetV2 for B0", "weights --variant=b0 --input=v2.weights.h5 --output=w9", other_networks
        ),
        Case("a model around another network", "weights --variant=b0 --input=mobile.keras --output=w10"),
        Case(
            "a classifier for ImageNet-21k",
            "weights --variant=tiny.yaml --input=in21k.weights.h5 --classes=1000 --output=w11",
            kept="error",
        ),
        Case(
            "a rescaling of pixels that a file of weights does not record",
            "weights --variant=tiny.yaml --input=rescaled.weights.h5 --output=w12",
        ),
    ],
    "Configurations and numbers": [
        Case(
            "a YAML file whose aliases multiply",
            "summary --variant=laughs.yaml",
            lambda: Path("laughs.yaml").write_text(
                "a: &a [x, x, x, x, x, x, x, x, x]\n"
                + "".join(
                    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
                )
            ),
        ),
        Case(
            "a number of 10,000 digits",
            "summary --variant=digits.yaml",
            lambda: Path("digits.yaml").write_text(f"baseline: b0\nwidth: {'9' * 10000}\n"),
        ),
        Case(
            "a width of 1e300",
            "summary --variant=wide.yaml",
            lambda: Path("wide.yaml").write_text("baseline: b0\nwidth: 1.0e300\n"),
        ),
        Case("10^20 classes", f"summary --classes={10**20}"),
        Case("a misspelled key", f"{TRAIN} --data_dir=photos --model_dir=new --set train.epoch=3"),
        Case("a misspelled flag", "evaluate --model_dri=run"),
        Case("a misspelled command", "evalute --model_dir=run"),
        Case("three replicas and the default batch", "evaluate --model_dir=run --replicas=3 --set eval.batch_size=256"),
        Case(
            "a variant file in Latin-1",
            "summary --variant=latin.yaml",
            lambda: Path("latin.yaml").write_bytes("# f\u00fcr B0\nbaseline: b0\n".encode("latin-1")),
        ),
        Case(
            "a file name outside of ASCII in a locale without UTF-8",
            f"LC_ALL=C PYTHONUTF8=0 efficientnet-tf {PREDICT} k\u00e4tzchen.jpg",
            lambda: picture(COLORS["cat"]).save("k\u00e4tzchen.jpg"),
        ),
    ],
    "While it runs": [
        Case(
            "SIGTERM, as a cluster sends it before it takes a machine away",
            f"timeout --preserve-status 40 efficientnet-tf {LONG} --data_dir=photos --model_dir=run_stopped",
            kept="SIGTERM|continue|saved",
        ),
        Case(
            "a second trainer in the same directory",
            f"efficientnet-tf {LONG} --data_dir=photos --model_dir=run_two >/dev/null 2>&1 & "
            "until [ -e run_two/metrics.jsonl ]; do sleep 1; done; "
            f"efficientnet-tf {LONG} --data_dir=photos --model_dir=run_two; status=$?; kill %1; wait; exit $status",
        ),
        Case(
            "the directory is deleted during the training",
            f"efficientnet-tf {LONG} --data_dir=photos --model_dir=run_deleted & "
            "until [ -e run_deleted/metrics.jsonl ]; do sleep 1; done; rm -r run_deleted; wait %1",
        ),
        Case(
            "the disk is full when the picture is written",
            "ulimit -f 8; efficientnet-tf show --recipe=folder --data_dir=photos --output=grid.png; "
            "status=$?; ls grid.png; exit $status",
            kept="error|grid.png",
        ),
        Case(
            "a damaged database of a study",
            "study --study=family --variants=b0 --output_dir=damaged_study",
            damaged_study,
        ),
        Case(
            "a database in a folder that does not exist",
            "study --study=family --variants=b0 --output_dir=out --storage=sqlite:///nowhere/trials.db",
        ),
        Case(
            "`TF_CONFIG` with a port that no machine has",
            f"TF_CONFIG={shlex.quote(CLUSTER)} efficientnet-tf {TRAIN} --data_dir=photos --model_dir=new",
        ),
    ],
}


# -------------------------------------------------------------------------------------------------------------- run


def run(command: str) -> subprocess.CompletedProcess:
    """Run a command as a user would, without colors."""
    environment = {**os.environ, "PATH": f"{os.getcwd()}/bin:{os.environ['PATH']}", "COLUMNS": "120"}
    line = command if "efficientnet-tf" in command else f"efficientnet-tf {command}"
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=600, env=environment, stdin=subprocess.DEVNULL
    )


def shorten(done: subprocess.CompletedProcess, kept: str) -> str:
    """Return the lines of the output that matter, with long ones cut."""
    lines = [
        line
        for line in (done.stdout + done.stderr).replace(f"{ROOT}/", "").splitlines()
        if line.strip() and not line.startswith("usage:")
    ]
    if any(re.search("Traceback", line) for line in lines):
        raise SystemExit(f"A traceback:\n{done.stderr}")
    matching = [line for line in lines if re.search(kept, line)] or lines[-2:]
    return "\n".join(line if len(line) <= 400 else line[:400] + " ..." for line in matching)


@contextlib.contextmanager
def scratch_folder() -> Iterator[None]:
    """Work in a temporary folder that has a data set and a trained run."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("bin").mkdir()
            script = Path("bin/efficientnet-tf")
            program = f'PYTHONPATH={ROOT} exec {sys.executable} -m efficientnet_tf "$@"'
            script.write_text(f"#!/bin/sh\n{program}\n")
            script.chmod(0o755)
            Path("tiny.yaml").write_text(TINY.read_text())
            photos("photos", {"train": 12, "val": 4})
            done = run(f"{TRAIN} --data_dir=photos --model_dir=run")
            if done.returncode:
                raise SystemExit(done.stderr)
            yield
        finally:
            os.chdir(before)


def main(titles: Sequence[str]) -> None:
    """Run the cases of some sections, or all of them, and write the page."""
    unknown = set(titles) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"There is no section {unknown.pop()!r}.")
    text, old = [EXPLANATION], PAGE.read_text()
    with scratch_folder():
        for case in (case for section in SECTIONS.values() for case in section):
            case.make()
        cases = [case for title, section in SECTIONS.items() if not titles or title in titles for case in section]
        with ThreadPoolExecutor(2) as pool:
            outputs = dict(zip(map(id, cases), pool.map(lambda case: run(case.command), cases), strict=True))
        for title, section in SECTIONS.items():
            text.append(f"## {title}\n")
            if titles and title not in titles:
                text.append(old.partition(f"## {title}\n\n")[2].partition("\n## ")[0])
                continue
            for case in section:
                done = outputs[id(case)]
                line = case.command if "efficientnet-tf" in case.command else f"efficientnet-tf {case.command}"
                line = line.replace(LONG, "train ...").replace(SHORT, "...").replace("\x1b", "\\x1b")
                shown = shorten(done, case.kept)
                heading = case.title[0].upper() + case.title[1:]
                text.append(f"**{heading}.** Status {done.returncode}.\n\n```\n$ {line}\n{shown}\n```\n")
                print(f"{done.returncode}  {case.title}", flush=True)
    PAGE.write_text("\n".join(text))


if __name__ == "__main__":
    main(sys.argv[1:])

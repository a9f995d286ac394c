"""Folders and tables as people download and make them. `prepare` shows which images and labels were found."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

from robustness.harness import EITHER, OK
from robustness.kit import COLORS, picture, write_irregular, write_photos, write_split


def _prepare(folder, *more, splits="train"):
    return ["prepare", f"--data_dir={folder}", "--output=records", f"--splits={splits}", "--shards=1", *more]


def _holds(split, **counts):
    """Return a check that the records of a split have these numbers of images, by class."""

    def check(case, answer):
        if answer["status"]:
            return ""
        found = json.loads((case.folder / f"records/{split}.json").read_text())["examples_per_class"]
        return "" if found == counts else f"{split} has {found}, not {counts}"

    return check


def layouts(write):
    """Split folders, junk, links and odd names."""
    _splits(write)
    _refused(write)
    _left_out(write)
    _names(write)
    _irregular(write)


def _splits(write):
    item = "A1 split folders as classes"
    for eval_name in ("test", "testing", "dev", "Test", "VAL", "valid", "validation"):
        folder = write.folder(eval_name)
        write_split(folder / "data/train", 2)
        write_split(folder / f"data/{eval_name}", 2)
        name = f"train and {eval_name}, with val_fraction"
        argv = write.kit.train("data", "--set=data.val_fraction=0.5")
        write.add(folder, f"train: {name}", argv, light=True, says="split|val_fraction", item=item)
        argv = _prepare("data", "--set=data.val_fraction=0.5")
        write.add(folder, f"prepare: {name}", argv, light=True, item=item)
        if eval_name in ("VAL", "valid", "validation"):
            check = _holds("val", cat=2, dog=2, owl=2)
            settings = {"status": OK, "writes": ("records*",), "check": check, "item": item}
            write.add(folder, f"{eval_name} is found for val", _prepare("data", splits="train,val"), **settings)
        else:
            says = rf"data\.eval_split={eval_name}\b"
            write.add(folder, f"train without {name}", write.kit.train("data"), light=True, says=says, item=item)
    folder = write.folder("only_train")
    write_split(folder / "data/train", 3)
    says = "val_fraction|eval_split|val"
    write.add(folder, "only a training split", write.kit.train("data"), light=True, says=says, item=item)
    folder = write.folder("three")
    for split in ("train", "val", "test"):
        write_split(folder / f"data/{split}", 2)
    argv = write.kit.train("data", "--set=data.val_fraction=0.5")
    write.add(folder, "train, val and test, with val_fraction", argv, light=True, item=item)
    folder = write.folder("plain")
    write_split(folder / "data", 4)
    argv = _prepare("data", "--set=data.val_fraction=0.25", splits="train,val")
    check = _holds("train", cat=3, dog=3, owl=3)
    write.add(folder, "class folders with val_fraction", argv, status=OK, writes=("records*",), check=check)


def _refused(write):
    """Folders that hold no data set."""
    folder = write.folder("empty")
    (folder / "data").mkdir()
    write.add(folder, "empty folder", write.kit.train("data"), light=True, item="E in time")
    for name, keep in (("one class", ("cat",)), ("no class", ())):
        folder = write.folder(name)
        for split in ("train", "val"):
            (folder / "data" / split).mkdir(parents=True)
            write_split(folder / "data" / split, 2, keep)
        if name == "no class":
            write.add(folder, name, write.kit.train("data"), light=True, item="E in time")
    folder = write.folder("empty_class")
    write_photos(folder / "data")
    (folder / "data/train/zebra").mkdir()
    write.add(folder, "a class without images", write.kit.train("data"), light=True, says="zebra", item="E in time")
    folder = write.folder("unknown_class")
    write_photos(folder / "data")
    shutil.copytree(folder / "data/val/cat", folder / "data/val/zebra")
    write.add(folder, "a class only in val", write.kit.train("data"), light=True, says="zebra", item="E in time")
    folder = write.folder("flat")
    for split in ("train", "val"):
        (folder / "data" / split).mkdir(parents=True)
        picture().save(folder / "data" / split / "cat.1.jpg")
    write.add(
        folder, "pictures without class folders", write.kit.train("data"), light=True, says="class", item="E in time"
    )
    folder = write.folder("nested")
    for name in ("photos/train", "photos/val"):
        write_split(folder / "data" / name, 2)
    write.add(folder, "one folder too deep", write.kit.train("data"), light=True, says="photos", item="E in time")
    for name in ("missing", "data.zip"):
        folder = write.folder("absent")
        if "." in name:
            (folder / name).write_bytes(b"PK\3\4" + bytes(30))
        write.add(folder, f"data_dir is {name}", write.kit.train(name), light=True, says=name, item="E in time")


def _left_out(write):
    """Files that are no images, in the place of images, and images in the wrong place."""
    item = "A1 files dropped by ending or place"
    settings = {"status": OK, "writes": ("records*",), "item": item}
    folder = write.folder("endings")
    write_photos(folder / "data")
    for ending in ("jfif", "jpe", "JPEG", "JPG"):
        picture(seed=9).save(folder / f"data/train/cat/x.{ending}", "JPEG")
    for ending, kind in (("tif", "TIFF"), ("TIFF", "TIFF")):
        picture(seed=9).save(folder / f"data/train/dog/x.{ending}", kind)
    for ending in ("heic", "avif", "mp4", "txt"):
        (folder / f"data/train/owl/x.{ending}").write_text("other")
    check = _holds("train", cat=8, dog=6, owl=4)
    write.add(folder, "endings", _prepare("data"), says=r"(?s)4 file|\.heic", check=check, **settings)
    argv = ["predict", f"--model_dir={write.kit.model}", "--json", "data/train/cat", "data/train/owl"]
    write.add(folder, "predict: endings", argv, status=OK, says=r"x\.jfif.*", check=_lines(12), item=item)
    argv = ["show", *write.kit.config, "--data_dir=data", "--output=grid.png", "--rows=1", "--columns=1"]
    write.add(folder, "show: endings", argv, status=OK, writes=("grid.png",), says=r"\.heic", item=item)
    folder = write.folder("loose")
    write_photos(folder / "data")
    for i in range(20):
        picture(seed=i).save(folder / f"data/train/loose{i}.jpg")
    write.add(
        folder,
        "loose pictures",
        _prepare("data"),
        says=r"\b20\b",
        check=_holds("train", cat=4, dog=4, owl=4),
        **settings,
    )
    folder = write.folder("junk")
    write_photos(folder / "data")
    item = settings["item"] = "A2 thumbnails"
    for name in ("@eaDir", "__MACOSX", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN", ".thumbnails", "@Recycle"):
        shutil.copytree(folder / "data/val/cat", folder / "data/train" / name)
        shutil.copytree(folder / "data/val/dog", folder / "data/train/cat" / name)
    for name in ("._0.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / "data/train/cat" / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(80))
    write.add(folder, "junk folders", _prepare("data"), check=_holds("train", cat=4, dog=4, owl=4), **settings)
    argv = ["predict", f"--model_dir={write.kit.model}", "--json", "data/train/cat"]
    write.add(folder, "predict: junk folders", argv, status=OK, check=_lines(4), item=item)


def _lines(count):
    """Return a check that `predict --json` classified so many images."""

    def check(case, answer):
        found = answer["stdout"].count('"path"')
        return "" if found == count else f"{found} images are classified, not {count}"

    return check


def _names(write):
    """Class and file names with blanks, other normal forms, control characters and bytes that are not UTF-8."""
    item = "A2 class names"
    bad = {
        "U+2028": "a\u2028b",
        "vertical tab": "a\vb",
        "newline": "a\nb",
        "escape": "a\x1b[31mb",
        "not UTF-8": "a\udcffb",
    }
    bad |= {
        "NEL": "a\x85b",
        "form feed": "a\fb",
        "return": "a\rb",
        "right to left": "a\u202eb",
        "zero width": "a\u200bb",
    }
    for name, label in bad.items():
        folder = write.folder(name)
        write_photos(folder / "data", 2, 1)
        for split in ("train", "val"):
            shutil.copytree(folder / "data/val/cat", folder / "data" / split / label)
        write.add(folder, f"train: class name with {name}", write.kit.train("data"), light=True, item=item)
        write.add(folder, f"prepare: class name with {name}", _prepare("data"), light=True, item=item)
    forms = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    for name, labels, expected in (
        ("two forms of a class name", forms, {"cat": 2, "dog": 2, "owl": 2, forms[0]: 2}),
        ("class name with a blank at the end", ["cat "], {"cat": 3, "dog": 2, "owl": 2}),
    ):
        folder = write.folder(name)
        write_photos(folder / "data", 2, 1)
        for split in ("train", "val"):
            for label in labels:
                shutil.copytree(folder / "data/val/cat", folder / "data" / split / label)
        check = _holds("train", **expected)
        write.add(folder, name, _prepare("data"), status=EITHER, writes=("records*",), check=check, item=item)
    folder = write.folder("file_names")
    write_photos(folder / "data")
    names = [
        "\x1b[31mred.jpg",
        "a\nb.jpg",
        "=cmd()|.jpg",
        "<b>.jpg",
        "a\u2028b.jpg",
        "\u202egpj.jpg",
        " .jpg",
        "x" * 250 + ".jpg",
    ]
    names += [os.fsdecode(b"\xff\xfe.jpg"), "-rf.jpg", "%s%n{0}.jpg", "a:b*?.jpg", "\u00e9.jpg", "e\u0301.jpg"]
    for number, name in enumerate(names):
        picture(seed=number).save(folder / "data/train/dog" / name, "JPEG")
    check = _holds("train", cat=4, dog=4 + len(names), owl=4)
    settings = {"status": OK, "writes": ("records*",), "check": check, "item": "C4 names are escaped"}
    write.add(folder, "file names", _prepare("data"), **settings)
    argv = ["predict", f"--model_dir={write.kit.model}", "data/train/dog"]
    write.add(folder, "predict: file names", argv, status=OK, item="C4 names are escaped")
    (folder / "broken").mkdir()
    for name in names:
        (folder / "broken" / name).write_bytes(b"no image")
    argv = ["predict", f"--model_dir={write.kit.model}", "broken"]
    write.add(folder, "predict: file names of broken files", argv, item="C4 names are escaped")


def _irregular(write):
    """FIFOs, sockets, devices, folders and links in the place of images."""
    folder = write.folder("irregular")
    write_photos(folder / "data")
    places = write_irregular(folder)
    for name in ("fifo", "socket", "zero", "folder"):
        shutil.copytree(folder / "data", folder / f"data-{name}", symlinks=True)
        place = folder / f"data-{name}/train/cat/x.jpg"
        place.symlink_to(places[name])
        item = "B2 irregular files"
        argv = _prepare(f"data-{name}")
        write.add(
            folder, f"prepare: {name} named x.jpg", argv, status=(0, 1), writes=("records*",), seconds=30, item=item
        )
        argv = ["predict", f"--model_dir={write.kit.model}", "--json", place]
        status = (0, 1) if name == "folder" else (1,)
        write.add(folder, f"predict: {name} named x.jpg", argv, status=status, seconds=30, item=item)
        argv = ["explain", f"--model_dir={write.kit.model}", "--output=x.png", place]
        write.add(folder, f"explain: {name} named x.jpg", argv, seconds=30, item=item)
        if name in ("fifo", "folder"):
            argv = write.kit.train(f"data-{name}", model_dir=f"run-{name}")
            settings = {"status": (0, 1), "writes": (f"run-{name}*",), "item": item}
            write.add(folder, f"train: {name} named x.jpg", argv, **settings)
    shutil.copytree(folder / "data", folder / "class")
    shutil.rmtree(folder / "class/val/owl")
    (folder / "class/val/owl").symlink_to(places["fifo"])
    settings = {"status": (0, 1), "writes": ("run-class*",), "item": "B2 irregular files"}
    write.add(folder, "train: fifo named as a class", write.kit.train("class", model_dir="run-class"), **settings)
    folder = write.folder("loops")
    write_photos(folder / "data")
    (folder / "data/train/cat/again").symlink_to(folder / "data/train/cat")
    (folder / "data/train/cat/up").symlink_to("..")
    (folder / "data/train/dog/self").symlink_to("self")
    check = _holds("train", cat=4, dog=4, owl=4)
    settings = {"status": OK, "writes": ("records*",), "seconds": 30, "item": "A2 symlink loops"}
    write.add(folder, "loops of links", _prepare("data"), check=check, **settings)
    argv = ["predict", f"--model_dir={write.kit.model}", "--json", "data/train/cat"]
    write.add(folder, "predict: loops of links", argv, status=OK, check=_lines(4), item="A2 symlink loops")
    folder = write.folder("deep")
    write_photos(folder / "data")
    deep = folder / "data/train/cat" / "/".join(["d"] * 200)
    deep.mkdir(parents=True)
    picture(seed=8).save(deep / "x.jpg")
    write.add(folder, "200 folders deep", _prepare("data"), check=_holds("train", cat=5, dog=4, owl=4), **settings)
    folder = write.folder("linked")
    write_photos(folder / "real")
    (folder / "data").symlink_to("real")
    shutil.move(folder / "real/train/owl", folder / "owl")
    (folder / "real/train/owl").symlink_to("../../owl")
    write.add(folder, "links to folders", _prepare("data"), check=_holds("train", cat=4, dog=4, owl=4), **settings)


# ------------------------------------------------------------------------------------------------------------ tables

HEAD = "path,label\n"


def _rows(count=2):
    return [f"train/{label}/{i}.jpg,{label}" for label in COLORS for i in range(count)]


def tables(write):
    """Tables in other encodings and forms, with labels that are no single class, duplicates and missing files."""
    good = HEAD + "\n".join(_rows()) + "\n"
    ok = {
        "crlf": good.replace("\n", "\r\n").encode(),
        "byte-order mark": ("\ufeff" + good).encode(),
        "quotes": good.replace("cat\n", '"cat"\n').encode(),
        "more columns": good.replace("label\n", "label,note\n").replace("cat\n", "cat,x\n").encode(),
        "no newline at the end": good.strip().encode(),
        "blank lines": good.replace("\n", "\n\n").encode(),
        "semicolons": good.replace(",", ";").encode(),
        "tabs in a .csv": good.replace(",", "\t").encode(),
        "blanks around labels": good.replace(",cat\n", ", cat \n").encode(),
    }
    for name, content in ok.items():
        # What separates the columns can be found out, or asked for.
        status = EITHER if name in ("semicolons", "tabs in a .csv") else OK
        check = _holds("train", cat=2, dog=2, owl=2)
        _table(write, name, content, status=status, check=check, item="A2 labels")
    two = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    forms = HEAD + "\n".join([*_rows(), f"train/cat/2.jpg,{two[0]}", f"train/cat/3.jpg,{two[1]}"]) + "\n"
    check = _holds("train", cat=2, dog=2, owl=2, **{two[0]: 2})
    _table(write, "two forms of a label", forms.encode(), status=OK, check=check, item="A2 labels")
    rows = "\n".join(_rows()) + "\n"
    bad = {
        "empty": (b"", ""),
        "only a head": (HEAD.encode(), "row|no "),
        "null bytes": (good.encode().replace(b"cat\n", b"c\0t\n"), ""),
        "latin-1": ((HEAD + rows + "train/cat/2.jpg,na\u00efve\n").encode("latin-1"), "UTF-8"),
        "utf-16": (good.encode("utf-16"), "UTF-8"),
        "unclosed quote": ((HEAD + '"train/cat/0.jpg,cat\n' + rows).encode(), ""),
        "no label column": (good.replace("label", "class").encode(), "label"),
        "column twice": (good.replace("path,label", "path,label,label").encode(), ""),
        "missing cells": ((HEAD + "train/cat/0.jpg\n" + rows).encode(), "line 2"),
        "empty label": ((HEAD + "train/cat/0.jpg,\n" + rows).encode(), "line 2"),
        "blank label": ((HEAD + 'train/cat/0.jpg,"  "\n' + rows).encode(), "line 2"),
        "several labels": ((HEAD + rows + "train/cat/3.jpg,cat;dog\n").encode(), "cat;dog"),
        "several labels with |": ((HEAD + rows + "train/cat/3.jpg,cat|dog\n").encode(), r"cat\|dog"),
        "several labels with a comma": ((HEAD + rows + 'train/cat/3.jpg,"cat,dog"\n').encode(), "cat,dog"),
        "list of labels": ((HEAD + rows + "train/cat/3.jpg,\"['cat', 'dog']\"\n").encode(), "cat"),
        "numbers": ((HEAD + "\n".join(f"{r.split(',')[0]},{i}.37" for i, r in enumerate(_rows(4)))).encode(), r"\.37"),
        "scientific numbers": (
            (HEAD + "\n".join(f"{r.split(',')[0]},{i}.5e-3" for i, r in enumerate(_rows(4)))).encode(),
            "",
        ),
        "missing file": ((HEAD + rows + "train/cat/nope.jpg,cat\n").encode(), r"nope\.jpg"),
        "folder as file": ((HEAD + rows + "train/cat,cat\n").encode(), "folder|not a file|no file"),
        "two labels for a path": ((HEAD + rows + "train/cat/0.jpg,dog\n").encode(), r"cat/0\.jpg"),
        "other path, same file": ((HEAD + rows + "train/./cat/0.jpg,dog\n").encode(), r"cat/0\.jpg"),
        "escape in a label": ((HEAD + rows + "train/cat/3.jpg,\x1b[31m\n").encode(), ""),
        "U+2028 in a label": ((HEAD + rows + "train/cat/3.jpg,a\u2028b\n").encode(), ""),
        "newline in a label": ((HEAD + rows + 'train/cat/3.jpg,"a\nb"\n').encode(), ""),
        "https path": ((HEAD + rows + "https://host/x.jpg,cat\n").encode(), "https"),
        "one class": ((HEAD + "train/cat/0.jpg,cat\n").encode(), "class"),
        "a picture": (b"\xff\xd8\xff\xe0" + bytes(range(256)), ""),
        "zip": (b"PK\3\4" + bytes(range(256)), ""),
    }
    for name, (content, says) in bad.items():
        item = "A1 labels that are no single class" if "label" in name or "numbers" in name else "D non-UTF-8"
        _table(write, name, content, says=says, light=True, item=item)
    for number in range(write.count):
        content = bytearray(good.encode())
        for _ in range(3):
            content[write.random.randrange(len(content))] = write.random.randrange(256)
        _table(write, f"random bytes {number}", bytes(content), status=(0, 1, 2))


def tasks(write):
    """Tables of several labels and of numbers that cannot be right, and settings that contradict each other."""
    files = [row.split(",")[0] for row in _rows()]
    several = {
        "no label at all": (("", "", "", "", "", ""), [], "no image has a label"),
        "another separator": (("a|b", "b|c", "c|a", "a|b", "b", "c"), [], r"label_separator='\|'"),
        "blanks as separator": (("a b", "b c", "c a", "a b", "b", "c"), [], "label_separator=' '"),
        "a list": (("['a', 'b']", "['b', 'a']", "a", "b", "a", "b"), [], ""),
        "escape in a label": (("a;\x1b[31m", "a", "b", "a", "b", "a"), [], ""),
        "U+2028 in a label": (("a;b\u2028c", "a", "b", "a", "b", "a"), [], ""),
        "a flag that is 2": (("1", "0", "2", "0", "1", "0"), ["--set=data.label_columns=[label,other]"], "is 1 or 0"),
        "a flag that is empty": (
            ("1", "", "1", "0", "1", "0"),
            ["--set=data.label_columns=[label,other]"],
            "empty cell",
        ),
        "a column that is not there": (("a",) * 6, ["--set=data.label_columns=[labels]"], "Did you mean 'label'"),
        "the path as label": (("a",) * 6, ["--set=data.label_columns=[path]"], "each once"),
        "a column twice": (("1",) * 6, ["--set=data.label_columns=[label,LABEL]"], "each once"),
        "a separator of nothing": (("a;b",) * 6, ["--set=data.label_separator="], "label_separator"),
        "the loss of classes": (("a;b",) * 6, ["--set=train.loss=cross_entropy"], "Use one of bce, asymmetric"),
        "the metric of classes": (("a;b",) * 6, ["--set=eval.best=top1"], "Use one of f1, exact, loss"),
        "another source": (("a;b",) * 6, ["--set=data.source=folder"], "needs data.source=table"),
        "statistics": (("a;b",) * 6, ["--set=data.target_mean=[1]"], "for data.task=regression"),
    }
    numbers = {
        "a word": (("1", "2", "three", "4", "5", "6"), [], "not a number"),
        "a comma": (('"1,5"', "2", "3", "4", "5", "6"), [], "not a number"),
        "a unit": (("1 kg", "2", "3", "4", "5", "6"), [], "not a number"),
        "a percent sign": (("1%", "2", "3", "4", "5", "6"), [], "not a number"),
        "underscores": (("1_000", "2", "3", "4", "5", "6"), [], "not a number"),
        "hexadecimal": (("0x10", "2", "3", "4", "5", "6"), [], "not a number"),
        "an empty cell": (("1", "", "3", "4", "5", "6"), [], "empty cell"),
        "nan": (("1", "nan", "3", "4", "5", "6"), [], "must be finite"),
        "infinity": (("1", "-inf", "3", "4", "5", "6"), [], "must be finite"),
        "too large": (("1", "1e300", "3", "4", "5", "6"), [], "must be finite"),
        "9,000 digits": (("1", "9" * 9000, "3", "4", "5", "6"), [], "must be finite"),
        "always the same": (("7", "7.0", "7e0", "7", "7", "7"), [], "nothing to learn"),
        "several in a cell": (("1;2", "2;3", "3;4", "4;5", "5;6", "6;7"), [], "not a number"),
        "no such column": (("1", "2", "3", "4", "5", "6"), ["--set=data.label_columns=price"], "must name the columns"),
        "the loss of labels": (("1", "2", "3", "4", "5", "6"), ["--set=train.loss=bce"], "Use one of mse, mae, huber"),
        "a deviation of zero": (("1", "2", "3", "4", "5", "6"), ["--set=data.target_std=[0]"], "greater than 0"),
        "a mean alone": (("1", "2", "3", "4", "5", "6"), ["--set=data.target_mean=[0]"], "one value each"),
        "a task of its own": (("1", "2", "3", "4", "5", "6"), ["--set=data.task=both"], "'regression'"),
    }
    for task, cases in (("multilabel", several), ("regression", numbers)):
        for name, (cells, flags, says) in cases.items():
            rows = [f"{file},{cell},1" for file, cell in zip(files, cells, strict=True)]
            folder = _write_table(write, f"{task} {name}", ("path,label,other\n" + "\n".join(rows) + "\n").encode())
            argv = write.kit.train("data", "--set=data.source=table", f"--set=data.task={task}", *flags)
            write.add(folder, f"train: {task}, {name}", argv, says=says, light=True, item="labels of a task")


def _table(write, name, content, **settings):
    folder = _write_table(write, name, content)
    if settings.get("status"):
        settings["writes"] = ("records*",)
    write.add(folder, f"prepare: table, {name}", _prepare("data", "--source=table"), **settings)
    if settings.get("light"):
        argv = write.kit.train("data", "--set=data.source=table")
        write.add(folder, f"train: table, {name}", argv, **settings)


def _write_table(write, name, content):
    """Return a folder with a table for both splits."""
    folder = write.folder(f"table {name}")
    data = folder / "data"
    data.mkdir()
    (data / "train").symlink_to(write.kit.photos / "train")
    for split in ("train", "val"):
        (data / f"{split}.csv").write_bytes(content)
    return folder


def bad_images(write):
    """Images that cannot be read, in a split of training or of evaluation."""
    contents = {
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "cut JPEG": _encode("JPEG")[:400],
        "cut PNG": _encode("PNG")[:400],
        "header of a JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1",
    }
    for split in ("train", "val"):
        folder = write.folder(split)
        for name, content in contents.items():
            data = write_photos(folder / name)
            (Path(data) / split / "owl/e.jpg").write_bytes(content)
        name = "cut JPEG" if split == "val" else "text"
        settings = {"item": "B1 a bad validation image", "says": r"owl/e\.jpg"}
        run = ("run*",)
        # Save first: the checkpoint is there although evaluation failed.
        check = _has_checkpoint if split == "val" else None
        argv = write.kit.train(name)
        write.add(folder, f"train: bad image in {split}", argv, status=(1,), writes=run, check=check, **settings)
        argv = write.kit.train("empty", "--set=data.max_bad_fraction=1.0", model_dir="run2")
        settings = {"status": OK, "writes": ("run2*",), "item": "B1 a bad validation image"}
        write.add(folder, f"train: bad image in {split}, allowed", argv, **settings)
    folder = write.folder("val_only")
    for name, content in contents.items():
        data = write_photos(folder / name)
        (Path(data) / "val/owl/e.jpg").write_bytes(content)
        argv = ["show", *write.kit.config, f"--data_dir={name}", "--output=grid.png", "--rows=1", "--columns=1"]
        write.add(folder, f"show: {name} image in val", argv, status=(0, 1), writes=("grid.png",))
        argv = _prepare(name, "--splits=val")
        write.add(folder, f"prepare: {name} image in val", argv, status=(0, 1), writes=("records*",))


def _has_checkpoint(case, answer):
    return (
        "" if list((case.folder / "run/checkpoints").glob("*.index")) else "no checkpoint was saved before evaluation"
    )


def _encode(kind):
    import io

    buffer = io.BytesIO()
    picture(size=(64, 64)).save(buffer, kind)
    return buffer.getvalue()

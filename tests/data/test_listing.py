"""Test which files of folders and tables are images of which class, and what is said about the others."""

import os
import socket
import subprocess
import sys
import tempfile
import unicodedata

import pytest

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.listing import check_data, list_split
from efficientnet_tf.data.scan import find_images

CAFE = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]


def touch(root, *names):
    for name in names:
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass


def photos(root, *splits, classes=("cat", "dog"), count=2):
    touch(root, *(f"{split}/{label}/{i}.jpg" for split in splits for label in classes for i in range(count)))


def listing(root, split="train", source="folder", **keys):
    return list_split(schema.DataConfig(source=source, dir=str(root), **keys), split, split == "train")


def found(root, split="train", **keys):
    """Return {path in the folder: class name} and the remarks."""
    result = listing(root, split, **keys)
    names = {os.path.relpath(p, root): result.class_names[i] for p, i in zip(result.paths, result.labels, strict=True)}
    assert len(names) == len(result.paths)
    return names, result.remarks


def counts(root, split="train", **keys):
    labels = list(found(root, split, **keys)[0].values())
    return {label: labels.count(label) for label in labels}


def error(root, split="train", **keys):
    with pytest.raises(UserError) as caught:
        listing(root, split, **keys)
    message = str(caught.value)
    assert message.isprintable() and message.endswith((".", "?")), message
    return message


def checked(root, source="folder", **keys):
    with pytest.raises(UserError) as caught:
        check_data(schema.DataConfig(source=source, dir=str(root), **keys))
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "name", ["test", "testing", "dev", "Test", "TESTING", "test_set", "test2017", "eval", "val", "VAL", "Validation"]
)
def test_folders_that_mean_splits_are_no_classes(tmp_path, name):
    photos(tmp_path, "train", name)
    message = error(tmp_path, val_fraction=0.5)
    assert "which data.val_fraction would treat as classes" in message and "Leave data.val_fraction out" in message
    assert f"'{name}'" in message and "'train'" in message
    if name.lower() not in ("val", "validation"):
        assert f"--set data.eval_split={name}." in message
        assert f"Use --set data.eval_split={name}." in error(tmp_path, "val")


@pytest.mark.parametrize("name", ["train", "Train", "training", "test", "dev", "valid"])
def test_a_split_beside_classes_is_no_class(tmp_path, name):
    photos(tmp_path, name)
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    assert f"has the subfolder '{name}', which data.val_fraction would treat" in error(tmp_path, val_fraction=0.5)


@pytest.mark.parametrize(
    "names",
    [("training_set", "test_set"), ("seg_train", "seg_test"), ("cats train", "cats dev"), ("train2017", "val2017")],
)
def test_folders_that_differ_in_the_word_for_a_split_are_no_classes(tmp_path, names):
    photos(tmp_path, *names)
    expected = f"use --set data.train_split={names[0]} and --set data.eval_split={names[1]}."
    assert error(tmp_path, val_fraction=0.5).endswith(expected)
    assert error(tmp_path).endswith(f"Use --set data.train_split={names[0]}.")
    assert error(tmp_path, "val", train_split=names[0]).endswith(f"Use --set data.eval_split={names[1]}.")
    assert counts(tmp_path, names[1], train_split=names[0]) == {"cat": 2, "dog": 2}


@pytest.mark.parametrize("names", [("bullet train", "steam train"), ("test tube", "flask"), ("trainer", "tester")])
def test_names_with_the_word_for_a_split_in_them_are_classes(tmp_path, names):
    touch(tmp_path, *(f"{name}/{i}.jpg" for name in names for i in range(2)))
    assert sorted(counts(tmp_path, val_fraction=0.5)) == sorted(names)


@pytest.mark.parametrize("name", ["valid", "validation", "Val", "VALIDATION", "Valid"])
def test_another_name_of_the_default_split_is_found(tmp_path, name):
    photos(tmp_path, "train", name)
    names, remarks = found(tmp_path, "val")
    assert names == {f"{name}/{label}/{i}.jpg": label for label in ("cat", "dog") for i in range(2)}
    assert remarks == [f"'{tmp_path}' has no subfolder 'val', so '{name}' is used."]


@pytest.mark.parametrize("name", ["Train", "training", "TRAIN"])
def test_another_name_of_the_training_split_is_found(tmp_path, name):
    photos(tmp_path, name, "val")
    touch(tmp_path, f"{name}/ant/1.jpg")
    assert counts(tmp_path) == {"cat": 2, "dog": 2, "ant": 1}
    assert listing(tmp_path, "val").class_names == ["ant", "cat", "dog"]  # The training folder determines the labels.


def test_a_split_that_is_asked_for_is_not_replaced(tmp_path):
    photos(tmp_path, "train", "valid")
    assert "has no subfolder 'test'" in error(tmp_path, "test", eval_split="test")
    keys = {"train_split": "val", "eval_split": "val"}  # as `evaluate --folder=.../val` sets them
    assert "has no subfolder 'val'" in error(tmp_path, "val", **keys)


def test_several_names_of_a_split(tmp_path):
    photos(tmp_path, "train", "valid", "Validation")
    assert "but Validation, valid. Set data.eval_split to one of them." in error(tmp_path, "val")


def test_only_a_training_split(tmp_path):
    photos(tmp_path, "train")
    expected = f"To hold out a part of 'train', use --set data.dir={tmp_path}/train and --set data.val_fraction=0.2."
    assert error(tmp_path, "val").endswith(expected)
    assert error(tmp_path, val_fraction=0.5).endswith(f"use --set data.dir={tmp_path}/train.")


@pytest.mark.parametrize("inside", [("train", "val"), ("train", "test")])
def test_one_folder_too_deep(tmp_path, inside):
    photos(tmp_path / "dataset", *inside)
    assert f"'dataset' has {', '.join(sorted(inside))}. Use --set data.dir={tmp_path}/dataset." in error(tmp_path)
    assert "'dataset'" in error(tmp_path, val_fraction=0.5) and f"data.dir={tmp_path}/dataset" in error(
        tmp_path, val_fraction=0.5
    )
    photos(tmp_path / "twice/train", *inside)
    assert f"set data.dir={tmp_path}/twice/train" in error(tmp_path / "twice")


def test_only_one_folder_around_the_classes(tmp_path):
    photos(tmp_path, "images")
    message = error(tmp_path, val_fraction=0.5)
    assert "has only the subfolder 'images', which has cat, dog." in message
    assert f"use --set data.dir={tmp_path}/images" in message


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    """CIFAR-100 has the class `train`, a vehicle."""
    photos(tmp_path, "train", "val", classes=("bus", "train"))
    assert counts(tmp_path) == counts(tmp_path, "val") == {"bus": 2, "train": 2}
    photos(tmp_path / "train", "val")  # a split folder at the wrong place
    assert "has the subfolders 'train' and 'val', where class folders are expected" in error(tmp_path)


def test_the_same_folder_for_both_splits(tmp_path):
    photos(tmp_path, "train")
    (tmp_path / "val").symlink_to("train")
    assert "is the same folder as 'train': the same images are in both splits" in " ".join(found(tmp_path, "val")[1])


def test_classes_above_the_folders_of_images(tmp_path):
    photos(tmp_path, "part1", "part2")
    (remark,) = found(tmp_path, val_fraction=0.5)[1]
    assert "all images are in subfolders of the class folders, for example in cat, dog of 'part1'" in remark
    touch(tmp_path, "part1/1.jpg")
    assert found(tmp_path, val_fraction=0.5)[1] == []


def test_classes_that_differ_in_letter_case(tmp_path):
    photos(tmp_path, "train", classes=("Cat", "cat", "dog"))
    assert found(tmp_path)[1] == ["the classes Cat, cat differ in letter case only."]
    photos(tmp_path, "val", classes=("Dog",))
    assert error(tmp_path, "val").endswith("Did you mean 'dog'?")


# ------------------------------------------------------------------------------------------------ files left out


def test_endings_in_any_letter_case_are_read(tmp_path):
    names = [
        "a.jpg",
        "b.JPG",
        "c.jpeg",
        "d.jpe",
        "e.jfif",
        "f.JFIF",
        "g.png",
        "h.Tif",
        "i.tiff",
        "j.webp",
        "k.bmp",
        "l.jif",
        "m.pjpeg",
        "n.NPY",
    ]
    touch(tmp_path, *(f"train/cat/{name}" for name in names), "train/dog/1.gif")
    names, remarks = found(tmp_path)
    assert len(names) == 15 and remarks == []


def test_one_line_counts_what_was_left_out(tmp_path):
    photos(tmp_path, "train")
    touch(tmp_path, *(f"train/cat/{i}.heic" for i in range(50)), "train/dog/deep/a.HEIC", "train/dog/b.txt")
    (tmp_path / "train/dog/picture").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "train/dog/text").write_bytes(b"text")
    (remark,) = found(tmp_path)[1]
    for count in ("left out 54 files: ", "51 .heic", "1 .txt", "1 without an ending (content: PNG)"):
        assert count in remark
    (tmp_path / "train/ant").mkdir()
    touch(tmp_path, "train/ant/1.heic", "train/ant/2.heic")
    assert error(tmp_path).endswith("It has 2 .heic.")


def test_one_line_names_images_beside_the_class_folders(tmp_path):
    photos(tmp_path, "train")
    touch(tmp_path, *(f"train/loose{i}.JPG" for i in range(4)), "train/README.md", "train/.hidden.jpg")
    expected = "4 images next to the class folders are not used: loose0.JPG, loose1.JPG, loose2.JPG and 1 more."
    assert found(tmp_path)[1] == [f"'{tmp_path}/train': {expected}"]
    assert expected in found(tmp_path / "train", val_fraction=0.5)[1][0]
    touch(tmp_path, "flat/train/cat.1.jpg")
    assert "has no class folder" in error(tmp_path / "flat") and "cat.1.jpg" in error(tmp_path / "flat")


JUNK_FOLDERS = ("@eaDir", "@EADIR", "__MACOSX", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", ".git", "#recycle")
JUNK_FILES = ("._1.jpg", ".DS_Store", "Thumbs.db", "thumbs.DB", "desktop.ini", ".hidden.png")


def test_junk_is_neither_a_class_nor_an_image(tmp_path):
    photos(tmp_path, "train", "val")
    names = [*JUNK_FILES, *(f"{folder}/1.jpg" for folder in JUNK_FOLDERS)]
    touch(tmp_path, *(f"{place}/{name}" for place in ("train", "train/cat", "train/cat/deep") for name in names))
    assert found(tmp_path) == ({f"train/{c}/{i}.jpg": c for c in ("cat", "dog") for i in range(2)}, [])
    assert find_images([str(tmp_path / "train/cat")]) == [str(tmp_path / f"train/cat/{i}.jpg") for i in range(2)]
    touch(tmp_path, *(f"{name}/1.jpg" for name in JUNK_FOLDERS))
    assert counts(tmp_path) == {"cat": 2, "dog": 2}
    assert find_images([str(tmp_path / "train/@eaDir/1.jpg")])  # A file that is named is read.


def test_each_image_is_counted_once_however_links_lead_to_it(tmp_path):
    photos(tmp_path, "train", "val")
    cat = tmp_path / "train/cat"
    (cat / "again").symlink_to(cat)
    (cat / "up").symlink_to("../..")
    (cat / "self").symlink_to("self")
    (cat / "deep").mkdir()
    (cat / "deep/root").symlink_to("/")
    touch(tmp_path, "elsewhere/7.jpg")
    (cat / "one").symlink_to(tmp_path / "elsewhere")
    (cat / "two").symlink_to(tmp_path / "elsewhere")
    names, remarks = found(tmp_path)
    assert sum(label == "cat" for label in names.values()) == 3 and len(names) == 5
    assert "left out 4 links to folders that are read already: " in remarks[1]
    assert len(find_images([str(cat)])) == 3


def test_links_to_folders_are_followed(tmp_path):
    photos(tmp_path, "real", "val")
    touch(tmp_path, "pool/1.jpg")
    (tmp_path / "train").symlink_to("real")
    (tmp_path / "real/ant").symlink_to("../pool")
    assert counts(tmp_path) == {"cat": 2, "dog": 2, "ant": 1}


@pytest.mark.parametrize("link", ["train/dog/more", "train/ant"])
def test_a_folder_in_two_classes(tmp_path, link):
    photos(tmp_path, "train")
    (tmp_path / link).symlink_to(tmp_path / "train/cat")
    assert "leads to the same folder as one of the class" in error(tmp_path) and "Remove the link" in error(tmp_path)


def test_a_broken_link_is_an_image_that_cannot_be_read(tmp_path):
    photos(tmp_path, "train")
    (tmp_path / "train/cat/gone.jpg").symlink_to("nowhere")
    (tmp_path / "train/cat/self.jpg").symlink_to("self.jpg")
    assert counts(tmp_path)["cat"] == 4


def test_files_that_are_not_regular_are_left_out(tmp_path):
    photos(tmp_path, "train")
    cat = tmp_path / "train/cat"
    os.mkfifo(cat / "fifo.jpg")
    (cat / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(cat)  # The path of a socket must be short.
        server.bind("socket.jpg")
        os.chdir(before)
        names, remarks = found(tmp_path)
        assert len(find_images([str(cat)])) == 2
    assert len(names) == 4
    assert "left out 3 FIFOs, sockets or devices: " in remarks[0]
    os.mkfifo(tmp_path / "train/owl")
    assert counts(tmp_path) == {"cat": 2, "dog": 2}


def test_a_folder_that_cannot_be_read():
    code = """if True:
        import os, sys
        from efficientnet_tf.config.errors import UserError
        from efficientnet_tf.config.schema import DataConfig
        from efficientnet_tf.data.listing import check_data
        from efficientnet_tf.data.scan import find_images
        data = DataConfig(source="folder", dir=sys.argv[1])
        if os.geteuid() == 0:
            os.setuid(65534)  # The superuser could read every folder.
        for check in (lambda: check_data(data), lambda: find_images([data.dir + "/train/cat"])):
            try:
                check()
            except UserError as error:
                print(error)
    """
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        photos(root, "train")
        os.chmod(f"{root}/train/cat", 0)
        done = subprocess.run(
            [sys.executable, "-c", code, root], capture_output=True, text=True, timeout=60, check=True
        )
        os.chmod(f"{root}/train/cat", 0o700)
        assert done.stdout == f"{root}/train/cat: cannot be read: Permission denied.\n" * 2


def test_file_names_with_any_byte(tmp_path):
    names = [b"\xff\xfe.jpg", b"a\nb.jpg", b"%s*?[a].jpg", b"\x1b[31m.jpg", "\u2028.jpg".encode(), b" .jpg", b"a:b.jpg"]
    photos(tmp_path, "train")
    touch(tmp_path, *(f"train/cat/{os.fsdecode(name)}" for name in names))
    assert counts(tmp_path) == {"cat": 9, "dog": 2}


# ---------------------------------------------------------------------------------------------------- class names


@pytest.mark.parametrize(
    "name",
    ["a\u2028b", "a\vb", "a\fb", "a\x85b", "a\nb", "a\rb", "a\x1b[31mb", "a\u202eb", "a\u200bb", "a\udcffb", "\u3000"],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_class_names_that_cannot_be_saved(tmp_path, name, split):
    photos(tmp_path, "train", "val")
    touch(tmp_path, f"train/{name}/1.jpg", f"{split}/{name}/1.jpg")
    message = checked(tmp_path)
    assert "class" in message and message.isprintable()


def test_class_folders_that_look_the_same_are_one_class(tmp_path):
    photos(tmp_path, "train", classes=[*CAFE, "dog", "dog ", " dog"])
    assert counts(tmp_path) == {CAFE[0]: 4, "dog": 6}
    (remark,) = found(tmp_path)[1]
    assert "folders whose names differ only in blanks or the Unicode form are one class" in remark
    photos(tmp_path, "val", classes=[CAFE[1]])
    assert counts(tmp_path, "val") == {CAFE[0]: 2}


# ---------------------------------------------------------------------------------------------------------- tables


def table(root, rows, split="train", head="path,label", touched=True):
    """Write a table of (path, label) texts and the files that it names."""
    os.makedirs(root, exist_ok=True)
    lines = [head, *(row if isinstance(row, str) else ",".join(row) for row in rows)]
    (root / f"{split}.csv").write_bytes("\n".join(lines).encode() + b"\n")
    if touched:
        touch(root, *(row[0] for row in rows if not isinstance(row, str)))


def labels(names):
    """Return rows of files with these labels."""
    return [(f"{i}.jpg", name if '"' in name else f'"{name}"') for i, name in enumerate(names)]


def table_counts(root, split="train", **keys):
    return counts(root, split, source="table", **keys)


def table_error(root, split="train", **keys):
    return error(root, split, source="table", **keys)


@pytest.mark.parametrize(
    "label",
    [
        "cat;dog",
        "cat|dog",
        "cat,dog",
        "cat, dog",
        "cat dog",
        "dog + cat",
        "['cat', 'dog']",
        "[cat]",
        "cat/dog",
        "(cat, dog)",
        "0 1",
    ],
)
def test_lists_of_classes_are_no_class(tmp_path, label):
    table(tmp_path, labels(["cat", "dog", label]))
    message = table_error(tmp_path)
    assert f"train.csv, line 4: the label '{label}' seems to name several classes" in message
    assert "set data.task=multilabel" in message


@pytest.mark.parametrize(
    "names", [["cat;dog", "dog;owl", "owl;cat"], ["a|b", "b|c"], ["a,b", "b,c"], ['"[""a"", ""b""]"', '"[""c""]"']]
)
def test_lists_of_classes_without_a_single_one(tmp_path, names):
    table(tmp_path, labels(names))
    assert "seems to name several classes" in table_error(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["Felis catus; domestic", "dog"],
        ["maillot", "maillot, tank suit"],
        ["tench, Tinca tinca", "goldfish, Carassius auratus", "sea lion", "lion"],
        ["Smith, John", "Smith, Anna", "Miller, John"],
        ["AC/DC", "R&B"],
        ["hot-dog", "dog"],
        ["(unknown)", "7up", "2021-01-01"],
        ["cat_dog", "cat", "dog"],
    ],
)
def test_names_with_separators_are_names(tmp_path, names):
    table(tmp_path, labels(names))
    assert table_counts(tmp_path) == dict.fromkeys(names, 1)


@pytest.mark.parametrize(
    "names",
    [
        [f"{i * 0.37 + 1:.2f}" for i in range(12)],
        [f"{i * 0.37 + 1:.2f}".replace(".", ",") for i in range(12)],
        [f"{i}e-3" for i in range(3, 6)],
        [f"{-i}.5" for i in range(1, 15)] * 4,
        [str(20 + i * i) for i in range(12)],
        ["23", "45", "31", "52", "38", "19"],
        ["1.5", "2.5"],
        ["25%", "30.5%", "31%"],
        ["$5.99", "$7.49", "$12"],
    ],
)
def test_measured_numbers_are_no_classes(tmp_path, names):
    table(tmp_path, labels(names))
    message = table_error(tmp_path)
    assert f"the labels are {len(set(names))} different numbers" in message and names[0] in message
    assert "set data.task=regression" in message


@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(10)],
        [str(i) for i in range(1, 101)],
        [f"{i:03}" for i in range(50)],
        ["0", "7", "42"],
        ["1.0", "0.0", "1.0"],
        ["0.5", "1.0", "1.5"] * 4,
        [str(i * i) for i in range(20)] * 3,
        ["1990", "2020", "n/a"],
        ["nan", "inf", "1e5x"],
    ],
)
def test_numbers_of_classes_are_classes(tmp_path, names):
    table(tmp_path, labels(names))
    assert sorted(table_counts(tmp_path)) == sorted(set(names))


def test_a_missing_file_is_named_with_its_line(tmp_path):
    table(tmp_path, [("a/1.jpg", "cat"), ("2.jpg", "dog")])
    table(tmp_path, [("a/1.jpg", "cat"), ("a/nope.jpg", "dog"), ("3.jpg", "dog")], "val", touched=False)
    path = tmp_path / "a/nope.jpg"
    expected = f"{tmp_path}/val.csv, line 3: {path}: no such file. 2 of its 3 files are missing."
    assert table_error(tmp_path, "val") == expected
    assert found(tmp_path, "val", source="table", max_bad_fraction=1)[1][0] == expected
    assert table_counts(tmp_path) == {"cat": 1, "dog": 1}


@pytest.mark.parametrize("name", ["folder.jpg", "fifo.jpg", "zero.jpg"])
def test_a_row_that_names_no_regular_file(tmp_path, name):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    table(tmp_path, [("1.jpg", "cat"), ("2.jpg", "dog")])
    with (tmp_path / "train.csv").open("a") as file:
        file.write(f"{name},cat\n")
    assert f"train.csv, line 4: {tmp_path}/{name}: this is a" in table_error(tmp_path, max_bad_fraction=1)


@pytest.mark.parametrize("other", ["1.jpg", "./1.jpg", "a/../1.jpg", "{root}/1.jpg", "link.jpg", "file://{root}/1.jpg"])
def test_an_image_with_two_labels(tmp_path, other):
    (tmp_path / "a").mkdir()
    (tmp_path / "link.jpg").symlink_to("1.jpg")
    rows = [("1.jpg", "cat"), ("2.jpg", "dog")]
    table(tmp_path, [*rows, f"{other.format(root=tmp_path)},dog"])
    touch(tmp_path, "1.jpg", "2.jpg")
    assert "train.csv, lines 2 and 4: " in table_error(tmp_path)
    assert "has the labels 'cat' and 'dog'. Keep the right one." in table_error(tmp_path)
    table(tmp_path, [*rows, f"{other.format(root=tmp_path)},cat"])
    assert "1 row repeats a file of an earlier row, with the same label." in " ".join(
        listing(tmp_path, source="table").remarks
    )


def test_images_in_both_tables_are_told(tmp_path):
    table(tmp_path, [("1.jpg", "cat"), ("2.jpg", "dog")])
    table(tmp_path, [("./1.jpg", "cat"), ("3.jpg", "dog")], "val")
    (remark,) = found(tmp_path, "val", source="table")[1]
    assert "val.csv: 1 image also in the training table: " in remark


def test_labels_that_look_the_same_are_one_class(tmp_path):
    table(tmp_path, labels([*CAFE, " dog", "dog ", "dog"]))
    assert table_counts(tmp_path) == {CAFE[0]: 2, "dog": 3}
    (remark,) = found(tmp_path, source="table")[1]
    assert "blanks at the ends and different Unicode forms of labels are ignored, as in ' dog', " in remark
    table(tmp_path, [("9.jpg", '" "'), ("1.jpg", "b")])
    assert "line 2: the label is empty" in table_error(tmp_path)


@pytest.mark.parametrize("label", ["a\u2028b", '"a\nb"', "a\x1b[31m", "a\0b", "\ufeffa"])
def test_labels_that_cannot_be_saved(tmp_path, label):
    table(tmp_path, [("1.jpg", "cat"), ("2.jpg", label)])
    message = checked(tmp_path, "table")
    assert "the class name '" in message and message.isprintable()


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (" a/1.jpg ", "a/1.jpg"),
        ("a\\1.jpg", "a/1.jpg"),
        (CAFE[0] + "/1.jpg", CAFE[1] + "/1.jpg"),
        (".\\a\\b\\1.jpg", "a/b/1.jpg"),
    ],
)
def test_paths_in_another_form(tmp_path, written, name):
    table(tmp_path, [("0.jpg", "cat"), f"{written},dog"])
    touch(tmp_path, "0.jpg", name)
    result = listing(tmp_path, source="table")
    assert os.path.samefile(result.paths[1], tmp_path / name) and len(result.remarks) == 1


@pytest.mark.parametrize("path", ["s3://b/1.jpg", "hf://b/1.jpg", "https://b/1.jpg", "1\0.jpg", '"  "'])
def test_paths_that_cannot_be_read(tmp_path, path):
    table(tmp_path, [("0.jpg", "cat"), f"{path},dog"])
    assert "train.csv, line 3: path=" in table_error(tmp_path)


def test_files_with_other_endings_are_told(tmp_path):
    table(tmp_path, [("0.jpg", "cat"), ("1.heic", "dog"), ("2.HEIC", "dog"), ("3", "dog"), ("4.TIFF", "cat")])
    (remark,) = found(tmp_path, source="table")[1]
    assert remark.endswith("3 paths do not end as images do: 2 .heic, 1 without an ending. Their content decides.")


def test_a_windows_path_is_explained(tmp_path):
    table(tmp_path, [("0.jpg", "cat"), "C:\\photos\\1.jpg,dog"])
    assert "no such file. Write / instead of backslashes." in table_error(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "path;label\n0.jpg;cat\n1.jpg;dog\n",
        "path\tlabel\n0.jpg\tcat\n1.jpg\tdog\n",
        "sep=;\npath;label\n0.jpg;cat\n1.jpg;dog\n",
        "\ufeffPath, Label\r\n0.jpg,cat\r\n1.jpg,dog\r\n",
        '"LABEL","PATH"\ncat,0.jpg\ndog,1.jpg\n',
        "path,label\r0.jpg,cat\r1.jpg,dog\r",
        "path,label,,\n0.jpg,cat,,\n1.jpg,dog,,\n",
    ],
)
def test_tables_of_spreadsheets(tmp_path, text):
    touch(tmp_path, "0.jpg", "1.jpg")
    (tmp_path / "train.csv").write_bytes(text.encode())
    assert found(tmp_path, source="table") == ({"0.jpg": "cat", "1.jpg": "dog"}, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n0.jpg,cat\n".encode("utf-16"), "line 1: the byte 0xff is not UTF-8"),
        (b"path,label\n0.jpg,cat\n\xe9.jpg,dog\n", "line 3: the byte 0xe9 is not UTF-8"),
        (b"path,label\na, b.jpg,cat\n", "line 2: this row has 3 cells, the first line names 2"),
        (b"path,label,label\n0.jpg,cat,dog\n", "names the column label more than once"),
        (b"path,label\n0.jpg," + b"x" * 200_000 + b"\n", "is not a valid table in UTF-8: field larger than"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "is not UTF-8"),
        (b"\x1b]0;x\x07,b\n", "it has \\x1b]0;x\\x07, b."),
        (b"\0" * 100, "the first line must name the columns path and label"),
    ],
)
def test_malformed_tables(tmp_path, content, message):
    (tmp_path / "train.csv").write_bytes(content)
    assert message in table_error(tmp_path)


def test_a_table_that_is_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    assert "train.csv: this is a FIFO, not a file." in table_error(tmp_path)


def test_the_table_of_another_name_of_the_default_split(tmp_path):
    table(tmp_path, [("0.jpg", "cat"), ("1.jpg", "dog")])
    table(tmp_path, [("2.jpg", "cat")], "validation")
    names, remarks = found(tmp_path, "val", source="table")
    assert names == {"2.jpg": "cat"} and remarks == [f"'{tmp_path}' has no table 'val', so 'validation' is used."]
    table(tmp_path, [("2.jpg", "cat")], "Valid")
    assert "but Valid, validation. Set data.eval_split to one of them." in table_error(tmp_path, "val")


def test_a_table_with_an_ending_in_capitals(tmp_path):
    table(tmp_path, [("0.jpg", "cat"), ("1.jpg", "dog")])
    os.rename(tmp_path / "train.csv", tmp_path / "train.CSV")
    assert table_counts(tmp_path) == {"cat": 1, "dog": 1}


def test_a_missing_table_names_the_others(tmp_path):
    table(tmp_path, [("0.jpg", "cat"), ("1.jpg", "dog")])
    assert table_error(tmp_path, "val").endswith("has neither val.csv nor val.tsv.")
    table(tmp_path, [("2.jpg", "cat")], "test")
    assert table_error(tmp_path, "val").endswith("It has test.csv. Use --set data.eval_split=test.")


# ---------------------------------------------------------------------------------------------------------- checks


def test_find_images_names_what_is_wrong(tmp_path):
    touch(tmp_path, "a.heic")
    for path, message in (
        (tmp_path / "gone\x1b", "no such file or folder"),
        (tmp_path, "no image in this folder"),
        ("s3://x/y", "is on s3://, which is not supported"),
        ("", "is empty"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            find_images([str(path)])
        assert str(caught.value).isprintable()


def test_find_images_tells_what_was_left_out(tmp_path, caplog):
    touch(tmp_path, "a.jpg", "b.heic", "deep/c.PNG")
    assert find_images([str(tmp_path)]) == [str(tmp_path / "a.jpg"), str(tmp_path / "deep/c.PNG")]
    (record,) = caplog.records
    assert "left out 1 file: 1 .heic." in record.getMessage()


def test_record_files_are_checked(tmp_path):
    assert "has no file train-00000-of-..." in checked(tmp_path, "records")
    touch(tmp_path, "train-00000-of-00001", "val-00000-of-00001")
    assert "has no classes.txt" in checked(tmp_path, "records")
    (tmp_path / "classes.txt").write_text("a\n\nb\n")
    assert "classes.txt: the name of class 1 is empty" in checked(tmp_path, "records")
    (tmp_path / "classes.txt").write_text("a\n")
    assert "found only one class, 'a'" in checked(tmp_path, "records")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    data = schema.DataConfig(source="records", dir=str(tmp_path))
    check_data(data)
    check_data(data, ["val"])
    assert "has no file dev-00000" in checked(tmp_path, "records", eval_split="dev")


@pytest.mark.parametrize(("source", "split"), [("digits", "val"), ("synthetic", "test")])
def test_splits_of_other_sources_are_checked(source, split):
    data = schema.DataConfig(source=source)
    with pytest.raises(UserError, match=f"data.source={source} has no split '{split}'"):
        check_data(data, [split])
    check_data(data, ["train"])


def test_data_are_checked_without_tensorflow(tmp_path):
    photos(tmp_path, "train", "val")
    code = f"""if True:
        import sys
        from efficientnet_tf.config.schema import DataConfig
        from efficientnet_tf.data.listing import check_data
        check_data(DataConfig(source="folder", dir={str(tmp_path)!r}))
        sys.exit("tensorflow" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

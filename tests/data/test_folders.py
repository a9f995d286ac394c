"""Test tables of paths and labels, and the errors of malformed ones."""

import os

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.open import Order, open_source


def write_images(root, names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full([4, 5, 3], number, np.uint8)).save(root / name)


def open_table(root, split="train", **keys):
    return open_source(schema.DataConfig(source="table", dir=str(root), **keys), split, split == "train")


def contents(source):
    """Return {file name: (first pixel, class name)} of all examples."""
    examples = source.stream(Order(batch=source.size, steps=1))
    found = {}
    for _, id_, encoded, label in examples.map(lambda p, i, x: (p, i, *source.load(x))):
        pixels = tf.io.decode_image(encoded).numpy()
        found[os.path.basename(source.describe(int(id_)))] = (int(pixels[0, 0, 0]), source.class_names[int(label)])
    return found


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_table_is_read_row_by_row(tmp_path, suffix, mark):
    """Columns in any order, relative and absolute paths, a comma in a quoted name, Windows line ends."""
    root = tmp_path / "set"
    write_images(root, ["a/one.png", "b/two, or so.png", "three.png", "four.png"])
    away = tmp_path / "away.png"
    os.rename(root / "four.png", away)
    rows = [
        ["label", "width", "path"],
        ["newt", "5", "a/one.png"],
        ["axolotl", "", '"b/two, or so.png"'],
        ["newt", "5", "three.png"],
        ["Olm", "5", str(away)],
    ]
    (root / ("train" + suffix)).write_bytes("\r\n".join(mark.join(row) for row in rows).encode() + b"\r\n")
    source = open_table(root)
    assert source.class_names == ("Olm", "axolotl", "newt")
    assert source.size == 4
    assert contents(source) == {
        "one.png": (0, "newt"),
        "two, or so.png": (1, "axolotl"),
        "three.png": (2, "newt"),
        "away.png": (3, "Olm"),
    }


def test_training_table_determines_the_labels(tmp_path):
    write_images(tmp_path, ["0.png", "1.png", "2.png", "3.png"])
    (tmp_path / "fit.csv").write_text("path,label\n0.png,b\n1.png,a\n2.png,c\n")
    (tmp_path / "held.tsv").write_text("path\tlabel\n3.png\tc\n")
    source = open_table(tmp_path, "held", train_split="fit")
    assert source.class_names == ("a", "b", "c")
    assert contents(source) == {"3.png": (3, "c")}


def test_table_saved_by_a_spreadsheet(tmp_path):
    """It has a byte order mark, an empty line, and characters beyond ASCII, among them a Unicode line separator."""
    write_images(tmp_path, ["größe\u2028.png", "1.png"])
    text = "path,label\ngröße\u2028.png,Molch\n\n1.png,Lurch\n"
    (tmp_path / "train.csv").write_bytes(text.encode("utf-8-sig"))
    assert contents(open_table(tmp_path)) == {
        "größe\\u2028.png": (0, "Molch"),
        "1.png": (1, "Lurch"),
    }


def table_error(root, text=None, split="train", **keys):
    if text is not None:
        (root / f"{split}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        open_table(root, split, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must name the columns path and label; it has no column"),
        ("path,label\n", "names its columns but has no rows"),
        ("file,label\n1.png,a\n", "the first line must name the columns path and label; it has file, label"),
        ("1.png,a\n2.png,b\n", "it has 1.png, a"),
        ("path,label\n1.png,a\n2.png\n", "line 3: the label is empty"),
        ("path,label\n1.png,a\n2.png,\n", "line 3: the label is empty"),
        ("path,label\n\n\n,b\n", "line 4: the path is empty"),
        ('path,label\n1.png,"a\n2.png,b\n', "is not a valid table in UTF-8: unexpected end of data"),
        (b"path,label\n\xff\xfe.png,b\n", "train.csv, line 2: the byte 0xff is not UTF-8. Save the file as UTF-8."),
        ("path,label\n1.png,a\n2.png,a\n", "found only one class, 'a'"),
    ],
)
def test_malformed_tables(tmp_path, text, message):
    assert message in table_error(tmp_path, text)


def test_errors_name_the_table(tmp_path):
    assert str(tmp_path / "train.csv") in table_error(tmp_path, "path,label\n")
    (tmp_path / "nowhere").mkdir()
    assert table_error(tmp_path / "nowhere").endswith("has neither train.csv nor train.tsv.")
    assert table_error(tmp_path / "missing") == f"data.dir='{tmp_path}/missing' is not a folder."


def test_two_tables_of_one_split(tmp_path):
    (tmp_path / "train.tsv").write_text("path\tlabel\n1.png\ta\n2.png\tb\n")
    assert "has both train.csv and train.tsv" in table_error(tmp_path, "path,label\n1.png,a\n2.png,b\n")


def test_label_that_the_training_table_does_not_have(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\n1.png,a\n2.png,b\n")
    assert "has labels that 'train' does not have: ['B', 'c']" in table_error(
        tmp_path, "path,label\n3.png,c\n4.png,B\n", "val"
    )


def test_table_without_a_folder_is_an_error_of_the_config():
    with pytest.raises(UserError, match=r"data.source=table needs data.dir"):
        load_config("b0", "folder", ["data.source=table"])


def test_split_folder_is_not_treated_as_a_class(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    settings = schema.DataConfig(source="folder", dir=str(tmp_path), val_fraction=0.2)
    with pytest.raises(UserError, match="Leave data.val_fraction out"):
        open_source(settings, "train", training=True)


def test_remote_folders_are_listed_like_local_ones(tmp_path):
    """TensorFlow's file system in memory stands in for gs://, which needs a network."""
    names = [
        "train/a/1.png",
        "train/a/deep/2.png",
        "train/b/3.png",
        "train/@eaDir/4.png",
        "valid/a/5.png",
        "valid/6.png",
    ]
    write_images(tmp_path, names)
    (tmp_path / "train/b/notes.txt").write_text("no image")
    (tmp_path / "val.csv").write_text("path,label\nvalid/a/5.png,a\n")
    (tmp_path / "train.csv").write_text("path,label\ntrain/a/1.png,a\ntrain/b/3.png,b\n")
    for path in tmp_path.rglob("*.*"):
        target = f"ram://photos/{path.relative_to(tmp_path)}"
        tf.io.gfile.makedirs(os.path.dirname(target))
        tf.io.gfile.copy(str(path), target)
    for source, split, expected in (
        ("folder", "train", {"1.png": (0, "a"), "2.png": (1, "a"), "3.png": (2, "b")}),
        ("folder", "val", {"5.png": (4, "a")}),
        ("table", "val", {"5.png": (4, "a")}),
    ):
        data = schema.DataConfig(source=source, dir="ram://photos")
        assert contents(open_source(data, split, split == "train")) == expected


def test_remarks_are_logged_once_for_each_opened_split(tmp_path, caplog):
    write_images(tmp_path, ["train/a/1.png", "train/b/2.png", "val/a/1.png", "train/loose.png"])
    (tmp_path / "train/a/1.heic").touch()
    for split in ("train", "val"):
        open_source(schema.DataConfig(source="folder", dir=str(tmp_path)), split, split == "train")
    left_out, loose = (record.getMessage() for record in caplog.records)
    assert "left out 1 file: 1 .heic" in left_out and "1 image next to the class folders is not used" in loose


def test_files_with_names_of_any_byte_are_read(tmp_path):
    names = [b"\xff\xfe.png", b"a\nb.png", b"%s*?[a].png", b"\x1b[31m.png", "\u2028.png".encode(), b"C:b.png"]
    for number, name in enumerate(names):
        folder = os.path.join(os.fsencode(tmp_path), b"train", b"ab"[number % 2 : number % 2 + 1])
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, name), "wb") as file:
            PIL.Image.fromarray(np.full([4, 5, 3], number, np.uint8)).save(file, "PNG")
    found = contents(open_source(schema.DataConfig(source="folder", dir=str(tmp_path)), "train", training=True))
    assert sorted(found.values()) == [(number, "ab"[number % 2]) for number in range(6)]
    assert all(name.isprintable() for name in found)

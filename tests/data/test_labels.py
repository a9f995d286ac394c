"""What the labels in tables and arrays mean, for each `data.task`."""

import csv

import numpy as np
import pytest
from PIL import Image

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.arrays import list_arrays
from efficientnet_tf.data.listing import check_data, list_split


def write(root, rows, header="path,label", split="train", delimiter=","):
    """Write a table, and the image files of its first column."""
    with (root / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header.split(","))
        for number, cells in enumerate(rows):
            name = f"{split}{number}.png"
            Image.new("L", (8, 8)).save(root / name)
            writer.writerow([name, *([cells] if isinstance(cells, str) else cells)])


def listing(root, split="train", **keys):
    return list_split(schema.DataConfig(source="table", dir=str(root), **keys), split, split == "train")


def error(root, split="train", **keys):
    with pytest.raises(UserError) as caught:
        listing(root, split, **keys)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------- several labels


def test_labels_in_one_column(tmp_path):
    write(tmp_path, ["cat;dog", "", "dog", " cat ; cat;", "owl"])
    write(tmp_path, ["owl;cat", ""], split="val")
    found = listing(tmp_path, task="multilabel")
    assert found.class_names == ["cat", "dog", "owl"] and found.labels.dtype == np.uint8
    assert found.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert listing(tmp_path, "val", task="multilabel").labels.tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("separator", ["|", ",", " ", " and "])
def test_another_separator(tmp_path, separator):
    write(tmp_path, [separator.join(names) for names in (["cat", "dog"], ["dog"], ["owl", "cat"])])
    found = listing(tmp_path, task="multilabel", label_separator=separator)
    assert found.class_names == ["cat", "dog", "owl"] and found.labels.sum() == 5


@pytest.mark.parametrize("separator", ["|", ",", " "])
def test_a_wrong_separator(tmp_path, separator):
    write(tmp_path, [separator.join(names) for names in (["cat", "dog"], ["dog", "owl"], ["owl", "cat"])])
    message = error(tmp_path, task="multilabel")
    assert f"seems to be several labels with '{separator}'" in message
    assert f"data.label_separator='{separator}'" in message


def test_names_of_several_words(tmp_path):
    write(tmp_path, ["hot dog;dog", "polar bear;bear", "dog"])
    assert listing(tmp_path, task="multilabel").class_names == ["bear", "dog", "hot dog", "polar bear"]


def test_a_column_for_each_label(tmp_path):
    write(tmp_path, [("1", "0"), ("True", "FALSE"), ("0.0", "1.0"), ("0", "0")], header="path,Even,large")
    found = listing(tmp_path, task="multilabel", label_columns=("large", "even"))
    assert found.class_names == ["large", "even"]
    assert found.labels.tolist() == [[0, 1], [0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize("cell", ["2", "-1", "yes", "", "0.5", "nan", "1;0"])
def test_a_label_with_a_column_is_1_or_0(tmp_path, cell):
    write(tmp_path, [("1", "0"), (cell, "1")], header="path,a,b")
    message = error(tmp_path, task="multilabel", label_columns=("a", "b"))
    assert "train.csv, line 3, column a: a label with a column of its own is 1 or 0" in message
    assert (f"'{cell}'" if cell else "an empty cell") in message


def test_unknown_labels_in_evaluation(tmp_path):
    write(tmp_path, ["cat;dog", "owl"])
    write(tmp_path, ["cat;dgo"], split="val")
    message = error(tmp_path, "val", task="multilabel")
    assert "labels that 'train' does not have: ['dgo']" in message and "Did you mean 'dog'?" in message


def test_a_single_label_can_be_there_or_not(tmp_path):
    write(tmp_path, ["defect", "", "defect"])
    found = listing(tmp_path, task="multilabel")
    assert found.class_names == ["defect"] and found.labels.tolist() == [[1], [0], [1]]


def test_no_label_at_all(tmp_path):
    write(tmp_path, ["", ";", " ; "])
    assert "no image has a label in the column label" in error(tmp_path, task="multilabel")


def test_remarks_about_labels_that_cannot_be_learned(tmp_path):
    write(tmp_path, [("1", "0"), ("1", "0")], header="path,always,never")
    [remark, single] = listing(tmp_path, task="multilabel", label_columns=("always", "never")).remarks
    assert "2 labels are on all training images or on none: always, never." in remark
    assert "every image has exactly one label" in single


def test_the_same_file_with_other_labels(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\na.png,cat;dog\na.png,cat\n")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    message = error(tmp_path, task="multilabel")
    assert "lines 2 and 3: " in message and "has the labels 'cat;dog' and 'cat'" in message


# ---------------------------------------------------------------------------------------------------------- numbers


def test_numbers(tmp_path):
    write(tmp_path, [("1.5", "-2e3"), ("3", "+10"), ("0", "0")], header="path,Age,weight")
    found = listing(tmp_path, task="regression", label_columns=("weight", "age"))
    assert found.class_names == ["weight", "age"] and found.labels.dtype == np.float32
    np.testing.assert_array_equal(found.labels, np.array([[-2000, 1.5], [10, 3], [0, 0]], np.float32))


def test_numbers_in_the_column_label(tmp_path):
    write(tmp_path, ["1", "2"])
    assert listing(tmp_path, task="regression").class_names == ["label"]


@pytest.mark.parametrize("cell", ["", "abc", "1,5", "1_000", "12%", "1e99", "inf", "nan", "0x10", "1;2"])
def test_what_is_no_number(tmp_path, cell):
    write(tmp_path, [["1"], [cell]], delimiter=";")
    message = error(tmp_path, task="regression")
    assert "train.csv, line 3, column label: " in message
    assert "not a number" in message or "must be finite" in message


def test_a_number_that_is_always_the_same(tmp_path):
    write(tmp_path, ["7", "7.0"])
    assert "the number label is 7 for all training images" in error(tmp_path, task="regression")


# ------------------------------------------------------------------------------------------------------------ columns


def test_classes_in_another_column(tmp_path):
    write(tmp_path, [("cat", "1"), ("dog", "2")], header="path,species,age")
    found = listing(tmp_path, label_columns=("species",))
    assert found.class_names == ["cat", "dog"] and found.labels.tolist() == [0, 1]


def test_missing_columns(tmp_path):
    write(tmp_path, [("1", "2")], header="path,age,weight")
    message = error(tmp_path, task="regression", label_columns=("age", "wieght"))
    assert "must name the columns path, age and wieght; it has path, age, weight." in message
    assert "Did you mean 'weight'?" in message
    assert "Set data.label_columns to use another column than label." in error(tmp_path)


# ------------------------------------------------------------------------------------------------------------- arrays


def arrays(root, labels, images=6, **keys):
    path = root / "data.npz"
    pixels = np.zeros((images, 8, 8), np.uint8)
    names = {"classes": np.array(keys.pop("names"))} if "names" in keys else {}
    np.savez(path, x_train=pixels, y_train=labels, **names)
    data = schema.DataConfig(source="arrays", dir=str(path), val_fraction=0.5, **keys)
    return list_arrays(data, "train", True)


FLAGS = np.array([[1, 0], [0, 0], [1, 1], [0, 1], [1, 0], [0, 1]])


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.int64, np.float32])
def test_arrays_of_labels(tmp_path, dtype):
    found = arrays(tmp_path, FLAGS.astype(dtype), task="multilabel", names=["even", "large"])
    assert found.class_names == ["even", "large"] and found.labels.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, FLAGS[found.rows])


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_arrays_of_numbers(tmp_path, shape):
    values = np.random.default_rng(0).normal(0, 1, shape)
    found = arrays(tmp_path, values, task="regression")
    assert found.class_names == [str(i) for i in range((*shape, 1)[1])] and found.labels.dtype == np.float32
    np.testing.assert_array_equal(found.labels, values.reshape(6, -1).astype(np.float32)[found.rows])


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("multilabel", FLAGS * 2, "needs zeros and ones, but image 0 has 2 in column 0"),
        ("multilabel", FLAGS[:, 0], r"must have the shape [6, labels], received [6]"),
        ("multilabel", FLAGS[:5], r"must have the shape [6, labels], received [5, 2]"),
        ("multilabel", FLAGS.astype(str), "needs zeros and ones, received the type <U21"),
        ("multilabel", FLAGS[:, :0], "received [6, 0]"),
        ("regression", np.array([1, 2, np.nan, 4, 5, 6]), "needs finite numbers of at most 1e+30, but image 2 has nan"),
        ("regression", np.zeros((6, 2, 2)), r"[6] or [6, numbers], received [6, 2, 2]"),
        ("regression", np.ones(6), "the number 0 is 1 for all training images"),
        ("regression", np.array(["1"] * 6), "needs numbers, received the type <U1"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, task, labels, message):
    with pytest.raises(UserError) as caught:
        arrays(tmp_path, labels, task=task)
    assert message in str(caught.value)


def test_names_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"the labels have 2 columns, but there are 3 names"):
        arrays(tmp_path, FLAGS, task="multilabel", names=["a", "b", "c"])


@pytest.mark.parametrize("source", ["digits", "folder", "records", "synthetic", "tfds:mnist"])
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_sources_that_have_classes_only(tmp_path, source, task):
    data = schema.DataConfig(source=source, dir=str(tmp_path), task=task)
    message = f"data.task={task} needs data.source=table, arrays, parquet or webdataset, received data.source={source}"
    with pytest.raises(UserError, match=message):
        check_data(data)

"""Test the images that a network has labeled: which are chosen, how they join the training images, and odd files."""

import json

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.listing import list_split
from efficientnet_tf.data.pseudo_labels import CLASS_NAMES, COLUMNS, choose_rows
from efficientnet_tf.runtime.parquet import ParquetWriter

CLASSES = ["ant", "bee"]


def write_labels(path, rows, class_names=CLASSES, columns=COLUMNS):
    notes = None if class_names is None else {CLASS_NAMES: json.dumps(class_names)}
    with open(path, "wb") as file, ParquetWriter(file, columns, notes) as writer:
        for row in rows:
            writer.write(row)
    return path


@pytest.fixture
def data(tmp_path):
    """Return a folder with two labeled images of each class, and four without labels in `more`."""
    for name in ("train/ant/0", "train/ant/1", "train/bee/2", "train/bee/3", "val/ant/4", "val/bee/5"):
        path = tmp_path / "set" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), (int(path.stem), 0, 0)).save(path)
    (tmp_path / "more").mkdir()
    for number in range(4):
        PIL.Image.new("RGB", (8, 8), (0, number, 0)).save(tmp_path / "more" / f"{number}.png")
    return tmp_path


def list_all(data, rows, split="train", class_names=CLASSES, **keys):
    path = write_labels(data / "labels.parquet", [(str(data / "more" / f"{n}.png"), p) for n, p in rows], class_names)
    config = schema.DataConfig(source="folder", dir=str(data / "set"), pseudo_labels=str(path), **keys)
    return list_split(config, split, split == "train")


ROWS = [(0, [0.9, 0.1]), (1, [0.25, 0.75]), (2, [0.6, 0.4]), (3, [0.48, 0.52])]


def test_images_with_labels_of_a_network_follow_those_with_labels(data):
    listing = list_all(data, ROWS)
    assert [path.rpartition("/")[2] for path in listing.paths[4:]] == ["0.png", "1.png", "2.png", "3.png"]
    expected = [[1, 0], [1, 0], [0, 1], [0, 1], *(probabilities for _, probabilities in ROWS)]
    np.testing.assert_array_equal(listing.labels, np.array(expected, np.float32))
    assert listing.remarks[-1] == f"{data}/labels.parquet: 4 of 4 images are added to 4 with labels."


def test_evaluation_is_not_changed(data):
    assert list_all(data, ROWS, "val").labels.tolist() == [0, 1]


def test_columns_are_put_in_the_order_of_the_classes(data):
    listing = list_all(data, ROWS, class_names=["bee", "ant"])
    np.testing.assert_array_equal(listing.labels[4], np.array([0.1, 0.9], np.float32))


def test_images_that_have_a_label_keep_it(data):
    path = data / "set" / "train" / "ant" / "0.png"
    listing = list_all(data, [(path.with_suffix(""), [0.0, 1.0]), *ROWS])
    assert len(listing.paths) == 8
    assert any("1 image left out because the training images have labels" in remark for remark in listing.remarks)


def test_unsure_images_are_left_out(data):
    listing = list_all(data, ROWS, pseudo_confidence=0.6)
    assert [path.rpartition("/")[2] for path in listing.paths[4:]] == ["0.png", "1.png", "2.png"]


def test_classes_are_balanced(data):
    listing = list_all(data, [(0, [0.9, 0.1]), (1, [0.8, 0.2]), (2, [0.3, 0.7]), (3, [0.95, 0.05])], pseudo_per_class=2)
    assert [path.rpartition("/")[2] for path in listing.paths[4:]] == ["3.png", "0.png", "2.png", "2.png"]
    assert "3 of 4 images are added to 4 with labels, some of them several times, 4 in all" in listing.remarks[-1]


def test_a_class_without_images_is_named(data):
    assert any("1 class has no image: bee." in r for r in list_all(data, ROWS[:1]).remarks)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30),
    st.floats(0, 1),
    st.none() | st.integers(1, 8),
)
def test_choice_of_images(first, confidence, per_class):
    probabilities = np.array([[p, 1 - p] for p in first], np.float32)
    rows = choose_rows(probabilities, confidence, per_class)
    highest, classes = probabilities.max(axis=1), probabilities.argmax(axis=1)
    assert (highest[rows] >= confidence).all()
    sure = [np.flatnonzero((classes == number) & (highest >= confidence)) for number in range(2)]
    if per_class is None:
        assert sorted(rows.tolist()) == sorted(np.concatenate(sure).tolist())
        return
    for number, of_class in enumerate(sure):
        chosen, counts = np.unique(rows[classes[rows] == number], return_counts=True)
        assert counts.sum() == (per_class if len(of_class) else 0)
        if len(of_class):
            assert counts.max() - counts.min() <= 1
            # None that was left out is surer than one that was taken.
            others = np.setdiff1d(of_class, chosen)
            assert not len(others) or highest[others].max() <= highest[chosen].min()


FAULTS = {
    "no rows": ({"rows": []}, "has a row without a path, or no row"),
    "a sum that is not 1": ({"rows": [(0, [0.9, 0.9])]}, "each row must have 2 probabilities with a sum of 1"),
    "NaN": ({"rows": [(0, [float("nan"), 1.0])]}, "each row must have 2 probabilities"),
    "below zero": ({"rows": [(0, [-0.5, 1.5])]}, "each row must have 2 probabilities"),
    "too few": ({"rows": [(0, [1.0])]}, "each row must have 2 probabilities"),
    "different numbers of them": ({"rows": [(0, [1.0, 0.0]), (1, [1.0])]}, "each row must have 2 probabilities"),
    "other classes": (
        {"rows": ROWS, "class_names": ["ant", "wasp"]},
        "has other classes than the training images. Only one of the two has bee, wasp.",
    ),
    "no classes": ({"rows": ROWS, "class_names": None}, "is not a file that `predict --soft` writes"),
    "missing images": ({"rows": [*ROWS, (7, [1.0, 0.0])]}, "1 of 5 images are missing, for example"),
    "nobody sure": ({"rows": ROWS[3:], "pseudo_confidence": 0.9}, "no image is left. Of its 1 images, none is new"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_are_refused(data, fault):
    settings, message = FAULTS[fault]
    with pytest.raises(UserError) as error:
        list_all(data, **settings)
    assert message in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"path,probabilities\n"])
def test_files_of_another_format(data, content):
    (data / "x.parquet").write_bytes(content)
    config = schema.DataConfig(source="folder", dir=str(data / "set"), pseudo_labels=str(data / "x.parquet"))
    with pytest.raises(UserError, match=r"x\.parquet is no Parquet file, or is damaged"):
        list_split(config, "train", True)


def test_tables_of_another_kind(data):
    path = write_labels(data / "x.parquet", [("a.png", 1.0)], CLASSES, {"path": "text", "score": "number"})
    config = schema.DataConfig(source="folder", dir=str(data / "set"), pseudo_labels=str(path))
    with pytest.raises(UserError, match="is not a file that `predict --soft` writes"):
        list_split(config, "train", True)


@pytest.mark.parametrize("keys", [{"source": "arrays"}, {"source": "table", "task": "multilabel"}])
def test_sources_and_tasks_that_cannot_have_them(keys):
    with pytest.raises(ValueError, match="data.pseudo_labels needs data.source=folder or data.source=table"):
        schema.DataConfig(dir="x", pseudo_labels="x.parquet", **keys).check()

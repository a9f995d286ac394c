"""The accuracy of each class, and the table of it."""

import json

import numpy as np
import pytest
from hostile import NAMES
from outputs import full_disk

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluation.per_class import per_class, write_per_class
from efficientnet_tf.runtime.tables import parse_csv


def test_class_without_examples_has_no_accuracy(tmp_path):
    rows = per_class(np.array([[3, 1], [0, 0]]), ["a, b", "c"])
    assert rows == [
        {"class": "a, b", "examples": 4, "correct": 3, "accuracy": 0.75},
        {"class": "c", "examples": 0, "correct": 0, "accuracy": None},
    ]
    write_per_class(str(tmp_path / "t.csv"), rows)
    assert (tmp_path / "t.csv").read_text() == 'class,examples,correct,accuracy\n"a, b",4,3,0.75\nc,0,0,\n'
    write_per_class(str(tmp_path / "t.json"), rows)
    assert json.loads((tmp_path / "t.json").read_text()) == rows


def test_table_that_cannot_be_written(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UserError, match="^per_class=.*t.csv cannot be written because it is a folder"):
        write_per_class(str(tmp_path / "t.csv"), per_class(np.eye(2), ["a", "b"]))


@pytest.mark.parametrize("name", ["t.csv", "t.json"])
def test_a_full_disk_leaves_no_table(tmp_path, name):
    rows = per_class(np.eye(2000), ["a"] * 2000)
    with full_disk(), pytest.raises(UserError, match=f"^per_class=.*{name} cannot be written: File too large"):
        write_per_class(str(tmp_path / name), rows)
    assert not list(tmp_path.iterdir())


def test_class_names_are_no_formulas_and_are_read_as_they_were(tmp_path):
    names = [name for name in NAMES if "\udcff" not in name]
    rows = per_class(np.eye(len(names)), names)
    write_per_class(str(tmp_path / "t.csv"), rows)
    text = (tmp_path / "t.csv").read_bytes().decode()
    assert "\n'=HYPERLINK(1),1,1,1.0\n" in text
    assert [row["class"] for row in parse_csv(text)] == names

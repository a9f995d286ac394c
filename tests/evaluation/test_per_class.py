"""The accuracy of each class, and the table of it."""

import json

import numpy as np
import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluation.per_class import per_class, write_per_class


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
    with pytest.raises(UserError, match="^per_class=.*t.csv cannot be written: "):
        write_per_class(str(tmp_path / "t.csv"), per_class(np.eye(2), ["a", "b"]))

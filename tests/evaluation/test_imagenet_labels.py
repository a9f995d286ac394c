"""Labels of ImageNet's other test sets: matching class names, and reading ImageNet-ReaL's file."""

import json
import os
import re
import unicodedata

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.evaluation.imagenet_labels import match_classes, read_real_labels

SYNSETS = [f"n{number:08d}" for number in (1440764, 1443537, 1484850, 1491361, 1494475, 1496331)]
SYNSETS += [f"n{number:08d}" for number in (1498041, 1514668, 1514859, 1518878, 1530575, 1531178)]


def test_classes_match_by_name_before_number():
    names = [*"abcdefghijkl"]
    assert match_classes(names, names) == list(range(12))
    assert match_classes(["c", "a"], names) == [2, 0]
    assert match_classes(["0", "1", "10", "2"], names) == [0, 1, 10, 2]
    numbered = ["0", "1", "10", "2"]  # the model's class names are numbers, in an order of their own
    assert match_classes(["2", "10"], numbered) == [3, 2]


@pytest.mark.parametrize(
    ("names", "class_names", "parts"),
    [
        (
            ["n01440764", "n01443538"],
            SYNSETS,
            ["does not have n01443538. It has the 12 classes n01440764", "Did you mean 'n01443537'?"],
        ),
        (["0", "12"], SYNSETS, ["does not have 12.", "class names, or the label numbers 0 to 11"]),
        (["0", "007"], SYNSETS, ["does not have 007."]),
        (["0", "3"], ["1", "2", "10", "20"], ["does not have 0, 3."]),  # numbers are names here, not positions
        (["0", "n01440764"], SYNSETS, ["does not have 0."]),
        ([f"x{i}" for i in range(12)], SYNSETS, ["the 12 classes x0", "x9 and 2 more."]),
    ],
)
def test_unknown_classes(names, class_names, parts):
    with pytest.raises(UserError) as caught:
        match_classes(names, class_names)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[[1], [2]", ": not valid JSON: Expecting"),
        ('{"1": [2]}', 'must be a list of lists of label numbers, received {"1": [2]}'),
        ("[]", "must be a list of lists of label numbers, received []"),
        ("[[1], 2]", "must have a list of label numbers for image 2, received 2"),
        ('[[1], ["2"]]', 'must have a list of label numbers for image 2, received ["2"]'),
        ("[[1], [true]]", "must have a list of label numbers for image 2, received [true]"),
        ("[" * 10_000 + "]" * 10_000, "it is nested too deeply"),
        ("[" * 400 + "]" * 400, "must have a list of label numbers for image 1, received [["),
        ("[[1], [" + "9" * 3000 + "]]", "has the labels 1, 0x"),
        ("[[1], [" + "9" * 9000 + "]]", "not valid JSON"),
        ("[[" + "1," * 50_000 + "1]," + "[1]," * 2_000 + "[1]]", "has 2,002 images with up to 50,001 labels"),
        ("[[1], [1.5]]", "received [1.5]"),
        ("[[1], [NaN]]", "received [NaN]"),
        ("[[1], null]", "for image 2, received null"),
        ('"\x1b"', "not valid JSON"),
        ("", "not valid JSON"),
        ("[[1], [12, -1]]", "has the labels -1, 12, which the model does not have. Use the labels 0 to 11."),
    ],
)
def test_invalid_real_labels(tmp_path, content, part):
    path = tmp_path / "real.json"
    path.write_text(content)
    with pytest.raises(UserError, match=re.escape(part)) as caught:
        read_real_labels(str(path), SYNSETS, list(range(12)))
    assert str(caught.value).startswith(f"real_labels={path}")
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_real_labels_that_are_no_text_file(tmp_path):
    path = tmp_path / "real.json"
    for write, part in (
        (lambda: path.write_bytes(b"[[1]]\xff"), "line 1: the byte 0xff is not UTF-8"),
        (lambda: path.mkdir(), "this is a folder, not a file"),
        (lambda: os.mkfifo(path), "this is a FIFO, not a file"),
        (lambda: path.symlink_to("/dev/zero"), "this is a device, not a file"),
    ):
        write()
        with pytest.raises(UserError, match=part):
            read_real_labels(str(path), SYNSETS, list(range(12)))
        path.rmdir() if path.is_dir() else path.unlink()


def test_classes_that_look_the_same_match():
    names = [unicodedata.normalize("NFD", name) for name in ("caf\u00e9", "na\u00efve")]
    assert match_classes(names, ["dog ", "na\u00efve", "caf\u00e9"]) == [2, 1]


def test_missing_real_labels(tmp_path):
    with pytest.raises(UserError, match="real_labels=.*none.json: no such file"):
        read_real_labels(str(tmp_path / "none.json"), SYNSETS, list(range(12)))


def test_real_labels_are_names_if_the_class_names_are_numbers(tmp_path):
    path = tmp_path / "real.json"
    path.write_text(json.dumps([[2], [], [10, 1]]))
    rows = read_real_labels(str(path), ["0", "1", "10", "2"], [0, 1, 2, 3])
    assert rows.tolist() == [[-1, -1], [3, -1], [-1, -1], [2, 1]]

"""Arrays that users pass as images: what is taken, what is refused, and what is warned about."""

import itertools
import logging
import pathlib

import numpy as np
import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.export import pixels
from efficientnet_tf.export.pixels import batches, check_count, check_pixels

SHAPE = (None, 8, 8, 3)


@pytest.fixture(autouse=True)
def warn_again(monkeypatch):
    monkeypatch.setattr(pixels, "_warned", set())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "uint16", "float16", "float32", "float64"])
def test_pixels_of_any_number_type_are_taken(dtype):
    values = np.arange(192).reshape(1, 8, 8, 3).astype(dtype)
    checked = check_pixels("pixels", values, SHAPE)
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(checked, values)
    np.testing.assert_array_equal(check_pixels("pixels", values.tolist(), SHAPE), checked)


def test_bicubic_overshoot_and_empty_batches_are_taken(caplog):
    image = np.full([1, 8, 8, 3], 300.0)
    image[0, 0] = -50
    check_pixels("pixels", image, SHAPE)
    assert check_pixels("pixels", np.zeros([0, 8, 8, 3]), SHAPE).shape == (0, 8, 8, 3)
    check_pixels("pixels", np.zeros([1, 8, 8, 3]), SHAPE)  # black
    check_pixels("pixels", np.random.default_rng(0).integers(0, 2, [1, 8, 8, 3], np.uint8), SHAPE)  # dark
    assert not caplog.records


RANDOM = np.random.default_rng(0).uniform(0, 1, [1, 8, 8, 3])


@pytest.mark.parametrize("values", [RANDOM, RANDOM * 2 - 1, (RANDOM - 0.45) / 0.225, RANDOM.astype(np.float16)])
def test_pixels_that_seem_scaled_already_are_warned_about_once(values, caplog):
    with caplog.at_level(logging.WARNING, "efficientnet_tf"):
        check_pixels("pixels", values, SHAPE)
        check_pixels("pixels", values, SHAPE)
    assert len(caplog.records) == 1
    assert "Multiply images in [0, 1] by 255" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RANDOM * 65535, "has values from .* but pixels are in .0, 255.. Scale the images"),
        (np.full([1, 8, 8, 3], 65535, np.uint16), "has values from 65535 to 65535"),
        (np.full([1, 8, 8, 3], -128, np.int8), "has values from -128 to -128"),
        (np.full([1, 8, 8, 3], np.nan), "contains NaN or infinity"),
        (np.full([1, 8, 8, 3], np.inf), "contains NaN or infinity"),
        (np.full([1, 8, 8, 3], 1e300), "contains NaN or infinity|has values"),
        (np.zeros([1, 8, 8, 3], bool), "holds bool"),
        (np.zeros([1, 8, 8, 3], complex), "holds complex numbers"),
        (np.full([1, 8, 8, 3], "7"), "holds text"),
        (np.full([1, 8, 8, 3], None), "holds objects"),
        (None, "holds a value of type NoneType"),
        ({}, "holds a value of type dict"),
        ("photo.jpg", "holds a value of type str"),
        (np.zeros([1, 3, 8, 8]), r"The channels come last: pass np.transpose\(pixels, \(0, 2, 3, 1\)\)"),
        (np.zeros([8, 8, 3]), r"shape \[8, 8, 3\], but the model takes \[N, 8, 8, 3\]. Pass pixels\[None\]"),
        (np.zeros([1, 9, 9, 3]), r"takes \[N, 8, 8, 3\]. Pass the path or the bytes"),
        (np.zeros([1, 8, 8, 1]), r"takes \[N, 8, 8, 3\]"),
        (np.zeros([1, 8, 8, 4]), r"takes \[N, 8, 8, 3\]"),
        ([[1, 2], [3]], "cannot be made an array|holds objects"),
        (7, r"shape \[\]"),
        ([], r"shape \[0\]"),
    ],
)
def test_other_values_are_refused(values, message):
    with np.errstate(over="ignore"), pytest.raises(UserError, match=message):
        check_pixels("pixels", values, SHAPE)


def test_single_images_have_no_batch():
    assert check_pixels("images", np.zeros([8, 8, 3], np.uint8), SHAPE[1:]).shape == (8, 8, 3)
    with pytest.raises(UserError, match=r"pass np.transpose\(images, \(1, 2, 0\)\)"):
        check_pixels("images", np.zeros([3, 8, 8]), SHAPE[1:])


def test_images_come_from_anything_that_can_be_iterated():
    path = pathlib.Path("a.jpg")
    for single in ("a.jpg", path, b"a", bytearray(b"a"), memoryview(b"a")):
        assert list(batches(single, 2)) == [[single]]
    for many in (["a", "b", "c"], ("a", "b", "c"), iter("abc"), (c for c in "abc"), np.array(["a", "b", "c"])):
        assert [[str(c) for c in batch] for batch in batches(many, 2)] == [["a", "b"], ["c"]]
    assert list(batches([], 2)) == list(batches(np.zeros([0, 8, 8, 3]), 2)) == []
    assert next(batches(itertools.repeat("a"), 3)) == ["a"] * 3  # endless
    assert list(batches(["a"], 10**30)) == [["a"]]
    for wrong in (None, 7, {"a": "b"}, {"a"}, print, 1.5):
        with pytest.raises(UserError, match="images is of type .* Pass a list of paths"):
            list(batches(wrong, 2))


def test_counts_are_whole_numbers():
    assert [check_count("top", value) for value in (1, 10**12, np.int64(3), np.uint8(5))] == [1, 10**12, 3, 5]
    for value in (0, -1, 2.5, 2.0, True, "3", None, float("nan"), np.bool_(True), [1]):
        with pytest.raises(UserError, match="top=.* must be at least 1, and a whole number"):
            check_count("top", value)

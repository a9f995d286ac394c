"""Tests of CSV tables: no cell is a formula, and reading gives what was written."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf.runtime.tables import format_csv, parse_csv

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1dcmd", "=HYPERLINK(\"http://x\",'a')", "'=1"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_get_an_apostrophe_and_lose_it_when_read(name):
    text = format_csv(["class", name], [{"class": name, name: 1}])
    header, cells = csv.reader(io.StringIO(text, newline=""))
    assert header[1] == cells[0] == f"'{name}"
    assert parse_csv(text) == [{"class": name, name: "1"}]


def test_numbers_and_other_texts_are_unchanged():
    row = {"a": -1.5, "b": None, "c": "a, b", "d": "it's", "e": "'tis", "f": -3, "g": "a-b"}
    assert format_csv(list(row), [row]) == "a,b,c,d,e,f,g\n-1.5,,\"a, b\",it's,'tis,-3,a-b\n"
    assert format_csv(["a", "b"], [{"b": 2}]) == "a,b\n,2\n"


@given(st.lists(st.fixed_dictionaries({"one": TEXT, "two": TEXT}), min_size=1))
def test_any_table_is_read_as_it_was_written(rows):
    assert parse_csv(format_csv(["one", "two"], rows)) == rows


@given(TEXT | st.sampled_from(FORMULAS))
def test_no_cell_begins_like_a_formula(name):
    _, (cell, _) = csv.reader(io.StringIO(format_csv(["n", "m"], [{"n": name}]), newline=""))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"))


def test_names_that_are_not_unicode_can_be_written():
    assert format_csv(["file"], [{"file": "a\udcff.jpg"}]) == "file\na\\udcff.jpg\n"

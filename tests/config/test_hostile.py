"""Configs from strangers: each is read or refused with a short sentence, in little time and memory."""

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf.config import load as load_lib
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.json_text import parse_json, parse_json_object
from efficientnet_tf.config.yaml12 import LIMIT_BYTES, MOST_DEPTH, MOST_DIGITS, MOST_VALUES, parse_yaml

LONGEST_ERROR = 1200  # characters
LETTERS = "bcdefghijklmnopqrstuvwxyz"


def chain(pattern):
    """Return lines in which each anchor holds several aliases of the one before."""
    names = "a" + LETTERS
    lines = [pattern.format(names[i + 1], names[i]) for i in range(len(LETTERS))]
    return "a: &a {x: 1, y: 2}\n" + "\n".join(lines)


def error_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert len(message) < LONGEST_ERROR, f"{len(message)} characters"
    return message


HOSTILE = {
    "flow nesting": ("[" * 100_000, "levels of nesting"),
    "block nesting": ("- " * 100_000, "levels of nesting"),
    "mapping nesting": ("{a: " * 50_000, "levels of nesting"),
    "question marks": ("? " * 100_000, "levels of nesting"),
    "billion laughs": (chain("{0}: &{0} [*{1}, *{1}, *{1}, *{1}, *{1}, *{1}, *{1}, *{1}, *{1}]"), "values, counting"),
    "quadratic aliases": (f"a: &a [{'x,' * 5000}]\nb: [{'*a,' * 5000}]", "values, counting"),
    "merges": (chain("{0}: &{0} {{<<: [*{1}, *{1}]}}"), "values, counting"),
    "cycle": ("&a [*a]", "contains itself"),
    "cycle through a key": ("a: &a {b: [{c: *a}]}", "contains itself"),
    "many values": (f"[{'a,' * 100_000}]", "more than 20,000 values"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(15_000)), "more than 20,000 values"),
    "digits": ("9" * 10_000, "10,000 digits"),
    "negative digits": ("a: -" + "1" * 5000, "digits"),
    "long text": ("x" * 10**7, "10,000,000 characters"),
    "python": ("!!python/object/apply:os.system [x]", "!!python/object/apply:os.system is not allowed"),
    "python name": ("a: !!python/name:os.system", "is not allowed"),
    "binary": ("!!binary aGk=", "!!binary is not allowed"),
    "timestamp": ("!!timestamp abc", "is not allowed"),
    "set": ("!!set {a}", "is not allowed"),
    "own tag": ("a: !foo bar", "!foo is not allowed"),
    "global tag": ("!<x> 1", "x is not allowed"),
    "value": ("=", "is not allowed"),
    "not a bool": ("!!bool xyz", "'xyz' is not of type bool"),
    "not an int": ("a: !!int abc", "'abc' is not of type int"),
    "not a float": ("!!float abc", "'abc' is not of type float"),
    "not a map": ("a: !!map [1]", "expected keys and values"),
    "not a list": ("!!seq {a: 1}", "expected a sequence"),
    "not a text": ("!!str [1]", "expected a scalar"),
    "merge of a number": ("<<: 5", "for merging"),
    "key is a number": ("1: 2", "a key must be a name, received 1"),
    "key is true": ("true: 2", "a key must be a name, received true"),
    "key is null": ("~: 2", "a key must be a name"),
    "key is a list": ("? [a]\n: 1", "a key must be a name"),
    "same key": ("a: 1\na: 2", "'a' is given twice"),
    "same long key": (f"? {'k' * 50_000}\n: 1\n? {'k' * 50_000}\n: 1", "is given twice"),
    "tab": ("a:\n\tb: 1", "not valid YAML"),
    "null character": ("a\0b", "not valid YAML"),
    "escape character": ("a: \x1b[2J", "not valid YAML"),
    "surrogate": ("a: \udcff", "not valid YAML"),
    "no such anchor": ("*" + "a" * 10_000, "not valid YAML"),
    "two documents": ("a: 1\n---\nb: 1", "not valid YAML"),
    "directives": ("%TAG ! tag:\n" * 20_000, "not valid YAML"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("many") else name for name in HOSTILE]
)
def test_hostile_yaml_is_refused_with_a_short_sentence(name):
    text, part = HOSTILE[name]
    message = error_of(parse_yaml, text, "mine.yaml")
    assert message.startswith("mine.yaml: ") and part in message


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HOSTILE if not name.startswith("many")])
def test_hostile_yaml_is_refused_in_every_place(name, tmp_path):
    text, part = HOSTILE[name]
    assert part in error_of(load_lib.parse_config, text, "config.yaml")
    if "\udcff" in text:
        return
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    allowed = (part, "the file has")
    for load in (load_lib.load_variant, lambda path: load_lib.load_config("b0", path)):
        message = error_of(load, str(path))
        assert str(path) in message and any(words in message for words in allowed)
    assert part in error_of(load_lib.load_config, "b0", "digits", [f"train.phases={text}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "base: &base {x: 1}\na: *base\nb: {<<: *base, y: 2}",
            {"base": {"x": 1}, "a": {"x": 1}, "b": {"x": 1, "y": 2}},
        ),
        ("[&n 5, *n, *n]", [5, 5, 5]),
        (f"[{'a,' * (MOST_VALUES - 1)}]", ["a"] * (MOST_VALUES - 1)),
        ("9" * MOST_DIGITS, int("9" * MOST_DIGITS)),
        ("!!str 5", "5"),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\udcff"', "\udcff"),
        ("x: \u65e5\u672c \U0001f600", {"x": "\u65e5\u672c \U0001f600"}),
        ("", None),
    ],
)
def test_ordinary_yaml_is_read(text, value):
    assert parse_yaml(text, "mine.yaml") == value


def test_ordinary_nesting_is_read():
    value = parse_yaml("[" * (MOST_DEPTH - 1) + "]" * (MOST_DEPTH - 1), "mine.yaml")
    for _ in range(MOST_DEPTH - 2):
        (value,) = value
    assert value == []


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfbaseline: b0\r\nwidth: 1.5\r\n", b"baseline: b0\nwidth: 1.5"])
def test_byte_order_marks_and_line_endings_do_not_matter(tmp_path, data):
    (tmp_path / "mine.yaml").write_bytes(data)
    assert load_lib.load_variant(str(tmp_path / "mine.yaml")).width == 1.5


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ("baseline: b0".encode("utf-16"), "is not UTF-8"),
        (b"baseline: b0\nx: \xff", "line 2: the byte 0xff is not UTF-8"),
        (b"x" * (LIMIT_BYTES + 1), "more than the 262,144 that are allowed"),
    ],
)
def test_files_that_are_no_utf8_text_are_refused(tmp_path, data, part):
    (tmp_path / "mine.yaml").write_bytes(data)
    assert part in error_of(load_lib.load_variant, str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device", "link"])
def test_what_is_no_file_is_named(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    name = "mine.yaml"
    if kind == "FIFO":
        os.mkfifo(name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(name)
    elif kind == "folder":
        os.mkdir(name)
    elif kind == "device":
        os.symlink("/dev/zero", name)
    else:
        os.symlink("nowhere", name)
        kind = "no such file"
    for load in (load_lib.load_variant, lambda path: load_lib.load_config("b0", path)):
        message = error_of(load, name)
        assert message.startswith("mine.yaml: ") and kind in message


@pytest.mark.parametrize(
    "name", ["n" * 300 + ".yaml", "a\0.yaml", "s3://bucket/a.yaml", "gs://bucket/a.yaml", "n" * 10**5]
)
def test_odd_names_of_variants_are_refused(name):
    error_of(load_lib.load_variant, name)
    error_of(load_lib.load_config, "b0", name)


def test_values_in_errors_are_short_and_show_no_control_characters():
    message = error_of(load_lib.load_config, "b0", "digits", ['optimizer.name="' + r"\e[31m" * 10_000 + '"'])
    assert r"\x1b[31m" in message and "\x1b" not in message
    many = "{" + ",".join(f"k{i}: 1" for i in range(500)) + "}"
    with pytest.raises(UserError, match=r"\n490 more mistakes$") as caught:
        load_lib.load_config("b0", "digits", [f"train={many}"])
    assert str(caught.value).count("unknown key") == 10


@pytest.mark.parametrize(
    "override", ["a." * 100_000 + "b=1", "." * 100, "=1", " =1", "train", "", "train.=1", "..=", "\0=1"]
)
def test_odd_overrides_are_refused(override):
    error_of(load_lib.load_config, "b0", "digits", [override])


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=1e308",
        "train.epochs=1e999",
        "train.epochs=true",
        f"train.epochs={'9' * 90}",
        "train.batch_size=10000000000",
        "train.batch_size=64.0",
        "train.batch_size=true",
        "train.seed=-1",
        "train.seed=2147483648",
        "train.accumulate=100000000000",
        "train.keep_checkpoints=1e3",
        "optimizer.learning_rate=1e-400",
        "optimizer.learning_rate=1e-40",
        "optimizer.learning_rate=1e300",
        "optimizer.learning_rate=.nan",
        "optimizer.weight_decay=-.inf",
        "schedule.warmup_epochs=1e300",
        "schedule.decay_epochs=1e300",
        "augment.mixup=1e300",
        "augment.crop_aspect=[1, 1e300]",
        "data.image_size=1000000000",
        "data.crop_padding=1000000000",
        "data.classes=100000000000000000000",
        "data.synthetic_examples=1000000000000",
        "data.shuffle_buffer=1000000000000",
        "eval.every_epochs=1e300",
        "model.width=1e300",
        "model.depth=1e9",
        "model.mean=[1e300, 1e300, .inf]",
        "model.std=[1e-300]",
        f"model.mean=[{'1,' * 5000}]",
    ],
)
def test_numbers_out_of_range_are_refused(override):
    message = error_of(load_lib.load_config, "b0", "digits", [override])
    assert override.partition("=")[0].partition(".")[2] in message


@pytest.mark.parametrize("key", ["data.dir", "data.cache", "train.init_from"])
@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("s3://bucket/x", "is on s3://, which is not supported"),
        ("HF://bucket/x", "is on HF://, which is not supported"),
        ("https://host/x", "is on https://, which is not supported"),
        ("file:///tmp/x", "is a URL. Write the path itself: /tmp/x"),
        ("gs:/bucket/x", "has one slash too few: gs:// has two"),
        ("", "is empty"),
        (" ", "is empty"),
        (r"a\0b", "contains a null character"),
        ("x" * 5000, "is longer than the 4096 bytes"),
    ],
)
def test_paths_in_a_config_are_checked(key, path, part):
    message = error_of(load_lib.load_config, "b0", "digits", [f'{key}="{path}"'])
    assert message.startswith(f"overrides: {key}: '") and part in message


@pytest.mark.parametrize(
    ("phase", "part"),
    [
        ("{augment.mixup: many}", "train.phases cannot set augment.mixup: Input should be a valid number"),
        ("{augment.mixup: 1e300}", "train.phases cannot set augment.mixup: Input should be less than"),
        ("{train.epochs: 3}", "train.phases cannot set 'train.epochs'. Allowed are"),
        ("{data.image_size: 1}", "train.phases cannot set data.image_size: Input should be an integer from 8 to"),
    ],
)
def test_a_mistake_in_a_phase_is_attributed_to_the_layer_with_the_phases(tmp_path, phase, part):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("augment: {mixup: 0.2}\ndata: {image_size: 32}\ntrain: {epochs: 5}\nschedule: {warmup_epochs: 1}")
    message = error_of(load_lib.load_config, "b0", str(recipe), [f"train.phases=[{{until: 1, set: {phase}}}]"])
    assert message.startswith(f"overrides: {part}")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 10_000, "not valid JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "not valid JSON"),
        ("", "not valid JSON"),
        (b"\xff\xfe\xfd", "not valid JSON"),
        (b"{\xff}", "not valid JSON: it is not UTF-8"),
        ("{" + "x" * 10**6, "not valid JSON"),
    ],
)
def test_hostile_json_is_refused(text, part):
    message = error_of(parse_json, text, "a\x1b.json")
    assert message.startswith(r"a\x1b.json: ") and part in message


def test_json_that_must_be_an_object():
    assert parse_json_object('{"a": [1]}', "a.json") == {"a": [1]}
    assert error_of(parse_json_object, "[1]", "a.json") == "a.json: expected a JSON object, received list."


# -------------------------------------------------------------------------------------------- arbitrary input

KEYS = st.sampled_from("train.epochs model.width model.stages train.phases data.dir augment.crop_area x train".split())
PIECES = "{ } [ ] , : - &a *a !!int << ' \" \\ 1e999 ~ | ? # a 9".split() + ["\n", " "]
YAML = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join))


@given(KEYS, YAML)
def test_any_override_gives_a_config_or_a_user_error(key, text):
    try:
        load_lib.load_config("b0", "digits", [f"{key}={text}"])
    except UserError as error:
        assert len(str(error)) < 20 * LONGEST_ERROR


@given(YAML)
def test_any_text_gives_a_config_or_a_user_error(text):
    with pytest.raises(UserError):
        load_lib.parse_config(text, "config.yaml")


@given(st.binary(max_size=100))
def test_any_bytes_give_a_variant_or_a_user_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError):
        load_lib.load_variant(path)

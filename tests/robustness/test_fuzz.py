"""Random texts for the parsers of configs, tables and class names: each is read, or refused by a UserError."""

import contextlib
import json

import hypothesis
import pytest
from hypothesis import strategies as st
from robustness.harness import find_strange
from robustness.kit import RECIPE, VARIANT

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_config, load_config, load_variant, parse_config
from efficientnet_tf.config.schema import DataConfig
from efficientnet_tf.config.text import decode_text, escape, find_invisible
from efficientnet_tf.config.yaml12 import parse_yaml
from efficientnet_tf.data.listing import check_data
from efficientnet_tf.models.run_directory import parse_class_names

pytestmark = pytest.mark.slow  # together about ten seconds

WORDS = st.sampled_from(
    "a path label width stages 1 -1 1e5 1e999 0x1f 0o17 .nan .inf true null &a *a !!int !!python/name:os.system".split()
    + ["<<", "? ", "- ", "{", "}", "[", "]", ": ", ", ", "\n", "\n  ", "|", ">", "%YAML 1.1\n", "---\n", "'", '"', "#"]
    + ["\t", "\x00", "\x1b", "\u2028", "\ud800", "\ufeff", "9" * 300]
)
TEXTS = st.lists(WORDS | st.text(max_size=5), max_size=40).map("".join)


@contextlib.contextmanager
def refused_in_words():
    """Accept a UserError, if its message can be shown, and nothing else."""
    try:
        yield
    except UserError as error:
        message = str(error)
        assert len(message) > 10
        assert not find_strange(message), message
        assert len(message) < 5000


def splice(valid):
    """Return texts in which parts of a valid one are replaced."""

    def build(cuts):
        text = valid
        for position, length, new in cuts:
            position %= len(text) + 1
            text = text[:position] + new + text[position + length :]
        return text

    cut = st.tuples(st.integers(0, 10**6), st.integers(0, 20), WORDS | st.text(max_size=3))
    return st.lists(cut, min_size=1, max_size=4).map(build)


@hypothesis.given(text=TEXTS)
def test_yaml_is_read_or_refused(text):
    with refused_in_words():
        json.dumps(parse_yaml(text, "here"), default=str)


@hypothesis.given(text=splice(VARIANT))
def test_variants_are_read_or_refused(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "variant.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with refused_in_words():
        assert load_variant(path).stages


@hypothesis.given(text=splice(RECIPE))
def test_recipes_are_read_or_refused(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with refused_in_words():
        load_config("b0", path, ["data.dir=photos"])


@hypothesis.given(text=splice(dump_config(load_config("b0", "digits"))))
def test_recorded_configs_are_read_or_refused(text):
    with refused_in_words():
        config = parse_config(text, "config.yaml")
        assert parse_config(dump_config(config), "again") == config


@hypothesis.given(overrides=st.lists(st.builds("{}={}".format, TEXTS, TEXTS) | TEXTS, max_size=3))
def test_overrides_are_read_or_refused(overrides):
    with refused_in_words():
        load_config("b0", "digits", overrides)


@hypothesis.given(data=st.binary(max_size=60) | TEXTS.map(lambda text: text.encode("utf-16", "surrogatepass")))
def test_decoded_text_has_one_kind_of_line_ending(data):
    with refused_in_words():
        text = decode_text(data, "file")
        assert "\r" not in text and not text.startswith("\ufeff\ufeff")


@hypothesis.given(text=st.text(st.characters()))
def test_escaped_text_can_be_shown_and_escaped_again(text):
    shown = escape(text)
    assert find_invisible(shown) is None and not find_strange(shown)
    assert escape(shown) == shown


@hypothesis.given(data=splice("cat\ndog\nowl\n"))
def test_class_names_are_read_or_refused(data):
    with refused_in_words():
        names = parse_class_names(data, "classes.txt")
        assert names and len(set(names)) == len(names)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in ("a", "b", "c d"):
        (folder / f"{name}.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@hypothesis.given(
    text=splice("path,label\na.jpg,cat\nb.jpg,dog\nc d.jpg,cat\n"), ending=st.sampled_from(["csv", "tsv"])
)
def test_tables_are_read_or_refused(text, ending, photos):
    path = photos / f"train.{ending}"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        with refused_in_words():
            check_data(DataConfig(source="table", dir=str(photos)), ["train"])
    finally:
        path.unlink()

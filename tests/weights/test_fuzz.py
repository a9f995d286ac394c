"""Damaged weight files of every format are read or refused with a UserError. Nothing else may happen."""

import pytest
from hostile_weights import (
    VARIABLES,
    keras_config,
    write_h5,
    write_keras,
    write_legacy_torch,
    write_safetensors,
    write_torch,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.loaded import LoadedWeights

WRITERS = {
    "weights.h5": write_h5,
    "keras": write_keras,
    "safetensors": write_safetensors,
    "pth": write_torch,
    "legacy.pth": write_legacy_torch,
}
INTERESTING = [0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**64 - 1]


@st.composite
def damages(draw):
    """Draw a list of changes to a file: (kind, position from 0 to 1, argument)."""
    place = st.floats(0, 1, exclude_max=True)
    change = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("number"), place, st.tuples(st.sampled_from(INTERESTING), st.sampled_from([1, 2, 4, 8]))),
        st.tuples(st.just("cut"), place, st.none()),
        st.tuples(st.just("splice"), place, st.tuples(place, st.integers(1, 200))),
        st.tuples(st.just("remove"), place, st.integers(1, 200)),
        st.tuples(st.just("insert"), place, st.binary(max_size=30)),
    )
    return draw(st.lists(change, min_size=1, max_size=5))


def apply(content, changes):
    for kind, place, argument in changes:
        at = int(place * len(content))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << argument]) + content[at + 1 :]
        elif kind == "number":
            value, size = argument
            content = content[:at] + (value % 256**size).to_bytes(size, "little") + content[at + size :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "splice":
            start = int(argument[0] * len(content))
            part = content[start : start + argument[1]]
            content = content[:at] + part + content[at + len(part) :]
        elif kind == "remove":
            content = content[:at] + content[at + argument :]
        elif kind == "insert":
            content = content[:at] + argument + content[at:]
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def contents(folder):
    found = {}
    for ending, write in WRITERS.items():
        with open(write(folder / f"valid.{ending}"), "rb") as file:
            found[ending] = file.read()
    return found


def check(folder, ending, content):
    path = folder / f"tf_efficientnet_b0.{ending}"
    path.write_bytes(content)
    try:
        loaded = read_weights(str(path), VARIABLES)
    except UserError as error:
        assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 2000
    else:
        assert isinstance(loaded, LoadedWeights)


@pytest.mark.parametrize("ending", WRITERS)
def test_damaged_files(ending, folder, contents):
    # The random profile looks longer.
    examples = 30 if settings.default.derandomize else 2000

    @settings(max_examples=examples)
    @given(damages())
    def run(changes):
        check(folder, ending, apply(contents[ending], changes))

    run()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("where", ["layer", "rescaling", "stem", "safetensors"])
def test_descriptions_with_any_values(where, folder):
    examples = 15 if settings.default.derandomize else 1000

    @settings(max_examples=examples)
    @given(
        JSON,
        st.sampled_from(["scale", "offset", "layers", "mean", "padding", "name", "dtype", "shape", "data_offsets"]),
    )
    def run(value, key):
        path = folder / f"described_{where}"
        if where == "safetensors":
            write_safetensors(path, lambda header: header["bn1.bias"].update({key: value}))
        elif where == "stem":
            write_keras(path, keras_config(**{key: value}))
        else:
            kinds = {"layer": "Normalization", "rescaling": "Rescaling"}
            write_keras(path, keras_config([{"class_name": kinds[where], "config": {key: value}}]))
        check(folder, "described", path.read_bytes())

    run()

"""Opens the model.keras of a run without letting Keras build what the file describes.

A `.keras` file can name any class of any library, and code. This package builds the network itself, from the
config.yaml next to the file, checks that the file describes the same network, and reads nothing but weights from it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import decode_text, escape
from efficientnet_tf.models.run_directory import CLASSES_ENTRY, CONFIG_ENTRY, parse_class_names

if TYPE_CHECKING:
    import keras

    from efficientnet_tf.config.schema import Config

_DESCRIPTION, _WEIGHTS = "config.json", "model.weights.h5"  # members of the archive
_DESCRIPTION_LIMIT_BYTES = 32 * 2**20  # of config.json. That of L2, the deepest network, has 2.5 MB.
_TEXT_LIMIT_BYTES = 16 * 2**20
# What does not change predictions, and what other versions of Keras write in another form.
_IGNORED = ("dtype", "trainable", "momentum", "synchronized", "build_config", "ragged", "sparse", "optional")
_IGNORED_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def read_keras_file(path: str) -> tuple[keras.Model, Config, list[str]]:
    """Return the model in a `.keras` file of this package, its config, and the class names in the order of the logits.

    Args:
        path: Path of the file, local or gs://. config.yaml and classes.txt are in the same folder.

    Raises:
        UserError: If the file is damaged, or holds another network than config.yaml describes.
    """
    from efficientnet_tf.models.from_config import build_from_config
    from efficientnet_tf.models.stored import read_run
    from efficientnet_tf.scaling.complexity import count_cost
    from efficientnet_tf.weights.load import load_weights

    folder = os.path.dirname(path)
    config, class_names = read_run(folder)  # compares them with the checkpoints, where there are some
    cost = count_cost(config.model, config.image_size, len(class_names), config.data.channels)
    weights_limit = 2 * 4 * cost["total"].total_params + 64 * 2**20
    with tempfile.TemporaryDirectory() as scratch:
        weights = os.path.join(scratch, _WEIGHTS)
        description, recorded = _unpack(_copy_if_remote(path, scratch), path, weights, weights_limit)
        _check_recorded(path, recorded, config, class_names)
        layers = _list_layers(path, description)
        model = build_from_config(config, len(class_names))
        _check_layers(path, layers, model)
        try:
            load_weights(model, weights)
        except UserError as error:
            raise UserError(str(error).replace(weights, f"{escape(path)} ({_WEIGHTS})")) from None
    return model, config, class_names


def check_archive(path: str) -> None:
    """Raise UserError if a local `.keras` file is damaged, or is none. Imports neither Keras nor TensorFlow."""
    with _open_archive(path, path):
        pass


def _copy_if_remote(path, scratch):
    from efficientnet_tf.runtime.files import is_remote

    if not is_remote(path):
        return path
    import tensorflow as tf

    local = os.path.join(scratch, "model.keras")
    tf.io.gfile.copy(path, local)
    return local


def _unpack(file, path, weights, weights_limit):
    """Return config.json and {name: text} of this package's entries in an archive, and write its weights to a file."""
    from efficientnet_tf.runtime.archives import open_member, read_member

    with _open_archive(file, path) as archive:
        size = archive.getinfo(_WEIGHTS).file_size
        if size > weights_limit:
            raise ValueError(f"its member {_WEIGHTS} has {size:,} bytes, but its network at most {weights_limit:,}")
        description = read_member(archive, _DESCRIPTION, _DESCRIPTION_LIMIT_BYTES)
        recorded = {
            name: decode_text(read_member(archive, name, _TEXT_LIMIT_BYTES), f"{path}, {name}")
            for name in (CONFIG_ENTRY, CLASSES_ENTRY)
            if name in archive.namelist()
        }
        with open_member(archive, _WEIGHTS) as source, open(weights, "wb") as target:
            while block := source.read(2**24):
                target.write(block)
    return description, recorded


@contextlib.contextmanager
def _open_archive(file, path):
    """Open the archive at `file`, which is `path` for the user, and check its members. A ValueError is explained."""
    from efficientnet_tf.runtime.archives import open_archive

    try:
        with open_archive(file) as archive:
            missing = [name for name in (_DESCRIPTION, _WEIGHTS) if name not in archive.namelist()]
            if missing:
                raise ValueError(f"it does not contain {' and '.join(missing)}")
            yield archive
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"{escape(path)} is damaged or not a Keras model: {escape(str(error))}. Pass the model directory, which "
            "has the checkpoints."
        ) from None


def _check_recorded(path, recorded, config, class_names):
    """Compare the config and the class names that were stored in the file, if any, with those next to it."""
    from efficientnet_tf.config.load import parse_config
    from efficientnet_tf.weights.loaded import needs_of

    if CLASSES_ENTRY in recorded and parse_class_names(recorded[CLASSES_ENTRY], path) != class_names:
        raise UserError(
            f"{escape(path)} does not belong to the classes.txt next to it, which was changed or is that of another "
            "model, so names may stand for other classes."
        )
    if CONFIG_ENTRY not in recorded:
        return
    stored, now = needs_of(parse_config(recorded[CONFIG_ENTRY], f"{path}, config")), needs_of(config)
    changed = [f"\n  {key}: {stored[key]!r} -> {now[key]!r}" for key in now if stored.get(key, now[key]) != now[key]]
    if changed:
        raise _differs(path, "".join(changed))


def _differs(path, lines):
    return UserError(
        f"{escape(path)} does not belong to the config.yaml next to it, which was changed or is that of another model "
        f"(in the file -> in config.yaml):{lines}"
    )


def _list_layers(path, description) -> dict[str, dict]:
    """Return the layers that config.json describes by name."""
    try:
        content = json.loads(description)
        layers = {
            layer["config"]["name"]: {"class_name": str(layer["class_name"]), "config": dict(layer["config"])}
            for layer in content["config"]["layers"]
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{escape(path)} holds no model of this package: its config.json lists no layers.") from None
    return layers


def _check_layers(path: str, layers: dict[str, dict], model: keras.Model) -> None:
    """Raise UserError unless the layers of a file compute what those of a model compute."""
    import keras

    if any(layer["config"].get("data_format") == "channels_first" for layer in layers.values()):
        raise UserError(
            f"{escape(path)} has layers with data_format='channels_first', which the commands cannot run. Convert "
            "it to channels last with `python -m efficientnet_tf.weights`."
        )
    description: Any = keras.saving.serialize_keras_object(model)
    description = json.loads(json.dumps(description))
    expected = {layer["config"]["name"]: layer for layer in description["config"]["layers"]}
    layers, expected = ({n: v for n, v in some.items() if v["class_name"] != "Dropout"} for some in (layers, expected))
    extra, missing = ([n for n in one if n not in other] for one, other in ((layers, expected), (expected, layers)))
    if extra or missing:
        parts = [
            f"{what} the layers {', '.join(escape(str(n))[:60] for n in names[:5])}" + ", ..." * (len(names) > 5)
            for what, names in (("has", extra), ("lacks", missing))
            if names
        ]
        raise UserError(
            f"{escape(path)} does not hold the network that the config.yaml next to it describes: it "
            f"{' and '.join(parts)}."
        )
    lines = [
        f"\n  {name}: {key}: {_shorten(there)} -> {_shorten(here)}"
        for name in expected
        for key, there, here in _compare(layers[name], expected[name])
    ]
    if lines:
        raise _differs(path, "".join(lines[:5]) + f"\n  and {len(lines) - 5} more" * (len(lines) > 5))


def _compare(stored, expected):
    """Yield (key, stored value, expected value) where two layers differ."""
    there, here = _read_normalization(stored), _read_normalization(expected)
    if there and here:
        if len(there) != len(here) or not all(
            math.isclose(a, b, rel_tol=1e-5) for a, b in zip(there, here, strict=True)
        ):
            yield "scale and offset of the pixels", there, here
        return
    if stored["class_name"] != expected["class_name"]:
        yield "class", stored["class_name"], expected["class_name"]
        return
    for key, value in expected["config"].items():
        if key in _IGNORED or key.endswith(_IGNORED_ENDINGS) or key not in stored["config"]:
            continue
        if stored["config"][key] != value:
            yield key, stored["config"][key], value


def _read_normalization(layer) -> list[float] | None:
    """Return the scale and the offset of a layer that normalizes pixels, of this or of an earlier version."""
    config = layer["config"]
    try:
        if layer["class_name"] == "Rescaling":
            return [*_flatten(config["scale"]), *_flatten(config["offset"])]
        if layer["class_name"] == "Normalization":
            return [*(v**0.5 for v in _flatten(config["variance"])), *_flatten(config["mean"])]
    except (KeyError, TypeError, ValueError, RecursionError):
        return [math.nan]
    return None


def _flatten(value):
    """Yield the numbers in nested lists."""
    if isinstance(value, list):
        for part in value:
            yield from _flatten(part)
    else:
        yield float(value)


def _shorten(value):
    return escape(json.dumps(value))[:100]

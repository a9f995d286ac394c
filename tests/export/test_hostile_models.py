"""Models from strangers and models that were changed: `.keras` files, SavedModels and exported files."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import parse_config
from efficientnet_tf.export.formats import FORMATS
from efficientnet_tf.export.keras_file import read_keras_file
from efficientnet_tf.export.load import load_cached, load_model
from efficientnet_tf.export.record import make_record
from efficientnet_tf.export.saved_model import _hash_graph, open_saved_model
from efficientnet_tf.models.model_dir import save_keras_model
from efficientnet_tf.models.run_directory import read_class_names, read_config

FIXTURES = Path(__file__).parents[1] / "fixtures"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.fixture
def run(tmp_path):
    """Return a copy of a model directory that an earlier version wrote."""
    return Path(shutil.copytree(FIXTURES / "old_run", tmp_path / "run"))


@pytest.fixture
def saved_model(tmp_path):
    """Return a copy of a SavedModel that an earlier version wrote."""
    with zipfile.ZipFile(FIXTURES / "old_exports" / "saved_model.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path / "saved_model"


def edit_text(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def refuse(path, message):
    with pytest.raises(UserError, match=message) as caught:
        load_model(path)
    text = str(caught.value)
    assert "safe_mode" not in text and "unsafe_deserialization" not in text and "Traceback" not in text
    return text


def test_models_of_earlier_versions_agree(run, saved_model):
    expected = load_model(run)(IMAGES)
    np.testing.assert_allclose(load_model(run / "model.keras")(IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(load_model(saved_model)(IMAGES), expected, atol=1e-5)
    for suffix in FORMATS:
        exported = load_model(FIXTURES / "old_exports" / f"net{suffix}")
        np.testing.assert_allclose(exported(IMAGES), expected, atol=1e-5)
        assert exported(IMAGES[:0]).shape == (0, 10)


# --------------------------------------------------------------------------------------------------------------- Keras


def rewrite(path, changes, compression=zipfile.ZIP_STORED):
    """Write a .keras file again with other members. None removes one."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members |= changes
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)


def read_description(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mean:", "mean: [923.0, 923.0, 923.0]\n  old:", "config.yaml"),
        ("std:", "std: [5.0, 5.0, 5.0]\n  old:", "config.yaml"),
        ("image_size: 32", "image_size: 64", "image: batch_shape"),
        ("activation: swish", "activation: relu", "activation"),
    ],
)
def test_config_that_was_changed_after_training_is_refused(run, old, new, message):
    shutil.rmtree(run / "checkpoints")  # which would show the change, too
    path = run / "config.yaml"
    text = path.read_text()
    if "\n  old:" in new:  # replaces the line
        line = next(line for line in text.splitlines() if line.strip().startswith(old))
        path.write_text(text.replace(line, f"  {new.partition(chr(10))[0]}"))
    else:
        edit_text(path, old, new)
    with pytest.raises(UserError) as caught:
        read_keras_file(str(run / "model.keras"))
    assert "does not belong to the config.yaml next to it" in str(caught.value)
    assert message in str(caught.value)


def test_stored_config_is_compared(run):
    shutil.rmtree(run / "checkpoints")
    rewrite(run / "model.keras", {"efficientnet_tf.yaml": (run / "config.yaml").read_text()})
    read_keras_file(str(run / "model.keras"))
    edit_text(run / "config.yaml", "interpolation: bicubic", "interpolation: bilinear")
    refuse(run / "model.keras", "data.interpolation: 'bicubic' -> 'bilinear'")
    edit_text(run / "config.yaml", "interpolation: bilinear", "interpolation: bicubic")
    rewrite(run / "model.keras", {"classes.txt": "".join(f"{i}\n" for i in range(9, -1, -1))})
    refuse(run / "model.keras", "does not belong to the classes.txt next to it")


def test_a_run_stores_its_config_and_classes_in_the_keras_file(run):
    with zipfile.ZipFile(save_keras_model(str(run))) as archive:
        assert archive.read("classes.txt").split() == [str(i).encode() for i in range(10)]
        stored = archive.read("efficientnet_tf.yaml").decode()
    assert parse_config(stored, "stored") == read_config(str(run))
    keras.saving.load_model(run / "model.keras")  # Keras ignores both
    read_keras_file(str(run / "model.keras"))


def test_more_or_fewer_classes_than_logits_are_refused(run):
    shutil.rmtree(run / "checkpoints")
    (run / "classes.txt").write_text("cat\ndog\n")
    refuse(run / "model.keras", "predictions: units: 10 -> 2")
    (run / "classes.txt").write_text("".join(f"{i}\n" for i in range(11)))
    refuse(run / "model.keras", "predictions: units: 10 -> 11")


def test_layers_that_run_code_are_not_built(run):
    """The layer would write a file if Keras built it."""
    path = run / "model.keras"
    description = read_description(path)
    code = {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None, "closure": None}}
    layer = {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "evil", "function": code}}
    description["config"]["layers"].append(layer)
    rewrite(path, {"config.json": json.dumps(description)})
    refuse(path, "does not hold the network .* it has the layers evil")
    description["config"]["layers"][-1] = {"class_name": "system", "module": "os", "config": {"name": "x\x1b[2J"}}
    rewrite(path, {"config.json": json.dumps(description)})
    assert "\x1b" not in refuse(path, r"it has the layers x\\x1b")
    description["config"]["layers"][-1] = {"class_name": "Dropout", "config": {"name": "evil", "rate": 0.5}}
    rewrite(path, {"config.json": json.dumps(description)})
    read_keras_file(str(path))  # does nothing in inference


def test_other_models_are_refused(run):
    path = run / "model.keras"
    inputs = keras.Input([5])
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(path)
    refuse(path, "does not hold the network .* lacks the layers")
    for content in ("{}", "[]", "null", '{"config": {"layers": [1]}}', "[" * 100_000, "\xff", '{"config": 1}'):
        rewrite(path, {"config.json": content})
        refuse(path, "lists no layers|is damaged")
    rewrite(path, {"config.json": None})
    refuse(path, "does not contain config.json")
    (run / "config.yaml").unlink()
    refuse(path, "there is no .*config.yaml")


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_zip_bombs_are_refused(run, member):
    path = run / "model.keras"
    rewrite(path, {member: bytes(80 * 2**20)}, zipfile.ZIP_DEFLATED)
    refuse(path, f"{member} (declares|has) 83,886,080 bytes|expands from")


def test_damaged_archives_are_refused(run):
    path = run / "model.keras"
    whole = path.read_bytes()
    for content in (b"", b"PK", b"garbage" * 99, whole[:1000], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        refuse(path, "is damaged or not a Keras model")
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        start = archive.getinfo("model.weights.h5").header_offset
    path.write_bytes(whole[: start + 30_000] + b"\xff" * 64 + whole[start + 30_064 :])
    refuse(path, "is damaged")


@pytest.mark.parametrize("trick", ["external link", "external storage", "huge"])
def test_weights_from_elsewhere_are_refused(run, tmp_path, trick):
    path, secret = run / "model.keras", tmp_path / "secret"
    with zipfile.ZipFile(path) as archive:
        weights = tmp_path / "weights.h5"
        weights.write_bytes(archive.read("model.weights.h5"))
    secret.write_bytes(os.urandom(10_000))
    with h5py.File(weights, "r+") as file:
        variables = file["layers"]["dense"]["vars"]
        shape = variables["0"].shape
        del variables["0"]
        if trick == "external link":
            variables["0"] = h5py.ExternalLink(str(secret), "/x")
        elif trick == "external storage":
            variables.create_dataset("0", shape, "float32", external=[(str(secret), 0, 4 * int(np.prod(shape)))])
        else:
            variables.create_dataset("0", (2**31, 4), "float32", chunks=(1024, 4), compression="gzip")
    rewrite(path, {"model.weights.h5": weights.read_bytes()})
    refuse(path, r"model.keras")


# ---------------------------------------------------------------------------------------------------------- SavedModel


def record(folder):
    """Add what an export of this version has."""
    assets = folder / "assets"
    text = make_record(read_config(str(assets)), read_class_names(str(assets)), _hash_graph(str(folder)))
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "record.json").write_text(text)


def test_changed_savedmodels_are_refused(saved_model):
    config, classes = (saved_model / "assets" / name for name in ("config.yaml", "classes.txt"))
    record(saved_model)
    open_saved_model(str(saved_model))
    before = classes.read_text()
    classes.write_text("".join(f"{name}\n" for name in before.split()[::-1]))
    refuse(saved_model, "its classes.txt was changed after the export")
    classes.write_text(before.replace("\n", "\r\n"))
    open_saved_model(str(saved_model))
    classes.write_text("cat\ndog\n")
    refuse(saved_model, "its classes.txt was changed")
    (saved_model / "assets.extra" / "record.json").unlink()
    refuse(saved_model, r"the network returns \[1, 10\] for one image, but classes.txt has 2 names")
    classes.write_text(before)
    edit_text(config, "interpolation: bicubic", "interpolation: bilinear")
    open_saved_model(str(saved_model))  # nothing in an export of an earlier version shows this
    edit_text(config, "interpolation: bilinear", "interpolation: bicubic")
    (saved_model / "assets.extra").rmdir()
    record(saved_model)
    edit_text(config, "interpolation: bicubic", "interpolation: bilinear")
    refuse(saved_model, "data.interpolation: 'bicubic' -> 'bilinear'")


def test_damaged_savedmodels_are_refused(saved_model):
    graph, variables = saved_model / "saved_model.pb", saved_model / "variables"
    whole = graph.read_bytes()
    for content in (b"", b"garbage" * 99, whole[:1000], whole[: len(whole) // 2], whole[:-100]):
        graph.write_bytes(content)
        refuse(saved_model, "cannot be opened by TensorFlow")
    graph.write_bytes(whole)
    data = variables / "variables.data-00000-of-00001"
    values = data.read_bytes()
    data.write_bytes(values[:-1000])
    refuse(saved_model, "cannot be opened by TensorFlow")
    data.write_bytes(values[:1000] + bytes([values[1000] ^ 1]) + values[1001:])
    refuse(saved_model, "cannot be opened by TensorFlow")
    os.truncate(data, 3 * 2**30)
    refuse(saved_model, "is damaged: it has 3,221,225,472 bytes")
    data.unlink()
    os.mkfifo(data)
    refuse(saved_model, "this is a FIFO")
    data.unlink()
    refuse(saved_model, "cannot be opened by TensorFlow")
    shutil.rmtree(variables)
    refuse(saved_model, "there is no folder .*variables")


def test_foreign_savedmodels_are_refused(saved_model):
    shutil.rmtree(saved_model / "assets")
    refuse(saved_model, "there is no .*assets/config.yaml")
    module = tf.Module()
    module.double = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([None], tf.float32)])
    tf.saved_model.save(module, str(saved_model))
    shutil.copytree(FIXTURES / "old_run", saved_model / "assets", dirs_exist_ok=True)
    refuse(saved_model, "cannot be opened by TensorFlow: it has no signature serving_default")


# ------------------------------------------------------------------------------------------------------ exported files


@pytest.mark.parametrize("suffix", FORMATS)
def test_other_shapes_than_the_config_says_are_refused(tmp_path, suffix):
    for part in (FIXTURES / "old_exports").glob("net.*"):
        shutil.copy(part, tmp_path)
    path = tmp_path / f"net{suffix}"
    whole = path.read_bytes()
    old, new = b"image_size: 32", b"image_size: 64"
    assert whole.count(old) == 1 and len(old) == len(new)
    if suffix == ".tflite":  # the zip archive has checksums
        with zipfile.ZipFile(path) as archive:
            start = archive.infolist()[0].header_offset
            texts = {name: archive.read(name).replace(old, new) for name in archive.namelist()}
        path.write_bytes(whole[:start])
        with zipfile.ZipFile(path, "a") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    else:
        path.write_bytes(whole.replace(old, new))
    refuse(path, f"cannot be opened by {FORMATS[suffix].name}")


# --------------------------------------------------------------------------------------------------------------- cache


def test_cache_notices_changed_side_files_and_deleted_models(run):
    model = load_cached(run)
    assert load_cached(run) is model
    (run / "classes.txt").write_text("".join(f"digit {i}\n" for i in range(10)))
    changed = load_cached(run)
    assert changed.class_names[0] == "digit 0"
    shutil.rmtree(run)
    with pytest.raises(UserError, match="no such file or folder"):
        load_cached(run)

"""Weight files from strangers: refused in one sentence, without following, running or allocating what they ask for."""

import json
import os
import re
import socket
import zipfile

import h5py
import hostile_weights as hostile
import numpy as np
import pytest
from hostile_weights import VARIABLES

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.tensors import StoredTensor

UNSAFE_ADVICE = re.compile(r"weights_only|safe_mode|enable_unsafe|allow_pickle", re.IGNORECASE)


def read(path, **options):
    return read_weights(str(path), VARIABLES, **options)


def refusal(path, **options):
    """Return why a file is refused, or what of the small model it does not contain."""
    try:
        loaded = read(path, **options)
    except UserError as error:
        message = str(error)
    else:
        unread = [name for name in VARIABLES if isinstance(loaded.values.get(name), StoredTensor)]
        unread += [name for name in VARIABLES if name not in loaded.values]
        assert unread, "the file was read"
        return f"not read: {unread}"
    assert "\n" not in message and message.isprintable() and len(message) < 1000
    assert not UNSAFE_ADVICE.search(message)
    assert os.path.basename(str(path)) in message or "config.json" in message or "model.ckpt" in message
    return message


def assert_read(path, **options):
    loaded = read(path, **options)
    for name, shape in VARIABLES.items():
        assert isinstance(loaded.values[name], np.ndarray), name
        assert loaded.values[name].shape == shape and loaded.values[name].dtype == np.float32
    return loaded


# ------------------------------------------------------------------------------------------------- valid files


def test_valid_files_are_read(tmp_path):
    expected = hostile.values()
    for path in (hostile.write_h5(tmp_path / "a.weights.h5"), hostile.write_keras(tmp_path / "a.keras")):
        loaded = assert_read(path)
        for name, value in expected.items():
            np.testing.assert_array_equal(loaded.values[name], value)
    assert loaded.needs["model.std"] == (2.0,) * 3 and loaded.needs["model.mean"] == (2.0,) * 3
    compressed = hostile.write_keras(tmp_path / "b.keras", compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(assert_read(compressed).values["stem_conv/kernel"], expected["stem_conv/kernel"])
    timm = np.arange(216, dtype=np.float32).reshape(8, 3, 3, 3).transpose(2, 3, 1, 0)
    for path in (
        hostile.write_safetensors(tmp_path / "a.safetensors"),
        hostile.write_legacy_torch(tmp_path / "legacy.pth"),
    ):
        np.testing.assert_array_equal(assert_read(path, padding="same").values["stem_conv/kernel"], timm)
    assert_read(hostile.write_torch(tmp_path / "a.pth"), padding="same")


@pytest.mark.slow
def test_files_of_pytorch_are_read(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.randn(shape) for name, shape in hostile.TIMM.items()}
    expected = tensors["conv_stem.weight"].numpy().transpose(2, 3, 1, 0)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(tensors["bn1.weight"])
    states = {
        "plain": tensors,
        "nested": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}},
        "ema": {"state_dict": {}, "state_dict_ema": tensors, "arch": "tf_efficientnet_b0", "metric": 0.5},
        "double": {k: v.double() for k, v in tensors.items()},
        "shared": {k: torch.stack([v, v])[1] for k, v in tensors.items()},
        "transposed": tensors | {"conv_stem.weight": tensors["conv_stem.weight"].permute(3, 1, 2, 0).clone()
                                 .permute(3, 1, 2, 0)},
        "parameter": tensors | {"bn1.weight": module.weight},
    }  # fmt: skip
    for name, state in states.items():
        for zipped in (True, False):
            path = tmp_path / f"{name}_{zipped}.pth"
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
            loaded = assert_read(path, padding="same")
            np.testing.assert_array_equal(loaded.values["stem_conv/kernel"], expected)
    for dtype in (torch.float16, torch.bfloat16):
        torch.save({k: v.to(dtype) for k, v in tensors.items()}, tmp_path / "half.pth")
        rounded = tensors["conv_stem.weight"].to(dtype).float().numpy().transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(
            assert_read(tmp_path / "half.pth", padding="same").values["stem_conv/kernel"], rounded
        )
    torch.save({k: v.long() for k, v in tensors.items()}, tmp_path / "long.pth")
    assert "contains <i8, not floating-point numbers" in refusal(tmp_path / "long.pth", padding="same")
    torch.save(module, tmp_path / "module.pth")
    assert "Convert the file to safetensors in a place where" in refusal(tmp_path / "module.pth")


def test_bfloat16_in_safetensors(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in hostile.TIMM.items()}
    safetensors.save_file(tensors, tmp_path / "a.safetensors")
    expected = tensors["conv_stem.weight"].float().numpy().transpose(2, 3, 1, 0)
    loaded = assert_read(tmp_path / "a.safetensors", padding="same")
    np.testing.assert_array_equal(loaded.values["stem_conv/kernel"], expected)


# -------------------------------------------------------------------------------------------------------- HDF5

SLOW_H5 = ("many_groups", "swelling_chunk")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_H5 else name for name in hostile.H5]
)
def test_hostile_h5(name, tmp_path):
    change, message = hostile.H5[name]
    path = hostile.write_h5(tmp_path / "a.weights.h5", change)
    assert message in refusal(path)
    with open(path, "rb") as file:
        keras_path = hostile.write_keras(tmp_path / "a.keras", weights=file.read())
    assert message in refusal(keras_path)


def test_compressed_arrays_are_read(tmp_path):
    array = hostile.values()["stem_conv/kernel"]
    options = {"chunks": (3, 3, 3, 4), "compression": "gzip", "shuffle": True, "fletcher32": True}
    path = hostile.write_h5(tmp_path / "a.weights.h5", lambda file: hostile._replace(file, data=array, **options))
    np.testing.assert_array_equal(assert_read(path).values["stem_conv/kernel"], array)


@pytest.mark.parametrize("dtype", [">f4", "<f8", "<f2", ">f8"])
def test_other_floating_point_types_are_converted(dtype, tmp_path):
    array = hostile.values()["stem_conv/kernel"].astype(dtype)
    path = hostile.write_h5(tmp_path / "a.weights.h5", lambda file: hostile._replace(file, data=array))
    np.testing.assert_array_equal(assert_read(path).values["stem_conv/kernel"], array.astype(np.float32))


@pytest.mark.parametrize("dtype", ["i8", "c8", "?", "S5", h5py.string_dtype(), "i4,f4", h5py.vlen_dtype("f4")])
def test_other_types_are_refused(dtype, tmp_path):
    def change(file):
        array = hostile._replace(file, shape=(3, 3, 3, 8), dtype=dtype)
        array[...] = "text" if h5py.check_string_dtype(array.dtype) else np.zeros((3, 3, 3, 8), dtype)

    def change_lists(file):
        hostile._replace(file, shape=(3, 3, 3, 8), dtype=dtype)[0, 0, 0, 0] = np.zeros(3, np.float32)

    is_list = isinstance(dtype, np.dtype) and h5py.check_vlen_dtype(dtype) not in (None, str)
    path = hostile.write_h5(tmp_path / "a.weights.h5", change_lists if is_list else change)
    assert re.search("stem_conv/kernel contains .*, not floating-point numbers", refusal(path))


@pytest.mark.parametrize("shape", [(), (3, 3, 8), (0, 3, 3, 8), (3, 3, 3, 8, 1), (8, 3, 3, 3)])
def test_other_ranks_are_not_read(shape, tmp_path):
    path = hostile.write_h5(tmp_path / "a.weights.h5", lambda f: hostile._replace(f, data=np.zeros(shape, np.float32)))
    assert refusal(path) == "not read: ['stem_conv/kernel']"


# --------------------------------------------------------------------------------------------------------- zip


def test_damaged_archives(tmp_path):
    path = tmp_path / "a.keras"
    assert "more than the 33,554,432 allowed" in refusal(
        hostile.bomb_zip(path, "config.json", 40 * 2**20)
    )  # 2 GB takes the same way
    assert "expands from" in refusal(hostile.bomb_zip(path, size=40 * 2**20))
    assert "overlaps another one" in refusal(hostile.overlapping_zip(path))
    assert "declares another size than it has" in refusal(hostile.lying_zip(path))
    for name in ("/etc/x", "../x", "a/../../x", "..\\x"):
        assert "leads out of the archive" in refusal(
            hostile.zip_with_names(path, ["config.json", "model.weights.h5", name])
        )
    assert "neither a Keras model nor a PyTorch state dict" in refusal(hostile.zip_with_names(path, ["a.npy", "b.zip"]))
    hostile.write_keras(path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"OHDR" if b"OHDR" in content else b"TREE") + 8] ^= 1
    path.write_bytes(content)
    assert "is damaged (Bad CRC-32" in refusal(path)
    path.write_bytes(content[:-30])
    assert "a damaged zip archive" in refusal(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "config does not describe a model"),
        ("{" + '"a": 1' + "}", "config does not describe a model"),
        (json.dumps({"class_name": "Functional", "config": {"layers": 3}}), "but no layer stem_conv"),
        (json.dumps({"class_name": "Functional", "config": {"layers": [3]}}), "does not describe a model"),
        ("9" * 5000, "digits"),
    ],
)
def test_configs_of_other_things(config, message, tmp_path):
    assert message in refusal(hostile.write_keras(tmp_path / "a.keras", config or " "))
    with h5py.File(hostile.write_h5(tmp_path / "a.h5"), "a") as file:
        file.attrs["model_config"] = config or " "
    assert message in refusal(str(tmp_path / "a.h5"))


def test_foreign_classes_before_the_network_are_refused_and_nothing_is_imported(tmp_path):
    marker = tmp_path / "imported"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    code = {"class_name": "__lambda__", "config": {"code": "4wAAAA==", "defaults": None, "closure": None}}
    for layer, message in (
        ({"class_name": "Lambda", "config": {"name": "l", "function": code}}, r"l \(Lambda\) changes the pixels"),
        ({"module": "evil", "class_name": "Rescaling", "config": {"name": "e"}}, r"e \(evil.Rescaling\) changes"),
        ({"class_name": "Conv2D", "config": {"name": "c"}}, r"c \(Conv2D\) changes the pixels"),
        ({"class_name": "Rescaling", "config": {"name": "r", "scale": "x"}}, "numbers that are not possible"),
        ({"class_name": "Rescaling", "config": {"name": "r", "scale": 0}}, "numbers that are not possible"),
        ({"class_name": "Normalization", "config": {"name": "n", "mean": [0], "variance": [-1]}}, "not positive"),
        ({"class_name": "Normalization", "config": {"name": "n", "mean": None}}, "Normalization layer are missing"),
    ):
        path = hostile.write_keras(tmp_path / "a.keras", hostile.keras_config([layer]))
        assert re.search(message, refusal(path))
    assert not marker.exists()


def test_pixels_before_the_network_are_followed_through_all_layers(tmp_path):
    before = [
        {"class_name": "Sequential", "config": {"name": "s", "layers": [
            {"class_name": "RandomFlip", "config": {"name": "flip"}},
            {"class_name": "Rescaling", "config": {"name": "r", "scale": 0.1, "offset": 3.0}}]}},
        {"class_name": "Normalization", "config": {"name": "n", "mean": [[[[1.0]]]], "variance": [4.0]}},
    ]  # fmt: skip
    needs = assert_read(hostile.write_keras(tmp_path / "a.keras", hostile.keras_config(before))).needs
    pixels = np.linspace(0, 255, 7)
    expected = ((pixels * 0.1 + 3) - 1) / 2 * 0.5 - 1
    np.testing.assert_allclose((pixels - needs["model.mean"][0]) / needs["model.std"][0], expected)


# ----------------------------------------------------------------------------------------------------- safetensors


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "many" else name for name in hostile.SAFETENSORS]
)
def test_hostile_safetensors(name, tmp_path):
    change, message = hostile.SAFETENSORS[name]
    assert message in refusal(hostile.write_safetensors(tmp_path / "tf_efficientnet_b0.safetensors", change))


def test_headers_of_safetensors(tmp_path):
    path = tmp_path / "tf_efficientnet_b0.safetensors"
    assert "declares 1,152,921,504,606,846,976 bytes" in refusal(hostile.long_header(path))
    for text, message in (
        (b'{"a": ' * 20_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "a name twice"),
        (b'{"\xff": 1}', "the byte 0xff is not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"{", "Expecting property name"),
    ):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        assert message in refusal(path)


def test_names_with_control_characters_are_escaped(tmp_path):
    path = tmp_path / "tf_efficientnet_b0.safetensors"
    hostile.write_safetensors(path, lambda header: header.update({"\x1b[31m\n": {"dtype": "F32"}}))
    assert r"\x1b[31m" in refusal(path)


def test_names_that_mean_the_same_variable(tmp_path):
    torch_path = tmp_path / "a.pth"
    hostile.write_torch(torch_path, tensors={**hostile.TIMM, "module.bn1.bias": (8,)})
    assert "both with and without the prefix module" in refusal(torch_path)


# ------------------------------------------------------------------------------------------------------------ torch


@pytest.mark.parametrize("name", hostile.PICKLES)
def test_hostile_pickles(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    description, message = hostile.PICKLES[name]
    assert re.search(message, refusal(hostile.write_torch(tmp_path / "a.pth", description)))
    (tmp_path / "b.pth").write_bytes(description)
    refusal(tmp_path / "b.pth")
    assert not (tmp_path / "hacked").exists()


def test_pytorch_files_that_lie(tmp_path):
    path = tmp_path / "a.pth"
    assert "is compressed, which PyTorch never does" in refusal(
        hostile.write_torch(path, compression=zipfile.ZIP_DEFLATED)
    )
    assert "not read" in refusal(hostile.write_torch(path, tensors={"conv_stem.weight": (2**31,)}), padding="same")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", hostile.torch_pickle(hostile.TIMM))
    assert "data/0 is missing" in refusal(path, padding="same")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", hostile.torch_pickle(hostile.TIMM))
        archive.writestr("archive/data/0", "short")
    assert "cut off" in refusal(path, padding="same")
    size = os.path.getsize(hostile.write_legacy_torch(path))
    for cut in (1, 10, 40, 100, size // 2, size - 1):
        refusal(hostile.write_legacy_torch(path, cut), padding="same")


# ------------------------------------------------------------------------------------------- files that are no files


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo.h5")
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "empty.h5").touch()
    os.symlink(tmp_path / "loop.h5", tmp_path / "loop.h5")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.h5"))
    os.mkfifo(tmp_path / "c.index")
    for name, message in (
        ("fifo.h5", "a FIFO"),
        ("s.h5", "a socket"),
        ("folder.h5", "is not a model directory or an export"),
        ("empty.h5", "the file is empty"),
        ("loop.h5", "loop.h5: cannot be read: Too many levels of symbolic links"),
        ("missing.h5", "does not exist"),
        ("c", "a FIFO"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)
    with pytest.raises(UserError, match="this is a device"):
        read("/dev/zero")
    with pytest.raises(UserError, match="is on s3://"):
        read("s3://bucket/x.h5")


# ------------------------------------------------------------------------------------------- config.json next to timm

TIMM_CONFIG = {"architecture": "tf_efficientnet_b0"}


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": ["a", "b", "c"], "std": [1, 1, 1]},
        {"mean": "abc", "std": "abc"},
        {"mean": 3},
        {"mean": [0.5] * 3},
        {"mean": [0.5] * 3, "std": [0.5]},
        {"mean": [0.5] * 3, "std": [0, 1, 1]},
        {"mean": [float("nan")] * 3, "std": [1] * 3},
        {"mean": [True] * 3, "std": [1] * 3},
        {"mean": [], "std": []},
        {"input_size": -5},
        {"input_size": [3, 224, -224]},
        {"input_size": [3, 224, 1e300]},
        {"input_size": []},
        {"input_size": [3, True, 224]},
        {"input_size": "224"},
        {"input_size": [3, 224, 224], "crop_pct": 0},
        {"input_size": [3, 224, 224], "crop_pct": "1"},
        {"input_size": [3, 224, 224], "crop_pct": float("inf")},
    ],
    ids=str,
)
def test_settings_of_timm_that_are_not_possible(settings, tmp_path):
    path = hostile.write_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG | {"pretrained_cfg": settings}))
    assert "config.json: its settings are not those of timm" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"pretrained_cfg": 3}', b"9" * 5000])
def test_damaged_config_of_timm(content, tmp_path):
    path = hostile.write_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in refusal(path)


def test_config_of_timm_that_is_no_file(tmp_path):
    path = hostile.write_safetensors(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "config.json")
    assert "config.json: this is a FIFO" in refusal(path)

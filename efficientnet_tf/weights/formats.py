"""Reads a weight file of any format. The content of the file decides the format, not its name.

The result includes what the weights need to give the right predictions: how pixels are normalized, how convolutions
pad, and how images are cropped.
"""

import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.keras_files import read_h5, read_keras
from efficientnet_tf.weights.loaded import NORMALIZATIONS, LoadedWeights, needs_of, put_array
from efficientnet_tf.weights.names import model_variables, official_names, timm_names


def read_weights(
    path: str,
    variables: Sequence[str],
    *,
    average: bool = True,
    normalization: str | None = None,
    padding: str | None = None,
) -> LoadedWeights:
    """Read a weight file.

    Args:
        path: A file, a folder, or the prefix of a TensorFlow checkpoint.
        variables: Paths of the model's variables, from the input to the output. Other libraries number layers where
            this package names them.
        average: True reads the EMA of the weights if the file has one, False reads the raw weights.
        normalization: "imagenet" or "advprop" to override how pixels are normalized. TensorFlow 1 checkpoints do not
            record it.
        padding: "same" or "symmetric" for a timm file whose name does not say which.

    Returns:
        The weights under this package's names.

    Raises:
        UserError: If the file cannot be read, has an unknown format, or does not say how the model pads.
    """
    path = str(path)
    if normalization is not None and normalization not in NORMALIZATIONS:
        raise UserError(f"normalization={normalization} is unknown. Allowed are {', '.join(NORMALIZATIONS)}.")
    if padding not in (None, "same", "symmetric"):
        raise UserError(f"padding={padding} is unknown. Allowed are same and symmetric.")
    read = _choose_reader(path)
    try:
        loaded = read(path, list(variables), average=average, padding=padding)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:  # raised by h5py and json, if damaged
        raise UserError(f"{path} cannot be read as {_FORMATS[read]}: {str(error)[:300]}") from None
    if normalization is not None:
        notes = (*loaded.notes, f"pixel normalization set to {normalization}")
        loaded = replace(loaded, needs=loaded.needs | NORMALIZATIONS[normalization], notes=notes)
    return loaded


def _choose_reader(path):
    """Return the function that reads the format of a path."""
    exists, isdir = os.path.exists, os.path.isdir
    if "://" in path:
        import tensorflow as tf

        exists, isdir = tf.io.gfile.exists, tf.io.gfile.isdir
    if exists(f"{path}.index") or path.endswith(".index"):
        return _read_tf1
    if not exists(path):
        raise UserError(f"{path} does not exist: there is no file, folder or checkpoint with this name.")
    if isdir(path):
        return _choose_folder_reader(path)
    if "://" in path:
        raise UserError(
            f"{path} is a remote file. Only folders and TensorFlow checkpoints can be read remotely. Copy the file to "
            "this machine first."
        )
    return _choose_file_reader(path)


def _choose_folder_reader(path):
    listdir = os.listdir
    if "://" in path:
        import tensorflow as tf

        listdir = tf.io.gfile.listdir
    names = sorted(name.rstrip("/") for name in listdir(path))
    if "config.yaml" in names:
        return _read_model_dir
    if "saved_model.pb" in names:
        return _read_export
    if "model.safetensors" in names:
        return _read_safetensors
    if "checkpoint" in names or any(name.endswith(".index") for name in names):
        return _read_tf1
    raise UserError(
        f"{path} is not a model directory or an export, and contains neither model.safetensors nor a TensorFlow "
        f"checkpoint. It contains {names[:10]}."
    )


def _choose_file_reader(path):
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return read_h5
    if head[8:9] == b"{":
        return _read_safetensors
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is a damaged zip archive.")
        with zipfile.ZipFile(path) as archive:
            return read_keras if "model.weights.h5" in archive.namelist() else _read_torch
    if head.startswith(b"\x80"):
        return _read_torch
    raise UserError(
        f"{path} has an unknown format. Known formats are .h5 and .keras files of Keras, safetensors and .pth files of "
        "timm, TensorFlow 1 checkpoints, and model directories and exports of this package."
    )


# ------------------------------------------------------------------------------------------------------ this package


def _read_model_dir(path, variables, average=True, **_):
    from efficientnet_tf.models.model_dir import restore_model

    model, config, _ = restore_model(path, raw=not average)
    values = {name: np.asarray(v) for name, v in model_variables(model).items()}
    return LoadedWeights("a model directory", values, needs_of(config))


def _read_export(path, variables, **_):
    """Read an export. Its variables have no names, but the order of the model that its config describes."""
    import tensorflow as tf

    from efficientnet_tf.models.model_dir import build_from_config, read_class_names, read_config

    assets = os.path.join(path, "assets")
    config, class_names = read_config(assets), read_class_names(assets)
    model = build_from_config(config, len(class_names))
    reader = tf.train.load_checkpoint(os.path.join(path, "variables", "variables"))
    values = {
        v.path: reader.get_tensor(f"weights/{i}/.ATTRIBUTES/VARIABLE_VALUE")
        for i, v in enumerate(model.variables)
        if v.path in model_variables(model)
    }
    return LoadedWeights("an export", values, needs_of(config))


# ------------------------------------------------------------------------------------------------- TensorFlow 1


def _read_tf1(path, variables, average=True, **_):
    """Read a checkpoint of the official code."""
    import tensorflow as tf

    prefix = _find_tf1_prefix(path)
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
    except (tf.errors.OpError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as a TensorFlow checkpoint: {error}") from None
    ema = "/ExponentialMovingAverage"
    reads_ema = average and any(name.endswith(ema) for name in shapes)
    ours = official_names(variables)
    values, skipped = {}, 0
    for name in sorted(shapes):
        # The other set of weights, the slot variables of the optimizer, and the step.
        if name.endswith(ema) != reads_ema or re.search(r"/(RMSProp|Momentum)(_\d+)?$|^global_step$", name):
            skipped += 1
            continue
        plain = name.removesuffix(ema)
        local = re.sub(r"^.*?(?=(stem|head|blocks_\d+)/)", "", plain)
        local = re.sub(r"/batch_normalization", "/tpu_batch_normalization", local)
        put_array(values, ours[local] if local in ours else plain, reader.get_tensor(name))
    kind = "the EMA of the weights" if reads_ema else "the raw weights"
    notes = (f"read {kind} and skipped {skipped} other variables of training",)
    return LoadedWeights("a TensorFlow 1 checkpoint of the official code", values, {}, notes)


def _find_tf1_prefix(path):
    """Return the prefix of a checkpoint, given the prefix, the index file, or the folder of a single checkpoint."""
    import tensorflow as tf

    if not tf.io.gfile.isdir(path):
        return path.removesuffix(".index")
    newest = tf.train.latest_checkpoint(path)
    if newest is not None:
        return newest
    found = sorted(name for name in tf.io.gfile.listdir(path) if name.endswith(".index"))
    if len(found) != 1:
        raise UserError(f"{path} contains {len(found)} checkpoints. Pass the prefix of one: {', '.join(found)}.")
    return os.path.join(path, found[0].removesuffix(".index"))


# --------------------------------------------------------------------------------------------------------- timm


def _read_safetensors(path, variables, padding=None, **_):
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError("safetensors is not installed. Run pip install 'efficientnet_tf[weights]'.") from None
    file = os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
    try:
        with safe_open(file, framework="numpy") as tensors:
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise UserError(f"{file} is a damaged safetensors file: {error}") from None
    return _convert_timm(file, state, variables, padding)


def _read_torch(path, variables, padding=None, **_):
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch file, and torch is not installed. Install it, or use the model's safetensors file."
        ) from None
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} cannot be loaded by torch without running its code: {str(error)[:300]}") from None
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    state = {name.removeprefix("module."): value.float().numpy() for name, value in state.items()}
    return _convert_timm(path, state, variables, padding)


def _convert_timm(path, state, variables, padding):
    """Convert timm's tensors to this package's names and layouts, and find out how the model pads."""
    ours, values = timm_names(variables), {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        tensor = np.asarray(tensor, np.float32)
        if tensor.ndim == 4:  # [out, in, H, W], or [C, 1, H, W] for a depthwise convolution
            tensor = tensor.transpose(2, 3, 0, 1) if name.endswith("conv_dw.weight") else tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2:
            tensor = tensor.T
        values[ours.get(name, name)] = tensor
    config_path, config = os.path.join(os.path.dirname(path), "config.json"), {}
    if os.path.exists(config_path):
        with open(config_path) as file:
            config = json.load(file)
    settings = config.get("pretrained_cfg", config)
    needs, notes = _timm_needs(settings), ()
    if padding is None:
        architecture = config.get("architecture") or settings.get("architecture") or os.path.basename(path)
        padding = _timm_padding(path, architecture)
        notes = (f"padding {padding}, because the model is {architecture}",)
    needs["model.padding"] = padding
    needs["model.batch_norm_epsilon"] = 1e-3 if padding == "same" else 1e-5
    return LoadedWeights("timm's weights", values, needs, notes)


def _timm_padding(path, architecture):
    """Return how a timm model pads. Only its name tells."""
    family = re.search(r"(tf_)?efficientnet_(b\d|l2)", architecture)
    if not family:
        raise UserError(
            f"{path} does not say how the model pads. In timm, tf_efficientnet_* and efficientnet_* have the same "
            "tensors but pad differently, and neither the name of the file nor a config.json next to it says which "
            "one this is. Pass padding=same for tf_efficientnet_*, and padding=symmetric for efficientnet_*."
        )
    return "same" if family[1] else "symmetric"


def _timm_needs(settings) -> dict[str, Any]:
    """Convert timm's pretrained_cfg: mean and std of [0, 1], and the crop as a fraction of the resized side."""
    needs = {}
    for key in ("mean", "std"):
        if key in settings:
            needs[f"model.{key}"] = tuple(255 * float(v) for v in settings[key])
    if "input_size" in settings:
        size = int(settings["input_size"][-1])
        needs["data.image_size"] = size
        if settings.get("crop_pct"):
            needs["data.crop_padding"] = round(size / float(settings["crop_pct"])) - size
    if settings.get("interpolation") in ("bicubic", "bilinear"):
        needs["data.interpolation"] = settings["interpolation"]
    return needs


_FORMATS = {
    _read_model_dir: "a model directory",
    _read_export: "an export of this package",
    read_h5: "Keras weights",
    read_keras: "a Keras model",
    _read_tf1: "a TensorFlow checkpoint",
    _read_safetensors: "safetensors",
    _read_torch: "a PyTorch file",
}

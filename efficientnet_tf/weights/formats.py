"""Reads a weight file, whoever wrote it: known by its content, read by its format's own library.

What its numbers need to give the right answers (how pixels are normalised, how convolutions pad, how images are
cropped) is part of what is read.
"""

import json
import os
import re
import zipfile
from dataclasses import replace

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.keras_files import read_h5, read_keras
from efficientnet_tf.weights.loaded import NORMALIZATIONS, LoadedWeights, needs_of, put_array
from efficientnet_tf.weights.names import model_variables, official_names, timm_names


def read_weights(path, variables, *, average=True, normalization=None, padding=None):
    """Read a weight file.

    Args:
        path: str, a file, a folder, or the prefix of a TensorFlow checkpoint.
        variables: sequence of str, the paths of a model's variables, from the input to the output: the other
            libraries count layers where this package names them.
        average: bool, TensorFlow 1 checkpoints: take the moving averages, where the file has some.
        normalization: None for what the file says, "imagenet" or "advprop"; TensorFlow 1 checkpoints do not say.
        padding: None for what the file says, "same" or "symmetric": how a timm model pads; a bare file does not say.

    Returns:
        Stored.

    Raises:
        UserError: when it cannot be read, is of no known format, or leaves open what decides its answers.
    """
    path = str(path)
    read = _recognise(path)
    try:
        stored = read(path, list(variables), average=average, padding=padding)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:  # what damage makes of h5py and json
        raise UserError(f"{path}: cannot be read as {_NAMES[read]}: {str(error)[:300]}") from None
    if normalization:
        notes = (*stored.notes, f"normalisation chosen: {normalization}")
        stored = replace(stored, needs=stored.needs | NORMALIZATIONS[normalization], notes=notes)
    return stored


def _recognise(path):
    """Return the function that reads what lies at a path."""
    exists, isdir, listdir = os.path.exists, os.path.isdir, os.listdir
    if "://" in path:
        import tensorflow as tf

        exists, isdir, listdir = tf.io.gfile.exists, tf.io.gfile.isdir, tf.io.gfile.listdir
    if exists(f"{path}.index") or path.endswith(".index"):
        return _read_tf1
    if not exists(path):
        raise UserError(f"{path}: no such file, folder or checkpoint")
    if isdir(path):
        names = [name.rstrip("/") for name in listdir(path)]
        if "config.yaml" in names:
            return _read_model_dir
        if "saved_model.pb" in names:
            return _read_export
        if "model.safetensors" in names:
            return _read_safetensors
        if "checkpoint" in names or any(name.endswith(".index") for name in names):
            return _read_tf1
        raise UserError(
            f"{path}: is no model directory, no export, and holds neither model.safetensors nor a TensorFlow "
            f"checkpoint; it has {sorted(names)[:10]}"
        )
    if "://" in path:
        raise UserError(f"{path}: of remote paths only folders and TensorFlow checkpoints are read; copy the file here")
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return read_h5
    if head[8:9] == b"{":
        return _read_safetensors
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: a damaged zip archive")
        with zipfile.ZipFile(path) as archive:
            return read_keras if "model.weights.h5" in archive.namelist() else _read_torch
    if head.startswith(b"\x80"):
        return _read_torch
    raise UserError(
        f"{path}: of no known format; known are .h5 and .keras of Keras, safetensors and .pth of timm, TensorFlow 1 "
        "checkpoints, and this package's model directories and exports"
    )


# --------------------------------------------------------------------------------------------------- this package


def _read_model_dir(path, variables, average=True, **_):
    from efficientnet_tf.models.model_dir import restore_model

    model, config, _ = restore_model(path, raw=not average)
    values = {name: np.asarray(v) for name, v in model_variables(model).items()}
    return LoadedWeights("a model directory", values, needs_of(config))


def _read_export(path, variables, **_):
    """Read an export: its variables have no names, but stand in the order of the model that its config builds."""
    import tensorflow as tf

    from efficientnet_tf.models.model_dir import build_from_config, read_class_names, read_config

    assets = os.path.join(path, "assets")
    config, classes = read_config(assets), read_class_names(assets)
    model = build_from_config(config, len(classes))
    reader = tf.train.load_checkpoint(os.path.join(path, "variables", "variables"))
    values = {
        v.path: reader.get_tensor(f"weights/{i}/.ATTRIBUTES/VARIABLE_VALUE")
        for i, v in enumerate(model.variables)
        if v.path in model_variables(model)
    }
    return LoadedWeights("an export", values, needs_of(config))


# ------------------------------------------------------------------------------------------------ TensorFlow 1, timm


def _read_tf1(path, variables, average=True, **_):
    """Read a checkpoint of the official code."""
    import tensorflow as tf

    prefix = path.removesuffix(".index")
    if tf.io.gfile.isdir(path):
        prefix = tf.train.latest_checkpoint(path)
        if prefix is None:
            found = sorted(name for name in tf.io.gfile.listdir(path) if name.endswith(".index"))
            if len(found) != 1:
                raise UserError(f"{path}: holds {len(found)} checkpoints; give the prefix of one: {', '.join(found)}")
            prefix = os.path.join(path, found[0].removesuffix(".index"))
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
    except (tf.errors.OpError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read as a TensorFlow checkpoint: {error}") from None
    shadow = "/ExponentialMovingAverage"
    averaged = average and any(name.endswith(shadow) for name in shapes)
    ours = official_names(variables)
    values, left = {}, 0
    for name in sorted(shapes):
        # The training's own: the other set of weights, slots, step.
        if name.endswith(shadow) != averaged or re.search(r"/(RMSProp|Momentum)(_\d+)?$|^global_step$", name):
            left += 1
            continue
        plain = name.removesuffix(shadow)
        local = re.sub(r"^.*?(?=(stem|head|blocks_\d+)/)", "", plain)
        local = re.sub(r"/batch_normalization", "/tpu_batch_normalization", local)
        put_array(values, ours.get(local, plain), reader.get_tensor(name))
    notes = (f"{'moving averages' if averaged else 'raw weights'} taken; {left} other variables of the training left",)
    return LoadedWeights("a TensorFlow 1 checkpoint of the official code", values, {}, notes)


def _read_safetensors(path, variables, padding=None, **_):
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise UserError("safetensors is not installed: pip install 'efficientnet_tf[weights]'") from None
    file = os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
    try:
        with safe_open(file, framework="numpy") as tensors:
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise UserError(f"{file}: a damaged safetensors file: {error}") from None
    return _timm(file, state, variables, padding)


def _read_torch(path, variables, padding=None, **_):
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a torch file and torch is not installed: install it, or take the model's safetensors file"
        ) from None
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: torch's weights-only loading refuses it: {str(error)[:300]}") from None
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    state = {name.removeprefix("module."): value.float().numpy() for name, value in state.items()}
    return _timm(path, state, variables, padding)


def _timm(path, state, variables, padding):
    """Put timm's tensors into our names and layouts, and find out which of its two ways of padding they were for."""
    ours = timm_names(variables)
    values = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        tensor = np.asarray(tensor, np.float32)
        if tensor.ndim == 4:  # [out, in, H, W]; a depthwise one is [C, 1, H, W]
            tensor = tensor.transpose(2, 3, 0, 1) if name.endswith("conv_dw.weight") else tensor.transpose(2, 3, 1, 0)
        elif tensor.ndim == 2:
            tensor = tensor.T
        values[ours.get(name, name)] = tensor
    config_path = os.path.join(os.path.dirname(path), "config.json")
    config = {}
    if os.path.exists(config_path):
        with open(config_path) as file:
            config = json.load(file)
    settings = config.get("pretrained_cfg", config)
    architecture = config.get("architecture") or settings.get("architecture") or os.path.basename(path)
    needs, notes = _timm_needs(settings), []
    if padding is None:
        family = re.search(r"(tf_)?efficientnet_(b\d|l2)", architecture)
        if not family:
            raise UserError(
                f"{path}: timm's tf_efficientnet_* and efficientnet_* have the same tensors but pad differently, and "
                "neither the file's name nor a config.json beside it says which this is: say --padding=same for tf_*, "
                "--padding=symmetric for the others"
            )
        padding = "same" if family[1] else "symmetric"
        notes.append(f"padding {padding}, for it is {architecture}")
    needs["model.padding"] = padding
    needs["model.batch_norm_epsilon"] = 1e-3 if padding == "same" else 1e-5
    return LoadedWeights("timm's weights", values, needs, tuple(notes))


def _timm_needs(settings):
    """Translate timm's pretrained_cfg: mean and std of [0, 1], the crop as a share of the resized side."""
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


_NAMES = {
    _read_model_dir: "a model directory",
    _read_export: "an export of this package",
    read_h5: "Keras weights",
    read_keras: "a Keras model",
    _read_tf1: "a TensorFlow checkpoint",
    _read_safetensors: "safetensors",
    _read_torch: "a torch file",
}

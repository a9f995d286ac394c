"""What a weight file holds, whoever wrote it, in this package's names and layouts.

A format is known by its content. It is read by its own library: h5py, TensorFlow, safetensors, torch. What its
numbers need to give the right answers (how pixels are normalised, how convolutions pad, how images are cropped) is
part of what is read.
"""

import json
import os
import re
import zipfile
from dataclasses import dataclass, field, replace

import numpy as np

from efficientnet_tf.config import UserError
from efficientnet_tf.weight_names import layers_of, model_variables, official_names, timm_names

IMAGENET_STD = (0.229, 0.224, 0.225)
NORMALIZATIONS = {
    "imagenet": {"model.mean": (123.675, 116.28, 103.53), "model.std": (58.395, 57.12, 57.375)},
    "advprop": {"model.mean": (127.5, 127.5, 127.5), "model.std": (127.5, 127.5, 127.5)},
}
CONFIG_ATTRIBUTE = "efficientnet_tf_config"  # of this package's .weights.h5: the config as YAML
CONFIG_ENTRY = "efficientnet_tf.yaml"  # the same in the archive of a converted .keras


@dataclass(frozen=True)
class Stored:
    """What a weight file holds.

    Attributes:
        format: what it was recognised as, for messages.
        values: {path of this package's variable: array}; what has no place here keeps the name it has in the file.
        needs: {"section.key": value} of the config with which these numbers give the right answers; what is not in it
            is the variant's own.
        notes: what was decided on the way, sentences for the user.
    """

    format: str
    values: dict
    needs: dict = field(default_factory=dict)
    notes: tuple = ()


def needs_of(config):
    """Return what decides a model's answers beside its weights: {"section.key": value}."""
    model = {f"model.{key}": getattr(config.model, key) for key in ("mean", "std", "batch_norm_epsilon", "padding")}
    data = {f"data.{key}": getattr(config.data, key) for key in ("channels", "crop_padding", "interpolation")}
    return model | data | {"data.image_size": config.image_size}


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
        return _read_h5
    if head[8:9] == b"{":
        return _read_safetensors
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: a damaged zip archive")
        with zipfile.ZipFile(path) as archive:
            return _read_keras if "model.weights.h5" in archive.namelist() else _read_torch
    if head.startswith(b"\x80"):
        return _read_torch
    raise UserError(
        f"{path}: of no known format; known are .h5 and .keras of Keras, safetensors and .pth of timm, TensorFlow 1 "
        "checkpoints, and this package's model directories and exports"
    )


def _put(values, name, array):
    """Add an array under its name; two that mean the same variable are an error, not the last one's."""
    if name in values:
        raise ValueError(f"it has {name} twice")
    values[name] = array


# --------------------------------------------------------------------------------------------------- this package


def _read_model_dir(path, variables, average=True, **_):
    from efficientnet_tf import checkpoint

    model, config, _ = checkpoint.load_model(path, raw=not average)
    values = {name: np.asarray(v) for name, v in model_variables(model).items()}
    return Stored("a model directory", values, needs_of(config))


def _read_export(path, variables, **_):
    """Read an export: its variables have no names, but stand in the order of the model that its config builds."""
    import tensorflow as tf

    from efficientnet_tf import checkpoint

    assets = os.path.join(path, "assets")
    config, classes = checkpoint.read_config(assets), checkpoint.read_classes(assets)
    model = checkpoint.build_for(config, len(classes))
    reader = tf.train.load_checkpoint(os.path.join(path, "variables", "variables"))
    values = {
        v.path: reader.get_tensor(f"weights/{i}/.ATTRIBUTES/VARIABLE_VALUE")
        for i, v in enumerate(model.variables)
        if v.path in model_variables(model)
    }
    return Stored("an export", values, needs_of(config))


# ---------------------------------------------------------------------------------------------------------- Keras


_KERAS_VARIABLES = {
    "Dense": ("kernel", "bias"),
    "Conv": ("kernel", "bias"),
    "BatchNorm": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
}


def _keras_layer_kind(layer):
    if layer.startswith("normalization"):
        return "Normalization"
    if layer.endswith("bn"):
        return "BatchNorm"
    return "Dense" if layer == "predictions" else "Conv"


def _keras3_values(group, variables):
    """Read Keras 3's weights: a group a layer, named by class and count, with the layer's name as an attribute."""
    by_class = {"conv2d": [], "depthwise_conv2d": [], "batch_normalization": [], "dense": []}
    for layer in (layer for layers in layers_of(variables).values() for layer in layers):
        kind = _keras_layer_kind(layer)
        kind = {"Dense": "dense", "BatchNorm": "batch_normalization"}.get(kind, "conv2d")
        by_class["depthwise_conv2d" if layer.endswith("dwconv") else kind].append(layer)
    values = {}
    for key, entry in group.items():
        stored = entry["vars"] if "vars" in entry else {}
        if not len(stored):
            continue
        # Keras before 3.4 states no names: the layers of a class are counted in the order of the network.
        kind, count = re.fullmatch(r"(.*?)(?:_(\d+))?", key).groups()
        counted = by_class.get(kind, [])
        count = int(count or 0)
        layer = stored.attrs.get("name") or (counted[count] if count < len(counted) else key)
        names = _KERAS_VARIABLES[_keras_layer_kind(layer)]
        for number, array in stored.items():
            index = int(number)
            _put(values, f"{layer}/{names[index] if index < len(names) else number}", np.asarray(array))
    return values


def _legacy_values(group):
    """Read Keras 2's weights: a group a layer, by name, with its arrays at any depth below."""
    values = {}

    def read(name, item):
        if hasattr(item, "shape"):  # an array; the rest are groups
            layer, _, inner = name.partition("/")
            variable = inner.rpartition("/")[2].partition(":")[0].removeprefix("depthwise_")
            _put(values, f"{layer}/{variable}", np.asarray(item))

    group.visititems(read)
    return values


def _read_h5(path, variables, **_):
    import h5py

    with h5py.File(path) as file:
        text = file.attrs.get(CONFIG_ATTRIBUTE)
        group = file["model_weights"] if "model_weights" in file else file
        if "layers" in group:
            values, what = _keras3_values(group["layers"], variables), "Keras weights"
        elif any(name.startswith("layer_names") for name in group.attrs):
            values, what = _legacy_values(group), "Keras weights, legacy format"
        else:
            raise UserError(f"{path}: an HDF5 file without Keras weights; it has {sorted(group)[:10]}")
    if text is not None:
        return Stored("this package's weights", values, _needs_of_config(text, path))
    return _with_keras_normalization(what, values)


def _needs_of_config(text, path):
    """Return everything that decides a model's answers, from a whole config."""
    from efficientnet_tf.config import parse_config

    return needs_of(parse_config(text, path))


def _with_keras_normalization(what, values):
    """Turn the variables of keras.applications' Normalization layer into the mean and deviation that they mean."""
    layers = {name.partition("/")[0] for name in values if name.startswith("normalization")}
    if not layers:
        return Stored(what, values)
    layer = min(layers)
    mean, variance = (np.ravel(values[f"{layer}/{name}"]).astype(float) for name in ("mean", "variance"))
    values = {name: value for name, value in values.items() if not name.startswith(f"{layer}/")}
    std, notes = np.sqrt(variance), ()
    if len(std) == 3 and np.allclose(variance, IMAGENET_STD, rtol=1e-3):
        # The released weights have the deviation where the variance belongs; keras.applications mends it, for
        # weights='imagenet' alone, by a layer that is in no weight file: it divides by sqrt(std) once more.
        std = variance
        notes = ("the released ImageNet weights: divided by sqrt(std) once more, as keras.applications does",)
    needs = {"model.mean": tuple((255 * mean).tolist()), "model.std": tuple((255 * std).tolist())}
    return Stored(f"{what} of keras.applications", values, needs, notes)


def _read_keras(path, variables, **_):
    """Read a whole Keras model: Keras loads it, and its own layers tell what they do to a pixel."""
    import keras

    model = keras.models.load_model(path, compile=False)
    values = {name: np.asarray(v) for name, v in model_variables(model).items()}
    stem = next((layer for layer in model.layers if layer.name in ("stem_conv_pad", "stem_conv")), None)
    if stem is None:
        raise UserError(f"{path}: a Keras model without a layer stem_conv is no EfficientNet of this package or Keras")
    before = keras.Model(model.inputs[0], stem.input)
    shape = [side or 8 for side in model.inputs[0].shape[1:]]
    black, white = (np.asarray(before(np.full([1, *shape], v, "float32")))[0, 0, 0].astype(float) for v in (0, 255))
    std = 255 / (white - black)
    values = {name: value for name, value in values.items() if not name.startswith("normalization")}
    norm = model.get_layer("stem_bn")
    padding = "symmetric" if model.get_layer("stem_conv").padding == "valid" else "same"
    if any(layer.__class__.__name__ == "Normalization" for layer in model.layers):
        padding = "same"  # keras.applications pads in layers of its own, the way that "same" does
    with zipfile.ZipFile(path) as archive:
        stated = CONFIG_ENTRY in archive.namelist()
        needs = _needs_of_config(archive.read(CONFIG_ENTRY).decode(), path) if stated else {}
    needs |= {"model.mean": tuple((-black * std).tolist()), "model.std": tuple(std.tolist())}
    return Stored("a Keras model", values, needs | {"model.batch_norm_epsilon": norm.epsilon, "model.padding": padding})


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
        _put(values, ours.get(local, plain), reader.get_tensor(name))
    notes = (f"{'moving averages' if averaged else 'raw weights'} taken; {left} other variables of the training left",)
    return Stored("a TensorFlow 1 checkpoint of the official code", values, {}, notes)


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
    return Stored("timm's weights", values, needs, tuple(notes))


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
    _read_h5: "Keras weights",
    _read_keras: "a Keras model",
    _read_tf1: "a TensorFlow checkpoint",
    _read_safetensors: "safetensors",
    _read_torch: "a torch file",
}

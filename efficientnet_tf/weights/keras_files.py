"""Reads weight files of Keras 2 and 3, with models of this package or of `keras.applications`."""

import re
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.loaded import CONFIG_ATTRIBUTE, CONFIG_ENTRY, LoadedWeights, needs_of, put_array
from efficientnet_tf.weights.names import layers_of, model_variables

IMAGENET_STD = (0.229, 0.224, 0.225)  # of pixels in [0, 1]
_KERAS_VARIABLES = {
    "Dense": ("kernel", "bias"),
    "Conv": ("kernel", "bias"),
    "BatchNorm": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
}


def read_h5(path: str, variables: Sequence[str], **_) -> LoadedWeights:
    """Read a .weights.h5 file of Keras 3 or an .h5 file of Keras 2, written by Keras or by this package.

    Args:
        path: Path of the file.
        variables: Paths of the model's variables in their order, because old files number layers.

    Raises:
        UserError: If the HDF5 file contains no Keras weights.
    """
    import h5py

    with h5py.File(path) as file:
        config_text = file.attrs.get(CONFIG_ATTRIBUTE)
        group: Any = file["model_weights"] if "model_weights" in file else file
        if "layers" in group:
            values, what = _read_keras3_groups(group["layers"], variables), "Keras weights"
        elif any(name.startswith("layer_names") for name in group.attrs):
            values, what = _read_legacy_groups(group), "Keras weights, legacy format"
        else:
            raise UserError(f"{path} is an HDF5 file without Keras weights. It contains {sorted(group)[:10]}.")
    if config_text is not None:
        return LoadedWeights("this package's weights", values, _needs_of_text(config_text, path))
    return _split_normalization(what, values)


def read_keras(path: str, variables: Sequence[str], **_) -> LoadedWeights:
    """Read a whole Keras model. Keras loads it, and a black and a white image show how it normalizes pixels.

    Raises:
        UserError: If the model is not an EfficientNet.
    """
    import keras

    model: Any = keras.models.load_model(path, compile=False)
    stem = next((layer for layer in model.layers if layer.name in ("stem_conv_pad", "stem_conv")), None)
    if stem is None:
        raise UserError(
            f"{path} is a Keras model without a layer stem_conv. Only EfficientNets of this package or of "
            "keras.applications can be read."
        )
    values = {name: np.asarray(v) for name, v in model_variables(model).items()}
    values = {name: value for name, value in values.items() if not name.startswith("normalization")}

    before_stem = keras.Model(model.inputs[0], stem.input)
    shape = [side or 8 for side in model.inputs[0].shape[1:]]
    black, white = (
        np.asarray(before_stem(np.full([1, *shape], v, "float32")))[0, 0, 0].astype(float) for v in (0, 255)
    )
    std = 255 / (white - black)

    padding = "symmetric" if model.get_layer("stem_conv").padding == "valid" else "same"
    if any(layer.__class__.__name__ == "Normalization" for layer in model.layers):
        padding = "same"  # keras.applications pads in separate layers, with the result of "same"
    with zipfile.ZipFile(path) as archive:
        has_config = CONFIG_ENTRY in archive.namelist()
        needs = _needs_of_text(archive.read(CONFIG_ENTRY).decode(), path) if has_config else {}
    needs |= {
        "model.mean": tuple((-black * std).tolist()),
        "model.std": tuple(std.tolist()),
        "model.batch_norm_epsilon": model.get_layer("stem_bn").epsilon,
        "model.padding": padding,
    }
    return LoadedWeights("a Keras model", values, needs)


def convert_normalization(mean: np.ndarray, variance: np.ndarray) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Convert the variables of the Normalization layer of `keras.applications`, which normalizes pixels in [0, 1].

    Args:
        mean: Mean of each channel.
        variance: Variance of each channel. The released ImageNet weights contain the standard deviation instead.

    Returns:
        The needs `model.mean` and `model.std`, for pixels in [0, 255], and notes for the user.
    """
    mean, variance = np.ravel(mean).astype(float), np.ravel(variance).astype(float)
    std, notes = np.sqrt(variance), ()
    if len(std) == 3 and np.allclose(variance, IMAGENET_STD, rtol=1e-3):
        # keras.applications corrects this for weights='imagenet' in another layer, which no weight file contains:
        # it divides by sqrt(std) once more.
        std = variance
        notes = ("the released ImageNet weights store the standard deviation as the variance, which was corrected",)
    return {"model.mean": tuple((255 * mean).tolist()), "model.std": tuple((255 * std).tolist())}, notes


def _layer_kind(layer):
    """Return the key of `_KERAS_VARIABLES` for a layer's name."""
    if layer.startswith("normalization"):
        return "Normalization"
    if layer.endswith("bn"):
        return "BatchNorm"
    return "Dense" if layer == "predictions" else "Conv"


def _read_keras3_groups(group, variables):
    """Read the groups of Keras 3. They are named by class and number, and have the layer's name as an attribute."""
    by_class = {"conv2d": [], "depthwise_conv2d": [], "batch_normalization": [], "dense": []}
    for layer in (layer for layers in layers_of(variables).values() for layer in layers):
        kind = {"Dense": "dense", "BatchNorm": "batch_normalization"}.get(_layer_kind(layer), "conv2d")
        by_class["depthwise_conv2d" if layer.endswith("dwconv") else kind].append(layer)
    values = {}
    for key, entry in group.items():
        arrays: Any = entry["vars"] if "vars" in entry else {}
        if not len(arrays):
            continue
        # Keras before 3.4 writes no names. It numbers the layers of a class in the order of the network.
        kind = re.sub(r"_\d+$", "", key)
        numbered, number = by_class.get(kind, []), int(key[len(kind) + 1 :] or 0)
        layer = arrays.attrs.get("name") or (numbered[number] if number < len(numbered) else key)
        names = _KERAS_VARIABLES[_layer_kind(layer)]
        for index, array in arrays.items():
            name = names[int(index)] if int(index) < len(names) else index
            put_array(values, f"{layer}/{name}", np.asarray(array))
    return values


def _read_legacy_groups(group):
    """Read the groups of Keras 2: one per layer, with its arrays at any depth below."""
    values = {}

    def read(name, item):
        if hasattr(item, "shape"):  # an array; everything else is a group
            layer, _, inner = name.partition("/")
            variable = inner.rpartition("/")[2].partition(":")[0].removeprefix("depthwise_")
            put_array(values, f"{layer}/{variable}", np.asarray(item))

    group.visititems(read)
    return values


def _needs_of_text(text, path):
    """Return the needs that a complete config in YAML describes."""
    from efficientnet_tf.config.load import parse_config

    return needs_of(parse_config(text, path))


def _split_normalization(what, values):
    """Turn the variables of a Normalization layer, if there is one, into needs."""
    layers = {name.partition("/")[0] for name in values if name.startswith("normalization")}
    if not layers:
        return LoadedWeights(what, values)
    layer = min(layers)
    needs, notes = convert_normalization(values[f"{layer}/mean"], values[f"{layer}/variance"])
    values = {name: value for name, value in values.items() if not name.startswith(f"{layer}/")}
    return LoadedWeights(f"{what} of keras.applications", values, needs, notes)

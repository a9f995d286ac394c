"""Reads the weight files of Keras 3 and of Keras 2, of this package's models and of those of keras.applications."""

import re
import zipfile

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.loaded import CONFIG_ATTRIBUTE, CONFIG_ENTRY, LoadedWeights, needs_of, put_array
from efficientnet_tf.weights.names import layers_of, model_variables

IMAGENET_STD = (0.229, 0.224, 0.225)
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
            put_array(values, f"{layer}/{names[index] if index < len(names) else number}", np.asarray(array))
    return values


def _legacy_values(group):
    """Read Keras 2's weights: a group a layer, by name, with its arrays at any depth below."""
    values = {}

    def read(name, item):
        if hasattr(item, "shape"):  # an array; the rest are groups
            layer, _, inner = name.partition("/")
            variable = inner.rpartition("/")[2].partition(":")[0].removeprefix("depthwise_")
            put_array(values, f"{layer}/{variable}", np.asarray(item))

    group.visititems(read)
    return values


def read_h5(path, variables, **_):
    """Read .weights.h5 of Keras 3, .h5 of Keras 2, or this package's, which says what it needs; return a Stored.

    Raises:
        UserError: for an HDF5 file with none of these.
    """
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
        return LoadedWeights("this package's weights", values, _needs_of_config(text, path))
    return _with_keras_normalization(what, values)


def _needs_of_config(text, path):
    """Return everything that decides a model's answers, from a whole config."""
    from efficientnet_tf.config.load import parse_config

    return needs_of(parse_config(text, path))


def _with_keras_normalization(what, values):
    """Turn the variables of keras.applications' Normalization layer into the mean and deviation that they mean."""
    layers = {name.partition("/")[0] for name in values if name.startswith("normalization")}
    if not layers:
        return LoadedWeights(what, values)
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
    return LoadedWeights(f"{what} of keras.applications", values, needs, notes)


def read_keras(path, variables, **_):
    """Read a whole Keras model: Keras loads it, and its own layers tell what they do to a pixel; return a Stored.

    Raises:
        UserError: for a model that is no EfficientNet.
    """
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
    return LoadedWeights(
        "a Keras model", values, needs | {"model.batch_norm_epsilon": norm.epsilon, "model.padding": padding}
    )

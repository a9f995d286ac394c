"""Reads weight files of Keras 2 and 3, with models of this package or of `keras.applications`.

A model can contain the network as one of its layers, at any depth, with other layers before and after it.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from efficientnet_tf.runtime.archives import open_archive, open_member, read_member
from efficientnet_tf.weights.hdf5 import H5Content
from efficientnet_tf.weights.keras_config import NetworkConfig, describe_network, read_numbers
from efficientnet_tf.weights.loaded import CONFIG_ATTRIBUTE, CONFIG_ENTRY, SETTINGS_ATTRIBUTE, LoadedWeights, needs_of
from efficientnet_tf.weights.names import is_depthwise, layers_of
from efficientnet_tf.weights.tensors import Shapes, StoredTensor, put_tensor, read_needed

IMAGENET_STD = (0.229, 0.224, 0.225)  # of pixels in [0, 1]
# keras.applications builds its networks only like this.
KERAS_SETTINGS = {"model.batch_norm_epsilon": 1e-3, "model.padding": "same"}
MAX_CONFIG = 32 * 2**20  # bytes of a model's config. That of the largest network has about 2 MB.
_KERAS_VARIABLES = {
    "Dense": ("kernel", "bias"),
    "Conv": ("kernel", "bias"),
    "BatchNorm": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Normalization": ("mean", "variance", "count"),
}


@dataclass
class _Container:
    """A model in a file: its own layers, without those of the models in it."""

    path: str  # for messages: "functional", or "" for the outermost model
    layers: dict[str, dict[str, StoredTensor]] = field(default_factory=dict)

    @property
    def is_network(self) -> bool:
        return "stem_conv" in self.layers


def read_h5(path: str, variables: Sequence[str], shapes: Shapes, **_: Any) -> LoadedWeights:
    """Read a .weights.h5 file of Keras 3 or an .h5 file of Keras 2, written by Keras or by this package.

    Args:
        path: Path of the file.
        variables: Paths of the model's variables in their order, because old files number layers.
        shapes: {path: shape} of the variables to read.

    Raises:
        ValueError: If the file contains no weights of an EfficientNet, or something that is refused.
    """
    from efficientnet_tf.weights.hdf5 import open_h5

    with open(path, "rb") as file, open_h5(file) as content:
        config_text = content.read_text(CONFIG_ATTRIBUTE)
        model_config = content.read_text("model_config", MAX_CONFIG) or "{}"
        # Keras 2 writes functions as layers, with their arguments elsewhere. Such a file is read like one of weights.
        network = describe_network(b"{}" if "TFOpLambda" in model_config else model_config.encode())
        loaded, statistics = _read_content(content, variables, network.head_problem)
        if statistics is not None:
            needs, notes = convert_normalization(*statistics)
            what = f"{loaded.format} of keras.applications"
            loaded = replace(loaded, format=what, needs=needs | KERAS_SETTINGS, notes=(*notes, *loaded.notes))
        if network.has_config:
            loaded = _add_needs(loaded, network, statistics, {})
        else:
            _check_rescaling(content)
        settings = content.read_text(SETTINGS_ATTRIBUTE)
        if settings is not None and statistics is None:
            loaded = replace(loaded, needs=_parse_settings(settings))
        if config_text is not None:
            loaded = replace(loaded, format="this package's weights", needs=_needs_of_text(config_text, path))
        return replace(loaded, values=read_needed(loaded.values, shapes))


def read_keras(path: str, variables: Sequence[str], shapes: Shapes, **_: Any) -> LoadedWeights:
    """Read a whole Keras model, without building it: its weights, and what its config says about the network.

    Raises:
        ValueError: If the model contains no EfficientNet, or something that is refused.
    """
    from efficientnet_tf.weights.hdf5 import open_h5

    with open_archive(path) as archive:
        names = archive.namelist()
        config = read_member(archive, "config.json", MAX_CONFIG) if "config.json" in names else b"{}"
        network = describe_network(config)
        needs = {}
        if CONFIG_ENTRY in names:
            needs = _needs_of_text(read_member(archive, CONFIG_ENTRY, MAX_CONFIG).decode(), path)
        with open_member(archive, "model.weights.h5") as file, open_h5(file) as content:
            loaded, statistics = _read_content(content, variables, network.head_problem)
            loaded = _add_needs(loaded, network, statistics, needs)
            return replace(loaded, format="a Keras model", values=read_needed(loaded.values, shapes))


def _add_needs(loaded: LoadedWeights, network: NetworkConfig, statistics, needs: dict[str, Any]) -> LoadedWeights:
    """Replace the needs by `needs` and those that the model's config describes, and say if it normalizes nothing."""
    needs = needs | network.needs | network.normalization(*(statistics or (None, None)))
    notes = loaded.notes
    if network.has_config and "model.mean" not in needs:
        notes = (*notes, "the file's model does not normalize pixels, so the normalization is that of the variant")
    return replace(loaded, needs=needs, notes=notes)


def _check_rescaling(content: H5Content) -> None:
    """Raise ValueError if a file of Keras 3 without a config has a layer without variables that rescales pixels.

    Only those outside the network count. Its own are known from the variant.
    """
    groups = {path.removesuffix("/vars"): name for path, name in content.names.items() if path.endswith("/vars")}
    own = [group.rpartition("/")[0] for group, name in groups.items() if name == "stem_conv"]
    for group, name in groups.items():
        parent, _, key = group.rpartition("/")
        has_variables = any(path.startswith(f"{group}/") for path in content.tensors)
        if own and parent not in own and not has_variables and re.fullmatch(r"(rescaling|normalization)(_\d+)?", key):
            raise ValueError(
                f"its layer {name} changes the pixels outside the network by numbers that such a file does not record. "
                "Save the whole model as .keras, which does"
            )


def convert_normalization(mean: np.ndarray, variance: np.ndarray) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Convert the variables of the Normalization layer of `keras.applications`, which normalizes pixels in [0, 1].

    Args:
        mean: Mean of each channel.
        variance: Variance of each channel. The released ImageNet weights contain the standard deviation instead.

    Returns:
        The needs `model.mean` and `model.std`, for pixels in [0, 255], and notes for the user.

    Raises:
        ValueError: If a variance is not positive.
    """
    mean, variance = np.ravel(mean).astype(float), np.ravel(variance).astype(float)
    if len(mean) != len(variance) or not np.all(np.isfinite(mean)) or not np.all((variance > 0) & (variance < np.inf)):
        raise ValueError("its normalization of the pixels has numbers that are not possible")
    std, notes = np.sqrt(variance), ()
    if len(std) == 3 and np.allclose(variance, IMAGENET_STD, rtol=1e-3):
        # keras.applications corrects this for weights='imagenet' in another layer, which no weight file contains:
        # it divides by sqrt(std) once more.
        std = variance
        notes = ("the released ImageNet weights store the standard deviation as the variance, which was corrected",)
    return {"model.mean": tuple((255 * mean).tolist()), "model.std": tuple((255 * std).tolist())}, notes


def _read_content(content: H5Content, variables, head_problem=""):
    """Find the network in the content of an HDF5 file, and name its variables.

    Returns:
        The weights, not read, and (mean, variance) of the Normalization layer of `keras.applications`, or None.
    """
    tensors, root = content.tensors, ""
    if "model_weights" in content.attributes:
        tensors = {n.removeprefix("model_weights/"): t for n, t in tensors.items() if n.startswith("model_weights/")}
        root = "model_weights"
    if any(name.startswith("layers/") for name in tensors):
        containers, what = _read_keras3(tensors, content.names, root, variables), "Keras weights"
    elif any(name.startswith("layer_names") for name in (*content.attributes[""], *content.attributes.get(root, ()))):
        containers, what = _read_legacy(tensors), "Keras weights, legacy format"
    else:
        found = sorted({name.partition("/")[0] for name in content.tensors})[:10]
        raise ValueError(f"it is an HDF5 file without Keras weights. It contains {found}")
    return _find_network(what, containers, variables, head_problem)


def _read_keras3(tensors, names, root, variables) -> list[_Container]:
    """Read the groups of Keras 3. They are named by class and number, and have the layer's name as an attribute."""
    by_class = {"conv2d": [], "depthwise_conv2d": [], "batch_normalization": [], "dense": []}
    for layer in (layer for layers in layers_of(variables).values() for layer in layers):
        kind = {"Dense": "dense", "BatchNorm": "batch_normalization"}.get(_layer_kind(layer), "conv2d")
        by_class["depthwise_conv2d" if is_depthwise(layer) else kind].append(layer)
    grouped: dict[str, dict[str, dict[str, StoredTensor]]] = {}
    for path, tensor in tensors.items():
        group, _, index = path.rpartition("/vars/")
        if not group.startswith("layers/") or not index.isdecimal() or len(index) > 4:
            continue  # the state of an optimizer
        parent, _, key = group.rpartition("/")
        grouped.setdefault(parent, {}).setdefault(key, {})[index] = tensor
    prefix = f"{root}/" if root else ""
    containers = []
    for parent, keys in grouped.items():
        is_numbered = any(key.startswith("depthwise_conv2d") for key in keys)  # only then the numbers mean anything
        container = _Container(re.sub(r"(^|/)layers(/|$)", r"\1", parent).strip("/"))
        for key, arrays in keys.items():
            # Keras before 3.4 writes no names. It numbers the layers of a class in the order of the network.
            layer = names.get(f"{prefix}{parent}/{key}/vars") or (
                _numbered_layer(key, by_class) if is_numbered else key
            )
            variable_names = _KERAS_VARIABLES[_layer_kind(layer, key)]
            values = container.layers.setdefault(layer, {})
            for index, tensor in arrays.items():
                name = variable_names[int(index)] if int(index) < len(variable_names) else index
                put_tensor(values, name, tensor)
        containers.append(container)
    return containers


def _numbered_layer(key, by_class):
    kind, _, digits = key.rpartition("_")
    if not digits.isdecimal() or len(digits) > 6:
        kind, digits = key, "0"
    number = int(digits)
    numbered = by_class.get(kind, [])
    return numbered[number] if number < len(numbered) else key


def _read_legacy(tensors) -> list[_Container]:
    """Read the groups of Keras 2: one per layer, with its arrays at any depth. A model is a layer with many layers."""
    groups: dict[str, list[tuple[list[str], StoredTensor]]] = {}
    for path, tensor in tensors.items():
        first, *inner = path.split("/")
        if inner:
            groups.setdefault(first, []).append((inner, tensor))
    outer, containers = _Container(""), []
    for group, items in groups.items():
        is_model = len({tuple(inner[:-1]) for inner, _ in items}) > 1
        container = _Container(group) if is_model else outer
        for inner, tensor in items:
            # A group of a model is named by the model; the last two parts of the path are layer and variable.
            layer = inner[-2] if is_model and len(inner) > 1 else group
            variable = inner[-1].partition(":")[0].removeprefix("depthwise_")
            put_tensor(container.layers.setdefault(layer, {}), variable, tensor)
        if is_model:
            containers.append(container)
    return [outer, *containers] if outer.layers else containers


def _layer_kind(layer, key=""):
    """Return the key of `_KERAS_VARIABLES` for a layer's name, and the name of its class where the file says it."""
    if layer.startswith("normalization") or re.fullmatch(r"normalization(_\d+)?", key):
        return "Normalization"
    if layer.endswith("bn") or key.startswith("batch_normalization"):
        return "BatchNorm"
    return "Dense" if layer == "predictions" or key.startswith("dense") else "Conv"


def _find_network(what, containers, variables, head_problem):
    """Choose the model that is an EfficientNet, and name the variables of all others by their layer."""
    networks = [container for container in containers if container.is_network]
    if len(networks) != 1:
        if networks:
            names = " and ".join(container.path or "the model itself" for container in networks)
            raise ValueError(f"it contains {len(networks)} EfficientNets, {names}. Save the one to use on its own")
        found = [f"{c.path or 'the model itself'} ({', '.join([*c.layers][:3])}, ...)" for c in containers if c.layers]
        raise ValueError(
            f"it contains {' and '.join(found[:3])} but no layer stem_conv, so it is no EfficientNet of this package "
            "or of keras.applications. Choose a file that contains one"
        )
    [network] = networks
    known = {path.rpartition("/")[0] for path in variables}
    channels = network.layers["stem_conv"]["kernel"].shape[2:3] if "kernel" in network.layers["stem_conv"] else ()
    tensors: dict[str, StoredTensor] = {}
    outside, statistics = [], None
    for container in containers:
        for layer, arrays in container.layers.items():
            is_own = container is network
            is_part = is_own and (layer in known or bool(_PART.match(layer)))
            if {"mean", "variance"} <= set(arrays) and is_own and statistics is None:
                statistics = _read_statistics(arrays)
                continue
            if not is_part and (
                "mean" in arrays or "moving_mean" in arrays and arrays["moving_mean"].shape == channels
            ):
                raise ValueError(
                    f"its layer {layer} changes the pixels before the network, which normalizes them itself"
                )
            if not is_own and any(len(tensor.shape) > 2 for tensor in arrays.values()):
                raise ValueError(f"its layer {layer} is neither a part of the network nor of a classifier")
            prefix = "" if is_own or not container.path else f"{container.path}/"
            is_outside = not is_part and all(len(tensor.shape) <= 2 for tensor in arrays.values())
            for name, tensor in arrays.items():
                put_tensor(tensors, f"{prefix}{layer}/{name}", tensor)
                outside += [f"{prefix}{layer}/{name}"] if is_outside else []
    notes = (f"the network is the part {network.path} of a larger model",) if network.path else ()
    return _adopt_head(LoadedWeights(what, tensors, {}, notes, tuple(outside), head_problem)), statistics


def _read_statistics(arrays):
    """Return (mean, variance) of a Normalization layer."""
    read = read_needed(arrays, {"mean": (None,), "variance": (None,)})
    mean, variance = read["mean"], read["variance"]
    if not isinstance(mean, np.ndarray) or not isinstance(variance, np.ndarray) or max(mean.size, variance.size) > 1000:
        raise ValueError("its normalization of the pixels has numbers that are not possible")
    return mean.tolist(), variance.tolist()


def _adopt_head(loaded: LoadedWeights) -> LoadedWeights:
    """Use the only layer after the network as its classifier, if that is what it is."""
    kernels = [name for name in loaded.outside if name.endswith("/kernel")]
    if len(kernels) != 1 or "predictions/kernel" in loaded.values or loaded.head_problem:
        return loaded
    layer = kernels[0].removesuffix("/kernel")
    if set(loaded.outside) != {f"{layer}/kernel", f"{layer}/bias"} or len(loaded.values[kernels[0]].shape) != 2:
        return loaded
    values = dict(loaded.values)
    for name in ("kernel", "bias"):
        values[f"predictions/{name}"] = values.pop(f"{layer}/{name}")
    return replace(loaded, values=values, outside=(), notes=(*loaded.notes, f"the classifier is the layer {layer}"))


_PART = re.compile(r"(stem|top)_(conv|bn)$|block\d+[a-z]+_|predictions$")


def _parse_settings(text) -> dict[str, Any]:
    """Return the needs that a model's own `save_weights` has recorded."""
    needs = json.loads(text)
    keys = {"model.mean", "model.std", "model.batch_norm_epsilon", "model.padding"}
    if not isinstance(needs, dict) or set(needs) != keys:
        raise ValueError(f"its attribute {SETTINGS_ATTRIBUTE} is damaged")
    mean, std = (read_numbers(needs[key]) for key in ("model.mean", "model.std"))
    [epsilon] = read_numbers(needs["model.batch_norm_epsilon"])
    is_possible = len(mean) == len(std) and min(std) > 0 and needs["model.padding"] in ("same", "symmetric")
    if not is_possible:
        raise ValueError(f"its attribute {SETTINGS_ATTRIBUTE} is damaged")
    return needs | {"model.mean": mean, "model.std": std, "model.batch_norm_epsilon": epsilon}


def _needs_of_text(text, path):
    """Return the needs that a complete config in YAML describes."""
    from efficientnet_tf.config.load import parse_config

    return needs_of(parse_config(text, path))

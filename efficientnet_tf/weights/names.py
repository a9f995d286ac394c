"""Names of a network's variables: in this package, in the official code, in timm, and in efficientnet_pytorch."""

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.scaling.layers import list_layers

if TYPE_CHECKING:
    import keras


def model_variables(model: "keras.Model") -> "dict[str, keras.Variable]":
    """Return {path: variable} of a model, without the random state of its layers."""
    return {v.path: v for v in model.variables if "seed_generator" not in v.path}


def variable_paths(spec: ModelSpec) -> list[str]:
    """Return the paths of a network's variables in the order of the built model, without building it."""
    return [f"{layer.name}/{variable}" for layer in list_layers(spec) for variable in layer.variables]


def layers_of(variables: Iterable[str]) -> dict[str, list[str]]:
    """Group the layers of variables by block: {"block1a": ["block1a_dwconv", ...], "stem_conv": ["stem_conv"], ...}."""
    blocks = {}
    for layer in dict.fromkeys(path.rpartition("/")[0] for path in variables):
        match = re.match(r"(block\d+[a-z]+)_", layer)
        blocks.setdefault(match[1] if match else layer, []).append(layer)
    return blocks


def is_depthwise(layer: str) -> bool:
    """Return whether a name is that of a depthwise convolution: `Block.depthwise_name`."""
    return layer.endswith(("_dwconv", "_dwconv2"))


def _rename(variables: Iterable[str], layer_names: dict[str, str], name_variable: Callable[[str, str], str]):
    """Return {their name: our path}.

    Args:
        variables: Our paths.
        layer_names: {our layer: their layer}. Variables of other layers are left out.
        name_variable: Function from our layer and our variable to the end of their name.
    """
    renamed = {}
    for path in variables:
        layer, _, variable = path.rpartition("/")
        if layer in layer_names:
            renamed[layer_names[layer] + name_variable(layer, variable)] = path
    return renamed


def official_names(variables: Iterable[str]) -> dict[str, str]:
    """Return {name in the official code: our path}. It numbers blocks from 0, and the layers of a block by kind.

    The code of EfficientNetV2 (google/automl, `efficientnetv2/effnetv2_model.py`) names its variables in the same way.
    """
    names = {
        "stem_conv": "stem/conv2d",
        "stem_bn": "stem/tpu_batch_normalization",
        "top_conv": "head/conv2d",
        "top_bn": "head/tpu_batch_normalization",
        "predictions": "head/dense",
    }
    blocks = [layers for name, layers in layers_of(variables).items() if name.startswith("block")]
    for i, layers in enumerate(blocks):
        counts = {}
        for layer in layers:
            if layer.endswith(("se_reduce", "se_expand")):
                kind = "se/conv2d"
            elif is_depthwise(layer):
                kind = "depthwise_conv2d"
            else:
                kind = "tpu_batch_normalization" if layer.endswith("bn") else "conv2d"
            count = counts[kind] = counts.get(kind, -1) + 1
            names[layer] = f"blocks_{i}/{kind}" + (f"_{count}" if count else "")
    return _rename(
        variables,
        names,
        lambda layer, v: "/depthwise_kernel" if is_depthwise(layer) and v == "kernel" else f"/{v}",
    )


_TORCH_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def timm_names(variables: Iterable[str]) -> dict[str, str]:
    """Return {name in timm: our path}. It names a block by its stage and its position in the stage, both from 0."""
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1", "top_conv": "conv_head", "top_bn": "bn2"}
    names["predictions"] = "classifier"
    positions = {}
    for block, layers in layers_of(variables).items():
        match = re.match(r"block(\d+)", block)
        if not match:
            continue
        stage = int(match[1]) - 1
        position = positions[stage] = positions.get(stage, -1) + 1
        for layer, theirs in _timm_layers([layer.removeprefix(f"{block}_") for layer in layers]).items():
            names[f"{block}_{layer}"] = f"blocks.{stage}.{position}.{theirs}"
    return _rename(variables, names, lambda _, v: f".{_TORCH_VARIABLES[v]}")


def _timm_layers(layers: list[str]) -> dict[str, str]:
    """Return {our name: name in timm} for the layers of a block. Its batch norms are numbered."""
    is_fused, expands = not {"dwconv", "dwconv2"} & set(layers), "expand_conv" in layers
    first, only = ("conv_exp", "conv") if is_fused else ("conv_pw", "conv_pw")
    known = {"expand_conv": first, "project_conv": "conv_pwl" if expands else only}
    known |= {"dwconv": "conv_dw", "dwconv2": "conv_dw", "se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand"}
    norms = [layer for layer in layers if layer.endswith("bn")]
    return {layer: known.get(layer) or f"bn{norms.index(layer) + 1}" for layer in layers}


_PYTORCH_LAYERS = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "dwconv2": "_depthwise_conv",
    "bn": "_bn1",
    "se_reduce": "_se_reduce",
    "se_expand": "_se_expand",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}


def pytorch_names(variables: Iterable[str]) -> dict[str, str]:
    """Return {name in efficientnet_pytorch: our path}. It numbers blocks from 0, and has no fused ones."""
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}
    names["predictions"] = "_fc"
    blocks = [item for item in layers_of(variables).items() if item[0].startswith("block")]
    for i, (block, layers) in enumerate(blocks):
        for layer in layers:
            kind = layer.removeprefix(f"{block}_")
            if kind in _PYTORCH_LAYERS:
                names[layer] = f"_blocks.{i}.{_PYTORCH_LAYERS[kind]}"
    return _rename(variables, names, lambda _, v: f".{_TORCH_VARIABLES[v]}")

"""How the variables of a network are called: by this package, by the official TensorFlow 1 code, by timm."""

import re

from efficientnet_tf.scaling.layers import list_layers


def model_variables(model):
    """Return {path: variable} of a Keras model, without its layers' random state."""
    return {v.path: v for v in model.variables if "seed_generator" not in v.path}


def variable_paths(spec):
    """Return the paths of a network's variables, from the input to the output: those of the built model.

    Args:
        spec: schema.ModelSpec.
    """
    return [f"{layer.name}/{variable}" for layer in list_layers(spec) for variable in layer.variables]


def layers_of(variables):
    """Return the layers that own the variables by block: {"block1a": ["block1a_dwconv", ...]}; others by name."""
    blocks = {}
    for layer in dict.fromkeys(path.rpartition("/")[0] for path in variables):
        match = re.match(r"(block\d+[a-z]+)_", layer)
        blocks.setdefault(match[1] if match else layer, []).append(layer)
    return blocks


def _rename(variables, layer_names, variable_names):
    """Return {their name: our path} from {our layer: their layer} and {our variable: their variable}."""
    renamed = {}
    for path in variables:
        layer, _, variable = path.rpartition("/")
        if layer in layer_names:
            renamed[layer_names[layer] + variable_names(layer, variable)] = path
    return renamed


def official_names(variables):
    """Name our variables as the official code does: layers of a block are counted by kind, blocks from 0."""
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
            elif layer.endswith("dwconv"):
                kind = "depthwise_conv2d"
            else:
                kind = "tpu_batch_normalization" if layer.endswith("bn") else "conv2d"
            count = counts[kind] = counts.get(kind, -1) + 1
            names[layer] = f"blocks_{i}/{kind}" + (f"_{count}" if count else "")
    return _rename(
        variables,
        names,
        lambda layer, v: "/depthwise_kernel" if layer.endswith("dwconv") and v == "kernel" else f"/{v}",
    )


_TIMM_VARIABLES = {
    **{"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"},
    **{"moving_mean": "running_mean", "moving_variance": "running_var"},
}


def timm_names(variables):
    """Name our variables as timm does: blocks by stage and place, both from 0."""
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1", "top_conv": "conv_head", "top_bn": "bn2"}
    names["predictions"] = "classifier"
    places = {}
    for block, layers in layers_of(variables).items():
        if not block.startswith("block"):
            continue
        stage = int(re.match(r"block(\d+)", block)[1]) - 1
        place = places[stage] = places.get(stage, -1) + 1
        expands = any(layer.endswith("expand_conv") for layer in layers)
        theirs = {
            **{"expand_conv": "conv_pw", "expand_bn": "bn1", "dwconv": "conv_dw"},
            **{"bn": "bn2" if expands else "bn1", "se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand"},
            **{"project_conv": "conv_pwl" if expands else "conv_pw", "project_bn": "bn3" if expands else "bn2"},
        }
        for layer in layers:
            names[layer] = f"blocks.{stage}.{place}.{theirs[layer.removeprefix(block + '_')]}"
    return _rename(variables, names, lambda _, v: f".{_TIMM_VARIABLES[v]}")

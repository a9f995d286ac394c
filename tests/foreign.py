"""Weights as other libraries save them: names from their code, values from a keras.applications model."""

import re

import keras
import numpy as np
import tensorflow as tf


def make_keras_model(variant, classes=7, size=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), **options):
    """Return a keras.applications model with random weights and statistics, and with this normalization."""
    keras.utils.set_random_seed(3)
    build = getattr(keras.applications, f"EfficientNet{variant.upper()}")
    options = {"classifier_activation": None, "classes": classes, "input_shape": (size, size, 3)} | options
    model = build(weights=None, **options)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if re.search("gamma|variance", variable.path):
            variable.assign(rng.uniform(0.7, 1.3, variable.shape))
        elif re.search("beta|bias|moving_mean", variable.path):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    set_normalization(model, mean, std)
    return model


def set_normalization(model, mean, std):
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    layer.adapt_mean.assign(mean)
    layer.adapt_variance.assign(np.square(std))
    layer.finalize_state()


def logits(model, pixels):
    return np.asarray(model(pixels, training=False))


def blocks_of(model):
    """Return [(stage, position in the stage, layer prefix)] of a keras.applications model, in order."""
    prefixes = dict.fromkeys(m[1] for layer in model.layers if (m := re.match(r"(block\d[a-z])_", layer.name)))
    return [(int(prefix[5]) - 1, ord(prefix[6]) - ord("a"), prefix) for prefix in prefixes]


def parts_of(model, block):
    """Return the names of a block's layers with weights, without the block: {"expand_conv", "expand_bn", ...}."""
    names = (layer.name for layer in model.layers if layer.weights)
    return {name.removeprefix(f"{block}_") for name in names if name.startswith(f"{block}_")}


def official_weights(model, prefix="efficientnet-b0"):
    """Return {name in a checkpoint of the official code, or of google/automl's code of EfficientNetV2: array}."""
    found = {}

    def conv(layer, name, kernel="kernel"):
        values = model.get_layer(layer).get_weights()
        found[f"{prefix}/{name}/{kernel}"] = values[0]
        if len(values) > 1:
            found[f"{prefix}/{name}/bias"] = values[1]

    def norm(layer, name):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        values = model.get_layer(layer).get_weights()
        found.update({f"{prefix}/{name}/{n}": v for n, v in zip(names, values, strict=True)})

    conv("stem_conv", "stem/conv2d")
    norm("stem_bn", "stem/tpu_batch_normalization")
    for i, (_, _, block) in enumerate(blocks_of(model)):
        scope, parts = f"blocks_{i}", parts_of(model, block)
        convs = iter(("conv2d", "conv2d_1"))
        norms = iter(("tpu_batch_normalization", "tpu_batch_normalization_1", "tpu_batch_normalization_2"))
        if "expand_conv" in parts:
            conv(f"{block}_expand_conv", f"{scope}/{next(convs)}")
            norm(f"{block}_expand_bn", f"{scope}/{next(norms)}")
        for depthwise in parts & {"dwconv", "dwconv2"}:
            conv(f"{block}_{depthwise}", f"{scope}/depthwise_conv2d", "depthwise_kernel")
            norm(f"{block}_bn", f"{scope}/{next(norms)}")
        if "se_reduce" in parts:
            conv(f"{block}_se_reduce", f"{scope}/se/conv2d")
            conv(f"{block}_se_expand", f"{scope}/se/conv2d_1")
        conv(f"{block}_project_conv", f"{scope}/{next(convs)}")
        norm(f"{block}_project_bn", f"{scope}/{next(norms)}")
    conv("top_conv", "head/conv2d")
    norm("top_bn", "head/tpu_batch_normalization")
    conv("predictions", "head/dense")
    return found


def save_official(weights, path, ema=None):
    """Save a checkpoint as TensorFlow 1 does, with the EMA, the optimizer slot variables and the step of training."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in weights.items():
            tf.compat.v1.get_variable(name, initializer=value)
            if ema:
                tf.compat.v1.get_variable(f"{name}/ExponentialMovingAverage", initializer=ema[name])
            if ema and not name.endswith(("moving_mean", "moving_variance")):
                tf.compat.v1.get_variable(f"{name}/RMSProp", initializer=np.ones_like(value))
                tf.compat.v1.get_variable(f"{name}/RMSProp_1", initializer=np.zeros_like(value))
        tf.compat.v1.get_variable("global_step", initializer=np.int64(218949))
        session.run(tf.compat.v1.global_variables_initializer())
        return tf.compat.v1.train.Saver().save(session, str(path))


def timm_weights(model):
    """Return {name in timm: array in torch's layout}."""
    names = {"stem_conv": "conv_stem", "stem_bn": "bn1", "top_conv": "conv_head", "top_bn": "bn2"}
    names["predictions"] = "classifier"
    for stage, position, block in blocks_of(model):
        scope, parts = f"blocks.{stage}.{position}", parts_of(model, block)
        if "expand_conv" not in parts:
            theirs = {"dwconv": "conv_dw", "bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}
            if "bn" not in parts:
                theirs = {"project_conv": "conv", "project_bn": "bn1"}
        elif "bn" not in parts:
            theirs = {"expand_conv": "conv_exp", "expand_bn": "bn1", "project_conv": "conv_pwl", "project_bn": "bn2"}
        else:
            theirs = {"expand_conv": "conv_pw", "expand_bn": "bn1", "dwconv": "conv_dw", "dwconv2": "conv_dw"}
            theirs |= {"bn": "bn2", "project_conv": "conv_pwl", "project_bn": "bn3"}
        theirs |= {"se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand"}
        names |= {f"{block}_{part}": f"{scope}.{theirs[part]}" for part in parts}
    return _torch_weights(model, names)


def pytorch_weights(model):
    """Return {name in efficientnet_pytorch: array in torch's layout}."""
    names = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "top_conv": "_conv_head", "top_bn": "_bn1"}
    names["predictions"] = "_fc"
    norms = {"expand_bn": "_bn0", "bn": "_bn1", "project_bn": "_bn2", "dwconv": "_depthwise_conv"}
    for i, (_, _, block) in enumerate(blocks_of(model)):
        parts = parts_of(model, block)
        names |= {f"{block}_{part}": f"_blocks.{i}.{norms.get(part, f'_{part}')}" for part in parts}
    return _torch_weights(model, names)


def _torch_weights(model, names):
    """Return {name: array in torch's layout}, given {layer: its name in a library for torch}."""
    found = {}
    for layer, name in names.items():
        values = model.get_layer(layer).get_weights()
        if layer.endswith("bn"):
            parts = ("weight", "bias", "running_mean", "running_var")
            found.update({f"{name}.{part}": value for part, value in zip(parts, values, strict=True)})
            found[f"{name}.num_batches_tracked"] = np.int64(100)
            continue
        axes = (1, 0) if values[0].ndim == 2 else (2, 3, 0, 1) if "dwconv" in layer else (3, 2, 0, 1)
        found[f"{name}.weight"] = np.transpose(values[0], axes)
        found.update({f"{name}.bias": bias for bias in values[1:]})
    return {name: np.ascontiguousarray(value) for name, value in found.items()}

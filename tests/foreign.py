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


def official_weights(model, prefix="efficientnet-b0"):
    """Return {name in a checkpoint of the official code: array}."""
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
    for i, (stage, _, block) in enumerate(blocks_of(model)):
        scope = f"blocks_{i}"
        conv(f"{block}_dwconv", f"{scope}/depthwise_conv2d", "depthwise_kernel")
        conv(f"{block}_se_reduce", f"{scope}/se/conv2d")
        conv(f"{block}_se_expand", f"{scope}/se/conv2d_1")
        if stage == 0:  # blocks without expansion
            norm(f"{block}_bn", f"{scope}/tpu_batch_normalization")
            conv(f"{block}_project_conv", f"{scope}/conv2d")
            norm(f"{block}_project_bn", f"{scope}/tpu_batch_normalization_1")
        else:
            conv(f"{block}_expand_conv", f"{scope}/conv2d")
            norm(f"{block}_expand_bn", f"{scope}/tpu_batch_normalization")
            norm(f"{block}_bn", f"{scope}/tpu_batch_normalization_1")
            conv(f"{block}_project_conv", f"{scope}/conv2d_1")
            norm(f"{block}_project_bn", f"{scope}/tpu_batch_normalization_2")
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
    found = {}

    def conv(layer, name, depthwise=False):
        values = model.get_layer(layer).get_weights()
        found[f"{name}.weight"] = np.transpose(values[0], (2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
        if len(values) > 1:
            found[f"{name}.bias"] = values[1]

    def norm(layer, name):
        names = ("weight", "bias", "running_mean", "running_var")
        values = model.get_layer(layer).get_weights()
        found.update({f"{name}.{n}": v for n, v in zip(names, values, strict=True)})
        found[f"{name}.num_batches_tracked"] = np.int64(100)

    conv("stem_conv", "conv_stem")
    norm("stem_bn", "bn1")
    for stage, position, block in blocks_of(model):
        scope = f"blocks.{stage}.{position}"
        last = ("conv_pw", "bn2") if stage == 0 else ("conv_pwl", "bn3")
        if stage:
            conv(f"{block}_expand_conv", f"{scope}.conv_pw")
            norm(f"{block}_expand_bn", f"{scope}.bn1")
        conv(f"{block}_dwconv", f"{scope}.conv_dw", depthwise=True)
        norm(f"{block}_bn", f"{scope}.bn2" if stage else f"{scope}.bn1")
        conv(f"{block}_se_reduce", f"{scope}.se.conv_reduce")
        conv(f"{block}_se_expand", f"{scope}.se.conv_expand")
        conv(f"{block}_project_conv", f"{scope}.{last[0]}")
        norm(f"{block}_project_bn", f"{scope}.{last[1]}")
    conv("top_conv", "conv_head")
    norm("top_bn", "bn2")
    kernel, bias = model.get_layer("predictions").get_weights()
    found |= {"classifier.weight": kernel.T, "classifier.bias": bias}
    return {name: np.ascontiguousarray(value) for name, value in found.items()}

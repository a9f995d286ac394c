"""Training that starts from another network's weights: `train.init_from`, and what `train.freeze` holds still."""

import json
import os
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.model_dir import build_from_config, read_class_names, read_config
from efficientnet_tf.runtime.strategy import on_host
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.load import HEAD, assign_weights
from efficientnet_tf.weights.loaded import needs_of
from efficientnet_tf.weights.names import model_variables, variable_paths


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run starts from.

    Attributes:
        values: {path of a variable: array}; without the classifier's where a new one is to be learnt.
        message: str, where they come from and what became of the classifier, for the user.
    """

    values: dict
    message: str


def needs_as_overrides(config, model_dir):
    """Return what the weights of `train.init_from` need of the model, as `section.key=value` strings.

    How pixels are normalised, batch norm's epsilon and the padding belong to the weights; size and crop are the new
    task's own. A run that goes on asks its own config, for the weights may be gone.

    Raises:
        UserError: when the weights cannot be read.
    """
    if tf.io.gfile.exists(os.path.join(model_dir, "config.yaml")):
        needs = needs_of(read_config(model_dir))
    else:
        needs = read_weights(config.train.init_from, variable_paths(config.model)).needs
    return [f"{key}={json.dumps(value)}" for key, value in needs.items() if key.startswith("model.")]


def read_initial_weights(config, class_names):
    """Read the weights that `train.init_from` names.

    The classifier is kept where a model directory or an export states the same classes in the same order; else the
    run begins with a new one.

    Args:
        config: config.Config.
        class_names: sequence of str, of the data set.

    Returns:
        Initial.

    Raises:
        UserError: when the weights cannot be read, do not fit the network, or need another model section.
    """
    path = config.train.init_from
    theirs = _class_names(path)
    keep = theirs == list(class_names)
    with on_host():
        stored = read_weights(path, variable_paths(config.model))
        model = build_from_config(config, len(class_names))
        assign_weights(model, stored, path, reset_head=not keep)
    for key in ("mean", "std"):
        needed, has = stored.needs.get(f"model.{key}"), getattr(config.model, key)
        if needed is not None and not np.allclose(needed, has):
            raise UserError(f"{path}: these weights need model.{key}={list(needed)}, but the config has {list(has)}")
    values = {name: np.asarray(v) for name, v in model_variables(model).items() if keep or name not in HEAD}
    if keep:
        head = "its classifier is kept, for the classes are the same"
    else:
        head = f"the classifier is new, for {'its classes are others' if theirs else 'it names no classes'}"
    return InitialWeights(values, "; ".join([f"starting from {path} ({stored.format})", *stored.notes, head]))


def _class_names(path):
    """Return the class names beside a model directory's or an export's weights, or None."""
    for folder in (path, os.path.join(path, "assets")):
        if tf.io.gfile.exists(os.path.join(folder, "classes.txt")):
            return read_class_names(folder)
    return None


def freeze_layers(model, what):
    """Set which layers of a model train.

    Args:
        model: keras.Model of this package.
        what: "none", "batch_norm" or "body", as `train.freeze`. A frozen batch norm uses its stored statistics.
    """
    for layer in model.layers:
        still = what == "batch_norm" and isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name == "predictions" if what == "body" else not still

"""The methods `set_weights`, `load_weights` and `save_weights` of a Keras model, with the normalization of pixels."""

import json
import os
from collections.abc import Sequence
from typing import Any

import h5py
import keras

from efficientnet_tf.models.normalization import LAYER as NORMALIZATION
from efficientnet_tf.models.normalization import get_normalization, set_normalization
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.keras_files import convert_normalization
from efficientnet_tf.weights.load import built_settings, check_settings, load_weights
from efficientnet_tf.weights.loaded import SETTINGS_ATTRIBUTE


def accept_keras_weights(model: keras.Model) -> None:
    """Let the model's own methods carry the normalization of pixels, and also take weights of keras.applications.

    Such a model has a Normalization layer with three variables (mean, variance, count). Here the normalization is a
    part of the layer's config, so that clones and saved models cannot lose it. A file of `save_weights` records it in
    an attribute. Copies of a model do not have these methods. In them, Keras's own ones refuse the three variables.
    """
    set_own_weights, load_own_weights, save_own_weights = model.set_weights, model.load_weights, model.save_weights

    def set_weights(weights: Sequence[Any]) -> None:
        if len(weights) != len(model.weights) + 3:
            set_own_weights(weights)
            return
        names = [layer.name for layer in model.layers]
        start = sum(len(layer.weights) for layer in model.layers[: names.index(NORMALIZATION)])
        mean, variance, _ = weights[start : start + 3]
        needs, _ = convert_normalization(mean, variance)
        set_own_weights([*weights[:start], *weights[start + 3 :]])
        set_normalization(model, needs["model.mean"], needs["model.std"])

    def load_keras_weights(filepath: Any, skip_mismatch: bool = False, **options: Any) -> None:
        path = os.fspath(filepath)
        is_exact = not skip_mismatch and not any(options.values())
        variables = [v.path for v in model.weights]
        needs = load_weights(model, path).needs if is_exact else read_weights(path, variables).needs
        if is_exact and not (path.endswith(".weights.h5") and getattr(model, "optimizer", None)):
            return  # Keras would load the state of the optimizer, too.
        check_settings(path, model, needs)
        if path.endswith(".weights.h5"):
            options["objects_to_skip"] = [*(options.get("objects_to_skip") or ()), model.get_layer(NORMALIZATION)]
        load_own_weights(path, skip_mismatch=skip_mismatch, **options)
        if "model.mean" in needs:
            set_normalization(model, needs["model.mean"], needs["model.std"])

    def save_weights(filepath: Any, *arguments: Any, **options: Any) -> None:
        path = os.fspath(filepath)
        save_own_weights(path, *arguments, **options)
        if path.endswith(".weights.h5") and os.path.isfile(path):
            mean, std = get_normalization(model)
            settings = {"model.mean": mean, "model.std": std, **built_settings(model)}
            with h5py.File(path, "a") as file:
                file.attrs[SETTINGS_ATTRIBUTE] = json.dumps(settings)

    model.set_weights, model.save_weights = set_weights, save_weights
    is_whole = model.layers[0].name in ("image", "input_layer")
    if is_whole:  # A model that was built on an `input_tensor` has more layers, and Keras knows its files.
        model.load_weights = load_keras_weights

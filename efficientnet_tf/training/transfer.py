"""Training that starts from existing weights: `train.init_from`, and what `train.freeze` keeps fixed."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import normalize_name
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.model_dir import read_class_names, read_config
from efficientnet_tf.models.run_directory import STATISTICS
from efficientnet_tf.runtime.files import check_path, exists
from efficientnet_tf.runtime.hub import fetch
from efficientnet_tf.runtime.strategy import on_host
from efficientnet_tf.weights.formats import read_weights
from efficientnet_tf.weights.load import HEAD, load_weights
from efficientnet_tf.weights.loaded import needs_of
from efficientnet_tf.weights.names import model_variables, variable_paths


@dataclass(frozen=True)
class InitialWeights:
    """The weights that a run starts from.

    Attributes:
        values: {path of a variable: array}. Those of a new classifier are zeros.
        message: Where they come from and what happened to the classifier, for the user.
    """

    values: dict[str, np.ndarray]
    message: str


def adopt_needs(config: Config, model_dir: str | None, overrides: Sequence[str] = ()) -> Config:
    """Return the config with what the weights of `train.init_from` require of the model.

    Normalization of the pixels, epsilon of batch norm, padding and the stem's stride belong to the weights. Image size
    and crop belong to the new task.

    Args:
        config: The config of the run, with `train.init_from`.
        model_dir: The run's directory. If the run has begun, its own config says what the weights need, because the
            weights may be gone. None if there is no such directory.
        overrides: The user's `section.key=value` strings, which take precedence.

    Raises:
        UserError: If the weights cannot be read.
    """
    if model_dir is not None and exists(os.path.join(model_dir, "config.yaml")):
        needs = needs_of(read_config(model_dir))
    else:
        needs = read_weights(config.train.init_from, variable_paths(config.model)).needs
    model_needs = [f"{key}={json.dumps(value)}" for key, value in needs.items() if key.startswith("model.")]
    return override_config(config, [*model_needs, *overrides])


def read_initial_weights(config: Config, class_names: Sequence[str]) -> InitialWeights:
    """Read the weights that `train.init_from` names.

    The classifier is kept if a model directory or an export states the same classes in the same order. Otherwise the
    run starts with a new one.

    Args:
        config: The config of the run.
        class_names: The class names of the data.

    Raises:
        UserError: If the weights cannot be read, do not fit the network, or need another normalization.
    """
    path = fetch(str(config.train.init_from))
    check_path("train.init_from", path)
    theirs = _read_class_names(path)
    keep = theirs is not None and [*map(normalize_name, theirs)] == [*map(normalize_name, class_names)]
    keep = keep and _has_same_task(path, config)
    with on_host():
        read_weights(path, variable_paths(config.model))  # reads no tensor, and refuses what is no weight file
        model = build_from_config(config, len(class_names))
        loaded = load_weights(model, path, reset_head=not keep, adapt_channels=True)
    for key in ("mean", "std"):
        needed, given = loaded.needs.get(f"model.{key}"), getattr(config.model, key)
        if needed is not None and not np.allclose(needed, given):
            raise UserError(
                f"{path}: these weights need model.{key}={list(needed)}, but the config has {list(given)}. Leave "
                f"model.{key} out to use what they need."
            )
    values = {name: np.asarray(v) for name, v in model_variables(model).items()}
    if not keep:
        # The initializer's range is for many classes. With 10 classes and the features of pretrained weights its logits
        # have a standard deviation of 8, which a short run spends most of its steps to unlearn.
        values |= {name: np.zeros_like(values[name]) for name in HEAD}
    if keep:
        head = "The classifier is kept because the classes are the same."
    elif theirs:
        head = "The classifier is new because the classes or the task are different."
    else:
        head = "The classifier is new because the weights name no classes."
    notes = [f"{note[0].upper()}{note[1:]}." for note in loaded.notes]
    return InitialWeights(
        values, " ".join([f"Starting from {config.train.init_from} ({loaded.format}).", *notes, head])
    )


def _find_folder(path: str) -> str | None:
    """Return the folder of a model directory or an export that has its config and class names, or None."""
    folders = path, os.path.join(path, "assets")
    return next((folder for folder in folders if exists(os.path.join(folder, "classes.txt"))), None)


def _read_class_names(path: str) -> list[str] | None:
    folder = _find_folder(path)
    return None if folder is None else read_class_names(folder)


def _has_same_task(path: str, config: Config) -> bool:
    """Return whether the outputs of the weights at a path mean the same as those of a config."""
    folder = _find_folder(path)
    if folder is None or not exists(os.path.join(folder, "config.yaml")):
        return True
    data = read_config(folder).data
    return all(getattr(data, key) == getattr(config.data, key) for key in ("task", *STATISTICS))

"""The content of a weight file in this package's names and layouts, and the summary of loading it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.run_directory import CONFIG_ENTRY as CONFIG_ENTRY
from efficientnet_tf.models.run_directory import PREDICTION_KEYS

NORMALIZATIONS = {
    "imagenet": {"model.mean": (123.675, 116.28, 103.53), "model.std": (58.395, 57.12, 57.375)},
    "advprop": {"model.mean": (127.5, 127.5, 127.5), "model.std": (127.5, 127.5, 127.5)},
}
CONFIG_ATTRIBUTE = "efficientnet_tf_config"  # attribute of this package's .weights.h5 files: the config as YAML
SETTINGS_ATTRIBUTE = "efficientnet_tf_settings"  # attribute of files of a model's own `save_weights`: needs as JSON


@dataclass(frozen=True)
class LoadedWeights:
    """The content of a weight file.

    Attributes:
        format: The recognized format, for messages.
        values: {path of a variable of this package: array}, float32, for the variables that were asked for and have the
            right shape. The others are `StoredTensor`: their shape is known, but they were not read. What has no
            counterpart keeps the name that it has in the file.
        needs: {"section.key": value} of the config with which these weights give the right predictions. For other
            keys, the variant's own value is right.
        notes: Decisions made while reading, for the user.
        outside: Names in `values` that belong to layers after the network, which take the place of its classifier.
        head_problem: Why the layers after the network are no classifier of this package, for the error message.
    """

    format: str
    values: Mapping[str, Any]  # np.ndarray or StoredTensor
    needs: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    head_problem: str = ""


@dataclass(frozen=True)
class LoadSummary:
    """What `load_weights` has loaded.

    Attributes:
        format: The recognized format of the file.
        variables: Number of variables that were loaded.
        reset: Paths of the model's variables that keep their own values: those of the classifier, with `reset_head`.
        unused: Paths of the file's variables that were not loaded, for the same reason.
        notes: Decisions made while reading the file.
        needs: {"section.key": value} of the config that the weights were trained with, for example `data.image_size`.
    """

    format: str
    variables: int
    reset: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    needs: dict[str, Any] = field(default_factory=dict, repr=False)


def needs_of(config: Config) -> dict[str, Any]:
    """Return {"section.key": value} of the config keys that determine predictions, apart from the weights."""
    keys = ("mean", "std", "batch_norm_epsilon", "padding", "stem_stride")
    model = {f"model.{key}": getattr(config.model, key) for key in keys}
    data = config.resolve().data
    return model | {key: getattr(data, key.removeprefix("data.")) for key in PREDICTION_KEYS}

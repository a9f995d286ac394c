"""What a weight file holds, in this package's names and layouts, and what its numbers need to answer rightly."""

from dataclasses import dataclass, field

NORMALIZATIONS = {
    "imagenet": {"model.mean": (123.675, 116.28, 103.53), "model.std": (58.395, 57.12, 57.375)},
    "advprop": {"model.mean": (127.5, 127.5, 127.5), "model.std": (127.5, 127.5, 127.5)},
}
CONFIG_ATTRIBUTE = "efficientnet_tf_config"  # of this package's .weights.h5: the config as YAML
CONFIG_ENTRY = "efficientnet_tf.yaml"  # the same in the archive of a converted .keras


@dataclass(frozen=True)
class LoadedWeights:
    """What a weight file holds.

    Attributes:
        format: what it was recognised as, for messages.
        values: {path of this package's variable: array}; what has no place here keeps the name it has in the file.
        needs: {"section.key": value} of the config with which these numbers give the right answers; what is not in it
            is the variant's own.
        notes: what was decided on the way, sentences for the user.
    """

    format: str
    values: dict
    needs: dict = field(default_factory=dict)
    notes: tuple = ()


def needs_of(config):
    """Return what decides a model's answers beside its weights: {"section.key": value}."""
    model = {f"model.{key}": getattr(config.model, key) for key in ("mean", "std", "batch_norm_epsilon", "padding")}
    data = {f"data.{key}": getattr(config.data, key) for key in ("channels", "crop_padding", "interpolation")}
    return model | data | {"data.image_size": config.image_size}


def put_array(values, name, array):
    """Add an array under its name; two that mean the same variable are an error, not the last one's."""
    if name in values:
        raise ValueError(f"it has {name} twice")
    values[name] = array

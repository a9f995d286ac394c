"""Changes of the config of a trained model: where the images are and how they are batched, but not what it computes."""

from collections.abc import Collection, Sequence

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import diff_config, override_config
from efficientnet_tf.config.schema import Config

SECTIONS = ("data", "eval")
_FIXED = ("data.task", "data.channels", "data.image_size", "data.target_mean", "data.target_std")


def override_data(config: Config, overrides: Sequence[str], fixed: Collection[str] = ()) -> Config:
    """Return the config of a trained model with other data.

    Args:
        config: The config of the model.
        overrides: Texts of the form `section.key=value`.
        fixed: Keys of the section data that cannot change here, in addition to those of the network's input
            and output.

    Raises:
        UserError: As `override_config`, or if a key would change what the trained model is.
    """
    changed = override_config(config, overrides)
    lines = {line.partition(":")[0]: line for line in diff_config(config, changed)}
    refused = [line for key, line in lines.items() if key.partition(".")[0] not in SECTIONS or key in (*_FIXED, *fixed)]
    if refused:
        raise UserError(
            "overrides: these keys belong to the trained model and cannot change here (in the model -> now):\n  "
            + "\n  ".join(refused)
            + "\nOnly keys of the sections data and eval can, which say where the images are and how they are read."
        )
    return changed

"""What a checkpoint holds besides the weights: the config and the class names of its run."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_config, parse_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape, normalize_name
from efficientnet_tf.models.run_directory import (
    check_checkpoint,
    decides_predictions,
    find_unexplained,
    list_checkpoints,
    read_class_names,
    read_config,
    read_history,
)
from efficientnet_tf.models.selection import Selection, parse_selection

_LOGGER = logging.getLogger(__name__)
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class Stored:
    """What a checkpoint says about its run. None for what an old checkpoint does not hold.

    Attributes:
        prefix: Path of the checkpoint without its endings.
        config: The config.
        class_names: The class names, in the order of the labels.
        classes: Number of outputs of the stored model.
        step: Number of steps that the stored optimizer has done.
        selection: Which evaluation was the best so far.
    """

    prefix: str
    config: Config | None
    class_names: list[str] | None
    classes: int | None
    step: int | None
    selection: Selection | None = None


def text_variables(
    config: Config, class_names: Sequence[str], selection: Selection | None = None
) -> dict[str, tf.Variable]:
    """Return the variables that put a config and class names into a checkpoint, and which evaluation was the best.

    No names are not stored, and no selection that is not used.
    """
    texts = {"config": dump_config(config)}
    if class_names:
        texts["classes"] = json.dumps(list(class_names))
    if selection and selection.is_used:
        texts["selection"] = selection.to_text()
    return {name: tf.Variable(tf.constant(text), trainable=False) for name, text in texts.items()}


def read_stored(prefix: str) -> Stored:
    """Read what a checkpoint says about its run. A damaged checkpoint raises what TensorFlow raises.

    Args:
        prefix: Path of the checkpoint without its endings.
    """
    reader = tf.train.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()

    def read(name):
        return reader.get_tensor(name + _VALUE) if name + _VALUE in shapes else None

    config, class_names, selection = read("config"), read("classes"), read("selection")
    step = read("optimizer/iteration")
    bias = shapes.get(f"model/predictions.Sbias{_VALUE}")
    return Stored(
        prefix,
        None if config is None else parse_config(config.decode(), f"{prefix}: config"),
        None if class_names is None else json.loads(class_names),
        bias[0] if bias else None,
        None if step is None else int(step),
        None if selection is None else parse_selection(selection),
    )


def read_newest_stored(model_dir: str) -> Stored | None:
    """Return `read_stored` of the newest checkpoint that can be read, or None if there is none."""
    for prefix in list_checkpoints(model_dir).values():
        try:
            return read_stored(prefix)
        except UserError:
            raise
        except Exception as error:  # Restoring it warns.
            _LOGGER.debug("%s: %s", prefix, error)
    return None


def find_step(model_dir: str, checkpoint: str | int | None = None) -> int | None:
    """Return the step of the checkpoint that an argument names, or None for the newest one that is intact.

    Args:
        model_dir: Path of the model directory, local or gs://.
        checkpoint: "best", "newest", or the number of a step. None means the best one if the run chooses one
            (`eval.best`) and has evaluated, and else the newest one.

    Raises:
        UserError: If there is no such checkpoint.
    """
    check_checkpoint(model_dir, checkpoint)
    if checkpoint == "newest":
        return None
    if checkpoint is not None and checkpoint != "best":
        return int(checkpoint)
    stored = read_newest_stored(model_dir)
    step = stored.selection.best_step if stored and stored.selection else None
    if checkpoint == "best" and step is None:
        raise UserError(
            f"checkpoint=best: no evaluation of {escape(model_dir)} is recorded as the best. A run chooses its best "
            "checkpoint if eval.best names a metric. Use checkpoint=newest or the number of a step."
        )
    return step


def read_run(model_dir: str, stored: Stored | None = None) -> tuple[Config, list[str]]:
    """Return the config and the class names of a model directory, checked against its newest checkpoint.

    Args:
        model_dir: Path of the model directory, local or gs://.
        stored: What a checkpoint holds. Defaults to the newest one that can be read.

    Raises:
        UserError: If it is not a model directory, or if config.yaml or classes.txt were edited since the checkpoint was
            written, so that predictions would differ.
    """
    config, class_names = read_config(model_dir), read_class_names(model_dir)
    stored = stored or read_newest_stored(model_dir)
    if stored:
        check_config(model_dir, stored, config)
        check_class_names(model_dir, stored, class_names)
    return config, class_names


def check_config(model_dir: str, stored: Stored, config: Config) -> None:
    """Raise UserError if a config has other values than a checkpoint where they decide the predictions."""
    if stored.config is None:
        return
    changes = find_unexplained(stored.config, config, read_history(model_dir))
    lines = [line for key, line in changes.items() if decides_predictions(key)]
    if bool(stored.config.train.ema_decay) != bool(config.train.ema_decay):
        lines.append(changes["train.ema_decay"])
    if lines:
        raise UserError(
            f"model_dir={escape(model_dir)}: config.yaml was changed after the training, so predictions would be "
            "wrong. Undo these changes (in the checkpoint -> in config.yaml):\n  " + "\n  ".join(lines)
        )


def check_class_names(model_dir: str, stored: Stored, class_names: Sequence[str], source: str = "classes.txt") -> None:
    """Raise UserError if class names differ from those of a checkpoint, or from the number of its outputs."""
    count = stored.classes or len(stored.class_names or class_names)
    if count != len(class_names):
        raise UserError(
            f"model_dir={escape(model_dir)}: {source} has {len(class_names)} class names, but the stored model has "
            f"{count} outputs."
        )
    for number, (theirs, ours) in enumerate(zip(stored.class_names or (), class_names), 1):  # noqa: B905 - or none
        if normalize_name(theirs) != normalize_name(ours):
            raise UserError(
                f"model_dir={escape(model_dir)}: {source} was changed after the training, so answers would get wrong "
                f"names. Class {number} is '{escape(theirs)}' in the checkpoint, but '{escape(ours)}' in {source}."
            )

"""Reads and writes model directories. A run writes one, and every other command reads it.

- `config.yaml`: The complete config, with the versions of the libraries and the git commit.
- `classes.txt`: The class names, one per line, in the order of the labels.
- `checkpoints/`: `step-N.index` and `step-N.data-*` hold weights, EMA, optimizer slot variables, step and config.
- `metrics.jsonl`: One JSON object per line, for each training loop and each evaluation.
- `wandb.json`: With the W&B tracker, the id of the run and how much of it was sent.
- `model.keras`: The trained model (the EMA, if the run keeps one), written when training has ended.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf
import yaml

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import describe_environment, dump_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.run_directory import (
    check_changes,
    check_place,
    list_checkpoints,
    read_class_names,
    read_config,
    write_class_names,
)
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.runtime.strategy import dtype_policy

__all__ = [
    "build_from_config",
    "list_checkpoints",
    "open_model_dir",
    "precision_scope",
    "read_class_names",
    "read_config",
    "read_newest_checkpoint",
    "restore_model",
    "save_keras_model",
    "write_model_dir",
]

_LOGGER = logging.getLogger(__name__)


@contextlib.contextmanager
def precision_scope(config: Config, strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Build models with the precision that a config asks for, within the block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy(config.train.precision, strategy))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def open_model_dir(model_dir: str, config: Config, class_names: Sequence[str]) -> None:
    """Create the directory of a run, or check that an existing one belongs to the same run.

    Args:
        model_dir: Path of the directory, local or gs://.
        config: The config of the run.
        class_names: The class names, in the order of the labels.

    Raises:
        UserError: If the directory cannot be written, or belongs to a run with another config or other classes.
    """
    check_place(model_dir)
    path, classes_path = os.path.join(model_dir, "config.yaml"), os.path.join(model_dir, "classes.txt")
    if tf.io.gfile.exists(path):
        check_changes(model_dir, read_config(model_dir), config)
        if tf.io.gfile.exists(classes_path) and read_class_names(model_dir) != list(class_names):
            raise UserError(
                f"model_dir={model_dir} belongs to a run with other classes: the classes of the data set differ from "
                "those in classes.txt. Choose another directory."
            )
        return
    try:
        tf.io.gfile.makedirs(model_dir)
        write_class_names(model_dir, class_names)
        environment = yaml.safe_dump({"environment": describe_environment()}, sort_keys=False)
        write_text(path, dump_config(config) + environment)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"model_dir={model_dir} cannot be written: {error}") from None


def read_newest_checkpoint(model_dir: str, checkpoint: tf.train.Checkpoint) -> int | None:
    """Restore the newest checkpoint that is intact. A warning names each damaged one that is skipped.

    Args:
        model_dir: Path of the model directory.
        checkpoint: The objects to restore.

    Returns:
        The step of the restored checkpoint, or None if the directory has no checkpoint.

    Raises:
        UserError: If there are checkpoints but none of them can be read.
    """
    saved = list_checkpoints(model_dir)
    for step, prefix in saved.items():
        try:
            status = checkpoint.read(prefix)
            status.assert_existing_objects_matched()
            status.expect_partial()  # a model alone does not read the state of the optimizer
            return step
        except Exception as error:  # TensorFlow raises many types for damaged files, even IndexError
            _LOGGER.warning("Checkpoint %s is damaged (%s). Trying the one before it.", prefix, str(error)[:200])
    if saved:
        paths = ", ".join(saved.values())
        raise UserError(f"None of the {len(saved)} checkpoints in {model_dir} can be read: {paths}.")
    return None


def build_from_config(config: Config, classes: int) -> keras.Model:
    """Build the model that a config describes, with random weights and `classes` logits."""
    return build_model(config.model, classes, (config.image_size, config.image_size, config.data.channels))


def restore_model(model_dir: str, raw: bool = False) -> tuple[keras.Model, Config, list[str]]:
    """Load the model of a model directory from its newest intact checkpoint.

    Args:
        model_dir: Path of the model directory, local or gs://.
        raw: True loads the weights as they were at that step. False loads their EMA, if the run keeps one.

    Returns:
        The model, its config, and the class names in the order of the logits.

    Raises:
        UserError: If the directory is not a model directory, or has no checkpoint that can be read.
    """
    config = read_config(model_dir)
    class_names = read_class_names(model_dir)
    model = build_from_config(config, len(class_names))
    part = "model" if raw or not config.train.ema_decay else "average"
    weights = {v.path: v.value for v in (*model.trainable_variables, *batch_norm_statistics(model))}
    if read_newest_checkpoint(model_dir, tf.train.Checkpoint(**{part: weights})) is None:
        raise UserError(f"model_dir={model_dir} has no checkpoint yet.")
    return model, config, class_names


def save_keras_model(model_dir: str) -> str:
    """Write the model that `restore_model` returns to model.keras. Readers never see a partly written file.

    Returns:
        The path of the file.

    Raises:
        UserError: If the file cannot be written.
    """
    path, temporary = (os.path.join(model_dir, name) for name in ("model.keras", "model.tmp.keras"))
    model, *_ = restore_model(model_dir)
    try:
        model.save(temporary)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"{path} cannot be written ({error}). The checkpoints are intact. Fix the cause and run the same command "
            "again."
        ) from None
    return path


def write_model_dir(model_dir: str, model: keras.Model, config: Config, class_names: Sequence[str]) -> None:
    """Write a model directory for a model that was not trained here, so that every command can use it.

    Args:
        model_dir: Path of a folder that does not exist. It gets this name when it is complete.
        model: A model that `build_from_config` built for `config`.
        config: The config to store. Its `train.ema_decay` must be 0, because there is no EMA.
        class_names: The class names, in the order of the logits.

    Raises:
        UserError: If the directory cannot be written.
    """
    unfinished = f"{model_dir.rstrip('/')}.unfinished"
    try:
        if tf.io.gfile.exists(unfinished):
            tf.io.gfile.rmtree(unfinished)
        open_model_dir(unfinished, config, class_names)
        weights = {v.path: v.value for v in (*model.trainable_variables, *batch_norm_statistics(model))}
        tf.train.Checkpoint(model=weights).write(os.path.join(unfinished, "checkpoints", "step-0"))
        save_keras_model(unfinished)
        tf.io.gfile.rename(unfinished, model_dir)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"model_dir={model_dir} cannot be written: {str(error)[:300]}") from None

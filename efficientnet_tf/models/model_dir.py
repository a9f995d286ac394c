"""TODO docstring (from checkpoint)."""

import contextlib
import os
import re

import keras
import tensorflow as tf
import yaml
from absl import logging

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import describe_environment, diff_config, dump_config, parse_config
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.runtime.files import read_text, write_text
from efficientnet_tf.runtime.strategy import dtype_policy


@contextlib.contextmanager
def precision_scope(config, strategy):
    """Build models in the precision of the config."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy(config.train.precision, strategy))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def open_model_dir(model_dir, config, class_names):
    """Make a run's directory, or check that the one that is there belongs to the same run.

    Args:
        model_dir: str, local or gs://.
        config: config.Config.
        class_names: sequence of str.

    Raises:
        UserError: when the directory cannot be written or read back, or belongs to another config or other classes.
    """
    if re.search(r"[*?[\\]", str(model_dir)):
        raise UserError(f"--model_dir={model_dir}: TensorFlow reads no checkpoint from a path with * ? [ or \\ in it")
    path, classes_path = os.path.join(model_dir, "config.yaml"), os.path.join(model_dir, "classes.txt")
    if tf.io.gfile.exists(path):
        changed = diff_config(read_config(model_dir), config)
        if tf.io.gfile.exists(classes_path) and read_class_names(model_dir) != list(class_names):
            changed.append("the classes of the data set are others than in classes.txt")
        if changed:
            raise UserError(
                f"{model_dir} belongs to a run with another config. Take another --model_dir, or undo these changes "
                "(there -> asked for):\n  " + "\n  ".join(changed)
            )
        return
    try:
        tf.io.gfile.makedirs(model_dir)
        write_text(classes_path, "".join(f"{name}\n" for name in class_names))
        environment = yaml.safe_dump({"environment": describe_environment()}, sort_keys=False)
        write_text(path, dump_config(config) + environment)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"--model_dir={model_dir} cannot be written: {error}") from None


def read_config(model_dir):
    """Read the config of a model directory.

    Raises:
        UserError: when it is not a model directory.
    """
    path = os.path.join(model_dir, "config.yaml")
    if not tf.io.gfile.exists(path):
        raise UserError(f"--model_dir={model_dir} is not a model directory: it has no config.yaml")
    return parse_config(read_text(path), path)


def read_class_names(model_dir):
    """Read the class names of a model directory: list of str."""
    return read_text(os.path.join(model_dir, "classes.txt")).splitlines()


def list_checkpoints(model_dir):
    """Return {step: prefix} of the checkpoints that were written to their end, newest first."""
    folder = os.path.join(model_dir, "checkpoints")
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    steps = [int(name[len("step-") : -len(".index")]) for name in names if re.fullmatch(r"step-\d+\.index", name)]
    return {step: os.path.join(folder, f"step-{step}") for step in sorted(steps, reverse=True)}


def read_newest_checkpoint(model_dir, checkpoint):
    """Read the newest whole checkpoint; a damaged one is named and passed over. Returns its step or None."""
    saved = list_checkpoints(model_dir)
    for step, prefix in saved.items():
        try:
            status = checkpoint.read(prefix)
            status.assert_existing_objects_matched()
            status.expect_partial()  # a model alone leaves the optimiser's part unread
            return step
        except Exception as error:  # half a dozen types, IndexError for a file that is too short among them
            logging.warning("checkpoint %s is damaged (%s): trying the one before it", prefix, str(error)[:200])
    if saved:
        raise UserError(f"none of the {len(saved)} checkpoints in {model_dir} can be read: {', '.join(saved.values())}")
    return None


def build_from_config(config, classes):
    """Build the model of a config: keras.Model with `classes` logits."""
    return build_model(config.model, classes, (config.image_size, config.image_size, config.data.channels))


def restore_model(model_dir, raw=False):
    """Load the model of a model directory from its newest whole checkpoint.

    Args:
        model_dir: str.
        raw: bool; True for the weights as they were at that step, False for their average, where the run kept one.

    Returns:
        (keras.Model, config.Config, list of class names).

    Raises:
        UserError: when it is not a model directory, or has no checkpoint that can be read.
    """
    config = read_config(model_dir)
    class_names = read_class_names(model_dir)
    model = build_from_config(config, len(class_names))
    part = "model" if raw or not config.train.ema_decay else "average"
    weights = {v.path: v.value for v in (*model.trainable_variables, *batch_norm_statistics(model))}
    if read_newest_checkpoint(model_dir, tf.train.Checkpoint(**{part: weights})) is None:
        raise UserError(f"{model_dir} has no checkpoint yet")
    return model, config, class_names


def save_keras_model(model_dir):
    """Write the model that `load_model` returns as model.keras, in one go.

    Returns:
        str, the file's path.

    Raises:
        UserError: when it cannot be written.
    """
    path, temporary = (os.path.join(model_dir, name) for name in ("model.keras", "model.tmp.keras"))
    model, *_ = restore_model(model_dir)
    try:
        model.save(temporary)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"{path} cannot be written ({error}). The checkpoints are whole: mend this and start the same command again"
        ) from None
    return path


def write_model_dir(model_dir, model, config, class_names):
    """Write a model directory for a model that was not trained here: every command takes it as it takes a run's.

    Args:
        model_dir: str, a folder that does not exist; it appears under its name once it is whole.
        model: keras.Model, built for `config`.
        config: config.Config, without a moving average: `train.ema_decay` is 0.
        class_names: sequence of str.

    Raises:
        UserError: when it cannot be written.
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
        raise UserError(f"{model_dir} cannot be written: {str(error)[:300]}") from None

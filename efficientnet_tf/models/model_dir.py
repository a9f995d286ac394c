"""Reads and writes model directories. A run writes one, and every other command reads it.

- `config.yaml`: The complete config, with the versions of the libraries and the git commit.
- `classes.txt`: The class names, one per line, in the order of the labels.
- `config_history.yaml`: The deliberate changes of the config, if there were any.
- `checkpoints/`: `step-N.index` and `step-N.data-*` hold weights, EMA, optimizer slot variables, step, config, class
  names and, with `eval.best`, the step of the best one.
- `metrics.jsonl`: One JSON object per line, for each training loop and each evaluation.
- `wandb.json`: With the W&B tracker, the id of the run and how much of it was sent.
- `model.keras`: The trained model (the EMA, if the run keeps one), of the best checkpoint if the run chooses one. It is
  written when training has ended.
- `lock`: While a process trains there, its name.
"""

import contextlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence

import keras
import tensorflow as tf
import yaml

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import describe_environment, dump_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import find_reason, normalize_name
from efficientnet_tf.models.from_config import build_from_config
from efficientnet_tf.models.run_directory import (
    CLASSES_ENTRY,
    CONFIG_ENTRY,
    check_allowed,
    check_changes,
    check_place,
    find_unexplained,
    format_class_names,
    list_checkpoints,
    read_class_names,
    read_config,
    read_history,
    record_changes,
)
from efficientnet_tf.models.stored import (
    Stored,
    check_class_names,
    find_step,
    read_newest_stored,
    read_run,
    read_stored,
    text_variables,
)
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.runtime.files import atomic_output, exists, is_remote, write_text
from efficientnet_tf.runtime.lock import lock_output
from efficientnet_tf.runtime.variables import copy_values, restorable, take_restored

__all__ = [
    "change_config",
    "list_checkpoints",
    "open_model_dir",
    "read_class_names",
    "read_config",
    "read_newest_checkpoint",
    "read_run",
    "remove_leftovers",
    "restore_model",
    "restore_model_and_limits",
    "save_keras_model",
    "write_model_dir",
]

_LOGGER = logging.getLogger(__name__)


def open_model_dir(
    model_dir: str, config: Config, class_names: Sequence[str], allow_change: Iterable[str] = ()
) -> Config | None:
    """Create the directory of a run, or check that an existing one belongs to the same run.

    A config.yaml or classes.txt that is missing is written again, if the checkpoints say that they belong to the run.

    Args:
        model_dir: Path of the directory, local or gs://.
        config: The config of the run.
        class_names: The class names, in the order of the labels.
        allow_change: Keys of the config that may differ from the run so far. config.yaml stays as it is, and
            `change_config` writes the new values once the run has been restored.

    Returns:
        The config of the run so far if some of the allowed keys differ from it, or else None.

    Raises:
        UserError: If the directory cannot be written, or belongs to a run with another config or other classes.
    """
    check_place(model_dir)
    allowed = check_allowed(allow_change)
    path, classes_path = os.path.join(model_dir, "config.yaml"), os.path.join(model_dir, "classes.txt")
    text = format_class_names(class_names)
    before = read_config(model_dir) if exists(path) else None
    changes = check_changes(model_dir, before, config, allowed) if before else {}
    if exists(classes_path) and [*map(normalize_name, read_class_names(model_dir))] != [
        *map(normalize_name, class_names)
    ]:
        raise UserError(
            f"model_dir={model_dir} belongs to a run with other classes: the classes of the data set differ from those "
            "in classes.txt. Choose another directory."
        )
    stored = read_newest_stored(model_dir)
    if stored:
        check_class_names(model_dir, stored, class_names, "the data set")
        unexplained = (
            find_unexplained(stored.config, before or config, read_history(model_dir)) if stored.config else {}
        )
        if stored.config and any(key not in allowed for key in unexplained):  # config.yaml was edited or is missing
            check_changes(model_dir, stored.config, config, allowed)
        if unexplained:
            before, changes = stored.config, unexplained
    try:
        if not is_remote(model_dir):
            os.makedirs(model_dir, exist_ok=True)
        if not exists(classes_path):
            write_text(classes_path, text)
        if not exists(path):
            _write_config(model_dir, before or config)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"model_dir={model_dir} cannot be written: {error}") from None
    return before if changes else None


def change_config(model_dir: str, step: int, before: Config, config: Config) -> None:
    """Record that a run continues with another config.

    Raises:
        UserError: If the directory cannot be written.
    """
    try:
        record_changes(model_dir, step, before, config)
        _write_config(model_dir, config)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"model_dir={model_dir} cannot be written: {error}") from None


def remove_leftovers(model_dir: str) -> None:
    """Delete the temporary files that a killed process has left in a directory, which the caller has locked."""
    if is_remote(model_dir):
        return
    for name in os.listdir(model_dir):
        if re.search(r"\.tmp(-[0-9]+)?(\.[a-z]+)?$", name):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(model_dir, name))


def _write_config(model_dir, config):
    environment = yaml.safe_dump({"environment": describe_environment()}, sort_keys=False)
    write_text(os.path.join(model_dir, "config.yaml"), dump_config(config) + environment)


def read_newest_checkpoint(
    model_dir: str, checkpoint: tf.train.Checkpoint, check: Callable[[Stored], None] = lambda stored: None
) -> int | None:
    """Restore the newest checkpoint that is intact. A warning names each damaged one that is skipped.

    A training run may write new checkpoints and delete old ones at the same time.

    Args:
        model_dir: Path of the model directory.
        checkpoint: The objects to restore.
        check: Gets what a checkpoint says about its run before it is restored. It raises UserError to refuse it.

    Returns:
        The step of the restored checkpoint, or None if the directory has no checkpoint.

    Raises:
        UserError: If there are checkpoints but none of them can be read.
    """
    damaged: dict[str, str] = {}
    while prefixes := {s: p for s, p in list_checkpoints(model_dir).items() if p not in damaged}:
        step, prefix = next(iter(prefixes.items()))
        try:
            _read_checkpoint(prefix, step, checkpoint, check)
            return step
        except UserError:
            raise
        except Exception as error:  # TensorFlow raises many types for damaged files, even IndexError
            damaged[prefix] = str(error)[:200]
            if exists(f"{prefix}.index"):  # Otherwise a running training has just deleted it.
                _LOGGER.warning("Checkpoint %s is damaged (%s). Trying another one.", prefix, damaged[prefix])
    if damaged:
        raise UserError(f"None of the {len(damaged)} checkpoints in {model_dir} can be read: {', '.join(damaged)}.")
    return None


def _read_checkpoint(prefix, step, checkpoint, check):
    stored = read_stored(prefix)
    check(stored)
    status = checkpoint.read(prefix)
    status.assert_existing_objects_matched()
    status.expect_partial()  # a model alone does not read the state of the optimizer
    if stored.step not in (None, step):
        raise ValueError(f"it holds step {stored.step}")


def _read_chosen_checkpoint(model_dir, chosen, checkpoint, check):
    """Restore the checkpoint that an argument names, as `find_step` says, and return its step, or None."""
    step = find_step(model_dir, chosen)
    if step is None:
        return read_newest_checkpoint(model_dir, checkpoint, check)
    prefix = os.path.join(model_dir, "checkpoints", f"step-{step}")
    try:
        _read_checkpoint(prefix, step, checkpoint, check)
        return step
    except UserError:
        raise
    except Exception as error:
        reason = str(error)[:200]
    if find_step(model_dir, chosen) != step:  # A running training has just found a better one.
        return _read_chosen_checkpoint(model_dir, chosen, checkpoint, check)
    if chosen is not None:
        raise UserError(f"checkpoint={chosen}: {prefix} cannot be read ({reason}). Choose another checkpoint.")
    _LOGGER.warning("The best checkpoint, %s, cannot be read (%s). Using the newest one.", prefix, reason)
    return read_newest_checkpoint(model_dir, checkpoint, check)


def restore_model(
    model_dir: str, raw: bool = False, checkpoint: str | int | None = None
) -> tuple[keras.Model, Config, list[str]]:
    """Load the model of a model directory from one of its checkpoints.

    Args:
        model_dir: Path of the model directory, local or gs://.
        raw: True loads the weights as they were at that step. False loads their EMA, if the run keeps one.
        checkpoint: "best", "newest", or the number of a step, as for `find_step`. None means the best one if the run
            chooses one, and else the newest one that is intact.

    Returns:
        The model, its config, and the class names in the order of the logits.

    Raises:
        UserError: If the directory is not a model directory, has no checkpoint that can be read, or if its config.yaml
            or classes.txt contradict the checkpoint.
    """
    return _restore(model_dir, raw, checkpoint)[:3]


def restore_model_and_limits(
    model_dir: str, checkpoint: str | int | None = None
) -> tuple[keras.Model, Config, list[str], dict[str, tuple[float, float]]]:
    """Load a model like `restore_model`, and the limits of its tensors in int8, by name, if the run learns them."""
    return _restore(model_dir, False, checkpoint, with_limits=True)


def _restore(model_dir, raw, checkpoint, with_limits=False):
    config, class_names = read_run(model_dir)
    model = build_from_config(config, len(class_names))
    part = "model" if raw or not config.train.ema_decay else "average"
    parts = {part: {v.path: v for v in (*model.trainable_variables, *batch_norm_statistics(model))}}
    if with_limits and config.trains_for_int8:
        from efficientnet_tf.models.quantized import QuantizedNetwork

        parts["limits"] = {v.path: v for v in QuantizedNetwork(model).limits}
    values = restorable(parts)

    def check(stored):
        read_run(model_dir, stored)

    if _read_chosen_checkpoint(model_dir, checkpoint, tf.train.Checkpoint(**values), check) is None:
        raise UserError(f"model_dir={model_dir} has no checkpoint yet.")
    take_restored(parts, values)
    limits = {path.partition("_limits/")[0]: tuple(v.numpy().tolist()) for path, v in parts.get("limits", {}).items()}
    is_known = all(high > low for low, high in limits.values())
    return model, config, class_names, limits if is_known else {}


def save_keras_model(model_dir: str) -> str:
    """Write the model that `restore_model` returns to model.keras. Readers never see a partly written file.

    Returns:
        The path of the file.

    Raises:
        UserError: If the file cannot be written.
    """
    path = os.path.join(model_dir, "model.keras")
    model, config, class_names = restore_model(model_dir)
    try:
        with atomic_output(path) as temporary:
            model.save(temporary)
            if not is_remote(path):
                with zipfile.ZipFile(temporary, "a") as archive:  # by which a change next to the file is noticed
                    archive.writestr(CONFIG_ENTRY, dump_config(config))
                    archive.writestr(CLASSES_ENTRY, format_class_names(class_names))
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
    model_dir = model_dir.rstrip("/")
    unfinished = f"{model_dir}.unfinished"
    with lock_output(model_dir, "writing a model directory"):
        try:
            if exists(unfinished):
                tf.io.gfile.rmtree(unfinished)
            open_model_dir(unfinished, config, class_names)
            weights = {v.path: v for v in (*model.trainable_variables, *batch_norm_statistics(model))}
            contents = tf.train.Checkpoint(model=copy_values(weights), **text_variables(config, class_names))
            contents.write(os.path.join(unfinished, "checkpoints", "step-0"))
            save_keras_model(unfinished)
            tf.io.gfile.rename(unfinished, model_dir)
        except (tf.errors.OpError, OSError) as error:
            raise UserError(f"model_dir={model_dir} cannot be written: {find_reason(error)}") from None

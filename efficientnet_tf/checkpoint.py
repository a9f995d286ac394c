"""A model directory: what a run writes there, and how it, or its model, comes back.

    config.yaml       the resolved config, versions and git commit
    classes.txt       the class names, one a line, in the order of the labels
    checkpoints/      step-N.index and step-N.data-*: weights, averages, slots, step and config
    metrics.jsonl     one JSON object a line
    wandb.json        with --tracker=wandb: the id of the run there and what it was told; wandb/ beside it
    model.keras       the trained model (the average), once training has ended

Random state and input position need no room of their own: masks, crops and order follow from seed and step.
"""

import contextlib
import os
import re
from concurrent import futures
from dataclasses import dataclass

import keras
import tensorflow as tf
import yaml
from absl import logging

from efficientnet_tf import config as config_lib
from efficientnet_tf import distribute
from efficientnet_tf.config import UserError
from efficientnet_tf.files import read_text, write_text
from efficientnet_tf.models import build_model
from efficientnet_tf.optim import MovingAverage, create_optimizer, statistics


@dataclass
class State:
    """What training changes: the model's weights, the optimiser's slots and step, the moving average."""

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    average: MovingAverage | None

    @property
    def step(self):
        """Number of steps done, int."""
        return int(self.optimizer.iterations.numpy())


def create_state(config, classes, size, strategy, initial=None):
    """Create model, optimiser and moving average on the strategy's devices.

    Args:
        config: config.Config; `train.seed` decides the initial weights.
        classes: int >= 2.
        size: int, number of training images: the schedule is told in epochs.
        strategy: tf.distribute.Strategy.
        initial: {path of a variable: array} or None; weights to start from, the moving average too. Those that are not
            in it are random.

    Returns:
        State.
    """
    with strategy.scope(), precision_of(config, strategy):
        keras.utils.set_random_seed(config.train.seed)
        model = build_for(config, classes)
        variables = {v.path: v for v in model.variables}
        for name, value in (initial or {}).items():
            variables[name].assign(value)
        optimizer = create_optimizer(config, model, size)
        average = MovingAverage(model, config.train.ema_decay) if config.train.ema_decay else None
        return State(model, optimizer, average)


@contextlib.contextmanager
def precision_of(config, strategy):
    """Build models in the precision of the config."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(distribute.dtype_policy(config.train.precision, strategy))
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
        changed = config_lib.diff_config(read_config(model_dir), config)
        if tf.io.gfile.exists(classes_path) and read_classes(model_dir) != list(class_names):
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
        environment = yaml.safe_dump({"environment": config_lib.environment()}, sort_keys=False)
        write_text(path, config_lib.dump_config(config) + environment)
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
    return config_lib.parse_config(read_text(path), path)


def read_classes(model_dir):
    """Read the class names of a model directory: list of str."""
    return read_text(os.path.join(model_dir, "classes.txt")).splitlines()


def _variables(state):
    """Name every variable of a state, for the file: {part: {name: tf.Variable}}."""
    weights = [*state.model.trainable_variables, *statistics(state.model)]
    parts = {
        "model": {v.path: v.value for v in weights},
        # Without the first part of the path: Keras counts optimisers up in a process.
        "optimizer": {v.path.partition("/")[2] or v.path: v.value for v in state.optimizer.variables},
    }
    if state.average:
        averages = [*state.average.trainable, *state.average.statistics]
        parts["average"] = {v.path: a.value for v, a in zip(weights, averages, strict=True)}
    return parts


def _saved_steps(model_dir):
    """Return {step: prefix} of the checkpoints that were written to their end, newest first."""
    folder = os.path.join(model_dir, "checkpoints")
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    steps = [int(name[len("step-") : -len(".index")]) for name in names if re.fullmatch(r"step-\d+\.index", name)]
    return {step: os.path.join(folder, f"step-{step}") for step in sorted(steps, reverse=True)}


def _read_newest(model_dir, checkpoint):
    """Read the newest whole checkpoint; a damaged one is named and passed over. Returns its step or None."""
    saved = _saved_steps(model_dir)
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


class Checkpointer:
    """Saves and restores a State in a model directory; as a context it ends when what it writes is written.

    A checkpoint counts once its index file is there, which TensorFlow writes last; its blocks carry checksums.
    """

    def __init__(self, model_dir, state, config):
        self.model_dir = model_dir
        self.state = state
        self._keep = config.train.keep_checkpoints
        self._parts = {"config": tf.Variable(config_lib.dump_config(config), trainable=False), **_variables(state)}
        self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            logging.error("%s", error)  # beside what has ended the run
        finally:
            self._writer.shutdown()

    def restore(self):
        """Restore the newest whole checkpoint; return its step, 0 where there is none.

        Raises:
            UserError: when there are checkpoints and all are damaged.
        """
        return _read_newest(self.model_dir, tf.train.Checkpoint(**self._parts)) or 0

    def save(self, background=False):
        """Write a checkpoint of the current step, then delete the oldest beyond `train.keep_checkpoints`.

        Args:
            background: bool; write what the variables hold now while they change: `wait` tells how it went.

        Returns:
            int, the step.

        Raises:
            UserError: when it, or the one begun before it, cannot be written; the ones before are whole.
        """
        self.wait()
        with distribute.on_host():
            # A value read is a tensor of its own: whoever changes the variable leaves it alone.
            values = tf.nest.map_structure(lambda v: tf.Variable(tf.identity(v), trainable=False), self._parts)
        step = self.state.step
        self._writing = self._writer.submit(self._write, step, tf.train.Checkpoint(**values))
        if not background:
            self.wait()
        return step

    def wait(self, only_if_done=False):
        """Wait until the checkpoint that `save` began is written; or merely look whether that has failed.

        Raises:
            UserError: when it cannot be written.
        """
        if self._writing and (self._writing.done() or not only_if_done):
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step, values):
        folder = os.path.join(self.model_dir, "checkpoints")
        try:
            values.write(os.path.join(folder, f"step-{step}"))
            # For tf.train.latest_checkpoint; here nothing reads it.
            write_text(os.path.join(folder, "checkpoint"), f'model_checkpoint_path: "step-{step}"\n')
            self._delete_old(folder)
        except (tf.errors.OpError, OSError) as error:
            raise UserError(
                f"checkpoint of step {step} cannot be written to {self.model_dir} "
                f"({str(error)[:300]}). The checkpoints before it are whole: mend this and start the same command again"
            ) from None

    def _delete_old(self, folder):
        """Delete all but the newest checkpoints, parts of a killed write too; index files, which count, first."""
        kept = list(_saved_steps(self.model_dir))[: self._keep]
        for name in sorted(tf.io.gfile.listdir(folder), key=lambda name: not name.endswith(".index")):
            match = re.match(r"step-(\d+)[._]", name)
            if match and int(match[1]) not in kept:
                path = os.path.join(folder, name)
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)


def build_for(config, classes):
    """Build the model of a config: keras.Model with `classes` logits."""
    return build_model(config.model, classes, (config.image_size, config.image_size, config.data.channels))


def load_model(model_dir, raw=False):
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
    class_names = read_classes(model_dir)
    model = build_for(config, len(class_names))
    part = "model" if raw or not config.train.ema_decay else "average"
    weights = {v.path: v.value for v in (*model.trainable_variables, *statistics(model))}
    if _read_newest(model_dir, tf.train.Checkpoint(**{part: weights})) is None:
        raise UserError(f"{model_dir} has no checkpoint yet")
    return model, config, class_names


def save_model(model_dir):
    """Write the model that `load_model` returns as model.keras, in one go.

    Returns:
        str, the file's path.

    Raises:
        UserError: when it cannot be written.
    """
    path, temporary = (os.path.join(model_dir, name) for name in ("model.keras", "model.tmp.keras"))
    model, *_ = load_model(model_dir)
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
        weights = {v.path: v.value for v in (*model.trainable_variables, *statistics(model))}
        tf.train.Checkpoint(model=weights).write(os.path.join(unfinished, "checkpoints", "step-0"))
        save_model(unfinished)
        tf.io.gfile.rename(unfinished, model_dir)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{model_dir} cannot be written: {str(error)[:300]}") from None

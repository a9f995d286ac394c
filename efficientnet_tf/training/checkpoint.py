"""A model directory: what a run writes there, and how it, or its model, comes back.

    config.yaml       the resolved config, versions and git commit
    classes.txt       the class names, one a line, in the order of the labels
    checkpoints/      step-N.index and step-N.data-*: weights, averages, slots, step and config
    metrics.jsonl     one JSON object a line
    wandb.json        with --tracker=wandb: the id of the run there and what it was told; wandb/ beside it
    model.keras       the trained model (the average), once training has ended

Random state and input position need no room of their own: masks, crops and order follow from seed and step.
"""

import os
import re
from concurrent import futures
from dataclasses import dataclass

import keras
import tensorflow as tf
from absl import logging

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_config
from efficientnet_tf.models.model_dir import (
    build_from_config,
    list_checkpoints,
    precision_scope,
    read_newest_checkpoint,
)
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.runtime.strategy import on_host
from efficientnet_tf.training.ema import ModelEMA
from efficientnet_tf.training.optimizers import create_optimizer


@dataclass
class State:
    """What training changes: the model's weights, the optimiser's slots and step, the moving average."""

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    ema: ModelEMA | None

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
    with strategy.scope(), precision_scope(config, strategy):
        keras.utils.set_random_seed(config.train.seed)
        model = build_from_config(config, classes)
        variables = {v.path: v for v in model.variables}
        for name, value in (initial or {}).items():
            variables[name].assign(value)
        optimizer = create_optimizer(config, model, size)
        average = ModelEMA(model, config.train.ema_decay) if config.train.ema_decay else None
        return State(model, optimizer, average)


def _variables(state):
    """Name every variable of a state, for the file: {part: {name: tf.Variable}}."""
    weights = [*state.model.trainable_variables, *batch_norm_statistics(state.model)]
    parts = {
        "model": {v.path: v.value for v in weights},
        # Without the first part of the path: Keras counts optimisers up in a process.
        "optimizer": {v.path.partition("/")[2] or v.path: v.value for v in state.optimizer.variables},
    }
    if state.ema:
        averages = [*state.ema.trainable, *state.ema.statistics]
        parts["average"] = {v.path: a.value for v, a in zip(weights, averages, strict=True)}
    return parts


class Checkpointer:
    """Saves and restores a State in a model directory; as a context it ends when what it writes is written.

    A checkpoint counts once its index file is there, which TensorFlow writes last; its blocks carry checksums.
    """

    def __init__(self, model_dir, state, config):
        self.model_dir = model_dir
        self.state = state
        self._keep = config.train.keep_checkpoints
        self._parts = {"config": tf.Variable(dump_config(config), trainable=False), **_variables(state)}
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
        return read_newest_checkpoint(self.model_dir, tf.train.Checkpoint(**self._parts)) or 0

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
        with on_host():
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
        kept = list(list_checkpoints(self.model_dir))[: self._keep]
        for name in sorted(tf.io.gfile.listdir(folder), key=lambda name: not name.endswith(".index")):
            match = re.match(r"step-(\d+)[._]", name)
            if match and int(match[1]) not in kept:
                path = os.path.join(folder, name)
                (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)

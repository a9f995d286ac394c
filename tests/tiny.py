"""Runs of the tiny variant: what the tests of the training loop and its golden file share."""

import itertools
import os
import signal
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf.config import load
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import Failures, train_dataset
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.runtime.strategy import distribute_batches
from efficientnet_tf.training.fused_layers import FUSE_FROM_VALUES
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.tensorflow_loop import make_train_loop
from efficientnet_tf.training.trainer import Callback

_strategies = itertools.count(1)

VARIANT = str(Path(__file__).with_name("tiny.yaml"))
# Two blocks instead of five, where a test has more to trace: for several replicas, or again and again.
SHORT = (
    "model.stages=[{kernel: 3, stride: 1, expand: 1, channels: 8, repeats: 1},"
    " {kernel: 5, stride: 2, expand: 4, channels: 16, repeats: 1}]"
)


def load_config(*overrides, recipe="digits"):
    return load.load_config(VARIANT, recipe, overrides)


def make_strategy(replicas):
    """Return a strategy on the logical CPUs that conftest.py makes."""
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("CPU:0")
    # Replicas meet under keys that each strategy counts from the same start: the strategies of one process need others.
    strategy = type("Mirrored", (tf.distribute.MirroredStrategy,), {"_collective_key_base": 1000 * next(_strategies)})
    return strategy([f"CPU:{i}" for i in range(replicas)])


def distribute(strategy, make_dataset):
    """Return an iterator of what `make_dataset`, a function of the input context, makes for each host."""
    return iter(distribute_batches(strategy, make_dataset))


def replica_values(variable):
    """Return a variable's value on every replica: a list of arrays."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return [v.numpy() for v in getattr(value, "values", [value])]


def variables_of(state):
    """Return {part/name: tf.Variable} of everything that training changes, named as in a checkpoint."""
    model, optimizer, average = state.model, state.optimizer, state.ema
    weights = [*model.trainable_variables, *batch_norm_statistics(model)]
    named = {f"model/{v.path}": v.value for v in (*weights, *state.limits)}
    named |= {f"optimizer/{v.path.partition('/')[2]}": v.value for v in optimizer.variables}
    if average:
        averages = [*average.trainable, *average.statistics]
        named |= {f"average/{v.path}": a.value for v, a in zip(weights, averages, strict=True)}
    return named | {f"auxiliary/{v.path}": v.value for v in state.auxiliary}


class At(Callback):
    """Calls a function once, after the loop that ends at a given step."""

    def __init__(self, **actions):
        self.actions = {int(name.removeprefix("step")): action for name, action in actions.items()}

    def after_loop(self, trainer, metrics):
        self.actions.pop(trainer.step, lambda: None)()


def send_sigterm():
    """Ask this process to stop, as a scheduler does."""
    os.kill(os.getpid(), signal.SIGTERM)


class Run:
    """What `train` holds while it trains on digits, without a model directory."""

    def __init__(self, config, replicas=1, fuse_from=FUSE_FROM_VALUES):
        self.config = config
        self.strategy = make_strategy(replicas)
        self.source = open_source(config.data, config.data.train_split, training=True)
        self.state = create_state(config, len(self.source.class_names), self.source.size, self.strategy)
        self.loop = make_train_loop(self.state, config, self.strategy, fuse_from=fuse_from)
        self.rewind()

    def rewind(self):
        """Read the training images from the start."""
        failures = Failures(self.source)
        self.batches = distribute(
            self.strategy, lambda context: train_dataset(self.source, self.config, failures, 0, context)
        )

    def steps(self, count):
        """Train; return (loss, accuracy), means over the steps."""
        return self.loop(self.batches, tf.constant(count)).numpy().tolist()

    def losses(self, count):
        """Train step by step; return the loss of each."""
        return [self.steps(1)[0] for _ in range(count)]


def randomize(model, seed=0):
    """Give every variable a value that no initializer does, including biases and batch norm statistics.

    The same seed gives the same values in every process.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "predictions" in variable.path:
            variable.assign(rng.normal(0, 1, variable.shape))
        elif variable.path.endswith("kernel"):
            # A depthwise kernel, [h, w, channels, 1], sums over its pixels only.
            inputs = variable.shape[:-1] if variable.shape[-1] > 1 else variable.shape[:2]
            variable.assign(rng.normal(0, np.sqrt(2 / np.prod(inputs)), variable.shape))
        elif variable.path.split("/")[-1] in ("beta", "bias", "moving_mean"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif variable.path.endswith("moving_variance"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    return model

"""Trains the steps of a phase with one of the two engines, and explains what can go wrong there."""

import importlib
import math
import time
from types import ModuleType

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import find_reason
from efficientnet_tf.data.pipeline import Failures, train_dataset
from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.strategy import distribute_batches
from efficientnet_tf.runtime.workers import report_lost_workers
from efficientnet_tf.training.graph import build_phase_graph
from efficientnet_tf.training.losses import metric_name
from efficientnet_tf.training.schedule import Phase
from efficientnet_tf.training.state import State


def choose_engine() -> ModuleType:
    """Return the module that trains with the backend of Keras: `tensorflow_loop` or `jax_loop`."""
    name = "jax_loop" if uses_jax() else "tensorflow_loop"
    return importlib.import_module(f"{__package__}.{name}")


class PhaseLoop:
    """The batches of a phase from a step on, and the loop that trains on them. Making it takes seconds.

    Args:
        phase: The phase.
        config: The config of the run.
        state: What is trained.
        step: Number of steps that the run has done.
        failures: Collects the training images that cannot be read.
        strategy: Where to train.

    Attributes:
        is_compiled: Whether it has run, so that the next steps begin at once.
    """

    def __init__(
        self,
        phase: Phase,
        config: Config,
        state: State,
        step: int,
        failures: Failures,
        strategy: tf.distribute.Strategy,
    ):
        self._phase, self._state, self._failures, self._strategy = phase, state, failures, strategy
        self._max_bad_fraction = config.data.max_bad_fraction
        self._batches = iter(
            distribute_batches(
                strategy,
                lambda context: train_dataset(
                    failures.source, phase.config, failures, step - phase.first_step, context, phase.first_position
                ),
            )
        )
        graph = build_phase_graph(phase.config, config, state.model, strategy)
        self._loop = choose_engine().make_train_loop(state, phase.config, strategy, graph)
        self.is_compiled = False

    def run(self, step: int, steps: int) -> dict[str, float]:
        """Train some steps on the device, and return their metrics.

        Args:
            step: Number of steps that the run has done before, for error messages.
            steps: Number of steps to train.

        Returns:
            "loss" and the metric of `losses.metric_name`, means over the steps, "learning_rate", "seconds" and
            "images_per_second".

        Raises:
            UserError: If too many images cannot be read, the loss is no longer finite, or TensorFlow fails.
        """
        started = time.perf_counter()
        try:
            with report_lost_workers(self._strategy):
                loss, metric = np.asarray(self._loop(self._batches, tf.constant(steps))).tolist()
        except (tf.errors.OpError, *choose_engine().ERRORS) as error:
            self._failures.check(self._max_bad_fraction)
            raise UserError(f"Training failed after step {step}: {find_reason(error)}") from error
        self.is_compiled = True
        seconds = time.perf_counter() - started
        self._failures.check(self._max_bad_fraction)
        if not math.isfinite(loss):
            raise UserError(
                f"The loss is {loss} after step {step + steps}. Earlier checkpoints are intact. A lower "
                "optimizer.learning_rate or a longer schedule.warmup_epochs usually helps."
            )
        return {
            "loss": loss,
            metric_name(self._phase.config.data.task): metric,
            "learning_rate": float(self._state.optimizer.learning_rate),
            "seconds": seconds,
            "images_per_second": steps * self._phase.batch_size / seconds,
        }

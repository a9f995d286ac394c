"""Runs training of a state with JAX: the second engine of the trainer.

Every device runs the same program on its part of the batch. Weights, optimizer and EMA are on every device. The host
starts a step while the ones before it still run, and it waits at the end of a loop.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax
from keras import ops

from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.ops import random
from efficientnet_tf.runtime.jax_strategy import AXIS, JaxStrategy, StepQueue
from efficientnet_tf.training.ema import ModelEMA
from efficientnet_tf.training.graph import make_training_graph
from efficientnet_tf.training.state import State
from efficientnet_tf.training.step import TrainStep

ERRORS = (jax.errors.JaxRuntimeError,)  # that a device can raise, for example if its memory is full


def make_train_loop(state: State, config: Config, strategy: JaxStrategy, graph: keras.Model | None = None):
    """Make the function that trains for some steps. It takes and returns what the one of `tensorflow_loop` does.

    Args:
        state: The state to train.
        config: The config of the run or of its current phase.
        strategy: The devices.
        graph: A model that lends its layers to the state's weights. Defaults to the state's own model.

    Returns:
        A function of an iterator of batches, as `JaxStrategy.divide_batches` yields them, and a number of steps. It
        returns float32 [2]: the loss, weight decay included, and the metric of `losses.compute_metric`, averaged over
        steps and devices.
    """
    step, variables = make_train_step(state, config, strategy, graph)
    copy = jax.jit(lambda values: [jnp.copy(value) for value in values])

    def loop(batches: Iterator[tuple[jax.Array, ...]], steps: int) -> jax.Array:
        # Copies, because the memory of the values is reused, and variables with equal values may share it.
        values = copy(strategy.replicate([variable.value for variable in variables]))
        totals, queue = strategy.replicate(jnp.zeros(2)), StepQueue()
        for _ in range(int(steps)):
            values, totals = step(values, totals, *next(batches))
            queue.add(totals)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return totals / int(steps)

    return loop


def make_train_step(
    state: State, config: Config, strategy: JaxStrategy, graph: keras.Model | None = None
) -> tuple[Any, list[keras.Variable]]:
    """Make the compiled step that the loop repeats. The arguments are those of `make_train_loop`.

    Returns:
        The step, a `jax.jit` of a function of the values of the variables, of totals float32 [2], of images uint8 [B,
        H, W, C] and of labels [B, ...]. It returns new values and totals, and takes the memory of the old values. And
        the variables, everything that a step reads or changes.
    """
    graph = make_training_graph(graph or state.model, config, strategy)
    device_step = DeviceStep(
        TrainStep(state.model, graph, config, state.extras, state.teacher, state.class_weights), state, config
    )
    return strategy.compile(device_step, batches=2, donate=True), device_step.variables


class DeviceStep:
    """One device's part of a training step, as a pure function.

    Attributes:
        variables: Everything that a step reads or changes, list of keras.Variable.
    """

    def __init__(self, step: TrainStep, state: State, config: Config):
        self._step, self._state = step, state
        self._seed, self._parts = config.train.seed, config.train.accumulate
        model, ema = state.model, state.ema
        averages = [*ema.trainable, *ema.statistics] if ema else []
        weights = [*model.trainable_variables, *batch_norm_statistics(model)]
        self.variables = [*weights, *state.optimizer.variables, *averages, *state.extras]
        self.variables += state.teacher.variables.values() if state.teacher else []

    def __call__(
        self, values: list[jax.Array], totals: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[list[jax.Array], jax.Array]:
        """Return new values of `variables`, and the totals plus the metrics of the batch."""
        with keras.StatelessScope(state_mapping=list(zip(self.variables, values, strict=True))) as scope:
            number = ops.convert_to_tensor(self._state.optimizer.iterations)
            weights = [ops.convert_to_tensor(v) for v in self._step.trainable]
            gradients, statistics, metrics = lax.pmean(self._accumulate(number, weights, images, labels), AXIS)
            self._state.optimizer.apply(self._step.clip(gradients, weights), self._step.trainable)
            for variable, value in zip(self._step.statistics, statistics, strict=True):
                variable.assign(value)
            if self._state.ema:
                self._update_averages(self._state.ema, number)
            new = [scope.get_current_value(variable) for variable in self.variables]
        return [old if value is None else value for old, value in zip(values, new, strict=True)], totals + metrics

    def _accumulate(self, number, weights, images, labels):
        """Return the means of gradients, statistics and metrics over the parts of the device's images."""
        inputs = {path: ops.convert_to_tensor(v) for path, v in self._step.inputs.items()}
        first = lax.axis_index(AXIS) * images.shape[0]

        def compute_loss(weights, seed, images, labels):
            loss, statistics, metrics = self._step.compute_loss(weights, inputs, seed, images, labels)
            return loss, (statistics, metrics)

        def differentiate(part, images, labels):
            # Randomness follows from seed, step and the position in the batch, so a resumed run repeats it.
            seed = random.make_seed(self._seed, number, first + part * images.shape[0])
            gradients, (statistics, metrics) = jax.grad(compute_loss, has_aux=True)(weights, seed, images, labels)
            return gradients, statistics, metrics

        if self._parts == 1:
            return differentiate(0, images, labels)

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, differentiate(*part)), None

        parts = (x.reshape(self._parts, -1, *x.shape[1:]) for x in (images, labels))
        zeros = jax.tree.map(jnp.zeros_like, weights), [jnp.zeros(v.shape) for v in self._step.statistics], jnp.zeros(2)
        # One after the other, so that they take the memory of one.
        sums, _ = lax.scan(add, zeros, (jnp.arange(self._parts), *parts))
        return jax.tree.map(lambda total: total / self._parts, sums)

    def _update_averages(self, ema: ModelEMA, number: Any) -> None:
        changed = {v.path for v in (*self._step.trainable, *self._step.statistics)}
        model = self._state.model
        groups = model.trainable_variables, batch_norm_statistics(model)
        values = ([ops.convert_to_tensor(v) if v.path in changed else None for v in group] for group in groups)
        ema.update(number, *values)

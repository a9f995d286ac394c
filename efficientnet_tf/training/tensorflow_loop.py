"""Runs training and evaluation of a state under `tf.distribute`: the TensorFlow engine of the trainer.

A loop is one `tf.function` around `strategy.run`. Its length is a tensor, so it is traced once and runs without coming
back to the host between steps.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from efficientnet_tf.config.schema import Config
from efficientnet_tf.data.source import Source
from efficientnet_tf.evaluation.loop import make_joint_evaluator
from efficientnet_tf.models.folding import Inference
from efficientnet_tf.models.quantized import QuantizedInference
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.ops import random
from efficientnet_tf.runtime.strategy import add_up, device_type, replica_count, should_jit
from efficientnet_tf.runtime.variables import read_values
from efficientnet_tf.training.fused_layers import FUSE_FROM_VALUES
from efficientnet_tf.training.graph import batch_norm_group_size, make_training_graph
from efficientnet_tf.training.state import State
from efficientnet_tf.training.step import TrainStep

ERRORS = ()  # in addition to those of TensorFlow


def make_train_loop(
    state: State,
    config: Config,
    strategy: tf.distribute.Strategy,
    graph: keras.Model | None = None,
    fuse_from: int = FUSE_FROM_VALUES,
):
    """Make the function that trains for some steps without coming back to the host.

    Args:
        state: The state to train, created in the strategy's scope.
        config: The config of the run or of its current phase.
        strategy: The strategy that places the state.
        graph: A model that lends its layers to the state's weights, for another image size, other drop rates or with
            frozen layers (see `step`). Defaults to the state's own model.
        fuse_from: On a CPU, layers are fused for tensors of at least this many values.

    Returns:
        A `tf.function` of an iterator of per-replica batches (images uint8 [B, H, W, C], labels [B, ...]) and a
        number of steps, int32 scalar. It returns float32 [2]: the loss, weight decay included, and the metric of
        `losses.compute_metric`, averaged over steps and replicas.

    Raises:
        UserError: If the strategy cannot have the config's `train.batch_norm_group`.
    """
    graph = make_training_graph(graph or state.model, config, strategy, fuse_from)
    step = TrainStep(state.model, graph, config, state.extras, state.teacher, state.class_weights)
    replica_step = ReplicaStep(step, state, config, strategy)

    @tf.function(autograph=False)
    def loop(iterator: Any, steps: tf.Tensor) -> tf.Tensor:
        def train() -> Any:
            return strategy.reduce("MEAN", strategy.run(replica_step, args=next(iterator)), axis=None)

        return add_up(steps, tf.zeros([2]), train) / tf.cast(steps, tf.float32)

    return loop


class ReplicaStep:
    """One replica's part of a training step: gradients of its images, then the update of the state.

    Call it in a replica context with images uint8 [B, H, W, C] and labels [B, ...]. It returns the metrics of
    `TrainStep.compute_loss`.
    """

    def __init__(self, step: TrainStep, state: State, config: Config, strategy: tf.distribute.Strategy):
        self._step, self._state = step, state
        self._replicas = replica_count(strategy)
        self._batch_size = config.train.batch_size // self._replicas
        self._seed, self._parts = config.train.seed, config.train.accumulate
        # XLA cannot compile a function that waits for other replicas.
        is_alone = batch_norm_group_size(config, strategy) == 1
        if is_alone and should_jit(config.train.jit_compile, strategy):
            self._differentiate = tf.function(self._differentiate, autograph=False, jit_compile=True)

    def __call__(self, images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Train on one replica's images and return their metrics."""
        if images.shape[0] is None:  # The iterators of several workers do not know it.
            images, labels = (tf.ensure_shape(x, [self._batch_size, *x.shape[1:]]) for x in (images, labels))
        # The values now: a cast would keep a reference to the variable, which the optimizer increments.
        number = tf.convert_to_tensor(self._state.optimizer.iterations.value)
        weights = read_values(self._step.trainable)
        gradients, statistics, metrics = self._accumulate(number, weights, images, labels)
        self._update(number, weights, gradients, statistics)
        return metrics

    def _differentiate(self, weights, inputs, seed, images, labels):
        """Return gradients, new statistics and metrics of some images."""
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss, statistics, metrics = self._step.compute_loss(weights, inputs, seed, images, labels)
            share = loss / self._replicas  # Gradients are summed over replicas.
        return tape.gradient(share, weights), statistics, metrics

    def _accumulate(self, number, weights, images, labels):
        """Return the means of `_differentiate` over the parts of a batch, each treated like a replica's batch."""
        inputs = dict(zip(self._step.inputs, read_values(self._step.inputs.values()), strict=True))
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int64)
        first = replica * images.shape[0]

        def differentiate(part, images, labels):
            # Randomness follows from seed, step and the position in the batch, so a resumed run repeats it.
            seed = random.make_seed(self._seed, number, first + part * images.shape[0])
            return self._differentiate(weights, inputs, seed, images, labels)

        if self._parts == 1:
            return differentiate(0, images, labels)

        def add(sums, part):
            return tf.nest.map_structure(tf.add, sums, differentiate(*part))

        parts = (tf.reshape(x, [self._parts, -1, *x.shape[1:]]) for x in (images, labels))
        zeros = [tf.zeros_like(w) for w in weights], [tf.zeros(v.shape) for v in self._step.statistics], tf.zeros([2])
        # One after the other, so that they take the memory of one.
        sums = tf.foldl(add, (tf.range(self._parts, dtype=tf.int64), *parts), zeros, parallel_iterations=1)
        return tf.nest.map_structure(lambda total: total / self._parts, sums)

    def _update(self, number, weights, gradients, statistics):
        """Update weights, statistics and EMA."""
        trainable, moving, context = self._step.trainable, self._step.statistics, tf.distribute.get_replica_context()
        # Clipping needs the gradient of the whole batch, so the sum is made here and not by the optimizer.
        gradients = self._step.clip(context.all_reduce("SUM", gradients), weights)
        self._state.optimizer.apply(gradients, trainable)
        if self._replicas > 1 and moving:
            # Each replica has seen its own images. Their mean, in a single reduction, keeps all replicas equal.
            joined = context.all_reduce("MEAN", tf.concat(statistics, axis=0))
            statistics = tf.split(joined, [math.prod(v.shape) for v in moving])
        for variable, value in zip(moving, statistics, strict=True):
            variable.assign(value)
        if self._state.ema:
            paths = [v.path for v in (*trainable, *moving)]
            new = dict(zip(paths, [*read_values(trainable), *statistics], strict=True))
            model = self._state.model
            groups = model.trainable_variables, batch_norm_statistics(model)
            self._state.ema.update(number, *([new.get(v.path) for v in group] for group in groups))


def make_classifiers(state: State, strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Return {"raw": ..., "ema": ...}: the functions from images to logits of a state's weights and of their EMA.

    Each takes images float32 [B, H, W, C], pixels in [0, 255], and returns logits [B, classes]. Call it in a replica of
    the strategy. Without an EMA there is only "raw". If a phase of the run trains for int8, they compute as if in int8.
    """
    if state.limits:
        inference = QuantizedInference(state.model, state.limits)
    else:
        inference = Inference(state.model, device_type(strategy))
    if not state.ema:
        return {"raw": inference}
    weights = [*state.model.trainable_variables, *batch_norm_statistics(state.model)]
    averages = [*state.ema.trainable, *state.ema.statistics]
    return {"raw": inference, "ema": inference.with_values(dict(zip(map(id, weights), averages, strict=True)))}


def make_state_evaluator(
    state: State, source: Source, config: Config, strategy: tf.distribute.Strategy
) -> Callable[[], dict[str, dict[str, Any]]]:
    """Return the function that evaluates a state's weights and their EMA in one pass over the images.

    It returns {"raw": ..., "ema": ...}, as `make_joint_evaluator` with the classifiers of `make_classifiers`.
    """
    variables = evaluated_variables(state)
    return make_joint_evaluator(make_classifiers(state, strategy), source, config, strategy, variables=variables)


def evaluated_variables(state: State) -> list[keras.Variable]:
    """Return the variables that the functions of `make_classifiers` read."""
    averages = [*state.ema.trainable, *state.ema.statistics] if state.ema else []
    return [*state.model.trainable_variables, *batch_norm_statistics(state.model), *averages, *state.limits]

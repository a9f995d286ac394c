"""The graph that a training step computes: a copy of a model with the layers that training needs.

Dropout draws its masks by an image's position in the whole batch, so that a run is the same on any number of replicas.
Batch norm may use the mean and variance of several replicas' images. On a CPU, the layers that take most of the time
are those of `fused_layers`. The model itself stays plain Keras. `step` explains how a graph and a model work together.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.auxiliary_norms import AuxiliaryNetwork
from efficientnet_tf.models.from_config import TARGETS, build_from_config, precision_scope
from efficientnet_tf.models.quantized import QuantizedNetwork
from efficientnet_tf.ops import random
from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.strategy import device_type, on_host, replica_count, should_jit
from efficientnet_tf.training.remat import RecomputingNetwork
from efficientnet_tf.training.teacher import with_features

if TYPE_CHECKING:
    import tensorflow as tf


def build_phase_graph(
    phase_config: Config, config: Config, model: keras.Model, strategy: tf.distribute.Strategy
) -> keras.Model:
    """Return the model whose layers a phase trains through.

    Another image size, other drop rates or frozen layers need a graph of their own. A frozen body must compute what the
    stored network computes, so none of its branches are dropped.

    Args:
        phase_config: The config of the phase.
        config: The config of the run, for which `model` was built.
        model: The model that owns the variables.
        strategy: Decides the precision.

    Returns:
        The model itself if its own layers are the right ones, else a new one.
    """
    freeze = phase_config.train.freeze
    if phase_config == config and freeze == "none":
        return model
    with on_host(), precision_scope(phase_config, strategy):
        graph = build_from_config(phase_config, model.output_shape[-1])
    freeze_layers(graph, freeze)
    return model if graph.get_config() == model.get_config() else graph


def freeze_layers(model: keras.Model, freeze: str) -> None:
    """Set which layers of a model are trained.

    A frozen part must compute what the stored network computes, so none of its branches are dropped.

    Args:
        model: A model of this package. Rates of its dropout layers can be changed.
        freeze: "none"; "batch_norm" for all batch-norm layers, which then use their stored statistics; "stage4" for the
            stem and the stages up to this one; or "body" for everything but the classifier.
    """
    for layer in model.layers:
        if freeze == "batch_norm":
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
            continue
        layer.trainable = not _is_frozen(layer.name, freeze)
        if isinstance(layer, keras.layers.Dropout) and not layer.trainable:
            layer.rate = 0.0


def _is_frozen(name: str, freeze: str) -> bool:
    """Return whether a layer belongs to the part of a network that is frozen as a whole."""
    if freeze == "body":
        return name not in ("top_dropout", "predictions", TARGETS)
    if not freeze.startswith("stage") or name.startswith("top_"):
        return False
    block = re.match(r"block(\d+)", name)
    if block:
        return int(block[1]) <= int(freeze.removeprefix("stage"))
    return name not in ("avg_pool", "predictions", TARGETS)


def batch_norm_group_size(config: Config, strategy: tf.distribute.Strategy) -> int:
    """Return how many replicas share batch norm's statistics: `train.batch_norm_group` as a number.

    Returns:
        A divisor of the number of replicas.

    Raises:
        UserError: If groups do not divide the replicas, or are combined with XLA or accumulation.

    Source: official code, `TpuBatchNormalization`, for "auto".
    """
    asked, replicas = config.train.batch_norm_group, replica_count(strategy)
    if asked == "auto":
        group = 1 if replicas <= 8 else max(8, replicas // 8)
    else:
        group = replicas if asked == "all" else asked
    if replicas % group:
        divisors = [str(n) for n in range(1, replicas + 1) if replicas % n == 0]
        raise UserError(
            f"train.batch_norm_group={asked} does not divide {replicas} replicas into equal groups. Use "
            f"{', '.join(divisors)}."
        )
    if group > 1 and config.train.accumulate > 1 and not uses_jax():
        raise UserError(
            f"train.batch_norm_group={asked} shares batch norm between {group} replicas, which does not support "
            f"gradient accumulation (train.accumulate={config.train.accumulate}). Set one of them to 1."
        )
    if group > 1 and config.train.jit_compile == "on" and not uses_jax():
        raise UserError(
            f"train.batch_norm_group={asked} shares batch norm between {group} replicas, which train.jit_compile=on "
            "cannot compile. Set train.jit_compile=auto."
        )
    return group


def make_training_graph(
    model: keras.Model, config: Config, strategy: tf.distribute.Strategy, fuse_from: int | None = None
) -> keras.Model | QuantizedNetwork | RecomputingNetwork | AuxiliaryNetwork:
    """Copy a model for training.

    Args:
        model: The model whose layers to copy.
        config: The config of the run or of its current phase.
        strategy: Where the copy is called.
        fuse_from: On a CPU, layers are fused for tensors of at least this many values. Defaults to
            `fused_layers.FUSE_FROM_VALUES`.

    Returns:
        A model with the same layer and variable names, to be called in a replica with seeds of `ops.random`. With
        `train.teacher_features`, it also returns the features that the classifier sees, [B, features]. Its own
        variables are in the host's memory and only lend their names. The model itself if no layer would differ. Or a
        network that calls such a copy in another way, if `train.quantize` or `train.remat` asks for it.

    Raises:
        UserError: If the strategy cannot have the config's `train.batch_norm_group`.
    """
    if config.train.quantize != "none":
        return QuantizedNetwork(model, learns=config.train.quantize == "int8")
    graph: Any = _copy_layers(model, config, strategy, fuse_from)
    with on_host():
        if config.train.remat and graph is model:
            graph = keras.models.clone_model(model)
        if config.train.teacher_features:
            graph = with_features(graph)
        if config.train.remat:
            graph = RecomputingNetwork(graph)
    return AuxiliaryNetwork(graph, model) if config.train.adversarial_steps else graph


def _copy_layers(model, config, strategy, fuse_from):
    """Return a copy of a model with the layers that training needs, or the model itself if none would differ."""
    group = batch_norm_group_size(config, strategy)
    replacements, fusible = {keras.layers.Dropout: PositionalDropout}, {}
    if group > 1 or uses_jax():
        replacements[keras.layers.BatchNormalization] = TrainingBatchNormalization
    if uses_jax():
        from efficientnet_tf.models import jax_layers

        if device_type(strategy) == "GPU":
            replacements[keras.layers.Conv2D] = jax_layers.FastConv2D
        if device_type(strategy) == "CPU":
            replacements[keras.layers.DepthwiseConv2D] = jax_layers.FastDepthwiseConv2D
    # XLA fuses by itself. Other devices have not been measured.
    elif device_type(strategy) == "CPU" and not should_jit(config.train.jit_compile, strategy):
        from efficientnet_tf.training.fused_layers import (
            FUSE_FROM_VALUES,
            FastConv2D,
            FastDepthwiseConv2D,
            FusedLayers,
            find_fusible,
        )

        fuse_from = FUSE_FROM_VALUES if fuse_from is None else fuse_from
        replacements |= {keras.layers.Conv2D: FastConv2D, keras.layers.DepthwiseConv2D: FastDepthwiseConv2D}
        fusible = {} if group > 1 else {layer.name: layers for layers in find_fusible(model) for layer in layers}
    if not fusible and not any(type(layer) in replacements for layer in model.layers):
        return model

    def copy(layer):
        new = replacements.get(type(layer), type(layer)).from_config(layer.get_config())
        if layer.name in fusible and layer.weights:
            new.build(layer.input.shape)  # Here, so that the variables keep their paths.
        if isinstance(new, TrainingBatchNormalization):
            new.group, new.groups = group, replica_count(strategy) // group
        return new

    waiting = {}

    def call(layer, inputs, *more, **settings):
        if layer.name not in fusible:
            return layer(inputs, *more, **settings)
        waiting[layer.name] = layer
        names = [member.name for member in fusible[layer.name]]
        if layer.name != names[-1]:
            return inputs  # The last layer of the list calls all of them.
        return FusedLayers([waiting.pop(name) for name in names], fuse_from)(keras.tree.flatten(inputs)[0])

    with on_host():
        return keras.models.clone_model(model, clone_function=copy, call_function=call)


class PositionalDropout(keras.layers.Layer):
    """Keras's dropout, except that an image's mask follows from the image's position in the batch.

    Its seed is a variable, which the training step replaces by a seed of `ops.random`.
    """

    def __init__(self, rate, noise_shape=None, seed=None, **options):
        super().__init__(**options)
        self.rate, self.noise_shape = rate, noise_shape
        if rate:
            self._seed = self.add_weight(
                name="seed", shape=random.SEED_SHAPE, dtype=random.SEED_DTYPE, initializer="zeros", trainable=False
            )

    def call(self, inputs, training=False):
        """Drop values in training."""
        if not training or not self.rate:
            return inputs
        sides = zip(self.noise_shape or inputs.shape, inputs.shape, strict=True)
        shape = [whole if side is None else side for side, whole in sides]
        numbers = random.uniform(ops.convert_to_tensor(self._seed), shape[0], math.prod(shape[1:]))
        scale = ops.where(numbers < self.rate, 0.0, 1 / (1 - self.rate))
        return inputs * ops.cast(ops.reshape(scale, shape), inputs.dtype)


class TrainingBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm with the moments of a group of replicas, and with fewer passes over memory with JAX.

    Attributes:
        group: Number of replicas in a group.
        groups: Number of groups.

    Source: official code, `TpuBatchNormalization`: Var[x] = E[x^2] - E[x]^2 of the replicas' moments.
    Deviates from Keras's `synchronized`, which has no groups and reduces three times per layer.
    """

    group = groups = 1

    def _moments(self, inputs, mask):
        mean, variance = self._own_moments(inputs, mask)
        if self.group == 1:
            return mean, variance
        moments = self._average(ops.stack([mean, variance + mean**2]))
        return moments[0], ops.maximum(moments[1] - moments[0] ** 2, 0.0)

    def _own_moments(self, inputs, mask):
        if not uses_jax():
            return super()._moments(inputs, mask)
        from efficientnet_tf.models.jax_layers import moments

        return moments(inputs, ops.convert_to_tensor(self.moving_mean))

    def _average(self, moments):
        """Return the mean over the replicas of the group."""
        if uses_jax():
            from efficientnet_tf.runtime.jax_strategy import average_in_group

            return average_in_group(moments, self.group)
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        own = context.replica_id_in_sync_group // self.group
        # Only a TPU's strategy reduces within groups. Elsewhere each group has a row of its own in a common sum.
        row = tf.one_hot(own, self.groups)[:, None, None] / self.group
        return tf.gather(context.all_reduce("SUM", row * moments), own)

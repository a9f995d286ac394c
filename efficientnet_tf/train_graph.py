"""The graph that training takes: a model's own, with layers in it that know of replicas. The model itself stays plain.

Dropout draws by an image's place in the whole batch, so that a run is the same on any number of replicas; batch norm
may take its mean and variance over the images of several; and on a processor the layers that take most of the time are
those of `fused`.
"""

import math

import keras
import tensorflow as tf

from efficientnet_tf import distribute, draws, fused
from efficientnet_tf.config import UserError


def group_size(config, strategy):
    """Return how many replicas share batch norm's statistics: `train.batch_norm_group` as a number.

    Args:
        config: config.Config.
        strategy: tf.distribute.Strategy.

    Returns:
        int >= 1, a divisor of the number of replicas.

    Raises:
        UserError: for groups that do not divide the replicas, or that go with neither XLA nor accumulation.

    Source: official code, `TpuBatchNormalization`, for "auto".
    """
    asked, replicas = config.train.batch_norm_group, distribute.replica_count(strategy)
    if asked == "auto":
        group = 1 if replicas <= 8 else max(8, replicas // 8)
    else:
        group = replicas if asked == "all" else asked
    if replicas % group:
        raise UserError(
            f"train.batch_norm_group={asked}: groups of {group} do not divide {replicas} replicas: give a divisor"
        )
    if group > 1 and config.train.accumulate > 1:
        raise UserError(
            f"train.batch_norm_group={asked} makes {group} replicas meet, which train.accumulate="
            f"{config.train.accumulate} cannot: set one of them to 1"
        )
    if group > 1 and config.train.jit_compile == "on":
        raise UserError(
            f"train.batch_norm_group={asked} makes {group} replicas meet, which train.jit_compile=on cannot compile: "
            "set it to auto"
        )
    return group


def make(model, config, strategy):
    """Copy a model for training; the model itself where nothing in it would be another layer.

    Args:
        model: keras.Model.
        config: config.Config.
        strategy: tf.distribute.Strategy.

    Returns:
        A keras.Model with the same names, to be called in a replica, whose seeds are those of `draws`; its variables,
        in the host's memory, lend theirs alone.

    Raises:
        UserError: for a `train.batch_norm_group` that the strategy cannot have.
    """
    group = group_size(config, strategy)
    others, activated = {keras.layers.Dropout: _Dropout}, set()
    # XLA fuses by itself; other devices have not been measured.
    if distribute.device_type(strategy) == "CPU" and not distribute.should_jit(config.train.jit_compile, strategy):
        others |= {keras.layers.BatchNormalization: _BatchNormalization, keras.layers.DepthwiseConv2D: _DepthwiseConv2D}
        activated = _activated(model) if group == 1 else set()
    if group > 1:
        others[keras.layers.BatchNormalization] = _SharedBatchNormalization
    if not any(type(layer) in others for layer in model.layers):
        return model

    def copy(layer):
        settings = layer.get_config()
        if layer.name in activated and isinstance(layer, keras.layers.Activation):
            settings["activation"] = "linear"
        new = others.get(type(layer), type(layer)).from_config(settings)
        if isinstance(new, _SharedBatchNormalization):
            new.group, new.groups = group, distribute.replica_count(strategy) // group
        elif isinstance(new, _BatchNormalization):
            new.swish = layer.name in activated
        return new

    with distribute.on_host():
        return keras.models.clone_model(model, clone_function=copy)


def _activated(model):
    """Return the names of batch norms that train and of the swish behind each."""
    names = set()
    for layer in model.layers:
        if isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.silu:
            before = layer.input._keras_history.operation
            if isinstance(before, keras.layers.BatchNormalization) and before.trainable and len(layer.input.shape) == 4:
                names |= {before.name, layer.name}
    return names


class _Dropout(keras.layers.Dropout):
    """Keras's dropout, but that an image's mask follows from the image's place in the batch."""

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        sides = zip(self.noise_shape or inputs.shape, inputs.shape, strict=True)
        shape = [whole if side is None else side for side, whole in sides]
        numbers = draws.uniform(self.seed_generator.next(), shape[0], math.prod(shape[1:]))
        scale = tf.where(numbers < self.rate, 0.0, 1 / (1 - self.rate))
        return inputs * tf.cast(tf.reshape(scale, shape), inputs.dtype)


class _BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm, and the swish behind it, by `fused`."""

    swish = False

    def call(self, inputs, training=None, mask=None):
        if not training or not self.trainable or len(inputs.shape) != 4:
            outputs = super().call(inputs, training=training, mask=mask)
            return keras.activations.silu(outputs) if self.swish else outputs
        gamma, beta = tf.cast(self.gamma, tf.float32), tf.cast(self.beta, tf.float32)
        outputs, mean, variance = fused.batch_norm(inputs, gamma, beta, self.epsilon, self.swish)
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + new * (1 - self.momentum))
        return outputs


class _DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras's, by `fused`."""

    def call(self, inputs):
        if self.padding != "same":
            return super().call(inputs)
        return fused.depthwise_conv(inputs, tf.cast(self.kernel, inputs.dtype), self.strides[0])


class _SharedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch norm with the moments of a group.

    Source: official code, `TpuBatchNormalization`: Var[x] = E[x^2] - E[x]^2 of the replicas' moments.
    Deviates from Keras's `synchronized`: that has no groups, and reduces three times a layer.
    """

    def _moments(self, inputs, mask):
        mean, variance = super()._moments(inputs, mask)
        context = tf.distribute.get_replica_context()
        own = context.replica_id_in_sync_group // self.group
        # No strategy but the TPU's reduces within groups: each group has a row of its own in what all of them sum up.
        row = tf.one_hot(own, self.groups)[:, None, None] / self.group
        moments = context.all_reduce("SUM", row * tf.stack([mean, variance + mean**2]))
        mean, square = tf.unstack(tf.gather(moments, own))
        return mean, tf.maximum(square - mean**2, 0.0)

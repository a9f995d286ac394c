"""The graph that training takes: a model's own, with layers in it that know of replicas. The model itself stays plain.

Dropout draws by an image's place in the whole batch, so that a run is the same on any number of replicas; batch norm
may take its mean and variance over the images of several.
"""

import math

import keras
import tensorflow as tf

from efficientnet_tf import distribute, draws
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


def make(model, group, strategy):
    """Copy a model for training; the model itself where nothing in it would be another layer.

    Args:
        model: keras.Model.
        group: int >= 1, as of `group_size`; replicas i * group ... (i + 1) * group - 1 belong together.
        strategy: tf.distribute.Strategy.

    Returns:
        A keras.Model with the same names, to be called in a replica, whose seeds are those of `draws`; its variables,
        in the host's memory, lend theirs alone.
    """
    others = {keras.layers.Dropout: _Dropout}
    if group > 1:
        others[keras.layers.BatchNormalization] = _SharedBatchNormalization
    if not any(type(layer) in others for layer in model.layers):
        return model

    def copy(layer):
        new = others.get(type(layer), type(layer)).from_config(layer.get_config())
        if isinstance(new, _SharedBatchNormalization):
            new.group, new.groups = group, distribute.replica_count(strategy) // group
        return new

    with distribute.on_host():
        return keras.models.clone_model(model, clone_function=copy)


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

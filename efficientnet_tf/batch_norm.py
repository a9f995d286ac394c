"""Batch norm over the images of several replicas: the graph that training takes then; the model itself stays plain."""

import keras
import tensorflow as tf

from efficientnet_tf import distribute
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
    asked, replicas = config.train.batch_norm_group, strategy.num_replicas_in_sync
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


def share(model, group, strategy):
    """Copy a model for training: its batch norms take mean and variance over the images of a group of replicas.

    Args:
        model: keras.Model.
        group: int > 1; replicas i * group ... (i + 1) * group - 1 belong together.
        strategy: tf.distribute.Strategy.

    Returns:
        A keras.Model with the same names, to be called in a replica; its variables, in the host's memory, lend theirs
        alone.
    """

    def copy(layer):
        if not isinstance(layer, keras.layers.BatchNormalization):
            return layer.from_config(layer.get_config())
        shared = _SharedBatchNormalization.from_config(layer.get_config())
        shared.group, shared.groups = group, strategy.num_replicas_in_sync // group
        return shared

    with distribute.on_host():
        return keras.models.clone_model(model, clone_function=copy)


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

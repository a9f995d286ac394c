"""Exponential moving average (EMA) of a model's weights and batch-norm statistics."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from efficientnet_tf.models.variables import batch_norm_statistics


class ModelEMA:
    """Exponential moving average of a model's weights and batch-norm statistics.

    Attributes:
        trainable: The averages of `model.trainable_variables`, list of keras.Variable.
        statistics: The averages of `batch_norm_statistics(model)`, list of keras.Variable.

    Source: official code, `ema_vars` and `tf.train.ExponentialMovingAverage` with `num_updates`.
    Deviates from Keras's `use_ema`, which has neither the ramp of the decay nor the statistics.
    """

    def __init__(self, model: keras.Model, decay: float):
        self.decay = decay
        self.trainable = [self._copy(v) for v in model.trainable_variables]
        self.statistics = [self._copy(v) for v in batch_norm_statistics(model)]

    @staticmethod
    def _copy(variable):
        return keras.Variable(variable, trainable=False, dtype=variable.dtype, autocast=False, name="average")

    def update(self, step: Any, trainable: Sequence[Any], statistics: Sequence[Any]) -> None:
        """Move every average toward the given values.

        Args:
            step: Number of updates done before, int scalar. The decay is min(decay, (1 + step) / (10 + step)).
            trainable: Tensors or variables in the order of the attribute. None leaves that average as it is, which is
                used for frozen weights.
            statistics: The same for the statistics.
        """
        step = ops.cast(step, "float32")
        share = 1 - ops.minimum(self.decay, (1 + step) / (10 + step))
        for average, value in zip(self.trainable + self.statistics, [*trainable, *statistics], strict=True):
            if value is not None:
                _subtract(average, share, ops.convert_to_tensor(average) - ops.convert_to_tensor(value))


def _subtract(variable, factor, delta):
    """Subtract factor * delta from a variable."""
    if keras.backend.backend() != "tensorflow":
        variable.assign(variable - factor * delta)
        return
    import tensorflow as tf

    from efficientnet_tf.runtime.variables import resource_handle

    tf.raw_ops.ResourceApplyGradientDescent(var=resource_handle(variable), alpha=factor, delta=delta)  # in place

"""TODO docstring (from optim)."""

import keras
import tensorflow as tf
from keras import ops

from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.runtime.variables import resource_handle


class ModelEMA:
    """Exponential moving average of a model's weights and batch-norm statistics.

    Attributes:
        trainable: list of keras.Variable, the averages of `model.trainable_variables`.
        statistics: list of keras.Variable, the averages of `statistics(model)`.

    Source: official code, `ema_vars` and tf.train.ExponentialMovingAverage with `num_updates`; the ramp counts the
    updates done before.
    Deviates from Keras's `use_ema`: that has neither the ramp nor the statistics.
    """

    def __init__(self, model, decay):
        self.decay = decay
        self.trainable = [self._copy(v) for v in model.trainable_variables]
        self.statistics = [self._copy(v) for v in batch_norm_statistics(model)]

    @staticmethod
    def _copy(variable):
        return keras.Variable(variable, trainable=False, dtype=variable.dtype, autocast=False, name="average")

    def update(self, step, trainable, statistics):
        """Move every average towards the given values, lists in the order of the attributes.

        Args:
            step: int scalar, updates done before; the decay is min(decay, (1 + step)/(10 + step)).
            trainable: list of tensors or variables; None for one that is frozen, whose average stays, too.
            statistics: the same.
        """
        step = ops.cast(step, "float32")
        share = 1 - ops.minimum(self.decay, (1 + step) / (10 + step))
        for average, value in zip(self.trainable + self.statistics, [*trainable, *statistics], strict=True):
            if value is not None:
                delta = ops.convert_to_tensor(average) - ops.convert_to_tensor(value)
                tf.raw_ops.ResourceApplyGradientDescent(var=resource_handle(average), alpha=share, delta=delta)

"""What moves the weights and what follows them: schedule, optimiser, weight decay, moving average.

The only place where epochs become steps.
"""

import keras
import tensorflow as tf
from keras import ops

from efficientnet_tf.models.variables import decayed_variables
from efficientnet_tf.runtime.variables import resource_handle
from efficientnet_tf.training.schedule import create_schedule


@keras.saving.register_keras_serializable("efficientnet_tf")
class RMSprop(keras.optimizers.RMSprop):
    """Keras's RMSprop with the mean square starting at one, as TensorFlow 1's did.

    From zero, as Keras has it, the first steps are up to 1/sqrt(1 - rho) times as long and more.

    Source: official code, `build_optimizer`; epsilon is inside the root and the rate inside the momentum, as in Keras.
    """

    def build(self, variables):
        """Create the slots, once."""
        if self.built:
            return
        super().build(variables)
        for slot in self._velocities:
            slot.assign(ops.ones_like(slot))

    def update_step(self, gradient, variable, learning_rate):
        """Update a variable and its slots, by TensorFlow's one operation for what Keras does in fifteen."""
        if not self.momentum:
            return super().update_step(gradient, variable, learning_rate)
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyRMSProp(
            var=resource_handle(variable),
            ms=resource_handle(self._velocities[index]),
            mom=resource_handle(self._momentums[index]),
            lr=ops.cast(learning_rate, variable.dtype),
            rho=self.rho,
            momentum=self.momentum,
            epsilon=self.epsilon,
            grad=ops.cast(gradient, variable.dtype),
        )


_DECOUPLED = {"adamw": keras.optimizers.AdamW, "lamb": keras.optimizers.Lamb}


def create_optimizer(config, model, size):
    """Make the optimiser of a run and its slots.

    Args:
        config: config.Config.
        model: keras.Model.
        size: int, number of training images.

    Returns:
        A built keras.optimizers.Optimizer. AdamW and LAMB decay weights by themselves; for the others the decay is a
        term of the loss (`weight_penalty`).

    Source: You et al., "Large batch optimization for deep learning", ICLR 2020, for LAMB.
    Deviates there, with Keras: the decay stands beside the update, not within what a layer's trust ratio scales.
    """
    settings, rate = config.optimizer, create_schedule(config, size)
    if settings.name == "rmsprop":
        optimizer = RMSprop(rate, rho=settings.rho, momentum=settings.momentum, epsilon=settings.epsilon)
    elif settings.name == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=settings.momentum)
    else:
        optimizer = _DECOUPLED[settings.name](
            rate,
            weight_decay=settings.weight_decay,
            beta_1=settings.momentum,
            beta_2=settings.rho,
            epsilon=settings.epsilon,
        )
        decayed = {id(v) for v in decayed_variables(model)}
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if id(v) not in decayed])
    optimizer.build(model.trainable_variables)
    return optimizer


def weight_penalty(config, values):
    """Return weight_decay/2 * sum(v^2) over the given values: the decay that the loss carries.

    Source: paper, section 5.2; official code: 1e-5 times `tf.nn.l2_loss`, batch norm excluded.
    """
    if config.optimizer.name in _DECOUPLED or not config.optimizer.weight_decay:
        return 0.0
    return config.optimizer.weight_decay * tf.add_n([tf.nn.l2_loss(v) for v in values])

"""What moves the weights and what follows them: schedule, optimiser, weight decay, moving average.

The only place where epochs become steps.
"""

import math
from dataclasses import dataclass

import keras
import tensorflow as tf
from keras import ops

from efficientnet_tf.config import Config


def steps_per_epoch(config, size):
    """Return steps a pass over `size` training images takes: a float, for batches run on across epochs."""
    return size / config.train.batch_size


def to_steps(epochs, config, size):
    """Turn a duration in epochs into whole steps, at least one."""
    return max(1, round(epochs * steps_per_epoch(config, size)))


@dataclass(frozen=True)
class Phase:
    """A part of a run: a config that holds from one step to another (`train.phases`)."""

    config: Config
    first_step: int
    end_step: int
    first_epoch: float
    first_position: int  # images that the run has used before

    @property
    def batch_size(self):
        """Images a step."""
        return self.config.train.batch_size


def plan_phases(config, size):
    """Return the phases of a run over `size` training images, a list of Phase; without `train.phases` it is one."""
    phases, step, epoch, position = [], 0, 0.0, 0
    for until, part in config.phases:
        end = step + to_steps(until - epoch, part, size)
        phases.append(Phase(part, step, end, epoch, position))
        position += (end - step) * part.train.batch_size
        step, epoch = end, until
    return phases


@keras.saving.register_keras_serializable("efficientnet_tf")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate at a step: linear warm-up from 0, then one of three shapes.

    Args:
        name: "exponential" (staircase), "cosine" (to 0 at `total_epochs`) or "constant".
        phases: list of [first step, epoch at it, steps an epoch, rate that the warm-up leads to], in order. The shape
            runs over all of them; each scales it by a rate of its own.
        warmup_epochs: float >= 0.
        total_epochs: float > 0, length of the run.
        decay_epochs: float > 0, exponential: length of a stair.
        decay_rate: float in (0, 1], exponential: factor a stair.

    Source: official code, `build_learning_rate`: stairs are counted from step 0, not from the warm-up's end.
    Deviates: the warm-up may end within a step; the official code cuts its length to whole ones.
    """

    def __init__(self, name, phases, warmup_epochs, total_epochs, decay_epochs, decay_rate):
        self.name = name
        self.phases = phases
        self.warmup_epochs = warmup_epochs
        self.total_epochs = total_epochs
        self.decay_epochs = decay_epochs
        self.decay_rate = decay_rate

    def __call__(self, step):
        """Return the rate, float32 scalar, at int scalar `step`."""
        step = ops.cast(step, "float32")
        rate = self._in_phase(step, *self.phases[0])
        for phase in self.phases[1:]:
            rate = ops.where(step >= phase[0], self._in_phase(step, *phase), rate)
        return rate

    def _in_phase(self, step, first_step, first_epoch, steps_per_epoch, peak):
        # Epochs are scaled to steps, not the other way round: at the edge of a stair the numbers are whole.
        step = step - first_step + first_epoch * steps_per_epoch
        warmup_steps, total_steps = self.warmup_epochs * steps_per_epoch, self.total_epochs * steps_per_epoch
        if self.name == "exponential":
            rate = peak * ops.power(self.decay_rate, ops.floor(step / (self.decay_epochs * steps_per_epoch)))
        elif self.name == "cosine":
            progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
            rate = peak * 0.5 * (1 + ops.cos(math.pi * ops.clip(progress, 0.0, 1.0)))
        else:
            rate = ops.full((), peak, "float32")
        return ops.where(step < warmup_steps, peak * step / warmup_steps, rate) if warmup_steps else rate

    def get_config(self):
        """Return the constructor's arguments."""
        return dict(vars(self))


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
            var=_handle(variable),
            ms=_handle(self._velocities[index]),
            mom=_handle(self._momentums[index]),
            lr=ops.cast(learning_rate, variable.dtype),
            rho=self.rho,
            momentum=self.momentum,
            epsilon=self.epsilon,
            grad=ops.cast(gradient, variable.dtype),
        )


def _handle(variable):
    """Return what TensorFlow's operations take for a variable, Keras's or its own, here the replica's copy of it."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle


def decayed_variables(model):
    """Return the trainable variables that weight decay acts on: all but batch norm's scale and offset."""
    return [v for v in model.trainable_variables if v.name not in ("gamma", "beta")]


def statistics(model):
    """Return batch norm's moving means and variances: what is learnt without a gradient."""
    return [v for v in model.non_trainable_variables if v.name in ("moving_mean", "moving_variance")]


def moving_statistics(model):
    """Return the statistics that training moves: a frozen batch norm leaves its own as they are."""
    still = {id(v) for layer in model.layers if not layer.trainable for v in layer.variables}
    return [v for v in statistics(model) if id(v) not in still]


def learning_rate(config, size):
    """Make the schedule of a run over `size` training images; a phase's peak grows with its batch."""
    schedule = config.schedule
    return LearningRate(
        schedule.name,
        phases=[
            [
                phase.first_step,
                phase.first_epoch,
                steps_per_epoch(phase.config, size),
                phase.config.optimizer.learning_rate * phase.batch_size / 256,
            ]
            for phase in plan_phases(config, size)
        ],
        warmup_epochs=schedule.warmup_epochs,
        total_epochs=config.train.epochs,
        decay_epochs=schedule.decay_epochs,
        decay_rate=schedule.decay_rate,
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
    settings, rate = config.optimizer, learning_rate(config, size)
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


class MovingAverage:
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
        self.statistics = [self._copy(v) for v in statistics(model)]

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
                tf.raw_ops.ResourceApplyGradientDescent(var=_handle(average), alpha=share, delta=delta)

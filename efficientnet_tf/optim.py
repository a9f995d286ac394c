"""What moves the weights and what follows them: schedule, optimiser, weight decay, moving average.

The only place where epochs become steps.
"""

import math

import keras
from keras import ops


def steps_per_epoch(config, size):
    """Return steps a pass over `size` training images takes: a float, for batches run on across epochs."""
    return size / config.train.batch_size


def to_steps(epochs, config, size):
    """Turn a duration in epochs into whole steps, at least one."""
    return max(1, round(epochs * steps_per_epoch(config, size)))


@keras.saving.register_keras_serializable("efficientnet_tf")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate at a step: linear warm-up from 0, then one of three shapes.

    Args:
        name: "exponential" (staircase), "cosine" (to 0 at `total_steps`) or "constant".
        peak: float > 0, the rate that the warm-up leads to.
        warmup_steps: float >= 0.
        total_steps: int >= 1, length of the run.
        decay_steps: float > 0, exponential: length of a stair, in steps.
        decay_rate: float in (0, 1], exponential: factor a stair.

    Source: official code, `build_learning_rate`: stairs are counted from step 0, not from the warm-up's end.
    """

    def __init__(self, name, peak, warmup_steps, total_steps, decay_steps, decay_rate):
        self.name = name
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.decay_steps = decay_steps
        self.decay_rate = decay_rate

    def __call__(self, step):
        """Return the rate, float32 scalar, at int scalar `step`."""
        step = ops.cast(step, "float32")
        if self.name == "exponential":
            rate = self.peak * ops.power(self.decay_rate, ops.floor(step / self.decay_steps))
        elif self.name == "cosine":
            progress = (step - self.warmup_steps) / max(1.0, self.total_steps - self.warmup_steps)
            rate = self.peak * 0.5 * (1 + ops.cos(math.pi * ops.clip(progress, 0.0, 1.0)))
        else:
            rate = ops.full((), self.peak, "float32")
        if self.warmup_steps:
            rate = ops.where(step < self.warmup_steps, self.peak * step / self.warmup_steps, rate)
        return rate

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


def decayed_variables(model):
    """Return the trainable variables that weight decay acts on: all but batch norm's scale and offset."""
    return [v for v in model.trainable_variables if v.name not in ("gamma", "beta")]


def statistics(model):
    """Return batch norm's moving means and variances: what is learnt without a gradient."""
    return [v for v in model.non_trainable_variables if v.name in ("moving_mean", "moving_variance")]


def learning_rate(config, size):
    """Make the schedule of a run over `size` training images; the peak grows with the batch."""
    schedule = config.schedule
    return LearningRate(
        schedule.name,
        peak=config.optimizer.learning_rate * config.train.batch_size / 256,
        warmup_steps=schedule.warmup_epochs * steps_per_epoch(config, size),
        total_steps=to_steps(config.train.epochs, config, size),
        decay_steps=schedule.decay_epochs * steps_per_epoch(config, size),
        decay_rate=schedule.decay_rate,
    )


def create_optimizer(config, model, size):
    """Make the optimiser of a run and its slots.

    Args:
        config: config.Config.
        model: keras.Model.
        size: int, number of training images.

    Returns:
        A built keras.optimizers.Optimizer. Of the three, AdamW alone decays weights by itself; for the others the
        decay is a term of the loss (`weight_penalty`).
    """
    settings, rate = config.optimizer, learning_rate(config, size)
    if settings.name == "rmsprop":
        optimizer = RMSprop(rate, rho=settings.rho, momentum=settings.momentum, epsilon=settings.epsilon)
    elif settings.name == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=settings.momentum)
    else:
        optimizer = keras.optimizers.AdamW(
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
    if config.optimizer.name == "adamw" or not config.optimizer.weight_decay:
        return 0.0
    return config.optimizer.weight_decay / 2 * sum(ops.sum(ops.square(v)) for v in values)


class MovingAverage:
    """Exponential moving average of a model's weights and batch-norm statistics.

    Attributes:
        trainable: list of keras.Variable, the averages of `model.trainable_variables`.
        statistics: list of keras.Variable, the averages of `statistics(model)`.

    Source: official code, `ema_vars` and tf.train.ExponentialMovingAverage with `num_updates`.
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
            trainable: list of tensors or variables.
            statistics: list of tensors or variables.
        """
        step = ops.cast(step, "float32")
        keep = ops.minimum(self.decay, (1 + step) / (10 + step))
        for average, value in zip(self.trainable + self.statistics, [*trainable, *statistics], strict=True):
            average.assign(average + (1 - keep) * (ops.convert_to_tensor(value) - average))

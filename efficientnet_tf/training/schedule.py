"""TODO docstring (from optim)."""

import math
from dataclasses import dataclass

import keras
from keras import ops

from efficientnet_tf.config.load import Config


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


def create_schedule(config, size):
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

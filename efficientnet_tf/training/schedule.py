"""The learning-rate schedule, the phases of a run, and the only place where epochs become steps."""

import math
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from efficientnet_tf.config.schema import Config


def steps_per_epoch(config: Config, size: int) -> float:
    """Return how many steps a pass over `size` training images takes. It is a float: batches run across epochs."""
    return size / config.train.batch_size


def scale_rate(rate: float, config: Config) -> float:
    """Return a learning rate for the batches of a config.

    Args:
        rate: The rate for batches of 256 images, which is the unit of `optimizer.learning_rate`.
        config: The config of a run or of a phase.

    Source: official code, `build_learning_rate`, for `optimizer.rate_scaling=linear`. You et al., "Large batch
    optimization for deep learning", ICLR 2020, for `sqrt`.
    """
    if config.optimizer.rate_scaling == "sqrt":
        return rate * math.sqrt(config.train.batch_size / 256)
    return rate * config.train.batch_size / 256


def to_steps(epochs: float, config: Config, size: int) -> int:
    """Convert a duration in epochs of `size` images into whole steps, at least one."""
    return max(1, round(epochs * steps_per_epoch(config, size)))


class Rhythm:
    """The steps at which something happens every few epochs, for example an evaluation.

    Multiples of the period are rounded to the closest whole step.

    Args:
        epochs: The period in epochs, > 0. It lasts at least one step.
        config: The config of the run.
        size: Number of training images.
    """

    def __init__(self, epochs: float, config: Config, size: int):
        self._period = max(1.0, epochs * steps_per_epoch(config, size))

    def is_due(self, step: int) -> bool:
        """Return whether it happens after this number of steps."""
        return step > 0 and self.next_after(step - 1) == step

    def next_after(self, step: int) -> int:
        """Return the first step after this one at which it happens."""
        count = max(1, math.floor(step / self._period))
        while round(count * self._period) <= step:
            count += 1
        return round(count * self._period)


@dataclass(frozen=True)
class Phase:
    """A part of a run, with a config of its own (`train.phases`).

    Attributes:
        config: The config that holds in this phase.
        first_step: The run's step at which the phase begins.
        end_step: The step after its last one.
        first_epoch: The epoch at which it begins, float.
        first_position: How many images the run has used before.
    """

    config: Config
    first_step: int
    end_step: int
    first_epoch: float
    first_position: int

    @property
    def batch_size(self) -> int:
        """Images per step."""
        return self.config.train.batch_size


def plan_phases(config: Config, size: int) -> list[Phase]:
    """Return the phases of a run over `size` training images. A config without `train.phases` has one."""
    phases, step, epoch, position = [], 0, 0.0, 0
    for until, part in config.phases:
        end = step + to_steps(until - epoch, part, size)
        phases.append(Phase(part, step, end, epoch, position))
        position += (end - step) * part.train.batch_size
        step, epoch = end, until
    return phases


@keras.saving.register_keras_serializable("efficientnet_tf")
class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate with linear warmup from zero and one of three shapes.

    Args:
        name: "exponential" (in steps down), "cosine" (to zero at `total_epochs`) or "constant".
        phases: One list per phase: its first step, the epoch at that step, steps per epoch, and the peak rate. The
            shape covers all phases. Each phase scales it by its own peak rate.
        warmup_epochs: Length of the warmup, float >= 0.
        total_epochs: Length of the run, float > 0.
        decay_epochs: For "exponential": epochs between two decay steps, float > 0.
        decay_rate: For "exponential": factor of each decay step, float in (0, 1].

    Source: official code, `build_learning_rate`. Decay steps are counted from step 0, not from the end of the warmup.
    Deviates: the warmup may end within a step. The official code truncates its length to whole steps.
    """

    def __init__(
        self,
        name: str,
        phases: list[list[float]],
        warmup_epochs: float,
        total_epochs: float,
        decay_epochs: float,
        decay_rate: float,
    ):
        self.name = name
        self.phases = phases
        self.warmup_epochs = warmup_epochs
        self.total_epochs = total_epochs
        self.decay_epochs = decay_epochs
        self.decay_rate = decay_rate

    def __call__(self, step: Any) -> Any:
        """Return the learning rate, float32 scalar, at an int scalar `step`."""
        step = ops.cast(step, "float32")
        rate = self._in_phase(step, *self.phases[0])
        for phase in self.phases[1:]:
            rate = ops.where(step >= phase[0], self._in_phase(step, *phase), rate)
        return rate

    def _in_phase(self, step, first_step, first_epoch, steps_per_epoch, peak):
        # Epochs are scaled to steps, not the other way round, so that the numbers at a decay step are whole.
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

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return dict(vars(self))


def create_schedule(config: Config, size: int) -> LearningRate:
    """Create the schedule of a run over `size` training images. The peak rate of a phase is scaled by its batch.

    Source: official code, `build_learning_rate`.
    """
    schedule = config.schedule
    return LearningRate(
        schedule.name,
        phases=[
            [
                phase.first_step,
                phase.first_epoch,
                steps_per_epoch(phase.config, size),
                scale_rate(phase.config.optimizer.learning_rate, phase.config),
            ]
            for phase in plan_phases(config, size)
        ],
        warmup_epochs=schedule.warmup_epochs,
        total_epochs=config.train.epochs,
        decay_epochs=schedule.decay_epochs,
        decay_rate=schedule.decay_rate,
    )

"""The learning-rate range test: train for a few hundred steps with a growing rate, and see what the loss does."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import find_reason
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import Failures, check_batches, train_dataset
from efficientnet_tf.runtime.strategy import create_strategy, distribute_batches
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.training.graph import build_phase_graph
from efficientnet_tf.training.losses import measure_targets
from efficientnet_tf.training.phase_loop import choose_engine
from efficientnet_tf.training.schedule import Phase, plan_phases, scale_rate
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.transfer import read_initial_weights

STEPS, FEWEST_STEPS = 300, 20
WINDOWS = 20  # The loss is smoothed over this fraction of the test.
DIVERGED = 4.0  # times the lowest smoothed loss
LEAST_DROP = 0.02  # of the loss, as a fraction, for a suggestion
CAUTION = 10.0  # The suggested rate is this much below that of the lowest loss.


def find_learning_rate(
    config: Config,
    strategy: tf.distribute.Strategy | None = None,
    steps: int = STEPS,
    lowest: float = 1e-6,
    highest: float = 10.0,
) -> dict[str, Any]:
    """Train with a growing learning rate, and suggest a rate for the run: the learning-rate range test.

    The rate grows by the same factor at each step, until the loss diverges or `highest` is reached. Network, initial
    weights, images, batch size, loss and optimizer are those of the run. If the run has phases, they are those of the
    first phase that uses `optimizer.learning_rate` itself. The trained weights are thrown away, and no file is written.

    Args:
        config: What to train and how, from `load_config`. Its learning rate and its schedule are not used.
        strategy: Where to train. Defaults to all GPUs, or the CPU if there is none.
        steps: Most steps to train, int >= 20.
        lowest: Learning rate of the first step, in the unit of `optimizer.learning_rate`: for batches of 256 images.
        highest: Learning rate of the last step, in the same unit, greater than `lowest`.

    Returns:
        {"suggestion": ..., "diverged": ..., "learning_rates": [...], "losses": [...], "smoothed": [...]}. The lists
        have one float per step, as far as the loss is finite. "smoothed" is an exponential moving average of the losses
        over a twentieth of the test. "diverged" says whether it has exceeded four times its minimum, or the loss was
        not finite. "suggestion" is a tenth of the rate at which it is lowest, in the unit of `optimizer.learning_rate`,
        or None if it has fallen by less than 2 %.

    Raises:
        UserError: If data, weights or device do not fit the config, or an argument is out of range.

    Source: Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
    Deviates: There, the rate grows linearly and the range is read off the accuracy. Here it grows exponentially and the
    rate is read off the training loss, as has become common.

    Example:
        >>> from efficientnet_tf import find_learning_rate, load_config
        >>> config = load_config("b0", "digits", ["model.width=0.25", "model.depth=0.25"])
        >>> found = find_learning_rate(config, steps=60)
        >>> 1e-6 < found["suggestion"] < 10
        True
    """
    if steps < FEWEST_STEPS:
        raise UserError(f"steps={steps} is too few for a range test. Use at least {FEWEST_STEPS}.")
    if not 0 < lowest < highest:
        raise UserError(f"lowest={lowest:g} must be above 0 and below highest={highest:g}.")
    test = RangeTest(override_config(config, ["train.ema_decay=0"]), strategy or create_strategy(), steps)
    return test.run([lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)])


class RangeTest:
    """A range test that is ready to run.

    Args:
        config: The config of the run.
        strategy: Where to train.
        steps: Number of steps.
    """

    def __init__(self, config: Config, strategy: tf.distribute.Strategy, steps: int):
        check_batches(config, strategy.num_replicas_in_sync)
        source = open_source(config.data, config.data.train_split, training=True)
        config = measure_targets(config, source)
        self._config, self._steps = config, steps
        initial = read_initial_weights(config, source.class_names).values if config.train.init_from else None
        self._state = create_state(config, len(source.class_names), source.size, strategy, initial, source.labels)
        self._phase = choose_phase(config, source.size)
        self._failures = Failures(source)
        graph = build_phase_graph(self._phase.config, config, self._state.model, strategy)
        self._engine = choose_engine()
        self._loop = self._engine.make_train_loop(self._state, self._phase.config, strategy, graph)
        self._batches = iter(
            distribute_batches(
                strategy,
                lambda context: train_dataset(source, self._phase.config, self._failures, 0, context),
            )
        )

    def run(self, rates: Sequence[float]) -> dict[str, Any]:
        """Train one step with each rate, and return what `find_learning_rate` returns."""
        peaks = [scale_rate(rate, self._phase.config) for rate in rates]
        self._state.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(
            peaks[0], decay_steps=len(peaks) - 1, decay_rate=peaks[-1] / peaks[0]
        )
        curve = Curve(max(1, self._steps // WINDOWS))
        with ProgressBar(self._steps, "learning-rate range test", "steps") as bar:
            for rate in rates:
                if not curve.add(rate, self._run_step(bar.completed)):
                    break
                bar.set_status(f"rate {rate:.2g}, loss {curve.smoothed[-1]:.3f}")
                bar.advance()
        if not curve.losses:
            raise UserError("The loss of the first step is not finite. Check the images and the weights.")
        return curve.summarize()

    def _run_step(self, number: int) -> float:
        try:
            loss, _ = np.asarray(self._loop(self._batches, tf.constant(1))).tolist()
        except (tf.errors.OpError, *self._engine.ERRORS) as error:
            self._failures.check(self._config.data.max_bad_fraction)
            raise UserError(f"The range test failed after step {number}: {find_reason(error)}") from error
        self._failures.check(self._config.data.max_bad_fraction)
        return loss


def choose_phase(config: Config, size: int) -> Phase:
    """Return the first phase of a run that uses `optimizer.learning_rate` itself, or the first one if none does."""
    settings = config.train.phases
    own = [index for index, phase in enumerate(settings) if "optimizer.learning_rate" not in phase.set]
    return plan_phases(config, size)[own[0] if own else 0]


class Curve:
    """The loss over the learning rate.

    Args:
        window: Number of steps over which the loss is smoothed, at least 1.

    Attributes:
        rates: The rate of each step.
        losses: The loss of each step before its update.
        smoothed: The exponential moving average of the losses up to each step, without the bias toward zero.
        diverged: Whether the smoothed loss has risen far above its minimum, or the loss was not finite.
    """

    def __init__(self, window: int):
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.diverged = False
        self._window, self._sum, self._weight = window, 0.0, 0.0

    def add(self, rate: float, loss: float) -> bool:
        """Add a step, and return whether the test goes on. A loss that is not finite is left out and ends it."""
        if not math.isfinite(loss):
            self.diverged = True
            return False
        share = 1 / self._window
        self._sum += share * (loss - self._sum)
        self._weight += share * (1 - self._weight)
        self.rates.append(rate)
        self.losses.append(loss)
        self.smoothed.append(self._sum / self._weight)
        self.diverged = len(self.losses) > self._window and self.smoothed[-1] > DIVERGED * min(self.smoothed)
        return not self.diverged

    def summarize(self) -> dict[str, Any]:
        """Return the curve and the suggested rate, as `find_learning_rate` does."""
        return {
            "suggestion": self._suggest(),
            "diverged": self.diverged,
            "learning_rates": self.rates,
            "losses": self.losses,
            "smoothed": self.smoothed,
        }

    def _suggest(self) -> float | None:
        if len(self.smoothed) <= self._window:
            return None
        start = self.smoothed[self._window - 1]  # The first rates are too low to change the loss.
        lowest = min(self.smoothed)
        if lowest > (1 - LEAST_DROP) * start:
            return None
        return self.rates[self.smoothed.index(lowest)] / CAUTION

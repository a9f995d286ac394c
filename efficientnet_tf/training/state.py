"""What training changes, and how it begins. It needs Keras, but no TensorFlow."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.from_config import build_from_config, precision_scope
from efficientnet_tf.models.selection import Selection
from efficientnet_tf.training.ema import ModelEMA
from efficientnet_tf.training.optimizers import create_optimizer


@dataclass
class State:
    """What training changes: a model's weights, the optimizer with its slot variables and step, and the EMA.

    Also which evaluation was the best so far, because a resumed run must know it as an undisturbed one does.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    ema: ModelEMA | None
    selection: Selection = Selection()

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.optimizer.iterations.numpy())


def create_state(
    config: Config,
    classes: int,
    size: int,
    strategy: Any,
    initial: dict[str, np.ndarray] | None = None,
) -> State:
    """Create the model, the optimizer and the EMA on the strategy's devices.

    Args:
        config: The config of the run. `train.seed` decides the initial weights.
        classes: Number of classes, int >= 2.
        size: Number of training images. The schedule counts in epochs.
        strategy: Where to create the variables.
        initial: {path of a variable: value}, weights to start from, for the EMA too. The others are random.

    Returns:
        The state before the first step.
    """
    with strategy.scope(), precision_scope(config, strategy):
        keras.utils.set_random_seed(config.train.seed)
        model = build_from_config(config, classes)
        variables = {v.path: v for v in model.variables}
        for name, value in (initial or {}).items():
            variables[name].assign(value)
        optimizer = create_optimizer(config, model, size)
        ema = ModelEMA(model, config.train.ema_decay) if config.train.ema_decay else None
        return State(model, optimizer, ema, Selection(config.eval.best))

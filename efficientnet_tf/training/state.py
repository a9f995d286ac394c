"""What training changes, and how it begins. It needs Keras, but no TensorFlow."""

from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.auxiliary_norms import create_auxiliary_norms
from efficientnet_tf.models.from_config import build_from_config, precision_scope
from efficientnet_tf.models.quantized import QuantizedNetwork
from efficientnet_tf.models.selection import Selection
from efficientnet_tf.runtime.strategy import device_type
from efficientnet_tf.training.ema import ModelEMA
from efficientnet_tf.training.losses import weigh_classes
from efficientnet_tf.training.optimizers import create_optimizer
from efficientnet_tf.training.teacher import Teacher, load_teacher


@dataclass
class State:
    """What training changes: a model's weights, the optimizer with its slot variables and step, and the EMA.

    Quantization-aware training also changes the limits of the tensors, see `models.quantized`. Training with
    adversarial images also changes the auxiliary batch norms, see `models.auxiliary_norms`. The selection says which
    evaluation was the best so far, because a resumed run must know it as an undisturbed one does. The teacher and the
    weights of the classes, if there are any, do not change.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    ema: ModelEMA | None
    selection: Selection = Selection()
    limits: list[keras.Variable] = field(default_factory=list)
    teacher: Teacher | None = None
    class_weights: list[float] | None = None
    auxiliary: list[keras.Variable] = field(default_factory=list)

    @property
    def extras(self) -> list[keras.Variable]:
        """What only training uses besides the weights: limits and auxiliary batch norms."""
        return [*self.limits, *self.auxiliary]

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
    labels: np.ndarray | None = None,
) -> State:
    """Create the model, the optimizer and the EMA on the strategy's devices.

    Args:
        config: The config of the run. `train.seed` decides the initial weights.
        classes: Number of classes, int >= 2.
        size: Number of training images. The schedule counts in epochs.
        strategy: Where to create the variables.
        initial: {path of a variable: value}, weights to start from, for the EMA too. The others are random.
        labels: Class of each training image, if it is known, for `train.class_weights`.

    Returns:
        The state before the first step.
    """
    class_weights = weigh_classes(config, classes, labels)
    with strategy.scope(), precision_scope(config, strategy):
        keras.utils.set_random_seed(config.train.seed)
        model = build_from_config(config, classes)
        variables = {v.path: v for v in model.variables}
        for name, value in (initial or {}).items():
            variables[name].assign(value)
        norms = create_auxiliary_norms(model) if config.train.adversarial_steps else []
        scales_and_offsets = [v for norm in norms for v in norm.trainable_variables]
        optimizer = create_optimizer(config, model, size, scales_and_offsets)
        ema = ModelEMA(model, config.train.ema_decay) if config.train.ema_decay else None
        limits, teacher = _create_limits(config, model), load_teacher(config, device_type(strategy))
        auxiliary = [v for norm in norms for v in norm.variables]
        return State(model, optimizer, ema, Selection(config.eval.best), limits, teacher, class_weights, auxiliary)


def _create_limits(config: Config, model: keras.Model) -> list[keras.Variable]:
    """Create the limits of quantization-aware training, if a phase of the run needs them."""
    if not config.trains_for_int8:
        return []
    first = config.phases[0][1].train.quantize
    if first != "none" and config.train.init_from is None:
        raise UserError(
            f"train.quantize={first} keeps the statistics of batch norm, so it needs trained weights. Set "
            "train.init_from=PATH, or train.phases with a phase before that has train.quantize=none."
        )
    if model.compute_dtype != "float32":
        raise UserError("train.quantize=int8 needs train.precision=float32, in which int8 is simulated.")
    return QuantizedNetwork(model).limits

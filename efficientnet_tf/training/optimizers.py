"""Optimizers and weight decay."""

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.auxiliary_norms import name_original
from efficientnet_tf.models.variables import decayed_variables
from efficientnet_tf.training.schedule import create_schedule


@keras.saving.register_keras_serializable("efficientnet_tf")
class RMSprop(keras.optimizers.RMSprop):
    """Keras's RMSprop, except that the mean square starts at one, as in TensorFlow 1.

    Keras starts it at zero, which makes the first steps up to 1/sqrt(1 - rho) times larger.

    Source: official code, `build_optimizer`. Epsilon is inside the root and the rate inside the momentum, as in Keras.
    """

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the optimizer slot variables, once."""
        if self.built:
            return
        super().build(variables)
        for slot in self._velocities:
            slot.assign(ops.ones(slot.shape, slot.dtype))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable and its slots. With TensorFlow, this is one operation, where Keras takes fifteen."""
        if not self.momentum or keras.backend.backend() != "tensorflow":
            return super().update_step(gradient, variable, learning_rate)
        import tensorflow as tf

        from efficientnet_tf.runtime.variables import resource_handle

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


def _take_sums(kind: type[keras.optimizers.Optimizer], scales: Sequence[float]) -> Any:
    """Return an optimizer class that does not sum gradients over replicas. `ReplicaStep` sums and clips them.

    Args:
        kind: The class of the optimizer.
        scales: Factor of the learning rate of each variable, in the order of the variables. Empty if all are 1.
    """
    methods: dict[str, Any] = {"_all_reduce_sum_gradients": lambda self, pairs: pairs}

    def update_step(self, gradient, variable, learning_rate):
        scale = scales[self._get_variable_index(variable)]
        kind.update_step(self, gradient, variable, learning_rate * ops.cast(scale, learning_rate.dtype))

    def apply_weight_decay(self, variables):
        whole = self.weight_decay
        if whole is None:
            return
        groups = {}
        for variable in variables:
            groups.setdefault(scales[self._get_variable_index(variable)], []).append(variable)
        for scale, group in groups.items():
            self.weight_decay = whole * scale
            kind._apply_weight_decay(self, group)
        self.weight_decay = whole

    if scales:
        methods |= {"update_step": update_step, "_apply_weight_decay": apply_weight_decay}
    return type(kind.__name__, (kind,), methods)


def find_rate_scales(model: keras.Model, layer_decay: float, more: Sequence[keras.Variable] = ()) -> list[float]:
    """Return the factor of the learning rate of each trainable variable, in the order of the variables.

    The classifier has 1. Each part before it, which is the layers between the blocks and the classifier, each block,
    and the stem, has `layer_decay` times the factor of the part that follows.

    Args:
        model: A model of this package.
        layer_decay: From 0 to 1.
        more: Trainable variables of auxiliary batch norms. They follow those of the model.

    Source: Clark et al., "ELECTRA", 2020, section 3.1, "layerwise learning-rate decay"; Bao et al., "BEiT", 2021.
    """
    parts = {}
    for layer in model.layers:
        parts.setdefault(_name_part(layer.name), len(parts))
    depth = {name: position for position, name in enumerate(name for name in parts if name != "predictions")}
    return [
        1.0 if name == "predictions" else layer_decay ** (len(depth) - depth[name])
        for name in (_name_part(name_original(v.path).split("/")[0]) for v in (*model.trainable_variables, *more))
    ]


def _name_part(layer):
    """Return which part of a network a layer belongs to: "stem", "block3b", "top" or "predictions"."""
    block = re.match(r"block\d+[a-z]*", layer)
    if block or layer == "predictions":
        return block[0] if block else layer
    return "top" if layer.startswith("top") else "stem"


_DECOUPLED = {"adamw": keras.optimizers.AdamW, "lamb": keras.optimizers.Lamb}


def create_optimizer(
    config: Config, model: keras.Model, size: int, more: Sequence[keras.Variable] = ()
) -> keras.optimizers.Optimizer:
    """Create the optimizer of a run and its slot variables.

    Args:
        config: The config of the run.
        model: The model to train.
        size: Number of training images. The schedule counts in epochs.
        more: Scales and offsets of auxiliary batch norms, which are trained as well.

    Returns:
        A built optimizer. It takes gradients that are already summed over the replicas. AdamW and LAMB decay weights by
        themselves. For the others, weight decay is a term of the loss: see `weight_penalty`.

    Source: You et al., "Large batch optimization for deep learning", ICLR 2020, for LAMB.
    Deviates there, like Keras: the decay is added to the update instead of being scaled by a layer's trust ratio.
    """
    settings, rate, trainable = config.optimizer, create_schedule(config, size), [*model.trainable_variables, *more]
    scales = [] if settings.layer_decay == 1 else find_rate_scales(model, settings.layer_decay, more)
    if settings.name == "rmsprop":
        optimizer = _take_sums(RMSprop, scales)(
            rate, rho=settings.rho, momentum=settings.momentum, epsilon=settings.epsilon
        )
    elif settings.name == "sgd":
        optimizer = _take_sums(keras.optimizers.SGD, scales)(rate, momentum=settings.momentum)
    else:
        optimizer = _take_sums(_DECOUPLED[settings.name], scales)(
            rate,
            weight_decay=settings.weight_decay,
            beta_1=settings.momentum,
            beta_2=settings.rho,
            epsilon=settings.epsilon,
        )
        decayed = {id(v) for v in decayed_variables(model, settings.decay_bias)}
        optimizer.exclude_from_weight_decay([v for v in trainable if id(v) not in decayed])
    optimizer.build(trainable)
    return optimizer


def weight_penalty(config: Config, values: Sequence[Any]) -> Any:
    """Return weight_decay / 2 * sum(v^2) over the given values: the weight decay that is part of the loss.

    Source: paper, section 5.2; official code: 1e-5 times `tf.nn.l2_loss`, without batch norm.
    """
    if config.optimizer.name in _DECOUPLED or not config.optimizer.weight_decay:
        return 0.0
    return config.optimizer.weight_decay * sum(ops.sum(ops.square(v)) / 2 for v in values)

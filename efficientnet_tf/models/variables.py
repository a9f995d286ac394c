"""Selects the variables of a model that are decayed, averaged, or updated without a gradient."""

from typing import Any

import keras


def decayed_variables(model: keras.Model, decay_bias: bool = True) -> list[keras.Variable]:
    """Return the trainable variables that weight decay applies to.

    These are all but the scale and offset of batch norm and, unless `decay_bias`, the biases.
    """
    spared = ("gamma", "beta") if decay_bias else ("gamma", "beta", "bias")
    return [v for v in model.trainable_variables if v.name not in spared]


def batch_norm_statistics(model: keras.Model) -> list[keras.Variable]:
    """Return the moving means and variances of batch norm, which training updates without a gradient."""
    return [v for v in model.non_trainable_variables if v.name in ("moving_mean", "moving_variance")]


def trained_statistics(model: Any) -> list[keras.Variable]:
    """Return what training updates without a gradient: statistics of batch norm, or limits of a `QuantizedNetwork`.

    An `AuxiliaryNetwork` has the statistics of both its sets of batch norms. A frozen layer keeps its own.
    """
    if not isinstance(model, keras.Model):
        return model.statistics
    frozen = {id(v) for layer in model.layers if not layer.trainable for v in layer.variables}
    return [v for v in batch_norm_statistics(model) if id(v) not in frozen]

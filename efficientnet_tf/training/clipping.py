"""Gradient clipping, as pure functions of gradients and weights, which are tensors of Keras's backend."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from efficientnet_tf.config.schema import OptimizerConfig

ops: Any = keras.ops  # whose types are too loose
AGC_EPSILON = 1e-3  # Smaller norms of weights count as this, so that weights that start at zero can grow.


def clip_gradients(
    gradients: Sequence[Any],
    weights: Sequence[Any],
    axes: Sequence[Sequence[int] | None],
    settings: OptimizerConfig,
) -> list[Any]:
    """Clip the gradients of a step by their norm, by their values, or adaptively, as the config says.

    Args:
        gradients: The gradients of the mean loss of the whole batch, float32.
        weights: The values of the weights before the step, in the same order and with the same shapes.
        axes: For adaptive clipping: the axes that make up a unit of each weight, as in `find_unit_axes`. None for
            weights that it leaves alone.
        settings: `clip_norm`, `clip_value` and `agc`. At most one of them is not 0.

    Returns:
        The clipped gradients. If the norm for `clip_norm` is not finite, all of them are NaN.

    Source: Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013, for `clip_norm`. Brock
    et al., "High-performance large-scale image recognition without normalization", ICML 2021, section 4, for `agc`.
    """
    if settings.clip_norm:
        norm = ops.sqrt(sum(ops.sum(ops.square(gradient)) for gradient in gradients))
        scale = ops.where(ops.isfinite(norm), settings.clip_norm / ops.maximum(norm, settings.clip_norm), np.nan)
        return [gradient * scale for gradient in gradients]
    if settings.clip_value:
        return [ops.clip(gradient, -settings.clip_value, settings.clip_value) for gradient in gradients]
    if settings.agc:
        return [_clip_adaptively(*each, settings.agc) for each in zip(gradients, weights, axes, strict=True)]
    return list(gradients)


def find_unit_axes(model: keras.Model) -> Mapping[str, tuple[int, ...]]:
    """Return {path of a variable: axes} for all trainable variables but those of the last layer, the classifier.

    The norm over these axes is that of a unit, which adaptive clipping scales as a whole: the weights of one output
    channel. A bias, scale or offset is one unit.

    Source: Brock et al. 2021, section 4, and their code.
    Deviates: A kernel of 1x1 pixels with one input channel is clipped by channels. Their code takes it for a vector.
    """
    axes = {}
    for layer in model.layers[:-1]:
        # A depthwise kernel is [height, width, channels, 1]. Other kernels end with their output channels.
        kept = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else 1
        for variable in layer.trainable_variables:
            rank = len(variable.shape)
            axes[variable.path] = tuple(range(rank if rank == 1 else rank - kept))
    return axes


def _clip_adaptively(gradient, weight, axes, factor):
    """Scale the gradient of each unit down to at most `factor` times the norm of its weights."""
    if axes is None:
        return gradient
    largest = factor * ops.maximum(_norm(weight, axes), AGC_EPSILON)
    return gradient * (largest / ops.maximum(_norm(gradient, axes), largest))


def _norm(values, axes):
    return ops.sqrt(ops.sum(ops.square(values), axes, keepdims=True))

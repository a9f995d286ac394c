"""The layer that normalizes pixels inside a model: `(pixels - mean) / std`.

It is a Normalization layer of Keras whose numbers are a part of its config, so that clones and saved models cannot lose
them. It has no variables. The models of `keras.applications` have a layer of the same class with three variables. If
Keras itself loads their weights into a model of this package, or into a copy of one, it finds the three variables
without a place to put them, and fails. It would otherwise load all other weights and keep the wrong normalization.
"""

from typing import Any

import keras
import numpy as np
from keras import layers

from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.models.data_format import channel_axis

LAYER = "normalization"


def normalize_pixels(x: keras.KerasTensor, spec: ModelSpec) -> keras.KerasTensor:
    """Normalize pixels with the mean and the standard deviation of a variant.

    The layer computes in float32, whatever the precision of the other layers.

    Args:
        x: Pixels [B, H, W, C] in [0, 255].
        spec: The variant. If its `mean` does not have C values, the average of its values serves every channel.

    Returns:
        Normalized pixels [B, H, W, C], float32.
    """
    axis = channel_axis()
    offset, variance = _offset_and_variance(spec.mean, spec.std, x.shape[axis])
    return layers.Normalization(axis, mean=offset, variance=variance, invert=True, dtype="float32", name=LAYER)(x)


def set_normalization(model: keras.Model, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Change the mean and the standard deviation of a built model.

    Args:
        model: A model of `build_model`.
        mean: One value per channel, in pixels of [0, 255]. If their number differs from the number of channels of the
            images, their average serves every channel.
        std: As `mean`.
    """
    layer: Any = model.get_layer(LAYER)
    shape = layer.input.shape
    if isinstance(layer, layers.Rescaling):  # in a model.keras that was written before this layer changed its class
        rescaling: Any = layer
        rescaling.scale, rescaling.offset = _scale_and_offset(mean, std, shape[-1])
    else:
        layer.input_mean, layer.input_variance = _offset_and_variance(mean, std, shape[layer.axis[0]])
        layer.build(shape)
    # Compiled functions contain the old numbers as constants.
    model.train_function = model.test_function = model.predict_function = None


def get_normalization(model: keras.Model) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation of a model of `build_model`, for pixels in [0, 255]."""
    layer: Any = model.get_layer(LAYER)
    scale = np.sqrt(np.asarray(layer.input_variance, np.float32)).astype(float)
    return (-np.asarray(layer.input_mean) / scale).tolist(), (1 / scale).tolist()


def copy_normalization(source: keras.Model, target: keras.Model) -> None:
    """Give a model of `build_model` the normalization of another one with as many channels."""
    theirs, ours = source.get_layer(LAYER), target.get_layer(LAYER)
    ours.input_mean, ours.input_variance = theirs.input_mean, theirs.input_variance
    ours.build(ours.input.shape)


def _offset_and_variance(mean, std, channels) -> tuple[list[float], list[float]]:
    """Return the arguments of an inverted Normalization layer, which computes `mean + pixels * sqrt(variance)`.

    In float32, the root of a rounded square is the number itself. So the layer computes `pixels * scale + offset` with
    the same bits as a Rescaling layer.
    """
    scale, offset = _scale_and_offset(mean, std, channels)
    return offset, np.square(np.asarray(scale, np.float32)).tolist()


def _scale_and_offset(mean, std, channels) -> tuple[list[float], list[float]]:
    """Return the lists (scale, offset) for which `pixels * scale + offset` is `(pixels - mean) / std`."""
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]

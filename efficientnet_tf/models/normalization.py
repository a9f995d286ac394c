"""The layer that normalizes pixels inside a model: `(pixels - mean) / std`."""

from typing import Any

import keras
from keras import layers

from efficientnet_tf.config.schema import ModelSpec

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
    scale, offset = _scale_and_offset(spec.mean, spec.std, x.shape[-1])
    return layers.Rescaling(scale=scale, offset=offset, dtype="float32", name=LAYER)(x)


def set_normalization(model: keras.Model, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Change the mean and the standard deviation of a built model.

    Args:
        model: A model of `build_model`.
        mean: One value per channel, in pixels of [0, 255]. If their number differs from the number of channels of the
            images, their average serves every channel.
        std: As `mean`.
    """
    layer = model.get_layer(LAYER)
    layer.scale, layer.offset = _scale_and_offset(mean, std, layer.input.shape[-1])
    # Compiled functions contain the old numbers as constants.
    model.train_function = model.test_function = model.predict_function = None


def _scale_and_offset(mean, std, channels) -> tuple[Any, Any]:
    """Return the lists (scale, offset) for which `pixels * scale + offset` is `(pixels - mean) / std`."""
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    return [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]

"""The order of an image's dimensions: [B, H, W, C], or [B, C, H, W] if Keras is set to "channels_first".

The layers of Keras look up `keras.config.image_data_format()` when they are created, and keep it, also in a file. Only
what has no data format of its own, such as an axis or a shape, comes from here.

The commands of this package and the functions behind them compute with channels last, whatever Keras is set to.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras


def is_channels_first() -> bool:
    """Return whether Keras is set to channels first."""
    return keras.config.image_data_format() == "channels_first"


def channel_axis() -> int:
    """Return the axis of the channels in a batch of images: -1, or 1 for channels first."""
    return 1 if is_channels_first() else -1


def image_shape(height: int | None, width: int | None, channels: int) -> tuple[int | None, ...]:
    """Return the shape of an image, in Keras's order."""
    return (channels, height, width) if is_channels_first() else (height, width, channels)


def data_format_of(model: keras.Model) -> str:
    """Return "channels_last" or "channels_first", whichever order the layers of a model work in."""
    layers: Any = model.layers
    return next((layer.data_format for layer in layers if hasattr(layer, "data_format")), "channels_last")


@contextlib.contextmanager
def channels_last_scope() -> Iterator[None]:
    """Create and call models with channels last within the block, or within the function that this decorates."""
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)

"""How an image file becomes the pixels that a network sees in evaluation."""

from collections.abc import Sequence
from typing import NamedTuple


class Preprocessing(NamedTuple):
    """How an image file becomes the pixels that a network sees in evaluation, as in the section `data` of a config.

    Attributes:
        image_size: Side S of the network's input in pixels.
        channels: 1 for gray, 3 for color, or 4 to 16 for other images, which must have as many.
        crop: "center", "squash" or "pad".
        crop_padding: The center crop covers image_size / (image_size + crop_padding) of the shorter side, >= 0. Other
            crops do not use it.
        interpolation: "bicubic" or "bilinear".
        background: Color behind transparent pixels and around a padded image, in [0, 255]: one gray level, or red,
            green and blue.
    """

    image_size: int
    channels: int = 3
    crop: str = "center"
    crop_padding: int = 0
    interpolation: str = "bicubic"
    background: tuple[int, ...] = (255,)


def as_rgb(background: Sequence[int]) -> tuple[int, ...]:
    """Return a background color, one gray level or three levels, as red, green and blue."""
    return tuple(background) * (3 if len(background) == 1 else 1)

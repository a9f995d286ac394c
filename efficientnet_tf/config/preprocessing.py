"""How an image file becomes the pixels that a network sees in evaluation."""

from collections.abc import Sequence
from typing import NamedTuple


class Preprocessing(NamedTuple):
    """How an image file becomes the pixels that a network sees in evaluation, as in the section `data` of a config.

    Attributes:
        image_shape: Height and width of the network's input in pixels.
        channels: 1 for gray, 3 for color, or 4 to 16 for other images, which must have as many.
        crop: "center", "squash" or "pad".
        crop_padding: Pixels, at the size of the network's input, that the center crop leaves out of the height and of
            the width, >= 0. See `windows.center_window`. Other crops do not use it.
        interpolation: "bicubic" or "bilinear".
        background: Color behind transparent pixels and around a padded image, in [0, 255]: one gray level, or red,
            green and blue.
    """

    image_shape: tuple[int, int]
    channels: int = 3
    crop: str = "center"
    crop_padding: int = 0
    interpolation: str = "bicubic"
    background: tuple[int, ...] = (255,)


def as_rgb(background: Sequence[int]) -> tuple[int, ...]:
    """Return a background color, one gray level or three levels, as red, green and blue."""
    return tuple(background) * (3 if len(background) == 1 else 1)

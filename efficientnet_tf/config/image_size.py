"""The size of images in pixels: one number for squares, or height and width."""

from __future__ import annotations

from collections.abc import Sequence

ImageSize = int | tuple[int, int]


def as_shape(size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and the width of a size, which is the side of a square or a pair (height, width)."""
    if isinstance(size, Sequence):
        height, width = size
        return height, width
    return size, size


def as_size(shape: Sequence[int]) -> ImageSize:
    """Return a height and a width as people write them: one number if they are equal, and otherwise both."""
    height, width = shape
    return height if height == width else (height, width)


def format_size(size: int | Sequence[int]) -> str:
    """Return a size as text: "224" for squares, and otherwise height and width, as in "192x320"."""
    return "x".join(map(str, dict.fromkeys(as_shape(size))))

"""Draws heat maps over photos, to show where models see their classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.visualization.figures import Canvas, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, GAP, FONT_SIZE, LINE = 224, 10, 13, 17  # pixels
COLORS = "inferno"  # a color map of matplotlib whose lightness rises evenly, so that no step looks like an edge


class Cell(NamedTuple):
    """The answer of one model for one photo.

    Attributes:
        pixels: The crop that the model saw, [H, W, 1 or 3], in [0, 255].
        heat: Map over the crop, float [h, w].
        class_name: Name of the class that the map explains.
        probability: Probability of the class, in [0, 1].
    """

    pixels: np.ndarray
    heat: np.ndarray
    class_name: str
    probability: float


class Column(NamedTuple):
    """The answers of one model.

    Attributes:
        title: Name of the model.
        description: What the model is, in a few words.
        cells: An answer for each photo.
    """

    title: str
    description: str
    cells: Sequence[Cell]


def draw_heat_map(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return an image in gray with a map over it in color, from the least value of the map to its greatest.

    Args:
        pixels: Image, [H, W, 1 or 3], in [0, 255].
        heat: Map, float [h, w]. If all its values are the same, every place gets the color of the least.

    Returns:
        RGB pixels, uint8 [R, S, 3]: the image with a longer side of 224 pixels.

    Raises:
        UserError: If the map has a value that is not finite.
    """
    from matplotlib import colormaps

    if not np.isfinite(heat).all():
        raise UserError("The heat map has values that are not finite, so the model's weights or features have, too.")

    gray = _resize_photo(pixels) @ np.array([0.299, 0.587, 0.114]) / 255
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    share = np.clip(_resize(scaled[..., None], gray.shape)[..., 0], 0, 1)
    color = colormaps[COLORS](share)[..., :3]
    # Dim the photo, so that a bright sky is not mistaken for heat. Below the heat it stays visible as shades.
    weight = 0.4 + 0.4 * share[..., None]
    gray = gray[..., None]
    mixed = (1 - weight) * 0.7 * gray + weight * color * (0.55 + 0.45 * gray)
    return np.round(255 * mixed).astype(np.uint8)


def _resize(pixels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return pixels with another height and width, float32 [*shape, C]. Bicubic: smooth, but it can overshoot."""
    import tensorflow as tf

    return tf.image.resize(pixels, shape, "bicubic", antialias=True).numpy()


def _resize_photo(pixels: np.ndarray) -> np.ndarray:
    """Return a photo that fits in a cell, uint8 [R, S, 3], of which the longer side is 224."""
    shape = [max(round(SIDE * side / max(pixels.shape[:2])), 1) for side in pixels.shape[:2]]
    resized = np.round(np.clip(_resize(pixels, shape), 0, 255)).astype(np.uint8)
    return np.broadcast_to(resized, [*shape, 3])


def draw_comparison(photos: Mapping[str, np.ndarray], columns: Sequence[Column], note: str) -> Figure:
    """Draw photos and where models see their classes, a row for each photo and a column for each model.

    Args:
        photos: Square photos by path, each [S, S, 3] in [0, 255].
        columns: The answers of each model for the photos, in their order.
        note: Text next to the legend.

    Returns:
        The figure.
    """
    titles = [["photo"], *([*_wrap([column.title]), *_wrap(column.description.split())] for column in columns)]
    rows = [
        _make_row(path, pixels, cells)
        for (path, pixels), *cells in zip(photos.items(), *(column.cells for column in columns), strict=True)
    ]
    heights = [SIDE + LINE * max(len(lines) for _, lines in row) + GAP for row in rows]
    top = GAP + LINE * max(map(len, titles)) + GAP // 2
    canvas = Canvas(GAP + len(titles) * (SIDE + GAP), top + sum(heights) + LINE + 2 * GAP, FONT_SIZE, LINE)
    for column, lines in enumerate(titles):
        _write(canvas, GAP + column * (SIDE + GAP), GAP, lines)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for column, (pixels, lines) in enumerate(row):
            x = GAP + column * (SIDE + GAP)
            down, right = ((SIDE - side) // 2 for side in pixels.shape[:2])
            canvas.draw_image(x + right, y + down, pixels)
            _write(canvas, x, y + SIDE + 1, lines)
        y += height
    _draw_legend(canvas, y + GAP, note)
    return canvas.figure


def _make_row(path: str, photo: np.ndarray, cells: Sequence[Cell]) -> list[tuple[np.ndarray, list[str]]]:
    """Return the pictures of a row and the lines below each."""
    row = [(_resize_photo(photo), _wrap([os.path.basename(path)]))]
    for cell in cells:
        row.append(
            (draw_heat_map(cell.pixels, cell.heat), _wrap([*cell.class_name.split(), f"{cell.probability:.1%}"]))
        )
    return row


def _wrap(words: Sequence[str]) -> list[str]:
    return wrap(words, SIDE, FONT_SIZE)


def _write(canvas: Canvas, x: int, y: int, lines: Sequence[str]) -> None:
    """Write lines of text, the first in black and the others in gray, with the top left corner at (x, y)."""
    canvas.write(x, y, lines[:1], "black")
    canvas.write(x, y + LINE, lines[1:], "dimgray")


def _draw_legend(canvas: Canvas, y: int, note: str) -> None:
    from matplotlib import colormaps

    width = SIDE // 2
    colors = colormaps[COLORS](np.linspace(0, 1, width), bytes=True)[None, :, :3]
    canvas.draw_image(GAP, y + 2, np.repeat(colors, LINE - 4, axis=0))
    canvas.write(2 * GAP + width, y, [f"lowest to highest value of each map, {note}"], "dimgray")

"""Draw grids of images with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from efficientnet_tf.visualization.figures import Canvas, check_size, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP, FONT_SIZE, LINE, MIN_SIDE = 8, 12, 16, 128  # pixels


class Cell(NamedTuple):
    """One image of a grid.

    Attributes:
        pixels: uint8 [H, W, 1 or 3].
        label: The line below the image.
        notes: Words below the label. A word is never broken.
        failed: Whether the image could not be read. Its notes are then red.
    """

    pixels: np.ndarray
    label: str
    notes: Sequence[str] = ()
    failed: bool = False


class Grid(NamedTuple):
    """A titled grid of images. All images have the same size."""

    title: str
    cells: Sequence[Cell]


def draw_grids(grids: Sequence[Grid], rows: int, columns: int) -> Figure:
    """Draw grids of images side by side.

    Args:
        grids: The grids, from left to right. Each has at least one image, and all images have the same size.
        rows: Rows of each grid, >= 1.
        columns: Columns of each grid, >= 1.

    Returns:
        A figure in which every pixel of an image is a square of whole pixels. Small images are enlarged to at least 128
        pixels.
    """
    shape = grids[0].cells[0].pixels.shape[:2]
    check_grids(shape, rows, columns, len(grids))
    scale = _find_scale(shape)
    height, width = (side * scale for side in shape)
    titles = [wrap(grid.title.split(" "), columns * (width + GAP), FONT_SIZE) for grid in grids]
    captions = [[_wrap_caption(cell, width) for cell in grid.cells] for grid in grids]
    top = GAP + LINE * max(map(len, titles)) + GAP
    row_height = height + LINE * max(len(lines) for grid in captions for lines in grid) + GAP
    grid_width = columns * (width + GAP) + 2 * GAP
    canvas = Canvas(len(grids) * grid_width, top + rows * row_height, FONT_SIZE, LINE)
    for index, (grid, title, lines) in enumerate(zip(grids, titles, captions, strict=True)):
        left = index * grid_width + GAP + GAP // 2
        if index:
            canvas.draw_vertical_line(index * grid_width, GAP)
        canvas.write(left, GAP, title, "black")
        for i, (cell, (label, *notes)) in enumerate(zip(grid.cells, lines, strict=True)):
            x, y = left + i % columns * (width + GAP), top + i // columns * row_height
            canvas.draw_image(x, y, cell.pixels, scale)
            canvas.write(x, y + height + 1, [label], "black")
            canvas.write(x, y + height + 1 + LINE, notes, "firebrick" if cell.failed else "dimgray")
    return canvas.figure


def check_grids(shape: Sequence[int], rows: int, columns: int, grids: int = 2) -> None:
    """Raise UserError if grids would be too large to draw, before any image is read.

    Args:
        shape: Height and width of the images in pixels.
        rows: Rows of each grid, >= 1.
        columns: Columns of each grid, >= 1.
        grids: Number of grids.
    """
    height, width = (side * _find_scale(shape) for side in shape)
    check_size(grids * (columns * (width + GAP) + 2 * GAP), rows * (height + LINE + GAP))


def _find_scale(shape):
    return -(-MIN_SIDE // min(shape))  # 1 for all images of at least 128 pixels


def _wrap_caption(cell, width):
    """Return the lines below an image. The first one is the label."""
    return wrap([cell.label], width, FONT_SIZE) + wrap(cell.notes, width, FONT_SIZE)

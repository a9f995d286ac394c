"""Draw grids of images with labels."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.visualization.figures import make_figure, wrap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP, FONT_SIZE, LINE, MIN_SIDE = 8, 12, 16, 128  # pixels


class Cell(NamedTuple):
    """One image of a grid.

    Attributes:
        pixels: uint8 [S, S, 1 or 3].
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
    size = grids[0].cells[0].pixels.shape[0]
    scale = -(-MIN_SIDE // size)  # 1 for all images of at least 128 pixels
    side = size * scale
    titles = [wrap(grid.title.split(" "), columns * (side + GAP), FONT_SIZE) for grid in grids]
    captions = [[_wrap_caption(cell, side) for cell in grid.cells] for grid in grids]
    top = GAP + LINE * max(map(len, titles)) + GAP
    row_height = side + LINE * max(len(lines) for grid in captions for lines in grid) + GAP
    grid_width = columns * (side + GAP) + 2 * GAP
    canvas = _Canvas(len(grids) * grid_width, top + rows * row_height)
    for index, (grid, title, lines) in enumerate(zip(grids, titles, captions, strict=True)):
        left = index * grid_width + GAP + GAP // 2
        if index:
            canvas.draw_vertical_line(index * grid_width, GAP)
        canvas.write(left, GAP, title, "black")
        for i, (cell, (label, *notes)) in enumerate(zip(grid.cells, lines, strict=True)):
            x, y = left + i % columns * (side + GAP), top + i // columns * row_height
            canvas.draw_image(x, y, cell.pixels, scale)
            canvas.write(x, y + side + 1, [label], "black")
            canvas.write(x, y + side + 1 + LINE, notes, "firebrick" if cell.failed else "dimgray")
    return canvas.figure


def _wrap_caption(cell, width):
    """Return the lines below an image. The first one is the label."""
    return wrap([cell.label], width, FONT_SIZE) + wrap(cell.notes, width, FONT_SIZE)


class _Canvas:
    """A figure that is drawn on by pixels, from the top left."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = make_figure(width, height)

    def draw_image(self, x, y, pixels, scale):
        """Draw an image with its top left corner at (x, y), without resampling."""
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).repeat(scale, axis=0).repeat(scale, axis=1)
        self.figure.figimage(pixels, x, self.height - y - pixels.shape[0], origin="upper")

    def write(self, x, y, lines, color):
        """Write lines of text with their top left corner at (x, y)."""
        for i, line in enumerate(lines):
            baseline = y + i * LINE + FONT_SIZE
            place = x / self.width, 1 - baseline / self.height
            self.figure.text(*place, line, color=color, fontsize=FONT_SIZE, va="baseline", parse_math=False)

    def draw_vertical_line(self, x, margin):
        """Draw a light line from the top to the bottom, except for a margin."""
        from matplotlib.lines import Line2D

        places = [margin / self.height, 1 - margin / self.height]
        self.figure.add_artist(Line2D([x / self.width] * 2, places, color="lightgray", linewidth=1))


# ------------------------------------------------------------------ used until every picture is drawn by matplotlib


def require_pillow(who):
    """Check that Pillow is there.

    Args:
        who: str, the command or flag that draws.

    Raises:
        UserError: when it is not.
    """
    try:
        from PIL import Image  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(f"{who} draws with Pillow, which is not installed: pip install pillow") from None


def save_picture(picture, path, flag):
    """Write a PIL.Image.Image, local or gs://, in the format that the name's ending says.

    Args:
        picture: PIL.Image.Image.
        path: str.
        flag: str, the flag that named the path.

    Raises:
        UserError: when the ending names no format, or the file cannot be written.
    """
    from PIL import Image

    encoded = io.BytesIO()
    try:
        suffix = os.path.splitext(path)[1].lower()
        picture.save(encoded, format=Image.registered_extensions().get(suffix, suffix))
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(encoded.getvalue())
    except (KeyError, ValueError):  # which of them depends on Pillow
        raise UserError(f"{flag}={path} cannot be written: the name must end as pictures do, in .png or .jpg") from None
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{flag}={path} cannot be written: {str(error)[:300]}") from None

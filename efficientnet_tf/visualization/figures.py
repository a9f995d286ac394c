"""What all figures need: matplotlib, which is optional, sizes in pixels, text that fits, and the image file."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf.config.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 72  # A point is a pixel, so font sizes and lengths have the same unit.


def require_matplotlib(who: str) -> None:
    """Check that matplotlib is installed.

    Args:
        who: The command or argument that draws, for the message.

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            f"{who} draws with matplotlib, which is not installed. Run pip install 'efficientnet_tf[picture]'."
        ) from None


def make_figure(width: int, height: int) -> Figure:
    """Return an empty white figure.

    Args:
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        A figure of exactly that size, at 72 dots per inch. Font sizes are therefore in pixels, too.
    """
    from matplotlib.figure import Figure

    # The renderer cuts off the fraction of a pixel. A hundredth makes up for the rounding errors of the division.
    return Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, facecolor="white")


class Canvas:
    """A figure on which images and lines of text are placed by pixels, counted from the top left corner.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        font_size: Size of the text in pixels.
        line_height: Distance between lines of text in pixels.
    """

    def __init__(self, width: int, height: int, font_size: int, line_height: int) -> None:
        self.width, self.height = width, height
        self.figure = make_figure(width, height)
        self._font_size, self._line_height = font_size, line_height

    def draw_image(self, x: int, y: int, pixels: np.ndarray, scale: int = 1) -> None:
        """Draw an image with its top left corner at (x, y), without resampling.

        Args:
            x: Pixels from the left.
            y: Pixels from the top.
            pixels: uint8 [H, W, 1 or 3].
            scale: Side of the square that each pixel becomes.
        """
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).repeat(scale, axis=0).repeat(scale, axis=1)
        self.figure.figimage(pixels, x, self.height - y - pixels.shape[0], origin="upper")

    def write(self, x: int, y: int, lines: Sequence[str], color: str) -> None:
        """Write lines of text with their top left corner at (x, y)."""
        for i, line in enumerate(lines):
            baseline = y + i * self._line_height + self._font_size
            place = x / self.width, 1 - baseline / self.height
            self.figure.text(*place, line, color=color, fontsize=self._font_size, va="baseline", parse_math=False)

    def draw_vertical_line(self, x: int, margin: int) -> None:
        """Draw a light line from the top to the bottom, except for a margin."""
        from matplotlib.lines import Line2D

        places = [margin / self.height, 1 - margin / self.height]
        self.figure.add_artist(Line2D([x / self.width] * 2, places, color="lightgray", linewidth=1))


def measure_text(text: str, font_size: float) -> float:
    """Return the width of a text in the default font, in pixels if `font_size` is in pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=font_size), ismath=False)
    return float(width)


def shorten(text: str, width: float, font_size: float) -> str:
    """Return a text that is at most `width` pixels wide, cut off with an ellipsis if necessary."""
    if measure_text(text, font_size) <= width:
        return text
    while text and measure_text(f"{text}...", font_size) > width:
        text = text[:-1]
    return f"{text}..."


def wrap(words: Sequence[str], width: float, font_size: float) -> list[str]:
    """Return lines of words that are at most `width` pixels wide. A word that is too long is cut off."""
    lines: list[str] = []
    for word in words:
        if lines and measure_text(f"{lines[-1]} {word}", font_size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shorten(word, width, font_size))
    return lines


def save_figure(figure: Figure, path: str, argument: str) -> None:
    """Write a figure to an image file, local or gs://.

    Args:
        figure: The figure.
        path: Path of the file. The suffix chooses the format, for example .png, .jpg, .svg or .pdf.
        argument: Name of the argument that gave the path, for error messages.

    Raises:
        UserError: If the suffix is unknown or the file cannot be written.
    """
    import tensorflow as tf

    suffix = os.path.splitext(path)[1].lower().removeprefix(".")
    if suffix not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{argument}={path} cannot be written. Use a name that ends in .png or .jpg.")
    encoded = io.BytesIO()
    figure.savefig(encoded, format=suffix, dpi=figure.dpi)
    try:
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(encoded.getvalue())
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{argument}={path} cannot be written: {str(error)[:300]}") from None

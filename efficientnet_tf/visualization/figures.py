"""What all figures need: matplotlib, which is optional, sizes in pixels, text that fits, and the image file."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

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

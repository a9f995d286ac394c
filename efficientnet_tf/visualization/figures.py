"""What all figures need: matplotlib, which is optional, sizes in pixels, text that fits, and the image file."""

from __future__ import annotations

import bisect
import functools
import io
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import check_output, write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

DPI = 72  # A point is a pixel, so font sizes and lengths have the same unit.
ENDINGS = tuple(f".{name}" for name in "png jpg jpeg webp tif tiff gif svg pdf eps".split())
MOST_PIXELS, LONGEST_SIDE = 2**27, 2**16 - 1  # of a picture. matplotlib cannot draw longer sides.
LONGEST_TEXT = 1000  # characters of a text that are measured. More do not fit into any picture.


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

    Raises:
        UserError: If the figure would be too large.
    """
    check_size(width, height)
    from matplotlib.figure import Figure

    # The renderer cuts off the fraction of a pixel. A hundredth makes up for the rounding errors of the division.
    return Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, facecolor="white")


def check_size(width: int, height: int) -> None:
    """Raise UserError if a picture of this size in pixels is too large to draw."""
    if max(width, height) > LONGEST_SIDE or width * height > MOST_PIXELS:
        raise UserError(
            f"The picture would have {width:,} x {height:,} pixels. At most {LONGEST_SIDE:,} per side and "
            f"{MOST_PIXELS:,} in total can be drawn. Draw fewer or smaller images."
        )


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
            style: dict[str, Any] = {"color": color, "fontsize": self._font_size, "va": "baseline"}
            self.figure.text(*place, legible(line), **style, parse_math=False)

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


def legible(text: str) -> str:
    r"""Return a text that matplotlib can draw on one line: characters that no font has become `\u732b`.

    Fonts are those of matplotlib's setting `font.family`, by default DejaVu Sans, which has no Chinese, Japanese or
    Korean. To see these, install a font that has them and add it to `font.family` in a file `matplotlibrc`.

    Args:
        text: Any text, for example the name of a class. Pass `parse_math=False` where it is drawn.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _has_glyph(c) else c.encode("unicode_escape").decode() for c in escape(text))


@functools.cache
def _has_glyph(character):
    return character.isascii() or any(font.get_char_index(ord(character)) for font in _open_fonts())


@functools.cache
def _open_fonts():
    import matplotlib
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = [findfont(FontProperties())]
    for family in matplotlib.rcParams["font.family"]:
        try:
            paths.append(findfont(FontProperties(family=[family]), fallback_to_default=False))
        except ValueError:  # This font is not installed.
            continue
    return [get_font(path) for path in dict.fromkeys(paths)]


def add_legend(owner: Axes | Figure, handles: Iterable[Any], labels: Iterable[str], **options: Any) -> Legend:
    """Add a legend that shows its labels literally.

    matplotlib leaves out labels that begin with an underscore, and sets what is between dollar signs as math.

    Args:
        owner: Axes or a figure.
        handles: The lines to name.
        labels: Their names.
        **options: Further arguments of matplotlib's `legend`.
    """
    handles = list(handles)
    legend = owner.legend(handles, [str(i) for i in range(len(handles))], **options)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(legible(label))
    return legend


def shorten(text: str, width: float, font_size: float) -> str:
    """Return a legible text that is at most `width` pixels wide, cut off with an ellipsis if necessary."""
    whole = legible(text)
    text = whole[:LONGEST_TEXT]
    if text == whole and measure_text(text, font_size) <= width:
        return text

    def is_too_wide(length):
        return measure_text(f"{text[:length]}...", font_size) > width

    return f"{text[: max(0, bisect.bisect_left(range(len(text) + 1), True, key=is_too_wide) - 1)]}..."


def wrap(words: Sequence[str], width: float, font_size: float) -> list[str]:
    """Return lines of words that are at most `width` pixels wide. A word that is too long is cut off."""
    lines: list[str] = []
    for word in map(legible, words):
        if lines and measure_text(f"{lines[-1]} {word}", font_size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shorten(word, width, font_size))
    return lines


def check_picture(argument: str, path: str | None) -> None:
    """Check before the work starts that a picture can be written at its end, as `files.check_output`."""
    if path and not path.lower().endswith(ENDINGS):
        raise UserError(f"{argument}={escape(path)} cannot be written. Use a name that ends in .png or .jpg.")
    check_output(argument, path, [""])


def save_figure(figure: Figure, path: str, argument: str, dpi: float | None = None) -> None:
    """Write a figure to an image file, local or gs://.

    Args:
        figure: The figure.
        path: Path of the file. The suffix chooses the format, for example .png, .jpg, .svg or .pdf.
        argument: Name of the argument that gave the path, for error messages.
        dpi: Dots per inch. None takes those of the figure.

    Raises:
        UserError: If the suffix is unknown or the file cannot be written. Nothing is left behind then.
    """
    check_picture(argument, path)
    encoded = io.BytesIO()
    figure.savefig(encoded, format=os.path.splitext(path)[1].lower()[1:], dpi=dpi or figure.dpi)
    write_output(argument, path, encoded.getvalue())

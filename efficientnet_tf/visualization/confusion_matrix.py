"""Draws confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from efficientnet_tf.visualization.figures import make_figure, measure_text, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

MOST_CLASSES = 100
CORRECT, MISTAKE = (8, 69, 148), (165, 15, 21)  # colors of a cell that has all images of its row
# Lengths in pixels.
GAP, FONT_SIZE, LINE, LONGEST_NAME = 12, 13, 18, 180
LEAST_CELL, LARGEST_CELL, MATRIX_SIDE = 16, 44, 1200
LEGEND_WIDTH, LONGEST_TITLE = 320, 2000
_NOTE = {"fontsize": FONT_SIZE, "color": "dimgray"}


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, a row for each true class and a column for each predicted class.

    Correct predictions, on the diagonal, and mistakes have a color scale each, from white for no image to full color
    for all images of the row. Counts are written into the cells where they fit.

    Args:
        counts: Number of images by true class and predicted class, int [classes, classes], at most 100 classes.
        class_names: Name of each class.
        title: Text above the matrix.

    Returns:
        The figure. The first axes hold the matrix, one unit per cell.
    """
    classes = len(class_names)
    cell = min(LARGEST_CELL, max(LEAST_CELL, MATRIX_SIDE // classes))
    side = classes * cell
    names = [shorten(name, LONGEST_NAME, FONT_SIZE) for name in class_names]
    margin = round(max(measure_text(name, FONT_SIZE) for name in names)) + GAP
    left, top = GAP + LINE + margin, GAP + 3 * LINE + margin
    title = shorten(title, LONGEST_TITLE, FONT_SIZE)
    width = max(left + side, round(measure_text(title, FONT_SIZE)) + GAP, left + LEGEND_WIDTH) + 2 * GAP
    figure = make_figure(width, top + side + 3 * LINE + 2 * GAP)
    figure.text(GAP / width, 1 - GAP / figure.bbox.height, title, fontsize=FONT_SIZE, va="top", parse_math=False)
    axes = _add_axes(figure, left, top, side, side)
    _label_axes(axes, names)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    on_diagonal = np.eye(classes, dtype=bool)
    meshes = [
        _draw_cells(axes, np.ma.masked_where(hidden | (counts == 0), shares), color)
        for hidden, color in ((~on_diagonal, CORRECT), (on_diagonal, MISTAKE))
    ]
    _write_counts(axes, counts, shares, cell)
    for line, (mesh, text) in enumerate(zip(meshes, ("correct", "mistakes"), strict=True)):
        bar = _add_axes(figure, left, top + side + GAP + line * LINE + 3, 100, LINE - 6)
        figure.colorbar(mesh, cax=bar, orientation="horizontal", ticks=[]).outline.set_visible(False)
        bar.text(1.08, 0.5, f"{text}, 0 to 100% of the row", transform=bar.transAxes, **_NOTE, va="center_baseline")
    return figure


def _add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a place in pixels, counted from the top left corner."""
    whole_width, whole_height = figure.bbox.width, figure.bbox.height
    bottom = whole_height - top - height
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def _label_axes(axes: Axes, names: Sequence[str]) -> None:
    places = np.arange(len(names)) + 0.5
    axes.set_xlim(0, len(names))
    axes.set_ylim(len(names), 0)
    axes.set_xticks(places, names, rotation=90, fontsize=FONT_SIZE, parse_math=False)
    axes.set_yticks(places, names, fontsize=FONT_SIZE, parse_math=False)
    axes.tick_params(length=0, pad=GAP / 2, labeltop=True, labelbottom=False)
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("predicted class", **_NOTE)
    axes.set_ylabel("true class", **_NOTE)
    for spine in axes.spines.values():
        spine.set_color("lightgray")


def _draw_cells(axes: Axes, shares: np.ma.MaskedArray, color: tuple[int, int, int]) -> QuadMesh:
    """Draw the cells that are not masked, colored by their share of the row."""
    from matplotlib.colors import LinearSegmentedColormap

    full = np.array(color) / 255
    faintest = 1 + (full - 1) * 0.1  # the smallest share must differ from none
    scale = LinearSegmentedColormap.from_list("share", [faintest, full])
    return axes.pcolormesh(shares, cmap=scale, vmin=0, vmax=1, edgecolors="lightgray", linewidth=0.5)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, cell: int) -> None:
    """Write the counts into the cells, those that fit."""
    size = min(FONT_SIZE, max(8, cell // 2))
    most_digits = int((cell - 3) / measure_text("0", size))
    for row, column in zip(*np.nonzero(counts), strict=True):
        text = str(counts[row, column])
        if len(text) <= most_digits:
            color = "white" if shares[row, column] > 0.4 else "black"
            style = {"ha": "center", "va": "center_baseline", "fontsize": size, "color": color}
            axes.text(column + 0.5, row + 0.5, text, **style)

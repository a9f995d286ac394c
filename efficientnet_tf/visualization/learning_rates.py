"""Draws the result of a learning-rate range test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from efficientnet_tf.visualization.figures import add_legend, make_figure, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 900, 560  # pixels
TITLE_SIZE, LARGEST_RISE = 13, 1.5


def draw_range_test(result: Mapping[str, Any], title: str) -> Figure:
    """Draw the loss over the learning rate, and the suggested rate.

    Args:
        result: What `find_learning_rate` returns, with at least one step.
        title: Text above the plot.

    Returns:
        The figure. Its axes end a little above the first loss, because a loss that diverges would flatten the rest.
    """
    figure = make_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    rates, losses, smoothed = (result[key] for key in ("learning_rates", "losses", "smoothed"))
    axes.plot(rates, losses, color="lightgray", linewidth=1)
    axes.plot(rates, smoothed, color="#0072B2", linewidth=2)
    labels = ["loss of a step", "smoothed loss"]
    if result["suggestion"]:
        axes.axvline(result["suggestion"], color="#D55E00", linestyle="--")
        labels.append(f"suggested rate: {result['suggestion']:.2g}")
    axes.set_xscale("log")
    lowest, highest = min(losses), min(max(losses), LARGEST_RISE * max(smoothed[0], losses[0]))
    if lowest < highest:
        axes.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.05 * (highest - lowest))
    axes.set_xlabel("learning rate for batches of 256 images")
    axes.set_ylabel("training loss")
    axes.set_title(shorten(title, WIDTH - 100, TITLE_SIZE), fontsize=TITLE_SIZE, parse_math=False)
    axes.grid(alpha=0.3)
    add_legend(axes, axes.lines, labels, loc="upper left")
    return figure

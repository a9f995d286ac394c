"""Names the points of a scatter plot where there is room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from efficientnet_tf.visualization.figures import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]

MARKERS = "osD^vP*X"
CORNERS = (("left", "bottom"), ("left", "top"), ("right", "bottom"), ("right", "top"))
POINT_RADIUS = 7  # space that is kept free around each point, in pixels
FONT_SIZE, LONGEST_NAME = 7, 300  # in points


def name_points(
    axes: Axes,
    named: Iterable[tuple[str, Point, str]],
    others: Iterable[Point] = (),
    corners: Sequence[tuple[str, str]] = CORNERS,
) -> None:
    """Write a text next to each point, unless it would cover another point, another text or the legend.

    Args:
        axes: Axes on which everything but the texts is drawn.
        named: Text, place and color of each point. The first ones choose first.
        others: Places of points without a text.
        corners: Corners of a text that may be at its point, the best first.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    named = list(named)
    if figure := axes.get_figure(root=True):
        figure.draw_without_rendering()  # computes the layout
    places = [axes.transData.transform(place) for place in (*(place for _, place, _ in named), *others)]
    taken = [Bbox([place - POINT_RADIUS, place + POINT_RADIUS]) for place in places]
    legend = axes.get_legend()
    if legend:
        taken.append(legend.get_window_extent())
    for text, place, color in named:
        text = shorten(text, LONGEST_NAME, FONT_SIZE)
        for across, up in corners:
            offset = (6 if across == "left" else -6, 3 if up == "bottom" else -3)
            style = {"textcoords": "offset points", "fontsize": FONT_SIZE, "color": color, "ha": across, "va": up}
            stroke = [withStroke(linewidth=2, foreground="w")]
            note = axes.annotate(text, place, offset, path_effects=stroke, parse_math=False, **style)
            box = note.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()

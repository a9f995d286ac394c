"""TODO docstring (from study_page)."""

MARKERS = "osD^vP*X"


CORNERS = (("left", "bottom"), ("left", "top"), ("right", "bottom"), ("right", "top"))


def name_points(axes, named, others=(), corners=CORNERS):
    """Write texts beside the points of a picture, where there is room.

    Args:
        axes: matplotlib.axes.Axes, all drawn but the texts.
        named: sequence of (text, (x, y), colour).
        others: sequence of (x, y), points that are not named and keep their place, too.
        corners: sequence of (str, str), which corner of a text may lie at its point, the best first.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # decides where everything lies
    spots = [axes.transData.transform(at) for _, at, _ in named]
    taken = [Bbox([spot - 7, spot + 7]) for spot in [*spots, *map(axes.transData.transform, others)]]
    if axes.get_legend():
        taken.append(axes.get_legend().get_window_extent())
    for text, at, colour in named:
        for across, up in corners:
            offset = (6 if across == "left" else -6, 3 if up == "bottom" else -3)
            style = {"textcoords": "offset points", "fontsize": 7, "color": colour, "ha": across, "va": up}
            written = axes.annotate(text, at, offset, path_effects=[withStroke(linewidth=2, foreground="w")], **style)
            box = written.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            written.remove()

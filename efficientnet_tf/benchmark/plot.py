"""Plot measured networks: do fewer multiply-adds mean less time?"""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf.benchmark.rounds import count_operations_per_mac
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.visualization.figures import add_legend, legible, require_matplotlib, shorten
from efficientnet_tf.visualization.scatter import CORNERS, MARKERS, name_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which color-blind readers can tell apart. Its yellow is too pale on white.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
ENDINGS = (".png", ".svg")
LONGEST_LABEL = 300  # points, in the legend
QUESTION = "Do fewer multiply-adds mean less time?"


def check_picture(path: str):
    """Check before a long measurement that a plot can be drawn at its end.

    Args:
        path: The file to write.

    Raises:
        UserError: If `path` does not end in .png or .svg, or if matplotlib is not installed.
    """
    if not path.endswith(ENDINGS):
        raise UserError(f"picture={escape(path)} has no known ending. Use a name that ends in {' or '.join(ENDINGS)}.")
    require_matplotlib(f"picture={path}")


def draw_speed(rows: Sequence[dict[str, Any]], mode: str, title: str = QUESTION) -> "Figure":
    """Plot the time per image over the multiply-adds per image, both on logarithmic axes.

    There is a line for each implementation, and for each batch and number of threads if there are several. Colors stand
    for the implementation and the number of threads, markers for the batch. A dotted line for each number of threads
    shows the time that the arithmetic of an image takes in a product of large matrices.

    Args:
        rows: Measurements, as of `networks.NetworkBenchmark`.
        mode: What was measured: "train", "infer" or "export".
        title: Text above the plot.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    lines = _group_lines(rows)
    slowest = _draw_lines(axes, lines)
    for label, points in _compute_limits(rows, mode).items():
        axes.plot(*zip(*points, strict=True), label=label, color="0.3", linestyle=":", linewidth=1.5)
    handles = list(axes.lines)
    _format_axes(axes)
    axes.set_xlabel("multiply-adds per image (billions)")
    axes.set_ylabel("training time per image (ms)" if mode == "train" else "inference time per image (ms)")
    axes.set_title(legible(title), fontsize=11, parse_math=False)
    labels = [shorten(str(line.get_label()), LONGEST_LABEL, 8) for line in handles]
    add_legend(figure, handles, labels, loc="outside right upper", fontsize=8)
    others = [at for _, points in lines.values() for _, at in points]
    # Time grows with multiply-adds, so the space to the upper left of a point is free.
    name_points(axes, [(name, at, "black") for name, at in slowest.items()], others, [("right", "bottom"), *CORNERS])
    return figure


def _draw_lines(axes, lines):
    """Draw the measured lines and return {network: its highest point}, where its name fits best."""
    slowest = {}
    runs, batches = (list(dict.fromkeys(keys)) for keys in zip(*((key[:2], key[2]) for key in lines), strict=True))
    for key, (label, points) in lines.items():
        color = runs.index(key[:2])
        marker = batches.index(key[2]) if len(batches) > 1 else color
        style = {"color": COLORS[color % len(COLORS)], "marker": MARKERS[marker % len(MARKERS)], "markersize": 5}
        axes.plot(*zip(*(at for _, at in points), strict=True), label=label, linewidth=1.5, **style)
        for name, at in points:
            slowest[name] = max(at, slowest.get(name, at), key=lambda at: at[1])
    return slowest


def _format_axes(axes):
    """Make both axes logarithmic, with round numbers at the ticks."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.1)


def _find_varying(rows, *keys):
    """Return those of the keys in which the rows differ."""
    return [key for key in keys if len({row[key] for row in rows}) > 1]


def _group_lines(rows):
    """Return {(implementation, threads, batch): (label, [(network, (billions of multiply-adds, ms per image))])}."""
    varying = _find_varying(rows, "batch", "threads")
    has_sizes = len({(row["variant"], row["size"]) for row in rows}) > len({row["variant"] for row in rows})
    lines = {}
    for row in rows:  # the legend has the same order
        label = ", ".join([row["implementation"], *(_format_count(key, row[key]) for key in varying)])
        name = f"{row['variant']}, {row['size']}" if has_sizes else row["variant"]
        _, points = lines.setdefault((row["implementation"], row["threads"], row["batch"]), (label, []))
        points.append((name, (row["gmacs"], row["milliseconds"] / row["batch"])))
    for _, points in lines.values():
        points.sort(key=lambda point: point[1])
    return lines


def _format_count(key, count):
    return f"batch {count}" if key == "batch" else f"{count} thread{'s' * (count > 1)}"


def _compute_limits(rows, mode):
    """Return {label: the two ends of a line of constant arithmetic per second}."""
    costs = [row["gmacs"] for row in rows]
    limits = {}
    for threads in sorted({row["threads"] for row in rows}):
        rates = [row["product_gflops"] for row in rows if row["threads"] == threads]
        gflops = statistics.median(rates)
        suffix = f", {_format_count('threads', threads)}" if _find_varying(rows, "threads") else ""
        ends = [(cost, 1e3 * count_operations_per_mac(mode) * cost / gflops) for cost in (min(costs), max(costs))]
        limits[f"matrix product{suffix}: {gflops:,.0f} GFLOP/s"] = ends
    return limits

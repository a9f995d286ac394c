"""A picture of measured networks: do fewer multiply-adds mean less time?"""

import importlib.util
import statistics

from efficientnet_tf.benchmark.rounds import operations_of
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.visualization.scatter import CORNERS, MARKERS, name_points

# Okabe and Ito's, told apart by the colour-blind, too; without yellow, which is lost on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
ENDINGS = (".png", ".svg")
QUESTION = "Do fewer multiply-adds mean less time?"


def check_picture(flag, path):
    """Refuse a picture that could not be drawn, before the work.

    Args:
        flag: str, the flag that named it.
        path: str.

    Raises:
        UserError: for another ending than .png and .svg, or where matplotlib is not installed.
    """
    if not path.endswith(ENDINGS):
        raise UserError(f"{flag}={path}: the name must end in {' or '.join(ENDINGS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"{flag} draws with matplotlib, which is not installed: pip install 'efficientnet_tf[picture]'")


def draw_speed(rows, mode, title=QUESTION):
    """Draw the time of an image over its multiply-adds, both axes logarithmic.

    Args:
        rows: list of dict, as of `benchmark.measure_networks`.
        mode: str, "train", "infer" or "export": what was measured.
        title: str.

    Returns:
        A matplotlib.figure.Figure: a line for each contestant, and for each batch and number of threads where there
        are several, a colour for what computes and a marker for each batch; dotted, for each number of threads, the
        time that an image's arithmetic takes in a product of large matrices.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    slowest = {}  # where a network is named: above it there is room
    lines = _lines(rows)
    computing, batches = (list(dict.fromkeys(keys)) for keys in zip(*((key[:2], key[2]) for key in lines), strict=True))
    for key, (label, points) in lines.items():
        colour = computing.index(key[:2])
        marker = batches.index(key[2]) if len(batches) > 1 else colour
        style = {"color": COLOURS[colour % len(COLOURS)], "marker": MARKERS[marker % len(MARKERS)], "markersize": 5}
        axes.plot(*zip(*(at for _, at in points), strict=True), label=label, linewidth=1.5, **style)
        for name, at in points:
            slowest[name] = max(at, slowest.get(name, at), key=lambda at: at[1])
    for label, points in _limits(rows, mode).items():
        axes.plot(*zip(*points, strict=True), label=label, color="0.3", linestyle=":", linewidth=1.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("multiply-adds of an image, billions")
    axes.set_ylabel("training, ms an image" if mode == "train" else "inference, ms an image")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.1)
    figure.legend(loc="outside right upper", fontsize=8)
    others = [at for _, points in lines.values() for _, at in points]
    # More multiply-adds take more time: left above a point its line leaves room.
    name_points(axes, [(name, at, "black") for name, at in slowest.items()], others, [("right", "bottom"), *CORNERS])
    return figure


def _several(rows, *keys):
    """Return those of the keys by which the rows differ."""
    return [key for key in keys if len({row[key] for row in rows}) > 1]


def _lines(rows):
    """Return {(contestant, threads, batch): (label, [(network, (billions of multiply-adds, ms of an image))])}."""
    told = _several(rows, "batch", "threads")
    sized = len({(row["variant"], row["size"]) for row in rows}) > len({row["variant"] for row in rows})
    lines = {}
    for row in rows:  # their order is the legend's
        label = ", ".join([row["contestant"], *(_count(key, row[key]) for key in told)])
        name = f"{row['variant']}, {row['size']}" if sized else row["variant"]
        _, points = lines.setdefault((row["contestant"], row["threads"], row["batch"]), (label, []))
        points.append((name, (row["gmacs"], row["milliseconds"] / row["batch"])))
    for _, points in lines.values():
        points.sort(key=lambda point: point[1])
    return lines


def _count(key, count):
    return f"batch {count}" if key == "batch" else f"{count} thread{'s' * (count > 1)}"


def _limits(rows, mode):
    """Return {label: the two ends of a line of constant rate}."""
    costs = [row["gmacs"] for row in rows]
    limits = {}
    for threads in sorted({row["threads"] for row in rows}):
        rates = [row["product_gflops"] for row in rows if row["threads"] == threads]
        gflops = statistics.median(rates)
        beside = f", {_count('threads', threads)}" if _several(rows, "threads") else ""
        ends = [(cost, 1e3 * operations_of(mode) * cost / gflops) for cost in (min(costs), max(costs))]
        limits[f"matrix product{beside}: {gflops:,.0f} GFLOP/s"] = ends
    return limits

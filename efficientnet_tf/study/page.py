"""Writes the files of a study: results.csv, the plots, and one interactive HTML page that needs no network."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.runtime.tables import format_csv
from efficientnet_tf.study.columns import COLUMNS, Column, Lines, choose_units
from efficientnet_tf.study.results import Row
from efficientnet_tf.visualization.figures import add_legend, legible, save_figure, shorten
from efficientnet_tf.visualization.page import COLORS, PLOTLY, make_page, read_plotly
from efficientnet_tf.visualization.scatter import MARKERS, name_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTENT = Path(__file__).with_suffix(".html")
X_AXES = ["macs", "params", "resolution", "images_per_second", "train_seconds", "inference_seconds", "peak_bytes"]
Y_AXES = ["top1", "loss"]
LONGEST_LABEL = 300  # points, in a legend


@dataclass(frozen=True)
class StudyInfo:
    """What a page says apart from its numbers.

    Attributes:
        title: Title of the page.
        summary: What the study compares.
        caveats: Sentences that say what the results do not show.
        command: Command that repeats the study.
        planned_runs: Number of runs of the whole study.
        conclusions: Sentences that say what the results show.
        point_label: The label whose value is written next to a point of a plot.
        is_joined: Whether the points of a line are joined.
    """

    title: str
    summary: str
    caveats: tuple[str, ...]
    command: str
    planned_runs: int
    conclusions: tuple[str, ...] = ()
    point_label: str = "scaling"
    is_joined: bool = True


def write_page(
    output_dir: str | os.PathLike[str],
    info: StudyInfo,
    rows: Sequence[Row],
    lines: Lines,
    plots: Sequence[str] = ("macs",),
    shares_plotly: bool = False,
) -> str:
    """Write results.csv, accuracy_<column>.png and index.html. Existing files are replaced.

    Args:
        output_dir: A local folder that exists.
        info: What the page says apart from its numbers.
        rows: The finished runs, as `average_seeds` takes them.
        lines: The points of each line, from `average_seeds`.
        plots: Columns over which the accuracy is plotted. Those without any value are left out.
        shares_plotly: Whether the page loads plotly.min.js from the folder above `output_dir`, where it is written,
            instead of containing it. Pages that share this file of 5 MB are small.

    Returns:
        The path of index.html.
    """
    columns = choose_units(rows)
    header = list(dict.fromkeys(key for row in rows for key in row))
    write_text(os.path.join(output_dir, "results.csv"), format_csv(header, rows))
    images = []
    for x in plots:
        if any(point[x] is not None for points in lines.values() for point in points):
            images.append(f"accuracy_{x}.png")
            figure = draw_accuracy(info, lines, x, columns)
            save_figure(figure, os.path.join(output_dir, images[-1]), "output", dpi=150)
    path = os.path.join(output_dir, "index.html")
    if shares_plotly:
        write_text(os.path.join(output_dir, os.pardir, PLOTLY), read_plotly())
    write_text(path, make_html(info, rows, lines, columns, ["results.csv", *images], shares_plotly))
    return path


def draw_accuracy(info: StudyInfo, lines: Lines, x: str, columns: Mapping[str, Column] = COLUMNS) -> "Figure":
    """Plot the accuracy over a column on a logarithmic axis, in the style of the paper's figures 3, 4 and 8.

    Args:
        info: Its title, `point_label` and `is_joined` are used.
        lines: The points of each line, from `average_seeds`.
        x: A column.
        columns: The columns with the units to show.

    Returns:
        A figure with one line for each entry of `lines`. Bars show the standard deviation over the seeds.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    handles, labels = [], []
    named: dict[str, tuple] = {}  # A network that several lines share is named once.
    for index, (name, points) in enumerate(lines.items()):
        points = [point for point in points if point[x] is not None and point["top1"] is not None]
        color = COLORS[index % len(COLORS)]
        xs = [point[x] / columns[x].scale for point in points]
        ys = [point["top1"] / columns["top1"].scale for point in points]
        spreads = [(point["top1_spread"] or 0) / columns["top1"].scale for point in points]
        style: dict[str, Any] = {
            "color": color,
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": "-" if info.is_joined else "none",
        }
        widths: dict[str, Any] = {"capsize": 3, "markersize": 5, "linewidth": 1.5, "elinewidth": 0.8}
        handles.append(axes.errorbar(xs, ys, spreads, label=name, **widths, **style))
        labels.append(shorten(str(name), LONGEST_LABEL, 8))
        for point, position in zip(points, zip(xs, ys, strict=True), strict=True):
            named.setdefault(point["name"], (str(point.get(info.point_label, point["name"])), position, color))
    values = [position[0] for _, position, _ in named.values()]
    is_narrow = bool(values) and max(values) < 5 * min(values)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if is_narrow else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _decorate(axes, info.title, columns[x].title, columns["top1"].title)
    if len(lines) > 1:
        add_legend(axes, handles, labels, fontsize=8)
    name_points(axes, named.values())
    return figure


def _decorate(axes: "Axes", title: str, x_title: str, y_title: str) -> None:
    axes.set_xlabel(x_title)
    axes.set_ylabel(y_title)
    axes.set_title(legible(title), fontsize=11, parse_math=False)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.1)


def make_html(
    info: StudyInfo,
    rows: Sequence[Row],
    lines: Lines,
    columns: Mapping[str, Column] = COLUMNS,
    files: Sequence[str] = (),
    shares_plotly: bool = False,
) -> str:
    """Return the page as one HTML text that contains the numbers and its script, and fetches nothing from the network.

    Args:
        info: What the page says apart from its numbers.
        rows: The finished runs.
        lines: The points of each line.
        columns: The columns with the units to show.
        files: Names of files in the folder of the page to which it links.
        shares_plotly: Whether the page loads plotly from the folder above it, instead of containing it.
    """
    content = {
        "info": asdict(info),
        "rows": rows,
        "lines": [{"name": name, "points": points} for name, points in lines.items()],
        "columns": {key: {"title": column.title, **asdict(column)} for key, column in columns.items()},
        "x": X_AXES,
        "y": Y_AXES,
        "files": list(files),
    }
    return make_page(CONTENT, content, f"../{PLOTLY}" if shares_plotly else None)

"""What a study shows: results.csv, pictures, and one interactive HTML page that needs no network."""

import csv
import json
import math
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from efficientnet_tf.visualization.scatter import MARKERS, name_points

TEMPLATE = Path(__file__).with_suffix(".html")
# In the order of the page's SYMBOLS; each stands out from white and from near-black.
COLOURS = ["#3b82c4", "#d9692b", "#2a9d7a", "#c2619e", "#a8841c", "#7a6fd0", "#5d8a3a", "#b0524e"]


@dataclass(frozen=True)
class Field:
    """A column that is measured or counted, as people read it."""

    label: str
    unit: str = ""
    scale: float = 1.0  # how much of the column is one of the unit

    @property
    def title(self):
        """The label and its unit, for an axis or a header."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


FIELDS = {
    "depth": Field("depth"),
    "width": Field("width"),
    "resolution": Field("resolution", "pixels"),
    "params": Field("parameters", "M", 1e6),
    "macs": Field("multiply-adds", "B", 1e9),
    "top1": Field("top-1 accuracy", "%", 0.01),
    "top5": Field("top-5", "%", 0.01),
    "loss": Field("loss"),
    "raw_top1": Field("raw top-1", "%", 0.01),
    "images_per_second": Field("training rate", "images/s"),
    "train_seconds": Field("training time", "s"),
    "inference_seconds": Field("inference time", "ms", 1e-3),
    "peak_bytes": Field("peak memory", "MiB", 2**20),
    "paper_macs": Field("paper's multiply-adds", "B", 1e9),
    "paper_top1": Field("paper's top-1 on ImageNet", "%", 0.01),
}
X_AXES = ["macs", "params", "resolution", "images_per_second", "train_seconds", "inference_seconds", "peak_bytes"]
Y_AXES = ["top1", "loss"]
SPREADS = [*Y_AXES, "top5", "raw_top1", "images_per_second", "train_seconds"]  # those that differ from seed to seed


@dataclass(frozen=True)
class About:
    """What a page says beside its numbers."""

    title: str
    summary: str  # one line: what the study shows
    caveats: tuple[str, ...]
    command: str  # redoes the study
    planned: int  # runs
    findings: tuple[str, ...] = ()
    tag: str = "scaling"  # the label that names a point in a picture
    joined: bool = True  # whether the points of a line are


def labels_of(row):
    """Return what tells a row's network from the others: its columns that no run measures, but for the seed."""
    return {key: value for key, value in row.items() if key not in FIELDS and key not in ("run", "config", "seed")}


def average(rows):
    """Return the mean of every network over its seeds.

    Args:
        rows: list of dict, a run each: labels, "run", "config" and columns of FIELDS; None where a value is missing.

    Returns:
        A list of dict, a network each in the order of its first run: its labels, "name", "seeds" (int), "runs" (their
        names), the columns of FIELDS (means over the runs that have a value), and "<column>_spread": the standard
        deviation over the seeds, None for fewer than two.
    """
    networks = {}
    for row in rows:
        networks.setdefault(tuple(labels_of(row).items()), []).append(row)
    points = []
    for members in networks.values():
        first = members[0]
        point = labels_of(first) | {"name": first["run"].removesuffix(f"_seed{first.get('seed')}")}
        point |= {"seeds": len(members), "runs": [row["run"] for row in members]}
        for key in FIELDS:
            values = [row[key] for row in members if row.get(key) is not None and math.isfinite(row[key])]
            point[key] = statistics.fmean(values) if values else None
            if key in SPREADS:
                point[f"{key}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        points.append(point)
    return points


def count_overlaps(points):
    """Return (pairs of networks whose accuracies overlap, mean +- spread; all pairs); None for one seed each."""
    ends = [
        (point["top1"] - point["top1_spread"], point["top1"] + point["top1_spread"])
        for point in points
        if point["top1_spread"] is not None
    ]
    pairs = [(a, b) for i, a in enumerate(ends) for b in ends[:i]]
    return (sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs), len(pairs)) if pairs else None


def write_page(output_dir, about, rows, lines, pictures=("macs",)):
    """Write results.csv, accuracy_<column>.png and index.html; what was there before is replaced.

    Args:
        output_dir: str, a local folder that exists.
        about: About.
        rows: list of dict, the finished runs, as `average` takes them.
        lines: dict, the name of a line to its points, which are of those that `average` returns.
        pictures: sequence of str, columns of FIELDS to draw the accuracy over.

    Returns:
        str, the path of index.html.
    """
    fields = _fit_units(rows)
    _write_table(os.path.join(output_dir, "results.csv"), rows)
    drawn = []
    for x in pictures:
        if any(point[x] is not None for points in lines.values() for point in points):
            drawn.append(f"accuracy_{x}.png")
            draw(about, lines, x, fields).savefig(os.path.join(output_dir, drawn[-1]), dpi=150)
    path = os.path.join(output_dir, "index.html")
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        file.write(make_html(about, rows, lines, fields, ["results.csv", *drawn]))
    os.replace(f"{path}.tmp", path)
    return path


def _fit_units(rows):
    """Return FIELDS with multiply-adds in millions where billions would be small fractions."""
    small = max((row["macs"] for row in rows), default=0) < 1e9
    return FIELDS | ({"macs": Field("multiply-adds", "M", 1e6)} if small else {})


def _write_table(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def draw(about, lines, x, fields=FIELDS):
    """Draw the accuracy over a column, which has a logarithmic axis, in the manner of the paper's figures 3, 4 and 8.

    Args:
        about: About.
        lines: dict, as of `write_page`.
        x: str, a column of FIELDS.
        fields: dict, column to Field.

    Returns:
        A matplotlib.figure.Figure: a line each with its points' means, and bars for their spread.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    named = {}
    for i, (name, points) in enumerate(lines.items()):
        points = [point for point in points if point[x] is not None and point["top1"] is not None]
        xs = [point[x] / fields[x].scale for point in points]
        ys = [point["top1"] / fields["top1"].scale for point in points]
        spreads = [(point["top1_spread"] or 0) / fields["top1"].scale for point in points]
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        style["linestyle"] = "-" if about.joined else "none"
        axes.errorbar(xs, ys, spreads, label=name, capsize=3, markersize=5, linewidth=1.5, elinewidth=0.8, **style)
        for point, x_at, y_at in zip(points, xs, ys, strict=True):  # a network that several lines share is named once
            named.setdefault(point["name"], (point.get(about.tag, point["name"]), (x_at, y_at), style["color"]))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(fields[x].title)
    axes.set_ylabel(fields["top1"].title)
    axes.set_title(about.title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.margins(x=0.08, y=0.1)
    if len(lines) > 1:
        axes.legend(fontsize=8)
    name_points(axes, named.values())
    return figure


def make_html(about, rows, lines, fields=FIELDS, files=()):
    """Return the page as one HTML text: the numbers, the script and plotly's are inside, nothing is fetched.

    Args:
        about: About.
        rows: list of dict, as of `write_page`.
        lines: dict, as of `write_page`.
        fields: dict, column to Field.
        files: sequence of str, names of files beside the page that it links to.
    """
    from plotly.offline import get_plotlyjs

    content = {
        "about": asdict(about),
        "rows": rows,
        "lines": [{"name": name, "points": points} for name, points in lines.items()],
        "fields": {key: {"title": field.title, **asdict(field)} for key, field in fields.items()},
        "x": X_AXES,
        "y": Y_AXES,
        "colours": COLOURS,
        "files": list(files),
    }
    # No label can end the script element.
    data = json.dumps(_finite(content), allow_nan=False).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="utf-8").replace("/*PLOTLY*/", get_plotlyjs()).replace("/*DATA*/null", data)


def _finite(value):
    """Return the value with None for every float that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

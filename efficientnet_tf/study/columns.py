"""The columns of a table of results, and their means over the seeds of each network."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efficientnet_tf.study.results import Row

Point = dict[str, Any]  # a network: its labels and means over its seeds, see `average_seeds`
Lines = dict[Any, list[Point]]  # the points of each line of a plot, by the name of the line


@dataclass(frozen=True)
class Column:
    """A column that is measured or counted.

    Attributes:
        label: Its name for readers.
        unit: The unit in which it is shown.
        scale: The value of the column that is one unit.
    """

    label: str
    unit: str = ""
    scale: float = 1.0

    @property
    def title(self) -> str:
        """The label and its unit, for an axis or a table header."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


COLUMNS = {
    "depth": Column("depth"),
    "width": Column("width"),
    "resolution": Column("resolution", "pixels"),
    "params": Column("parameters", "M", 1e6),
    "macs": Column("multiply-adds", "B", 1e9),
    "top1": Column("top-1 accuracy", "%", 0.01),
    "top5": Column("top-5 accuracy", "%", 0.01),
    "loss": Column("loss"),
    "raw_top1": Column("top-1 accuracy without EMA", "%", 0.01),
    "images_per_second": Column("training rate", "images/s"),
    "train_seconds": Column("training time", "s"),
    "inference_seconds": Column("inference time", "ms", 1e-3),
    "peak_bytes": Column("peak memory", "MiB", 2**20),
    "paper_macs": Column("multiply-adds in the paper", "B", 1e9),
    "paper_top1": Column("ImageNet top-1 accuracy in the paper", "%", 0.01),
}
# The columns that differ from seed to seed.
SPREADS = ["top1", "loss", "top5", "raw_top1", "images_per_second", "train_seconds"]


def choose_units(rows: Sequence[Row]) -> dict[str, Column]:
    """Return `COLUMNS`, with multiply-adds in millions if all networks have less than a billion."""
    is_small = max((row["macs"] for row in rows), default=0) < 1e9
    return COLUMNS | ({"macs": Column("multiply-adds", "M", 1e6)} if is_small else {})


def get_labels(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row that identify its network: all but measurements, the seed and file names."""
    return {key: value for key, value in row.items() if key not in COLUMNS and key not in ("run", "config", "seed")}


def average_seeds(rows: Sequence[Row]) -> list[Point]:
    """Return the means of every network over its seeds.

    Args:
        rows: One row per run: labels, "run", "config" and columns of `COLUMNS`. A missing value is None.

    Returns:
        One point per network, in the order of their first runs. It has the labels of the network, "name", "seeds" (the
        number of seeds), "runs" (the names of the runs), and for each column the mean over the runs that have a finite
        value, or None. "<column>_spread" is the standard deviation over the seeds, or None for fewer than two.
    """
    networks: dict[tuple, list[Row]] = {}
    for row in rows:
        networks.setdefault(tuple(get_labels(row).items()), []).append(row)
    points = []
    for members in networks.values():
        first = members[0]
        point = get_labels(first) | {"name": first["run"].removesuffix(f"_seed{first.get('seed')}")}
        point |= {"seeds": len(members), "runs": [row["run"] for row in members]}
        for key in COLUMNS:
            values = [row[key] for row in members if row.get(key) is not None and math.isfinite(row[key])]
            point[key] = statistics.fmean(values) if values else None
            if key in SPREADS:
                point[f"{key}_spread"] = statistics.stdev(values) if len(values) > 1 else None
        points.append(point)
    return points


def count_overlaps(points: Sequence[Point]) -> tuple[int, int] | None:
    """Count the pairs of networks whose intervals of mean accuracy +- standard deviation overlap.

    Args:
        points: Points of `average_seeds`.

    Returns:
        The number of pairs that overlap and the number of all pairs, or None if fewer than two networks have a spread.
    """
    intervals = [
        (point["top1"] - point["top1_spread"], point["top1"] + point["top1_spread"])
        for point in points
        if point["top1_spread"] is not None
    ]
    pairs = [(a, b) for i, a in enumerate(intervals) for b in intervals[:i]]
    return (sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs), len(pairs)) if pairs else None

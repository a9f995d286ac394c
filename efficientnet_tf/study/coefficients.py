"""The search for the coefficients of compound scaling: a grid, its networks, their ranking, and the resulting family.

Source: paper, section 3.3. Every point of a grid that about doubles the multiply-adds is trained briefly.
"""

import itertools
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_variant
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.runtime.tables import format_csv
from efficientnet_tf.runtime.terminal import make_table
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import Coefficients, scale_by_phi, scale_network
from efficientnet_tf.study.designs import scale_factors
from efficientnet_tf.study.results import Row
from efficientnet_tf.study.runs import StudyNetwork

if TYPE_CHECKING:
    from rich.table import Table

GRID = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5)
FAMILY_PHIS = range(8)  # B0 to B7
MOST_POINTS = 100_000


@dataclass(frozen=True)
class Candidate:
    """A network to train, and the points of the grid that give it. Several points may give the same one by rounding.

    Attributes:
        baseline: The network that is scaled.
        specs: The scaled network of each point. They are equal after rounding.
    """

    baseline: ModelSpec
    specs: dict[Coefficients, ModelSpec]

    @property
    def first(self) -> Coefficients:
        """The first of its points, which gives the candidate its name."""
        return next(iter(self.specs))

    @property
    def nearest(self) -> Coefficients:
        """The point whose product alpha * beta^2 * gamma^2 is closest to 2."""
        return min(self.specs, key=lambda point: abs(point.growth - 2))

    @property
    def name(self) -> str:
        """The name of the network."""
        return f"alpha{self.first.alpha:g}_beta{self.first.beta:g}_gamma{self.first.gamma:g}"

    @property
    def network(self) -> StudyNetwork:
        """The network to train."""
        return StudyNetwork(self.name, self.specs[self.first], self.baseline, {"network": self.name})

    @property
    def growth(self) -> float:
        """The multiply-adds of the network divided by those of the baseline."""
        large, small = (count_cost(spec).macs for spec in (self.specs[self.first], self.baseline))
        return large / small


@dataclass(frozen=True)
class Score:
    """The results of a candidate.

    Attributes:
        candidate: The candidate.
        top1: Top-1 accuracy of each seed, for at least one seed.
    """

    candidate: Candidate
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.top1)

    @property
    def std(self) -> float | None:
        """The standard deviation over the seeds, or None for one seed."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None


def find_points(
    alphas: Sequence[float] = GRID,
    betas: Sequence[float] = GRID,
    gammas: Sequence[float] = GRID,
    tolerance: float = 0.1,
) -> list[Coefficients]:
    """Return the points of a grid with |alpha * beta^2 * gamma^2 - 2| <= tolerance, in the order of the grid.

    Args:
        alphas: Growth rates of depth, at least 1.
        betas: Growth rates of width, at least 1.
        gammas: Growth rates of resolution, at least 1.
        tolerance: Maximum difference between the product and 2.

    Raises:
        UserError: If the grid has more than `MOST_POINTS` points.

    Source: paper, equation 3.
    """
    count = math.prod(map(len, (alphas, betas, gammas)))
    if count > MOST_POINTS:
        raise UserError(f"The grid has {count:,} points, more than {MOST_POINTS:,}. Use fewer values.")
    points = itertools.starmap(Coefficients, itertools.product(alphas, betas, gammas))
    # Rounding errors must not exclude the product 2.1 at a tolerance of 0.1.
    return [point for point in points if abs(point.growth - 2) <= tolerance + 1e-9]


def find_candidates(baseline: ModelSpec, points: Sequence[Coefficients], phi: float = 1.0) -> list[Candidate]:
    """Scale a baseline by each point, and group the points that give the same network.

    Args:
        baseline: The network to scale.
        points: The points.
        phi: Compound coefficient, above 0.

    Returns:
        The candidates, in the order of their first points.

    Raises:
        UserError: If a network would be more than `designs.MOST_TIMES` times as deep, wide or fine as the baseline.
    """
    groups: dict[Any, dict[Coefficients, ModelSpec]] = {}
    for point in points:
        scale_factors(phi, point)
        spec = scale_by_phi(baseline, phi, point)
        groups.setdefault((scale_network(spec), spec.resolution), {})[point] = spec
    return [Candidate(baseline, specs) for specs in groups.values()]


def rank(candidates: Sequence[Candidate], rows: Sequence[Row]) -> list[Score]:
    """Return the scores of the candidates that have finished runs, with the best mean first.

    Candidates with fewer seeds come after all others, because the mean of one seed may be luck.

    Args:
        candidates: The candidates.
        rows: Rows of `read_rows` for their runs.
    """
    top1 = {c.name: tuple(row["top1"] for row in rows if row["network"] == c.name) for c in candidates}
    scores = [Score(c, top1[c.name]) for c in candidates if top1[c.name]]
    return sorted(scores, key=lambda score: (-len(score.top1), -score.mean))


def standard_error(scores: Sequence[Score]) -> float | None:
    """Return the standard error of the mean of the best score, or None if no score has several seeds.

    The variance is pooled over all scores, because a variance from two or three seeds is itself mostly chance.
    """
    variances = [(score.std**2, len(score.top1) - 1) for score in scores if score.std is not None]
    if not variances:
        return None
    pooled = sum(variance * freedom for variance, freedom in variances) / sum(freedom for _, freedom in variances)
    return (pooled / len(scores[0].top1)) ** 0.5


def find_tied(scores: Sequence[Score]) -> list[Score]:
    """Return the scores within one standard error of the best, including the best. With one seed, these are all.

    Args:
        scores: Scores of `rank`.
    """
    error = standard_error(scores)
    best = scores[0]
    return [s for s in scores if len(s.top1) == len(best.top1) and (error is None or best.mean - s.mean <= error)]


def make_point_table(candidates: Sequence[Candidate]) -> "Table":
    """Return a table of the points: the network that each gives, and which points give the same one."""
    owners = {point: candidate for candidate in candidates for point in candidate.specs}
    rows = []
    for point in sorted(owners, key=lambda p: (p.alpha, p.beta, p.gamma)):
        candidate, spec = owners[point], owners[point].specs[point]
        params = count_cost(spec).params
        rows.append(
            [
                *(f"{point.alpha:g}", f"{point.beta:g}", f"{point.gamma:g}", f"{point.growth:.3f}"),
                *(f"{spec.depth:g}", f"{spec.width:g}", f"{spec.resolution}"),
                *(f"{candidate.growth:.2f}x", f"{params / 1e6:.3f}"),
                candidate.name if point != candidate.first else "",
            ]
        )
    header = ["alpha", "beta", "gamma", "product", "depth", "width", "pixels", "MACs", "params (M)", "same network as"]
    return make_table(header, rows, left=(len(header) - 1,))


def summarize_points(candidates: Sequence[Candidate], seeds: int) -> str:
    """Return a sentence on how many networks and runs the points give."""
    growths = [candidate.growth for candidate in candidates]
    points = sum(len(candidate.specs) for candidate in candidates)
    return (
        f"Points: {points}, different networks: {len(candidates)}, seeds: {seeds}, runs: {len(candidates) * seeds}. "
        f"Because of rounding, the multiply-adds are {min(growths):.2f} to {max(growths):.2f} times the baseline's."
    )


def make_ranking_table(scores: Sequence[Score]) -> "Table":
    """Return a table of the scores in their order."""
    rows = []
    for place, score in enumerate(scores, 1):
        others = len(score.candidate.specs) - 1
        name = score.candidate.name + (f" (and {others} more point{'s' if others > 1 else ''})" if others else "")
        rows.append(
            [
                *(f"{place}", f"{score.mean:.2%}", "-" if score.std is None else f"{score.std:.2%}"),
                *(f"{min(score.top1):.2%}", f"{max(score.top1):.2%}", f"{len(score.top1)}"),
                *(f"{score.candidate.growth:.2f}x", name),
            ]
        )
    header = ["", "top-1", "std", "min", "max", "seeds", "MACs", "network"]
    return make_table(header, rows, left=(len(header) - 1,))


def summarize_ranking(scores: Sequence[Score], seeds: int) -> str:
    """Return sentences on how certain the order of the scores is."""
    error, tied = standard_error(scores), len(find_tied(scores))
    if error is None:
        lines = ["There is one seed for each network, so it is unknown how much of the order is chance."]
    elif tied == 1:
        lines = [f"No other network is within one standard error ({error:.2%}) of the best."]
    else:
        lines = [
            f"{tied} of {len(scores)} networks are within one standard error ({error:.2%}) of the best. Their order is "
            "not established."
        ]
    incomplete = sum(len(score.top1) < seeds for score in scores)
    if incomplete:
        lines.append(f"Networks with failed runs are ranked last: {incomplete}.")
    return " ".join(lines)


def write_results(
    output_dir: str,
    baseline: ModelSpec,
    candidates: Sequence[Candidate],
    rows: Sequence[Row],
    scores: Sequence[Score],
    settings: Mapping[str, Any],
) -> None:
    """Write search.csv, coefficients.yaml, and the family of the best coefficients to family/.

    Args:
        output_dir: The folder.
        baseline: The network that was scaled.
        candidates: The candidates.
        rows: Rows of `read_rows` for their runs. search.csv has a row for each point that a run counts for.
        scores: Scores of `rank`.
        settings: Settings of the search, which are recorded in coefficients.yaml.
    """
    table = [
        {"alpha": point.alpha, "beta": point.beta, "gamma": point.gamma, "product": point.growth} | row
        for candidate in candidates
        for point in candidate.specs
        for row in rows
        if row["network"] == candidate.name
    ]
    write_text(os.path.join(output_dir, "search.csv"), format_csv(list(table[0]), table))

    best, point = scores[0], scores[0].candidate.nearest
    found = {
        **{"alpha": point.alpha, "beta": point.beta, "gamma": point.gamma, "product": round(point.growth, 6)},
        "top1": {"mean": best.mean, "std": best.std, "min": min(best.top1), "max": max(best.top1)},
        "same_network": [[p.alpha, p.beta, p.gamma] for p in best.candidate.specs],
        "networks": len(scores),
        "within_one_standard_error": len(find_tied(scores)),
        "search": dict(settings),
    }
    path = os.path.join(output_dir, "coefficients.yaml")
    write_text(path, yaml.safe_dump(found, sort_keys=False, default_flow_style=None))
    for phi in FAMILY_PHIS:
        spec = scale_by_phi(baseline, phi, point)
        title = (
            f"# phi {phi}: alpha {point.alpha:g}, beta {point.beta:g}, gamma {point.gamma:g} from "
            f"{escape(baseline.name)}.\n"
        )
        write_text(os.path.join(output_dir, "family", f"phi{phi}.yaml"), title + dump_variant(spec))

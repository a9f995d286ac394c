"""Search the scaling coefficients: `python -m efficientnet_tf.search --baseline=b0 --recipe=digits --output_dir=DIR`.

The paper's grid search (section 3.3): each point of a grid whose multiply-adds grow about twofold is trained briefly.
"""

import csv
import io
import itertools
import os
import statistics
from dataclasses import dataclass

import yaml

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_variant, load_variant
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.scaling.budget import scale_spec
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import Coefficients, scale_network
from efficientnet_tf.study.runner import Run, run_jobs

GRID = (1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5)
PHIS = range(8)  # of the family that is written


@dataclass(frozen=True)
class Candidate:
    """A network to train, and the points of the grid that give it: rounding makes several the same."""

    specs: dict  # {Coefficients: schema.ModelSpec}, equal once rounded

    @property
    def first(self):
        """The first of its points, which names it."""
        return next(iter(self.specs))

    @property
    def nearest(self):
        """Of its points, the one whose multiply-adds grow most nearly twofold."""
        return min(self.specs, key=lambda point: abs(point.growth - 2))

    @property
    def name(self):
        """Name of the network."""
        return f"alpha{self.first.alpha:g}_beta{self.first.beta:g}_gamma{self.first.gamma:g}"


@dataclass(frozen=True)
class Score:
    """What a candidate reached: top-1 of each of its seeds."""

    candidate: Candidate
    top1: tuple[float, ...]  # of at least one seed

    @property
    def mean(self):
        """Mean over the seeds."""
        return statistics.mean(self.top1)

    @property
    def std(self):
        """Standard deviation of a seed, estimated from them; None for one seed."""
        return statistics.stdev(self.top1) if len(self.top1) > 1 else None


def find_points(alphas=GRID, betas=GRID, gammas=GRID, tolerance=0.1):
    """Return the Coefficients of a grid under |alpha * beta^2 * gamma^2 - 2| <= tolerance, in the order of the grid.

    Source: paper, equation 3.
    """
    points = itertools.starmap(Coefficients, itertools.product(alphas, betas, gammas))
    # A tolerance of .1 includes the product 2.1, whatever floating point makes of it.
    return [point for point in points if abs(point.growth - 2) <= tolerance + 1e-9]


def find_candidates(baseline, points, phi=1.0):
    """Scale a baseline by each point, and bring together those that give the same network.

    Args:
        baseline: schema.ModelSpec.
        points: list of scaling.Coefficients.
        phi: float > 0.

    Returns:
        A list of Candidate, in the order of their first points.
    """
    found = {}
    for point in points:
        spec = scale_spec(baseline, phi, phi, phi, point)
        found.setdefault((scale_network(spec), spec.resolution), {})[point] = spec
    return [Candidate(specs) for specs in found.values()]


def make_runs(candidates, seeds):
    """Return the trials.Run of each candidate and seed; all candidates have their first seed before the second."""
    return [
        Run(f"{c.name}_seed{seed}", c.specs[c.first], {"network": c.name, "seed": seed})
        for seed in range(seeds)
        for c in candidates
    ]


def rank(candidates, rows):
    """Return the Score of each candidate that has finished runs, best mean first.

    Candidates that lack a seed come after all others, for one lucky seed is no mean.

    Args:
        candidates: list of Candidate.
        rows: list of dict, as `trials.rows` returns them for `make_runs`.
    """
    top1 = {c.name: tuple(row["top1"] for row in rows if row["network"] == c.name) for c in candidates}
    scores = [Score(c, top1[c.name]) for c in candidates if top1[c.name]]
    return sorted(scores, key=lambda score: (-len(score.top1), -score.mean))


def standard_error(scores):
    """Return the standard error of a candidate's mean, from the spread over seeds of all; None without a spread.

    Pooled, for the spread of two or three seeds of one candidate is itself mostly chance.
    """
    variances = [(score.std**2, len(score.top1) - 1) for score in scores if score.std is not None]
    if not variances:
        return None
    pooled = sum(variance * freedom for variance, freedom in variances) / sum(freedom for _, freedom in variances)
    return (pooled / len(scores[0].top1)) ** 0.5


def find_tied(scores):
    """Return the scores, the best one among them, that lie within one standard error of the best; all for one seed."""
    error = standard_error(scores)
    best = scores[0]
    return [s for s in scores if len(s.top1) == len(best.top1) and (error is None or best.mean - s.mean <= error)]


def format_list(baseline, candidates, seeds):
    """Return a table of the points: what each gives, and which of them give the same network."""
    owners = {point: candidate for candidate in candidates for point in candidate.specs}
    lines = ["alpha  beta  gamma  product   depth   width  pixels    MACs  params/M  same network as"]
    for point in sorted(owners, key=lambda p: (p.alpha, p.beta, p.gamma)):
        candidate, spec = owners[point], owners[point].specs[point]
        params = count_cost(spec)["total"].trainable_params
        line = (
            f"{point.alpha:5g}{point.beta:6g}{point.gamma:7g}{point.growth:9.3f}{spec.depth:8g}{spec.width:8g}"
            f"{spec.resolution:8d}{_growth(candidate, baseline):7.2f}x{params / 1e6:10.3f}  "
        )
        lines.append((line + (candidate.name if point != candidate.first else "")).rstrip())
    growths = [_growth(candidate, baseline) for candidate in candidates]
    lines.append(
        f"{len(owners)} points give {len(candidates)} different networks, whose multiply-adds are, by rounding, "
        f"{min(growths):.2f} to {max(growths):.2f} times the baseline's; seeds {seeds}, runs {len(candidates) * seeds}"
    )
    return "\n".join(lines)


def _growth(candidate, baseline):
    """Return how many times the baseline's multiply-adds a candidate really has."""
    specs = (candidate.specs[candidate.first], baseline)
    large, small = (count_cost(spec)["total"].macs for spec in specs)
    return large / small


def format_ranking(scores, baseline, seeds):
    """Return a table of the scores, and how sure the first place is."""
    lines = ["      top-1     std     min     max  seeds    MACs  network"]
    for place, score in enumerate(scores, 1):
        std = "-" if score.std is None else f"{score.std:.2%}"
        others = len(score.candidate.specs) - 1
        name = score.candidate.name + (f" (and {others} other points)" if others else "")
        lines.append(
            f"{place:3d}{score.mean:8.2%}{std:>8}{min(score.top1):8.2%}{max(score.top1):8.2%}{len(score.top1):7d}"
            f"{_growth(score.candidate, baseline):7.2f}x  {name}"
        )
    error, tied = standard_error(scores), len(find_tied(scores))
    if error is None:
        lines.append("one seed each: how much of the order is chance is not known")
    else:
        lines.append(
            f"{tied} of {len(scores)} networks lie within one standard error ({error:.2%}) of the best"
            + (": their order is not known" if tied > 1 else "")
        )
    short = sum(len(score.top1) < seeds for score in scores)
    if short:
        lines.append(f"{short} networks lack seeds, whose runs failed: they are ranked last")
    return "\n".join(lines)


def write_results(output_dir, baseline, candidates, rows, scores, settings):
    """Write search.csv, coefficients.yaml and the family of the best score's coefficients.

    Args:
        output_dir: str.
        baseline: schema.ModelSpec.
        candidates: list of Candidate.
        rows: list of dict, as `trials.rows` returns them. In search.csv a run stands once for each point it counts for.
        scores: list of Score, best first.
        settings: dict, recorded beside the coefficients.
    """
    table = [
        {"alpha": point.alpha, "beta": point.beta, "gamma": point.gamma, "product": point.growth} | row
        for candidate in candidates
        for point in candidate.specs
        for row in rows
        if row["network"] == candidate.name
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, table[0])
    writer.writeheader()
    writer.writerows(table)
    write_text(os.path.join(output_dir, "search.csv"), text.getvalue())

    best, point = scores[0], scores[0].candidate.nearest
    found = {
        **{"alpha": point.alpha, "beta": point.beta, "gamma": point.gamma, "product": round(point.growth, 6)},
        "top1": {"mean": best.mean, "std": best.std, "min": min(best.top1), "max": max(best.top1)},
        "same_network": [[p.alpha, p.beta, p.gamma] for p in best.candidate.specs],
        "networks": len(scores),
        "within_one_standard_error": len(find_tied(scores)),
        "search": settings,
    }
    path = os.path.join(output_dir, "coefficients.yaml")
    write_text(path, yaml.safe_dump(found, sort_keys=False, default_flow_style=None))
    for phi in PHIS:
        spec = scale_spec(baseline, phi, phi, phi, point)
        title = (
            f"# phi {phi}: alpha {point.alpha:g}, beta {point.beta:g}, gamma {point.gamma:g} from {baseline.name}.\n"
        )
        write_text(os.path.join(output_dir, "family", f"phi{phi}.yaml"), title + dump_variant(spec))


def main(args):
    """List the grid, or train its networks and write what is found."""
    baseline = load_variant(args.baseline)
    if args.resolution:
        baseline = baseline.model_copy(update={"resolution": args.resolution})
    points = find_points(args.alpha, args.beta, args.gamma, args.tolerance)
    if not points:
        raise UserError(f"no point of the grid has a product within {args.tolerance:g} of 2: take others")
    candidates = find_candidates(baseline, points, args.phi)
    if args.list:
        print(format_list(baseline, candidates, args.seeds))
        return 0
    if args.output_dir is None:
        raise UserError("--output_dir is missing: where runs and results come to lie (or --list)")
    runs = make_runs(candidates, args.seeds)
    rows = run_jobs(
        runs,
        args.output_dir,
        recipe=args.recipe,
        storage=args.storage,
        study_name="search",
        overrides=cli.overrides(args),
        train_arguments=cli.training_arguments(args),
        heartbeat_seconds=args.heartbeat_seconds,
    )
    scores = rank(candidates, rows)
    if not scores:
        raise UserError(f"all {len(runs)} runs failed: the logs in {args.output_dir}/runs say why")
    settings = {key: getattr(args, key) for key in ("baseline", "resolution", "recipe", "phi", "seeds", "tolerance")}
    settings["overrides"] = cli.overrides(args)
    write_results(args.output_dir, baseline, candidates, rows, scores, settings)
    point = scores[0].candidate.nearest
    print(
        f"{format_ranking(scores, baseline, args.seeds)}\n"
        f"alpha {point.alpha:g}, beta {point.beta:g}, gamma {point.gamma:g}, product {point.growth:.3f}: "
        f"written with its family to {args.output_dir}"
    )
    if len(rows) < len(runs):
        raise UserError(f"{len(runs) - len(rows)} of {len(runs)} runs failed; the same command tries them again")
    return 0


def _bases(text):
    values = [float(part) for part in text.split(",")]
    if not all(1 <= value < 10 for value in values):
        raise ValueError
    return tuple(dict.fromkeys(values))


_bases.__name__ = "numbers >= 1 and below 10, divided by commas"


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "search",
        "Search the coefficients of compound scaling, as the paper did: on a grid, under alpha * beta^2 * gamma^2 = 2 "
        "or nearly, each network that rounding leaves is trained with several seeds and ranked by its mean accuracy. "
        "Killed and started again, it goes on; started several times at once, the processes share the work.",
    )
    parser.add_argument("--baseline", default="b0", help="the network to scale: a variant, or the path of its YAML")
    parser.add_argument("--resolution", type=cli.positive_int, help="the baseline's image side; by default its own")
    parser.add_argument("--recipe", default="digits", help="a name in configs/recipes, or the path of a recipe's YAML")
    parser.add_argument("--output_dir", help="where runs, search.csv, coefficients.yaml and family/ come to lie")
    grid = ",".join(map(str, GRID))
    parser.add_argument("--alpha", type=_bases, default=grid, help="the grid of the depth's growth: 1.0,1.1,...")
    parser.add_argument("--beta", type=_bases, default=grid, help="of the width's")
    parser.add_argument("--gamma", type=_bases, default=grid, help="of the resolution's")
    parser.add_argument("--tolerance", type=cli.positive_number, default=0.1, help="how far from 2 the product may be")
    parser.add_argument("--phi", type=cli.positive_number, default=1.0, help="at which the networks are compared")
    parser.add_argument("--seeds", type=cli.positive_int, default=3, help="runs of each network")
    parser.add_argument("--storage", help="database of the runs, as Optuna takes it; by default a file in --output_dir")
    parser.add_argument(
        "--heartbeat_seconds", type=cli.positive_int, default=60, help="a process silent for three of these is dead"
    )
    parser.add_argument("--list", action="store_true", help="print the points and what each gives, and end")
    cli.add_override_arguments(parser)
    cli.add_device_arguments(parser)
    cli.add_tracker_argument(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

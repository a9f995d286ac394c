"""Search for scaling coefficients: `python -m efficientnet_tf.search --baseline=b0 --recipe=digits --output_dir=DIR`.

Trains every different network of a grid of coefficients with several seeds, and ranks them by accuracy.
"""

import argparse
from collections.abc import Sequence

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.signals import EXIT_RESTART
from efficientnet_tf.runtime.terminal import show
from efficientnet_tf.study import coefficients
from efficientnet_tf.study.__main__ import add_run_arguments, check_output_dir, check_overrides, train_runs
from efficientnet_tf.study.results import read_rows
from efficientnet_tf.study.runner import TRAIN_COMMAND
from efficientnet_tf.study.runs import make_runs

STUDY_NAME = "search"  # in the database


def main(args: argparse.Namespace, train_command: Sequence[str] = TRAIN_COMMAND) -> int:
    """List the grid, or train its networks and write the best coefficients.

    Args:
        args: The flags.
        train_command: The command that trains, see `run_jobs`.
    """
    baseline = load_variant(args.baseline)
    if args.resolution:
        baseline = baseline.model_copy(update={"resolution": args.resolution})
    points = coefficients.find_points(args.alpha, args.beta, args.gamma, args.tolerance)
    if not points:
        raise UserError(
            f"No point of the grid has a product alpha * beta^2 * gamma^2 within --tolerance={args.tolerance:g} of 2. "
            "Increase the tolerance, or choose other values of --alpha, --beta and --gamma."
        )
    candidates = coefficients.find_candidates(baseline, points, args.phi)
    runs = make_runs([candidate.network for candidate in candidates], args.seeds)
    if args.list:
        check_overrides(args)
        show(coefficients.make_point_table(candidates), coefficients.summarize_points(candidates, args.seeds))
        return 0
    check_output_dir(args, ["optuna"], ["search.csv", "coefficients.yaml"], [args.baseline, args.recipe])
    if not train_runs(args, runs, STUDY_NAME, train_command):
        return EXIT_RESTART
    rows = read_rows(runs, args.output_dir, args.storage, STUDY_NAME)
    scores = coefficients.rank(candidates, rows)
    if not scores:
        raise UserError(f"All {len(runs)} runs failed. See the logs in {escape(args.output_dir)}/runs.")
    settings = {key: getattr(args, key) for key in ("baseline", "resolution", "recipe", "phi", "seeds", "tolerance")}
    settings["overrides"] = cli.overrides(args)
    coefficients.write_results(args.output_dir, baseline, candidates, rows, scores, settings)
    point = scores[0].candidate.nearest
    show(
        coefficients.make_ranking_table(scores),
        coefficients.summarize_ranking(scores, args.seeds),
        f"Best: alpha {point.alpha:g}, beta {point.beta:g}, gamma {point.gamma:g}, product {point.growth:.3f}. "
        f"Wrote coefficients.yaml, search.csv and family/ to {escape(args.output_dir)}.",
    )
    if len(rows) < len(runs):
        failed = len(runs) - len(rows)
        raise UserError(f"{failed} of {len(runs)} runs failed. Run the same command again to retry them.")
    return 0


def _growth_rates(text: str) -> tuple[float, ...]:
    values = [float(part) for part in text.split(",")]
    if not all(1 <= value < 10 for value in values):
        raise ValueError
    return tuple(dict.fromkeys(values))


# argparse names the type in its error messages.
_growth_rates.__name__ = "comma-separated numbers >= 1 and < 10"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = cli.make_parser(
        "search",
        "Search for the coefficients of compound scaling on a grid, as the paper did. The points of the grid satisfy "
        "alpha * beta^2 * gamma^2 = 2 approximately. Each different network is trained with several seeds and ranked "
        "by its mean accuracy. If the search is interrupted, run the same command again to continue. Start it several "
        "times to share the work between processes or machines.",
    )
    parser.add_argument(
        "--baseline", default="b0", help="Network to scale: a variant, or the path of a variant's YAML file."
    )
    parser.add_argument(
        "--resolution",
        type=cli.positive_int,
        help="Image side of the baseline in pixels. Defaults to that of the variant.",
    )
    grid = ",".join(map(str, coefficients.GRID))
    for name, dimension in (("alpha", "depth"), ("beta", "width"), ("gamma", "resolution")):
        text = f"Growth rates of {dimension} in the grid, comma-separated."
        parser.add_argument(f"--{name}", type=_growth_rates, default=grid, help=text)
    parser.add_argument(
        "--tolerance",
        type=cli.positive_number,
        default=0.1,
        help="Maximum difference between alpha * beta^2 * gamma^2 and 2.",
    )
    parser.add_argument(
        "--phi", type=cli.positive_number, default=1.0, help="Compound coefficient at which the networks are compared."
    )
    add_run_arguments(parser, "search.csv, coefficients.yaml and family/", "the points and the network of each")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

"""Search for scaling coefficients or for a baseline: `python -m efficientnet_tf.search --baseline=b0 --output_dir=DIR`.

The coefficients are searched on a grid, of which every different network is trained with several seeds. A baseline is
searched by a sampler that chooses each network from the results of the ones before it.
"""

import argparse
import os
from collections.abc import Sequence

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.signals import EXIT_RESTART
from efficientnet_tf.runtime.terminal import show
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.study import architecture_report, architecture_search, coefficients
from efficientnet_tf.study.__main__ import PACKAGES, add_run_arguments, check_output_dir, train_runs
from efficientnet_tf.study.inference import add_inference
from efficientnet_tf.study.mnasnet_space import Space
from efficientnet_tf.study.report import add_page_argument, write_search_report
from efficientnet_tf.study.results import read_rows
from efficientnet_tf.study.runner import TRAIN_COMMAND
from efficientnet_tf.study.runs import MOST_RUNS, load_network, make_runs
from efficientnet_tf.study.sampling import FIRST_RANDOM, MOST_TIMES, POPULATION, SAMPLERS, Settings

STUDY_NAME = "search"  # of the search for coefficients, in the database
# The flags that only one of the spaces has.
SPACES = {
    "coefficients": ("alpha", "beta", "gamma", "tolerance", "phi", "seeds", "share_plotly"),
    "mnasnet": ("sampler", "trials", "target_macs", "exponent", "seed", "pruning", "classes"),
}


def main(args: argparse.Namespace, train_command: Sequence[str] = TRAIN_COMMAND) -> int:
    """List the networks of a search, or train them and write the best.

    Args:
        args: The flags.
        train_command: The command that trains, see `run_jobs`.
    """
    defaults = make_parser().parse_args([])
    for space, names in SPACES.items():
        for name in names:
            if space != args.space and getattr(args, name) != getattr(defaults, name):
                raise UserError(f"--{name} is only for --space={space}, received --space={args.space}. Leave it out.")
    baseline = load_network(args.baseline, args.recipe, cli.overrides(args), args.resolution)
    searches = {"coefficients": _search_coefficients, "mnasnet": _search_baseline}
    return searches[args.space](args, baseline, train_command)


def _search_coefficients(args: argparse.Namespace, baseline: ModelSpec, train_command: Sequence[str]) -> int:
    points = coefficients.find_points(args.alpha, args.beta, args.gamma, args.tolerance)
    if not points:
        raise UserError(
            f"No point of the grid has a product alpha * beta^2 * gamma^2 within --tolerance={args.tolerance:g} of 2. "
            "Increase the tolerance, or choose other values of --alpha, --beta and --gamma."
        )
    candidates = coefficients.find_candidates(baseline, points, args.phi)
    runs = make_runs([candidate.network for candidate in candidates], args.seeds)
    if args.list:
        show(coefficients.make_point_table(candidates), coefficients.summarize_points(candidates, args.seeds))
        return 0
    files = ["search.csv", "coefficients.yaml", "results.csv", "index.html"]
    check_output_dir(args, PACKAGES, files, [args.baseline, args.recipe])
    if not train_runs(args, runs, STUDY_NAME, train_command):
        return EXIT_RESTART
    rows = read_rows(runs, args.output_dir, args.storage, STUDY_NAME)
    scores = coefficients.rank(candidates, rows)
    if not scores:
        raise UserError(f"All {len(runs)} runs failed. See the logs in {escape(args.output_dir)}/runs.")
    settings = {key: getattr(args, key) for key in ("baseline", "resolution", "recipe", "phi", "seeds", "tolerance")}
    settings["overrides"] = cli.overrides(args)
    coefficients.write_results(args.output_dir, baseline, candidates, rows, scores, settings)
    write_search_report(
        candidates,
        add_inference(rows, runs, args.output_dir, None),
        scores,
        args.output_dir,
        recipe=args.recipe,
        seeds=args.seeds,
        command=cli.format_command(make_parser(), args, [], ("list", "verbose", "storage", "heartbeat_seconds")),
        shares_plotly=args.share_plotly,
    )
    point = scores[0].candidate.nearest
    show(
        coefficients.make_ranking_table(scores),
        coefficients.summarize_ranking(scores, args.seeds),
        f"Best: alpha {point.alpha:g}, beta {point.beta:g}, gamma {point.gamma:g}, product {point.growth:.3f}. "
        f"Wrote coefficients.yaml, search.csv, index.html and family/ to {escape(args.output_dir)}.",
    )
    if len(rows) < len(runs):
        failed = len(runs) - len(rows)
        raise UserError(f"{failed} of {len(runs)} runs failed. Run the same command again to retry them.")
    return 0


def _search_baseline(args: argparse.Namespace, baseline: ModelSpec, train_command: Sequence[str]) -> int:
    space, settings = Space(baseline), _make_settings(args, baseline)
    if args.list:
        show(*architecture_report.describe_space(space, settings))
        return 0
    check_output_dir(args, ["optuna", "matplotlib"], architecture_report.FILES, [args.baseline, args.recipe])
    output = os.path.join(args.output_dir, "baseline.yaml")
    if os.path.realpath(args.baseline) == os.path.realpath(output):
        raise UserError(f"--baseline={escape(args.baseline)} would be overwritten. Use another --output_dir.")
    search = architecture_search.ArchitectureSearch(space, settings)
    is_finished = train_runs(args, search, architecture_search.STUDY_NAME, train_command)
    trials = architecture_search.read_search(search, args.output_dir, args.storage)
    best = architecture_report.find_best(trials)
    if best is None:
        if not is_finished:
            return EXIT_RESTART
        raise UserError(f"All {len(trials)} runs failed. See the logs in {escape(args.output_dir)}/runs.")
    # What is known so far is shown all the same if a signal stopped the work.
    architecture_report.write_results(args.output_dir, space, trials, settings)
    show(
        architecture_report.make_ranking(trials),
        architecture_report.summarize(trials, settings),
        f"Best: {best.name}, top-1 {best.top1:.2%}, {best.macs / 1e6:.3f} million multiply-adds. Wrote baseline.yaml, "
        f"search.csv and pareto.png to {escape(args.output_dir)}.",
    )
    if not is_finished:
        return EXIT_RESTART
    failed = [trial.name for trial in trials if trial.state in ("failed", "damaged")]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(trials)} runs failed: {', '.join(failed)}. Run the same command again to retry "
            "them."
        )
    return 0


def _make_settings(args: argparse.Namespace, baseline: ModelSpec) -> Settings:
    if args.sampler == "nsga2" and args.pruning == "median":
        raise UserError(
            "--pruning=median does not work with --sampler=nsga2, because Optuna has no pruning for several "
            "objectives. Use --pruning=none, or another sampler."
        )
    if args.trials > MOST_RUNS:
        raise UserError(f"--trials={args.trials} is too large. The largest value is {MOST_RUNS}.")
    return Settings(
        sampler=args.sampler,
        trials=args.trials,
        target_macs=args.target_macs or float(count_cost(baseline, classes=args.classes).macs),
        exponent=args.exponent,
        seed=args.seed,
        classes=args.classes,
        prunes=args.pruning != "none" and args.sampler != "nsga2",
    )


def _growth_rates(text: str) -> tuple[float, ...]:
    values = [float(part) for part in text.split(",")]
    if not all(1 <= value < 10 for value in values):
        raise ValueError
    return tuple(dict.fromkeys(values))


def _exponent(text: str) -> float:
    if not -10 <= float(text) <= 0:
        raise ValueError
    return float(text)


def _seed(text: str) -> int:
    if not 0 <= int(text) < 2**31:
        raise ValueError
    return int(text)


# argparse names the type in its error messages.
_growth_rates.__name__ = "comma-separated numbers >= 1 and < 10"
_exponent.__name__ = "number from -10 to 0"
_seed.__name__ = f"integer from 0 to {2**31 - 1}"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = cli.make_parser(
        "search",
        "Search for the coefficients of compound scaling on a grid, as the paper did, or for a baseline network. The "
        "points of the grid satisfy alpha * beta^2 * gamma^2 = 2 approximately. Each different network is trained with "
        "several seeds and ranked by its mean accuracy. A baseline is searched by changing the stage table of "
        "--baseline, so that accuracy * (multiply-adds / target)^exponent is maximized. If the search is interrupted, "
        "run the same command again to continue. Start it several times to share the work between processes or "
        "machines.",
    )
    parser.add_argument(
        "--space",
        default="coefficients",
        choices=list(SPACES),
        help="What to search: scaling coefficients, or stage tables in the manner of MnasNet.",
    )
    parser.add_argument(
        "--baseline",
        default="b0",
        help="Network to scale or to start from: a variant, or the path of a variant's YAML file.",
    )
    parser.add_argument(
        "--resolution",
        type=cli.positive_int,
        help="Image side of the baseline in pixels. Defaults to that of the variant.",
    )
    add_run_arguments(
        parser, "search.csv, a page and the best networks", "the points of the grid, or the options of each stage"
    )
    _add_grid_arguments(parser)
    _add_baseline_arguments(parser)
    return parser


def _add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("--space=coefficients (also --seeds)")
    grid = ",".join(map(str, coefficients.GRID))
    for name, dimension in (("alpha", "depth"), ("beta", "width"), ("gamma", "resolution")):
        text = f"Growth rates of {dimension} in the grid, comma-separated."
        group.add_argument(f"--{name}", type=_growth_rates, default=grid, help=text)
    group.add_argument(
        "--tolerance",
        type=cli.positive_number,
        default=0.1,
        help="Maximum difference between alpha * beta^2 * gamma^2 and 2.",
    )
    group.add_argument(
        "--phi", type=cli.positive_number, default=1.0, help="Compound coefficient at which the networks are compared."
    )
    add_page_argument(group)


def _add_baseline_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("--space=mnasnet")
    group.add_argument(
        "--sampler",
        default="tpe",
        choices=SAMPLERS,
        help=f"How networks are chosen. tpe learns from the objective after the first {FIRST_RANDOM} networks, which "
        f"are random. nsga2 evolves generations of {POPULATION} networks by accuracy and multiply-adds. random is for "
        "comparison.",
    )
    group.add_argument(
        "--trials", type=cli.positive_int, default=50, help="Number of networks, of which the first is the baseline."
    )
    group.add_argument(
        "--target_macs",
        type=cli.positive_number,
        help="Multiply-adds at which the objective is the accuracy. Defaults to those of the baseline. Networks with "
        f"more than {MOST_TIMES:g} times as many are not trained.",
    )
    group.add_argument(
        "--exponent", type=_exponent, default=-0.07, help="Exponent of multiply-adds / target in the objective."
    )
    group.add_argument("--seed", type=_seed, default=0, help="Seed of the sampler and of each training run.")
    group.add_argument(
        "--pruning",
        choices=["median", "none"],
        help="median stops a run when the best objective so far is below the median of finished runs at the same step. "
        "It needs evaluations during the run, see eval.every_epochs. Defaults to median, and to none for nsga2, for "
        "which Optuna has no pruning.",
    )
    group.add_argument(
        "--classes",
        type=cli.positive_int,
        default=1000,
        help="Number of classes for which multiply-adds and parameters are counted.",
    )


if __name__ == "__main__":
    cli.run(main, make_parser())

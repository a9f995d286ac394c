"""Run a scaling study: `python -m efficientnet_tf.study --study=one_dimension --recipe=digits --output_dir=DIR`.

Each network of the study is trained with several seeds. A page shows how the accuracy grows with the cost.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.signals import EXIT_RESTART
from efficientnet_tf.runtime.terminal import show
from efficientnet_tf.scaling.compound import Coefficients
from efficientnet_tf.study import designs
from efficientnet_tf.study.inference import add_inference, measure_inference
from efficientnet_tf.study.report import write_report
from efficientnet_tf.study.results import read_rows, read_states
from efficientnet_tf.study.runner import TRAIN_COMMAND, run_jobs
from efficientnet_tf.study.runs import make_runs


def _one_dimension(args: argparse.Namespace) -> designs.Study:
    return designs.one_dimension(
        args.baseline,
        args.resolution,
        depths=args.depths,
        widths=args.widths,
        resolutions=args.resolutions,
        phis=args.phis,
        coefficients=Coefficients(args.alpha, args.beta, args.gamma),
    )


def _interaction(args: argparse.Namespace) -> designs.Study:
    return designs.interaction(args.baseline, args.resolution, widths=args.widths)


def _family(args: argparse.Namespace) -> designs.Study:
    return designs.family(
        args.variants,
        args.resolution,
        recipe=args.recipe,
        overrides=cli.overrides(args),
        learning_rates=args.learning_rates,
        learning_rate_grid=args.learning_rate_grid,
    )


def _baselines(args: argparse.Namespace) -> designs.Study:
    return designs.baselines(args.networks, args.resolution)


# Each of these functions shows which flags its study uses.
STUDIES = {
    "one_dimension": _one_dimension,
    "interaction": _interaction,
    "family": _family,
    "baselines": _baselines,
}


def make_study(args: argparse.Namespace) -> designs.Study:
    """Return the study that the flags describe."""
    return STUDIES[args.study](args)


def main(
    args: argparse.Namespace,
    train_command: Sequence[str] = TRAIN_COMMAND,
    measure: Callable[[str], float | None] = measure_inference,
) -> int:
    """List the networks of a study, or train them and write the page.

    Args:
        args: The flags.
        train_command: The command that trains, see `run_jobs`.
        measure: Function that measures the inference time of a variant, see `add_inference`.
    """
    study = make_study(args)
    runs = make_runs(study.networks, args.seeds)
    if args.list:
        show(
            designs.make_network_table(study.networks),
            f"Networks: {len(study.networks)}, seeds: {args.seeds}, runs: {len(runs)}. Costs are for 1,000 classes.",
        )
        return 0
    _check(args)
    is_finished = args.report or run_jobs(
        runs,
        args.output_dir,
        recipe=args.recipe,
        study_name=args.study,
        storage=args.storage,
        overrides=cli.overrides(args),
        train_arguments=cli.training_arguments(args),
        heartbeat_seconds=args.heartbeat_seconds,
        train_command=train_command,
    )
    status = 0 if is_finished else EXIT_RESTART  # The runs that are done are shown all the same.
    rows = read_rows(runs, args.output_dir, args.storage, args.study)
    if not rows:
        if status:
            return status
        raise UserError(f"No run of the study {args.study} is finished. See the logs in {args.output_dir}/runs.")
    # Training in other processes would distort the times, so they are measured when all runs are done.
    is_measuring = not args.report and len(rows) == len(runs)
    rows = add_inference(rows, runs, args.output_dir, measure if is_measuring else None)
    states = read_states(runs, args.output_dir, args.storage, args.study)
    failed = [name for name, state in states.items() if state == "failed"]
    path = write_report(
        study,
        rows,
        args.output_dir,
        recipe=args.recipe,
        resolution=args.resolution,
        seeds=args.seeds,
        command=format_command(args),
        failed=failed,
    )
    show(f"Wrote {path} with {len(rows)} of {len(runs)} runs.")
    if failed and not args.report:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed. Run the same command again to retry them.")
    return status


def _check(args: argparse.Namespace) -> None:
    """Check before the work starts that the results can be written."""
    if args.output_dir is None:
        raise UserError("--output_dir is missing. Name a folder for the runs and the page, or use --list.")
    missing = [name for name in ("optuna", "plotly", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {verb} not installed. Run pip install 'efficientnet_tf[study]'.")


def format_command(args: argparse.Namespace) -> str:
    """Return the command that repeats a study, without the database, because its URL may contain a password."""
    omitted = ("list", "report", "verbose", "storage", "heartbeat_seconds")
    return cli.format_command(make_parser(), args, [f"--study={args.study}"], omitted)


def _numbers(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if not all(0 < value < float("inf") for value in values):
        raise ValueError
    return sorted(set(values))


def _phis(text: str) -> list[float]:
    return sorted({0.0 if float(part) == 0 else cli.positive_number(part) for part in text.split(",")})


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _networks(text: str) -> list[str]:
    if not set(text.split(",")) <= designs.PUBLISHED.keys():
        raise ValueError
    return _names(text)


def _rates(text: str) -> dict[str, float]:
    pairs = [part.rpartition(":") for part in text.split(",")]
    return {name: cli.positive_number(rate) for name, _, rate in pairs}


def _resolution(text: str) -> int:
    if int(text) < 8:
        raise ValueError
    return int(text)


# argparse names the type in its error messages.
_numbers.__name__ = "comma-separated numbers > 0"
_phis.__name__ = "comma-separated numbers >= 0"
_networks.__name__ = f"comma-separated list of {', '.join(designs.PUBLISHED)}"
_rates.__name__ = "list of rates such as b0:0.004,b1:0.003"
_resolution.__name__ = "integer >= 8"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = cli.make_parser(
        "study",
        "Train the networks of a scaling study. Writes results.csv, plots and an interactive page, index.html. If the "
        "study is interrupted, run the same command again to continue. Start it several times to share the work "
        "between processes or machines.",
    )
    parser.add_argument("--study", required=True, choices=list(STUDIES), help="Study to run.")
    parser.add_argument(
        "--recipe", default="digits", help="Recipe: a name in configs/recipes, or the path of a recipe's YAML file."
    )
    parser.add_argument(
        "--output_dir", type=cli.path, help="Folder for the runs, results.csv, the plots and index.html."
    )
    parser.add_argument(
        "--resolution",
        type=_resolution,
        default=32,
        help="Image side of the base network in pixels. For the family: the side that replaces 224.",
    )
    parser.add_argument("--seeds", type=cli.positive_int, default=3, help="Number of runs of each network.")
    parser.add_argument("--list", action="store_true", help="Print the networks and their costs, and exit.")
    parser.add_argument(
        "--report", action="store_true", help="Write the page from the finished runs without training anything."
    )
    parser.add_argument(
        "--storage", help="Database URL for the queue of runs, as Optuna takes it. Defaults to a file in --output_dir."
    )
    parser.add_argument(
        "--heartbeat_seconds",
        type=cli.positive_int,
        default=60,
        help="Seconds between heartbeats. If a process misses three of them, another one takes over its run.",
    )
    _add_study_arguments(parser)
    cli.add_override_arguments(parser)
    cli.add_device_arguments(parser)
    cli.add_tracker_argument(parser)
    return parser


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the single studies."""
    scaled = parser.add_argument_group("one_dimension and interaction")
    scaled.add_argument(
        "--baseline", default="b0", help="Network to scale: a variant, or the path of a variant's YAML file."
    )
    scaled.add_argument("--widths", type=_numbers, default="1,1.4,1.8,2.6,3.8,5", help="Width multipliers.")
    scaled.add_argument(
        "--depths", type=_numbers, default="1,2,3,4,6,8", help="Depth multipliers. Only for one_dimension."
    )
    scaled.add_argument(
        "--resolutions",
        type=_numbers,
        default="1,1.3,1.5,1.7,1.9,2.2,2.5",
        help="Resolution multipliers. Only for one_dimension.",
    )
    scaled.add_argument(
        "--phis", type=_phis, default="0,1,2,3,4", help="Compound coefficients. Only for one_dimension."
    )
    for name, default, dimension in (("alpha", 1.2, "depth"), ("beta", 1.1, "width"), ("gamma", 1.15, "resolution")):
        text = f"Growth of {dimension} with each unit of phi. Only for one_dimension."
        scaled.add_argument(f"--{name}", type=cli.positive_number, default=default, help=text)
    sizes = parser.add_argument_group("family")
    sizes.add_argument(
        "--variants",
        type=_names,
        default="b0,b1,b2,b3",
        help="Variants or paths of their YAML files, from the smallest to the largest.",
    )
    rates = sizes.add_mutually_exclusive_group()
    rates.add_argument(
        "--learning_rates",
        type=_rates,
        help="Learning rate of each variant, for example b0:0.004,b1:0.003. Defaults to the rate of the recipe.",
    )
    rates.add_argument(
        "--learning_rate_grid",
        type=_numbers,
        help="Learning rates at which every variant is trained, for example 0.002,0.004,0.008.",
    )
    others = parser.add_argument_group("baselines")
    others.add_argument(
        "--networks", type=_networks, default=",".join(designs.PUBLISHED), help="Networks to scale, comma-separated."
    )


if __name__ == "__main__":
    cli.run(main, make_parser())

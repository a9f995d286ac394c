"""Run a scaling study: `python -m efficientnet_tf.study --study=one_dimension --recipe=digits --output_dir=DIR`.

Each network of the study is trained with several seeds. A page shows how the accuracy grows with the cost.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import check_output, is_remote
from efficientnet_tf.runtime.signals import EXIT_RESTART
from efficientnet_tf.runtime.terminal import show
from efficientnet_tf.scaling.compound import Coefficients
from efficientnet_tf.study import designs
from efficientnet_tf.study.inference import add_inference, measure_inference
from efficientnet_tf.study.report import add_page_argument, write_report
from efficientnet_tf.study.results import read_rows, read_states
from efficientnet_tf.study.runner import TRAIN_COMMAND, run_jobs
from efficientnet_tf.study.runs import Plan, Run, make_runs
from efficientnet_tf.visualization.page import PLOTLY

LARGEST_SIDE = 10_000  # pixels
PACKAGES = ("optuna", "plotly", "matplotlib")
_FILES = ("results.csv", "index.html", "measured.json")


def _one_dimension(args: argparse.Namespace) -> designs.Study:
    return designs.one_dimension(
        args.baseline,
        args.resolution,
        recipe=args.recipe,
        overrides=cli.overrides(args),
        depths=args.depths,
        widths=args.widths,
        resolutions=args.resolutions,
        phis=args.phis,
        coefficients=Coefficients(args.alpha, args.beta, args.gamma),
    )


def _interaction(args: argparse.Namespace) -> designs.Study:
    return designs.interaction(
        args.baseline, args.resolution, recipe=args.recipe, overrides=cli.overrides(args), widths=args.widths
    )


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
    return designs.baselines(args.networks, args.resolution, recipe=args.recipe, overrides=cli.overrides(args))


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
    check_output_dir(args, PACKAGES, _FILES, [args.baseline, *args.variants, args.recipe])
    is_finished = args.report or train_runs(args, runs, args.study, train_command)
    status = 0 if is_finished else EXIT_RESTART  # The runs that are done are shown all the same.
    rows = read_rows(runs, args.output_dir, args.storage, args.study)
    if not rows:
        if status:
            return status
        raise UserError(
            f"No run of the study {args.study} is finished. See the logs in {escape(args.output_dir)}/runs."
        )
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
        shares_plotly=args.share_plotly,
    )
    show(f"Wrote {escape(path)} with {len(rows)} of {len(runs)} runs.")
    if failed and not args.report:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed. Run the same command again to retry them.")
    return status


def check_output_dir(
    args: argparse.Namespace, packages: Iterable[str], files: Iterable[str], inputs: Iterable[str]
) -> None:
    """Check before the work starts that runs can be trained, and their results written.

    Args:
        args: The flags of `add_run_arguments`.
        packages: Python packages that are needed.
        files: Names of the files that will be written into the folder.
        inputs: Variants and recipes, names or paths, which must not be overwritten.

    Raises:
        UserError: If the folder cannot be used, or something is not installed.
    """
    folder = args.output_dir
    if folder is None:
        raise UserError("--output_dir is missing. Name a folder for the runs and the results, or use --list.")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{', '.join(missing)} {verb} not installed. Run pip install 'efficientnet_tf[study]'.")
    if is_remote(folder):
        raise UserError(f"--output_dir={escape(folder)} must be a local folder, because processes share locks in it.")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UserError(f"--output_dir={escape(folder)} is not a folder. Use another name.")
    for path in inputs:
        if os.path.exists(path) and os.path.basename(os.path.dirname(os.path.realpath(path))) in ("family", "variants"):
            if os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep):
                raise UserError(
                    f"--output_dir={escape(folder)} contains {escape(path)}, which would be overwritten. Use another "
                    "folder."
                )
    if args.share_plotly:
        files = [*files, os.path.join(os.pardir, PLOTLY)]
    if os.path.isdir(folder):
        for name in files:
            check_output("--output_dir", os.path.join(folder, name), [""])


def train_runs(
    args: argparse.Namespace, runs: Sequence[Run] | Plan, study_name: str, train_command: Sequence[str]
) -> bool:
    """Call `run_jobs` with the flags of `add_run_arguments`."""
    return run_jobs(
        runs,
        args.output_dir,
        recipe=args.recipe,
        study_name=study_name,
        storage=args.storage,
        overrides=cli.overrides(args),
        train_arguments=cli.training_arguments(args),
        heartbeat_seconds=args.heartbeat_seconds,
        train_command=train_command,
    )


def format_command(args: argparse.Namespace) -> str:
    """Return the command that repeats a study, without the database, because its URL may contain a password."""
    omitted = ("list", "report", "verbose", "storage", "heartbeat_seconds")
    return cli.format_command(make_parser(), args, [f"--study={args.study}"], omitted)


def _numbers(text: str) -> list[float]:
    return sorted({cli.positive_number(part) for part in text.split(",")})


def _multipliers(text: str) -> list[float]:
    values = [float(part) for part in text.split(",")]
    if not all(1 / designs.MOST_TIMES <= value <= designs.MOST_TIMES for value in values):
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
    rates = {name: cli.positive_number(rate) for name, _, rate in pairs}
    if len(rates) < len(pairs):
        raise ValueError
    return rates


def _resolution(text: str) -> int:
    if not 8 <= int(text) <= LARGEST_SIDE:
        raise ValueError
    return int(text)


def _heartbeat(text: str) -> int:
    if not 1 <= int(text) <= 3600:
        raise ValueError
    return int(text)


# argparse names the type in its error messages.
_numbers.__name__ = "comma-separated numbers > 0"
_multipliers.__name__ = f"comma-separated numbers from {1 / designs.MOST_TIMES:g} to {designs.MOST_TIMES:g}"
_heartbeat.__name__ = "integer from 1 to 3600"
_phis.__name__ = "comma-separated numbers >= 0"
_networks.__name__ = f"comma-separated list of {', '.join(designs.PUBLISHED)}"
_rates.__name__ = "list of rates such as b0:0.004,b1:0.003"
_resolution.__name__ = f"integer from 8 to {LARGEST_SIDE}"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = cli.make_parser(
        "study",
        "Train the networks of a scaling study. Writes results.csv, plots and an interactive page, index.html. If the "
        "study is interrupted, run the same command again to continue. Start it several times to share the work "
        "between processes or machines.",
    )
    parser.add_argument("--study", required=True, choices=list(STUDIES), help="Study to run.")
    add_run_arguments(parser, "results.csv, the plots and index.html", "the networks and their costs")
    parser.add_argument(
        "--resolution",
        type=_resolution,
        default=32,
        help="Image side of the base network in pixels. For the family: the side that replaces 224.",
    )
    parser.add_argument(
        "--report", action="store_true", help="Write the page from the finished runs without training anything."
    )
    add_page_argument(parser)
    _add_study_arguments(parser)
    return parser


def add_run_arguments(parser: argparse.ArgumentParser, files: str, listed: str) -> None:
    """Add the flags of a command that trains many networks. `files` and `listed` are what it writes and lists."""
    parser.add_argument(
        "--recipe", default="digits", help="Recipe: a name in configs/recipes, or the path of a recipe's YAML file."
    )
    parser.add_argument("--output_dir", type=cli.path, help=f"Folder for the runs, {files}.")
    parser.add_argument("--seeds", type=cli.positive_int, default=3, help="Number of runs of each network.")
    parser.add_argument("--list", action="store_true", help=f"Print {listed}, and exit.")
    parser.add_argument(
        "--storage", help="Database URL for the queue of runs, as Optuna takes it. Defaults to a file in --output_dir."
    )
    parser.add_argument(
        "--heartbeat_seconds",
        type=_heartbeat,
        default=60,
        help="Seconds between heartbeats. If a process misses three of them, another one takes over its run.",
    )
    cli.add_override_arguments(parser)
    cli.add_device_arguments(parser)
    cli.add_tracker_argument(parser)


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the single studies."""
    scaled = parser.add_argument_group("one_dimension and interaction")
    scaled.add_argument(
        "--baseline", default="b0", help="Network to scale: a variant, or the path of a variant's YAML file."
    )
    scaled.add_argument("--widths", type=_multipliers, default="1,1.4,1.8,2.6,3.8,5", help="Width multipliers.")
    scaled.add_argument(
        "--depths", type=_multipliers, default="1,2,3,4,6,8", help="Depth multipliers. Only for one_dimension."
    )
    scaled.add_argument(
        "--resolutions",
        type=_multipliers,
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

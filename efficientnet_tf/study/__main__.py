"""Scaling studies: `python -m efficientnet_tf.study --study=one_dimension --recipe=digits --output_dir=DIR`.

Each network of a study is trained with several seeds; a page shows how accuracy grows with what they cost.
"""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.runtime.files import write_text
from efficientnet_tf.study.designs import PUBLISHED, STUDIES, format_list, make_runs
from efficientnet_tf.study.page import About, average, count_overlaps, write_page
from efficientnet_tf.study.runner import read_rows, read_states, run_jobs

# ------------------------------------------------------------------------------------------------- times


def measure_inference(variant):
    """Measure a network in a process of its own, with random weights.

    Args:
        variant: str, path of its YAML.

    Returns:
        float, seconds for one image at batch 1; None where that failed, which is said.
    """
    command = [sys.executable, "-m", "efficientnet_tf.summary", f"--variant={variant}", "--measure", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{variant}: inference is not measured: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)["measured"]["inference_seconds"]


def add_inference(rows, runs, output_dir, measure):
    """Return the rows with "inference_seconds", from measured.json and from `measure`, for what is not there.

    Args:
        rows: list of dict, as of `trials.rows`.
        runs: list of trials.Run.
        output_dir: str.
        measure: function of a variant's path, as `measure_inference`; None to measure nothing.
    """
    networks = {run.name: _describe(run.spec) for run in runs}
    path = os.path.join(output_dir, "measured.json")
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one after the other, also where several processes end together
        known = {}
        if os.path.exists(path):
            with open(path) as file:
                known = json.load(file)
        ones = {networks[row["run"]]: row["run"] for row in reversed(rows)}  # a run of each network, the first
        for network, name in reversed(ones.items()):
            seconds = None
            if measure and network not in known:
                seconds = measure(os.path.join(output_dir, "variants", f"{name}.yaml"))
            if seconds is not None:
                known[network] = seconds
                print(f"{network}: {seconds * 1000:.2f} ms for one image", flush=True)
                write_text(path, json.dumps(known, indent=1))
    return [row | {"inference_seconds": known.get(networks[row["run"]])} for row in rows]


def _describe(spec):
    return f"{spec.name}, depth {spec.depth:g}, width {spec.width:g}, {spec.resolution} pixels"


# ------------------------------------------------------------------------------------------------- the page


def show(study, runs, rows, output_dir, args, failed=()):
    """Write the page of a study from the finished runs; return its path."""
    points = average(rows)
    lines = study.lines(points)
    about = About(
        study.title,
        study.summary,
        findings=tuple(study.findings(lines)),
        caveats=(*study.caveats, *_caveats(points, args), *([f"Failed: {', '.join(failed)}."] if failed else [])),
        command=format_command(args),
        planned=len(runs),
        tag=study.tag,
        joined=study.joined,
    )
    return write_page(output_dir, about, rows, lines, study.pictures)


def _caveats(points, args):
    yield (
        f"Trained from random weights by the recipe {args.recipe}, from {args.resolution} pixels: the order and the "
        "shapes can be compared with the paper, the accuracies cannot."
    )
    overlaps = count_overlaps(points)
    if args.seeds == 1:
        yield "One seed each: how much of a difference is chance is not known."
    elif overlaps and overlaps[0]:
        yield (
            f"The accuracies of {overlaps[0]} of {overlaps[1]} pairs of networks overlap, mean +- standard deviation: "
            "which of the two is better is not established."
        )
    yield (
        "Feature maps of few pixels are rounded up, so that multiply-adds grow in steps. Times are of the machine of "
        "each run, and of whatever else ran on it."
    )


def format_command(args):
    """Return the command that redoes a study; without the database, whose address may hold a password."""
    required = [f"--study={args.study}"]
    return cli.format_command(make_parser(), args, required, ("list", "report", "storage", "heartbeat_seconds"))


# ------------------------------------------------------------------------------------------------- the command


def main(args):
    """List the runs of a study, or do them and show what they say."""
    study = STUDIES[args.study](args)
    runs = make_runs(study.networks, args.seeds)
    if args.list:
        print(format_list(study.networks, args.seeds))
        return 0
    if args.output_dir is None:
        raise UserError("--output_dir is missing: where the runs and the page come to lie (or --list)")
    missing = [name for name in ("optuna", "plotly", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install 'efficientnet_tf[study]'")
    status = 0
    if not args.report:
        try:
            run_jobs(
                runs,
                args.output_dir,
                recipe=args.recipe,
                storage=args.storage,
                study_name=args.study,
                overrides=cli.overrides(args),
                train_arguments=cli.training_arguments(args),
                heartbeat_seconds=args.heartbeat_seconds,
            )
        except SystemExit as stop:  # a signal: what is finished is shown all the same
            status = stop.code
    rows = read_rows(runs, args.output_dir, args.storage, args.study)
    if not rows:
        if status:
            return status
        raise UserError(f"no run of {args.study} is finished: the logs in {args.output_dir}/runs say more")
    # Not beside training, which would be in the way.
    measure = None if args.report or len(rows) < len(runs) else measure_inference
    rows = add_inference(rows, runs, args.output_dir, measure)
    states = read_states(runs, args.output_dir, args.storage, args.study)
    failed = [name for name, state in states.items() if state == "failed"]
    path = show(study, runs, rows, args.output_dir, args, failed)
    print(f"{path}: {len(rows)} of {len(runs)} runs")
    if failed and not args.report:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed; the same command tries them again")
    return status


def _numbers(text):
    values = [float(part) for part in text.split(",")]
    if not all(0 < value < float("inf") for value in values):
        raise ValueError
    return sorted(set(values))


def _phis(text):
    return sorted({0.0 if float(part) == 0 else cli.positive_number(part) for part in text.split(",")})


def _names(text):
    return list(dict.fromkeys(text.split(",")))


def _networks(text):
    if not set(text.split(",")) <= PUBLISHED.keys():
        raise ValueError
    return _names(text)


def _rates(text):
    pairs = [part.rpartition(":") for part in text.split(",")]
    return {name: cli.positive_number(rate) for name, _, rate in pairs}


def _side(text):
    if int(text) < 8:
        raise ValueError
    return int(text)


_numbers.__name__ = "numbers > 0, divided by commas"  # argparse names the type in its message
_phis.__name__ = "numbers >= 0, divided by commas"
_networks.__name__ = f"networks of {', '.join(PUBLISHED)}, divided by commas"
_rates.__name__ = "rates of variants, such as b0:0.004,b1:0.003"
_side.__name__ = "int >= 8"


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "study",
        "Train the networks of a scaling study and show them: results.csv, pictures and an interactive page, "
        "index.html. Killed and started again, it goes on; started several times at once, the processes share the "
        "work.",
    )
    parser.add_argument("--study", required=True, choices=list(STUDIES), help="what is compared")
    parser.add_argument("--recipe", default="digits", help="a name in configs/recipes, or the path of a recipe's YAML")
    parser.add_argument("--output_dir", help="where runs, results.csv, pictures and index.html come to lie")
    parser.add_argument(
        "--resolution", type=_side, default=32, help="image side of the base, or of what 224 stands for"
    )
    parser.add_argument("--seeds", type=cli.positive_int, default=3, help="runs of each network")
    parser.add_argument("--list", action="store_true", help="print the networks and what each costs, and end")
    parser.add_argument("--report", action="store_true", help="write the page from the finished runs, train nothing")
    parser.add_argument("--storage", help="database of the runs, as Optuna takes it; by default a file in --output_dir")
    parser.add_argument(
        "--heartbeat_seconds", type=cli.positive_int, default=60, help="a process silent for three of these is dead"
    )
    scaled = parser.add_argument_group("one_dimension, interaction")
    scaled.add_argument("--baseline", default="b0", help="the network to scale: a variant, or the path of its YAML")
    scaled.add_argument("--widths", type=_numbers, default="1,1.4,1.8,2.6,3.8,5", help="multipliers")
    scaled.add_argument("--depths", type=_numbers, default="1,2,3,4,6,8", help="multipliers (one_dimension)")
    scaled.add_argument("--resolutions", type=_numbers, default="1,1.3,1.5,1.7,1.9,2.2,2.5", help="multipliers (same)")
    scaled.add_argument("--phis", type=_phis, default="0,1,2,3,4", help="compound coefficients (same)")
    scaled.add_argument("--alpha", type=cli.positive_number, default=1.2, help="depth grows by this with each phi")
    scaled.add_argument("--beta", type=cli.positive_number, default=1.1, help="width")
    scaled.add_argument("--gamma", type=cli.positive_number, default=1.15, help="resolution")
    sizes = parser.add_argument_group("family")
    sizes.add_argument("--variants", type=_names, default="b0,b1,b2,b3", help="names or paths, the smallest first")
    rates = sizes.add_mutually_exclusive_group()
    rates.add_argument("--learning_rates", type=_rates, help="of each variant: b0:0.004,b1:0.003; else the recipe's")
    rates.add_argument("--learning_rate_grid", type=_numbers, help="every variant at each of these: 0.002,0.004,0.008")
    others = parser.add_argument_group("baselines")
    others.add_argument("--networks", type=_networks, default=",".join(PUBLISHED), help="which of them")
    cli.add_override_arguments(parser)
    cli.add_device_arguments(parser)
    cli.add_tracker_argument(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

"""Scaling studies: `python -m efficientnet_tf.study --study=one_dimension --recipe=digits --output_dir=DIR`.

A study is a list of networks, each trained with several seeds, and the lines in which their accuracies are compared:
the paper's figures 3 and 4, its table 3, and the family.
"""

import fcntl
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from efficientnet_tf import cli, schema, study_page, trials
from efficientnet_tf.complexity import count_cost
from efficientnet_tf.config import UserError, load_config, load_variant
from efficientnet_tf.scaling import Coefficients, compound, multiply, round_resolution

# Multipliers of (depth, width, resolution), and what became of them: multiply-adds and top-1 on ImageNet.
# Source: paper, table 3, which has no MobileNetV1 with d=4.
SCALINGS = {"base": (1, 1, 1), "d=4": (4, 1, 1), "w=2": (1, 2, 1), "r=2": (1, 1, 2), "compound": (1.4, 1.2, 1.3)}
PUBLISHED = {
    "mobilenetv1": {"base": (0.6e9, 0.706), "w=2": (2.2e9, 0.742), "r=2": (2.2e9, 0.727), "compound": (2.3e9, 0.756)},
    "mobilenetv2": {
        **{"base": (0.3e9, 0.720), "d=4": (1.2e9, 0.768), "w=2": (1.1e9, 0.764), "r=2": (1.2e9, 0.748)},
        "compound": (1.3e9, 0.774),
    },
    "resnet50": {
        **{"base": (4.1e9, 0.760), "d=4": (16.2e9, 0.781), "w=2": (14.7e9, 0.777), "r=2": (16.4e9, 0.775)},
        "compound": (16.7e9, 0.788),
    },
}
PUBLISHED_SIDE = 224  # pixels, of the networks that the published resolutions are multiples of
INTERACTION = [(1, 1), (1, 1.3), (2, 1), (2, 1.3)]  # (depth, resolution) of the width sweeps. Source: paper, figure 4


@dataclass(frozen=True)
class Network:
    """A network of a study."""

    name: str
    spec: schema.ModelSpec
    base: schema.ModelSpec  # what it is scaled from
    labels: dict  # scalars; what tells it from the others
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """What is trained, and how it is shown."""

    title: str
    summary: str
    networks: list[Network]
    lines: Callable  # from the points of study_page.average to {name of a line: its points}
    tag: str = "scaling"  # the label that names a point in a picture
    joined: bool = True  # whether the points of a line are
    pictures: tuple[str, ...] = ("macs",)
    caveats: tuple[str, ...] = ()
    findings: Callable = lambda lines: ()  # from the lines to sentences


def one_dimension(args):
    """Depth, width and resolution alone, and all together (paper, figure 3 and table 7)."""
    base = _baseline(args)
    coefficients = Coefficients(args.alpha, args.beta, args.gamma)
    dimensions = {
        "depth": {f"d={d:g}": (d, 1, 1) for d in args.depths},
        "width": {f"w={w:g}": (1, w, 1) for w in args.widths},
        "resolution": {f"r={r:g}": (1, 1, r) for r in args.resolutions},
        "compound": {f"phi={phi:g}": compound(phi, coefficients) for phi in args.phis},
    }
    networks = [Network("base", base, base, {"dimension": "base", "scaling": "base"})]
    for dimension, scalings in dimensions.items():
        for scaling, multipliers in scalings.items():
            if multipliers != (1, 1, 1):  # the base, which all lines share
                labels = {"dimension": dimension, "scaling": scaling}
                name = dimension + scaling.partition("=")[2]
                networks.append(Network(name, multiply(base, *multipliers), base, labels))
    return Study(
        "One dimension alone against all together",
        f"{base.name} made deeper, wider or of higher resolution, and all three by the compound coefficient phi "
        f"(alpha {args.alpha:g}, beta {args.beta:g}, gamma {args.gamma:g}); in the paper each alone saturates.",
        networks,
        lambda points: {d: [p for p in points if p["dimension"] in ("base", d)] for d in dimensions},
    )


def interaction(args):
    """Width at several depths and resolutions (paper, figure 4)."""
    base = _baseline(args)
    networks = [
        Network(
            f"d{d:g}_r{r:g}_w{w:g}",
            multiply(base, d, w, r),
            base,
            {"sweep": f"d={d:g}, r={r:g}", "scaling": f"w={w:g}"},
        )
        for d, r in INTERACTION
        for w in args.widths
    ]
    return Study(
        "What width gains depends on depth and resolution",
        f"The width of {base.name} swept at four depths and resolutions; in the paper width saturates soon unless the "
        "network is also deeper and sees more pixels.",
        networks,
        lambda points: _group(points, "sweep"),
    )


def family(args):
    """The published variants, at one learning rate, at one for each, or at all of a grid."""
    specs = {}
    for variant in args.variants:
        spec = load_variant(variant)
        side = round_resolution(args.resolution * spec.resolution / PUBLISHED_SIDE)
        specs[spec.name] = spec.model_copy(update={"resolution": side})
    if args.learning_rates and args.learning_rates.keys() != specs.keys():
        raise UserError(
            f"--learning_rates names {', '.join(args.learning_rates)}; needed is a rate for each of {', '.join(specs)}"
        )
    stated = load_config(args.variants[0], args.recipe, cli.overrides(args)).optimizer.learning_rate
    base, networks = next(iter(specs.values())), []
    for rate in args.learning_rate_grid or [None]:
        for name, spec in specs.items():
            own = args.learning_rates[name] if args.learning_rates else rate
            overrides = () if own is None else (f"optimizer.learning_rate={own!r}",)
            labels = {"variant": name, "learning_rate": own or stated}
            networks.append(Network(f"{name}_rate{rate:g}" if rate else name, spec, base, labels, overrides))

    def lines(points):
        if args.learning_rates:
            return {"a rate for each": points}
        one_rate = {f"rate {rate:g} for all": same for rate, same in _group(points, "learning_rate").items()}
        return one_rate | ({"best rate of each": _best(points)} if args.learning_rate_grid else {})

    caveats = [
        "On few small images the family is known to look inverted, larger networks worse, when all are trained with "
        "the same hyper-parameters: a rate and a regularisation that fit the smallest. It says little about the rest.",
        "Dropout is that of each variant; everything else but the learning rate is held equal.",
    ]
    if args.learning_rate_grid:
        caveats.append("The best rates are chosen by the accuracies that are shown, which flatters them a little.")
    elif not args.learning_rates:
        caveats.append("One learning rate for all: --learning_rate_grid shows what each variant gets from its own.")
    return Study(
        "The family on this data",
        f"{', '.join(specs)}: accuracy beside what it costs in parameters, multiply-adds and measured time.",
        networks,
        lines,
        tag="variant",
        pictures=("macs", "params", "train_seconds", "inference_seconds"),
        caveats=tuple(caveats),
        findings=_compare_sizes,
    )


def _best(points):
    """Return the point of each variant whose learning rate gave the highest accuracy."""
    return [max(same, key=lambda point: point["top1"]) for same in _group(points, "variant").values()]


def _compare_sizes(lines):
    for name, points in lines.items():
        if points:
            numbers = ", ".join(f"{point['variant']} {point['top1']:.2%}" for point in points)
            inverted = points[-1]["top1"] < points[0]["top1"]
            yield f"{name}: {numbers}." + (" The largest is worse than the smallest: inverted." if inverted else "")


def baselines(args):
    """Other networks, scaled in one dimension and in all (paper, table 3)."""
    networks = []
    for name in args.networks:
        base = load_variant(name).model_copy(update={"resolution": args.resolution})
        for scaling, (macs, top1) in PUBLISHED[name].items():
            labels = {"network": name, "scaling": scaling, "paper_macs": macs, "paper_top1": top1}
            spec = multiply(base, *SCALINGS[scaling])
            networks.append(Network(f"{name}_{scaling.replace('=', '')}", spec, base, labels))
    return Study(
        "Scaling other networks",
        "One dimension against all three (d 1.4, w 1.2, r 1.3) on networks that were not searched for it.",
        networks,
        lambda points: _group(points, "network"),
        joined=False,
        caveats=(f"The paper's figures, beside these, are of ImageNet at {PUBLISHED_SIDE} pixels.",),
    )


STUDIES = {study.__name__: study for study in (one_dimension, interaction, family, baselines)}


def _baseline(args):
    return load_variant(args.baseline).model_copy(update={"resolution": args.resolution})


def _group(points, label):
    """Return {value of the label: the points that have it}, in their order."""
    groups = {}
    for point in points:
        groups.setdefault(point[label], []).append(point)
    return groups


def make_runs(networks, seeds):
    """Return the trials.Run of each network and seed; all networks have their first seed before the second."""
    return [
        trials.Run(f"{network.name}_seed{seed}", network.spec, network.labels | {"seed": seed}, network.overrides)
        for seed in range(seeds)
        for network in networks
    ]


def format_list(networks, seeds):
    """Return a table of the networks: what each is and costs."""
    wide = max(len(network.name) for network in networks)
    lines = [f"{'network':{wide}}   depth   width  pixels  params/M  MACs/M  to base"]
    for network in networks:
        spec, total, base = network.spec, count_cost(network.spec)["total"], count_cost(network.base)["total"]
        lines.append(
            f"{network.name:{wide}}{spec.depth:8g}{spec.width:8g}{spec.resolution:8d}"
            f"{total.trainable_params / 1e6:10.3f}{total.macs / 1e6:8.1f}{total.macs / base.macs:8.2f}x"
        )
    lines.append(f"{len(networks)} networks, seeds {seeds}: {len(networks) * seeds} runs")
    return "\n".join(lines)


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
                trials.write_file(path, json.dumps(known, indent=1))
    return [row | {"inference_seconds": known.get(networks[row["run"]])} for row in rows]


def _describe(spec):
    return f"{spec.name}, depth {spec.depth:g}, width {spec.width:g}, {spec.resolution} pixels"


# ------------------------------------------------------------------------------------------------- the page


def show(study, runs, rows, output_dir, args, failed=()):
    """Write the page of a study from the finished runs; return its path."""
    points = study_page.average(rows)
    lines = study.lines(points)
    about = study_page.About(
        study.title,
        study.summary,
        findings=tuple(study.findings(lines)),
        caveats=(*study.caveats, *_caveats(points, args), *([f"Failed: {', '.join(failed)}."] if failed else [])),
        command=format_command(args),
        planned=len(runs),
        tag=study.tag,
        joined=study.joined,
    )
    return study_page.write_page(output_dir, about, rows, lines, study.pictures)


def _caveats(points, args):
    yield (
        f"Trained from random weights by the recipe {args.recipe}, from {args.resolution} pixels: the order and the "
        "shapes can be compared with the paper, the accuracies cannot."
    )
    overlaps = study_page.count_overlaps(points)
    if args.seeds == 1:
        yield "One seed each: how much of a difference is chance is not known."
    elif overlaps and overlaps[0]:
        yield (
            f"The accuracies of {overlaps[0]} of {overlaps[1]} pairs of networks overlap, mean +- standard deviation: "
            "which of the two is better is not established."
        )
    yield (
        "Parameters and multiply-adds are counted with 1,000 classes; feature maps of few pixels are rounded up, so "
        "that multiply-adds grow in steps. Times are of the machine of each run, and of whatever else ran on it."
    )


def format_command(args):
    """Return the command that redoes a study; without the database, whose address may hold a password."""
    words = [f"python -m efficientnet_tf.study --study={args.study}"]
    defaults = vars(make_parser().parse_args([f"--study={args.study}"]))
    for name, value in vars(args).items():
        if name in ("list", "report", "storage", "heartbeat_seconds") or value == defaults[name]:
            continue
        if name == "overrides":
            words += [f"--set {shlex.quote(text)}" for text in value]
            continue
        if isinstance(value, dict):
            value = [f"{key}:{part:g}" for key, part in value.items()]
        if isinstance(value, list):
            value = ",".join(part if isinstance(part, str) else f"{part:g}" for part in value)
        words.append(f"--{name}={shlex.quote(str(value))}")
    return " ".join(words)


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
            trials.work(
                runs,
                args.output_dir,
                recipe=args.recipe,
                storage=args.storage,
                study_name=args.study,
                overrides=cli.overrides(args),
                train_arguments=cli.device_arguments(args),
                heartbeat_seconds=args.heartbeat_seconds,
            )
        except SystemExit as stop:  # a signal: what is finished is shown all the same
            status = stop.code
    rows = trials.rows(runs, args.output_dir, args.storage, args.study)
    if not rows:
        if status:
            return status
        raise UserError(f"no run of {args.study} is finished: the logs in {args.output_dir}/runs say more")
    # Not beside training, which would be in the way.
    measure = None if args.report or len(rows) < len(runs) else measure_inference
    rows = add_inference(rows, runs, args.output_dir, measure)
    states = trials.states(runs, args.output_dir, args.storage, args.study)
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
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

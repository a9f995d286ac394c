"""What the scaling studies are: lists of networks, and the lines in which their accuracies are compared.

The paper's figures 3 and 4, its table 3, and the family. A study is a function of the flags of the command study.
"""

from collections.abc import Callable
from dataclasses import dataclass

from efficientnet_tf import cli
from efficientnet_tf.config import schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config, load_variant
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import Coefficients, compound, multiply, round_resolution
from efficientnet_tf.study.runner import Run

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
        Run(f"{network.name}_seed{seed}", network.spec, network.labels | {"seed": seed}, network.overrides)
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
    lines.append(f"{len(networks)} networks, seeds {seeds}: {len(networks) * seeds} runs; costs with 1,000 classes")
    return "\n".join(lines)

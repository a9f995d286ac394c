"""The scaling studies: lists of networks, and the groups in which their accuracies are compared.

They are figures 3 and 4 and table 3 of the paper, and the family of published variants.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.terminal import make_table
from efficientnet_tf.scaling.complexity import count_cost
from efficientnet_tf.scaling.compound import Coefficients, Multipliers, compound, round_resolution, scale_spec
from efficientnet_tf.study.columns import Lines, Point
from efficientnet_tf.study.runs import StudyNetwork, load_network

if TYPE_CHECKING:
    from rich.table import Table

# Multipliers of (depth, width, resolution), and the multiply-adds and ImageNet top-1 accuracy that they gave.
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
PUBLISHED_RESOLUTION = 224  # pixels, of the networks that the published resolutions are multiples of
INTERACTION = [(1, 1), (1, 1.3), (2, 1), (2, 1.3)]  # (depth, resolution) of the width sweeps. Source: paper, figure 4


MOST_TIMES = 100.0  # of the depth, the width or the resolution of the base network


def scale_factors(phi: float, coefficients: Coefficients) -> Multipliers:
    """Return the multipliers of `compound`.

    Raises:
        UserError: If one of them is not between 1 / `MOST_TIMES` and `MOST_TIMES`.
    """
    factors = compound(phi, coefficients)
    if not all(1 / MOST_TIMES <= factor <= MOST_TIMES for factor in factors):
        raise UserError(
            f"phi={phi:g} with alpha {coefficients.alpha:g}, beta {coefficients.beta:g} and gamma "
            f"{coefficients.gamma:g} would scale a network by more than {MOST_TIMES:g}. Use a smaller phi."
        )
    return factors


@dataclass(frozen=True)
class Study:
    """A study: what is trained, and how the results are shown.

    Attributes:
        title: Title of the page.
        summary: One or two sentences that say what is compared.
        networks: The networks to train.
        make_lines: Function that groups points, one per network, into the lines of the plots.
        point_label: The label whose value is written next to a point of a plot.
        is_joined: Whether the points of a line are joined.
        plots: Columns over which the accuracy is plotted.
        caveats: Sentences that say what the results do not show.
        find_conclusions: Function that returns sentences on what the lines show.
    """

    title: str
    summary: str
    networks: list[StudyNetwork]
    make_lines: Callable[[Sequence[Point]], Lines]
    point_label: str = "scaling"
    is_joined: bool = True
    plots: tuple[str, ...] = ("macs",)
    caveats: tuple[str, ...] = ()
    find_conclusions: Callable[[Lines], Iterable[str]] = lambda lines: ()


def one_dimension(
    baseline: str,
    resolution: int,
    *,
    recipe: str,
    overrides: Sequence[str] = (),
    depths: Sequence[float],
    widths: Sequence[float],
    resolutions: Sequence[float],
    phis: Sequence[float],
    coefficients: Coefficients,
) -> Study:
    """Scale depth, width and resolution alone, and all of them together.

    Args:
        baseline: Name of a variant, or path of its YAML file.
        resolution: Image side of the baseline in pixels.
        recipe: Name of a recipe, or path of its YAML file.
        overrides: "section.key=value" texts for all runs.
        depths: Depth multipliers.
        widths: Width multipliers.
        resolutions: Resolution multipliers.
        phis: Compound coefficients.
        coefficients: Growth of depth, width and resolution with each unit of phi.

    Source: paper, figure 3 and table 7.
    """
    base = load_network(baseline, recipe, overrides, resolution)
    scalings = {
        "depth": {f"d={d:g}": (d, 1, 1) for d in depths},
        "width": {f"w={w:g}": (1, w, 1) for w in widths},
        "resolution": {f"r={r:g}": (1, 1, r) for r in resolutions},
        "compound": {f"phi={phi:g}": scale_factors(phi, coefficients) for phi in phis},
    }
    networks = [StudyNetwork("base", base, base, {"dimension": "base", "scaling": "base"})]
    for dimension, multipliers in scalings.items():
        for scaling, factors in multipliers.items():
            if factors != (1, 1, 1):  # That is the base, which all lines share.
                labels = {"dimension": dimension, "scaling": scaling}
                name = dimension + scaling.partition("=")[2]
                networks.append(StudyNetwork(name, scale_spec(base, *factors), base, labels))
    return Study(
        "One dimension versus compound scaling",
        f"Scales {base.name} in depth, width or resolution alone, and in all three by the compound coefficient phi "
        f"(alpha {coefficients.alpha:g}, beta {coefficients.beta:g}, gamma {coefficients.gamma:g}). In the paper, the "
        "accuracy saturates along each single dimension.",
        networks,
        lambda points: {d: [p for p in points if p["dimension"] in ("base", d)] for d in scalings},
    )


def interaction(
    baseline: str, resolution: int, *, recipe: str, overrides: Sequence[str] = (), widths: Sequence[float]
) -> Study:
    """Scale width at several depths and resolutions.

    Args:
        baseline: Name of a variant, or path of its YAML file.
        resolution: Image side of the baseline in pixels.
        recipe: Name of a recipe, or path of its YAML file.
        overrides: "section.key=value" texts for all runs.
        widths: Width multipliers.

    Source: paper, figure 4.
    """
    base = load_network(baseline, recipe, overrides, resolution)
    networks = [
        StudyNetwork(
            f"d{d:g}_r{r:g}_w{w:g}",
            scale_spec(base, d, w, r),
            base,
            {"sweep": f"d={d:g}, r={r:g}", "scaling": f"w={w:g}"},
        )
        for d, r in INTERACTION
        for w in widths
    ]
    return Study(
        "Width at different depths and resolutions",
        f"Scales the width of {base.name} at four combinations of depth and resolution. In the paper, more width soon "
        "stops helping unless the network is also deeper and has a higher resolution.",
        networks,
        lambda points: _group(points, "sweep"),
    )


def family(
    variants: Sequence[str],
    resolution: int,
    *,
    recipe: str,
    overrides: Sequence[str] = (),
    learning_rates: Mapping[str, float] | None = None,
    learning_rate_grid: Sequence[float] | None = None,
) -> Study:
    """Compare variants at the learning rate of the recipe, at one rate for each variant, or at all rates of a grid.

    Args:
        variants: Names of variants or paths of their YAML files, from the smallest to the largest.
        resolution: Image side in pixels that replaces 224. The variants keep the ratios of their resolutions.
        recipe: Name of a recipe, or path of its YAML file.
        overrides: "section.key=value" texts for all runs.
        learning_rates: The rate of each variant, by its name. Excludes `learning_rate_grid`.
        learning_rate_grid: Rates at which every variant is trained.

    Raises:
        UserError: If `learning_rates` does not name exactly the variants.
    """
    specs = {}
    for variant in variants:
        spec = load_network(variant, recipe, overrides)
        if spec.name in specs:
            raise UserError(f"variants={escape(','.join(variants))} has two variants named '{escape(spec.name)}'.")
        side = round_resolution(resolution * spec.resolution / PUBLISHED_RESOLUTION)
        specs[spec.name] = spec.model_copy(update={"resolution": side})
    if learning_rates and learning_rates.keys() != specs.keys():
        raise UserError(
            f"learning_rates={escape(','.join(f'{name}:{rate:g}' for name, rate in learning_rates.items()))} does not "
            f"match the variants. Give one rate for each of {escape(', '.join(specs))}."
        )
    recipe_rate = load_config(variants[0], recipe, overrides).optimizer.learning_rate
    networks = _make_family(specs, recipe_rate, learning_rates, learning_rate_grid)

    def make_lines(points: Sequence[Point]) -> Lines:
        if learning_rates:
            return {"own rate for each": list(points)}
        lines = {f"rate {rate:g} for all": same for rate, same in _group(points, "learning_rate").items()}
        return lines | ({"best rate of each": _find_best(points)} if learning_rate_grid else {})

    return Study(
        "The family on this data set",
        f"Accuracy of {', '.join(specs)}, compared with parameters, multiply-adds and measured time.",
        networks,
        make_lines,
        point_label="variant",
        plots=("macs", "params", "train_seconds", "inference_seconds"),
        caveats=_list_family_caveats(bool(learning_rates), bool(learning_rate_grid)),
        find_conclusions=_compare_sizes,
    )


def _list_family_caveats(has_own_rates: bool, has_grid: bool) -> tuple[str, ...]:
    caveats = [
        "On a few small images, larger variants are known to look worse than smaller ones when all are trained with "
        "the same hyperparameters, because the learning rate and the regularization then suit the smallest one. This "
        "says little about large data sets.",
        "Each variant has its own dropout rate. Everything else but the learning rate is the same for all.",
    ]
    if has_grid:
        caveats.append(
            "The best rate of each variant was chosen by the accuracy shown here, which is thus slightly optimistic."
        )
    elif not has_own_rates:
        caveats.append(
            "All variants have the same learning rate. Use --learning_rate_grid to see what each gains from its own."
        )
    return tuple(caveats)


def _make_family(
    specs: Mapping[str, ModelSpec],
    recipe_rate: float,
    learning_rates: Mapping[str, float] | None,
    learning_rate_grid: Sequence[float] | None,
) -> list[StudyNetwork]:
    """Return the networks of the family. Those that take the rate of the recipe have no override."""
    base, networks = next(iter(specs.values())), []
    for grid_rate in learning_rate_grid or [None]:
        for name, spec in specs.items():
            rate = learning_rates[name] if learning_rates else grid_rate
            overrides = () if rate is None else (f"optimizer.learning_rate={rate!r}",)
            labels = {"variant": name, "learning_rate": recipe_rate if rate is None else rate}
            full_name = f"{name}_rate{grid_rate:g}" if grid_rate else name
            networks.append(StudyNetwork(full_name, spec, base, labels, overrides))
    return networks


def _find_best(points: Sequence[Point]) -> list[Point]:
    """Return the point of each variant whose learning rate gave the highest accuracy."""
    return [max(same, key=lambda point: point["top1"]) for same in _group(points, "variant").values()]


def _compare_sizes(lines: Lines) -> Iterable[str]:
    for name, points in lines.items():
        if points:
            numbers = ", ".join(f"{point['variant']} {point['top1']:.2%}" for point in points)
            is_inverted = points[-1]["top1"] < points[0]["top1"]
            yield f"{name.capitalize()}: {numbers}." + (
                " The largest variant is less accurate than the smallest one." if is_inverted else ""
            )


def baselines(names: Sequence[str], resolution: int, *, recipe: str, overrides: Sequence[str] = ()) -> Study:
    """Scale other networks, along one dimension and along all of them.

    Args:
        names: Keys of `PUBLISHED`.
        resolution: Image side of the networks before scaling, in pixels.
        recipe: Name of a recipe, or path of its YAML file.
        overrides: "section.key=value" texts for all runs.

    Source: paper, table 3.
    """
    networks = []
    for name in names:
        base = load_network(name, recipe, overrides, resolution)
        for scaling, (macs, top1) in PUBLISHED[name].items():
            labels = {"network": name, "scaling": scaling, "paper_macs": macs, "paper_top1": top1}
            spec = scale_spec(base, *SCALINGS[scaling])
            networks.append(StudyNetwork(f"{name}_{scaling.replace('=', '')}", spec, base, labels))
    return Study(
        "Scaling other networks",
        "One dimension versus all three (depth 1.4, width 1.2, resolution 1.3), on networks for which these "
        "coefficients were not searched.",
        networks,
        lambda points: _group(points, "network"),
        is_joined=False,
        caveats=(f"The paper's numbers are for ImageNet at {PUBLISHED_RESOLUTION} pixels.",),
    )


def _group(points: Sequence[Point], label: str) -> Lines:
    """Return the points by the value of a label, in their order."""
    groups: Lines = {}
    for point in points:
        groups.setdefault(point[label], []).append(point)
    return groups


def make_network_table(networks: Sequence[StudyNetwork]) -> "Table":
    """Return a table of the networks of a study and their costs with 1,000 classes."""
    rows = []
    for network in networks:
        spec, cost, base_cost = network.spec, count_cost(network.spec), count_cost(network.base)
        rows.append(
            [
                *(escape(network.name), f"{spec.depth:g}", f"{spec.width:g}", f"{spec.resolution}"),
                *(f"{cost.params / 1e6:.3f}", f"{cost.macs / 1e6:.1f}", f"{cost.macs / base_cost.macs:.2f}x"),
            ]
        )
    return make_table(["network", "depth", "width", "pixels", "params (M)", "MACs (M)", "MACs / base"], rows)

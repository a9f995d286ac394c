"""Scale a network to a budget: `python -m efficientnet_tf.scale --target_macs=1.8e9 --output=mine.yaml`.

`--explain` shows how the published variants follow from the scaling coefficients, and where they do not.
"""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_variant, list_variants, load_variant
from efficientnet_tf.config.schema import ModelSpec
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import check_output, write_text
from efficientnet_tf.runtime.terminal import make_table, show
from efficientnet_tf.scaling.compound import Coefficients, compound, solve_phi

if TYPE_CHECKING:
    from efficientnet_tf.scaling.budget import Fit, Limit

TARGETS = ("target_macs", "target_params", "target_memory", "target_latency_ms")


def explain_family(coefficients: Coefficients, baseline: ModelSpec) -> list[dict]:
    """Return how the published variants relate to compound scaling.

    Args:
        coefficients: Growth per unit of phi.
        baseline: The network that phi=0 stands for.

    Returns:
        One dict per variant in `configs/` that scales the stage table of the baseline, or one for the baseline if there
        is none. "variant" is its name. "depth", "width" and "resolution" are the published numbers, and
        "phi_depth", "phi_width" and "phi_resolution" the phi that each of them implies. "alpha^phi" and "beta^phi" are
        the depth and the width that follow from the phi of the resolution.
    """
    rows = []
    family = [spec for spec in map(load_variant, list_variants()) if spec.stages == baseline.stages]
    for spec in family or [baseline]:
        phi = solve_phi(spec.resolution / baseline.resolution, coefficients.gamma)
        multipliers = compound(phi, coefficients)
        rows.append(
            {
                "variant": spec.name,
                "depth": spec.depth,
                "width": spec.width,
                "resolution": spec.resolution,
                "phi_depth": solve_phi(spec.depth / baseline.depth, coefficients.alpha),
                "phi_width": solve_phi(spec.width / baseline.width, coefficients.beta),
                "phi_resolution": phi,
                "alpha^phi": multipliers.depth * baseline.depth,
                "beta^phi": multipliers.width * baseline.width,
            }
        )
    return rows


def _show_explanation(coefficients: Coefficients, baseline: ModelSpec) -> None:
    header = ["variant", "depth", "width", "pixels", "phi(depth)", "phi(width)", "phi(pixels)", "alpha^phi", "beta^phi"]
    family = explain_family(coefficients, baseline)
    rows = [
        [
            row["variant"],
            *(f"{row[key]:.1f}" for key in ("depth", "width")),
            f"{row['resolution']}",
            *(f"{row[key]:.2f}" for key in ("phi_depth", "phi_width", "phi_resolution", "alpha^phi", "beta^phi")),
        ]
        for row in family
    ]
    note = (
        "\nFrom b3 on, the published depths are lower than alpha^phi. The table, not the formula, defines the family."
    )
    show(
        make_table(header, rows),
        "phi(...) is the compound coefficient that the published number implies. alpha^phi and beta^phi are the depth "
        "and the width at phi(pixels).\n"
        f"With alpha {coefficients.alpha:g}, beta {coefficients.beta:g} and gamma {coefficients.gamma:g}, each unit of "
        f"phi multiplies the multiply-adds by alpha * beta^2 * gamma^2 = {coefficients.growth:.3f}."
        + (note if family[0]["variant"] == "b0" else ""),
    )


def _show_fit(fit: "Fit") -> None:
    from efficientnet_tf.scaling.complexity import count_cost

    spec, cost = fit.spec, count_cost(fit.spec)
    shares = ", ".join(f"{share:.1%} of {name}" for name, share in fit.used.items())
    show(
        f"depth {spec.depth:g}, width {spec.width:g}, {spec.resolution} pixels, dropout {spec.dropout:g}, "
        f"near phi {fit.phi:.2f}\n"
        f"{cost.macs / 1e9:.3f} billion multiply-adds, {cost.params / 1e6:.2f} million parameters\n"
        f"Uses {shares}. The binding limit is {fit.binding}."
    )


def _latency_limit(args: argparse.Namespace) -> "Limit | None":
    """Return the limit on the time of a forward pass on this device, or None if there is none."""
    if args.target_latency_ms is None:
        return None
    from efficientnet_tf.benchmark.measure import inference_seconds
    from efficientnet_tf.scaling.budget import Limit

    measured: dict[ModelSpec, float] = {}

    def measure_milliseconds(spec: ModelSpec) -> float:
        if spec not in measured:
            measured[spec] = inference_seconds(spec, batch=args.latency_batch) * 1e3
            network = f"depth {spec.depth:g}, width {spec.width:g}, {spec.resolution} pixels"
            print(f"{network}: {measured[spec]:.1f} ms", file=sys.stderr, flush=True)
        return measured[spec]

    return Limit("latency", args.target_latency_ms, measure_milliseconds, "ms")


def main(args: argparse.Namespace) -> None:
    """Explain the family, or find the network that fits the budget and write its variant file."""
    from efficientnet_tf.scaling.budget import fit_budget

    coefficients = Coefficients(args.alpha, args.beta, args.gamma)
    baseline = load_variant(args.baseline)
    if args.explain:
        _show_explanation(coefficients, baseline)
        return
    if all(getattr(args, name) is None for name in TARGETS):
        raise UserError(f"no limit is given. Give at least one of {', '.join(f'--{name}' for name in TARGETS)}.")
    check_output("output", args.output, (".yaml",))
    if args.output and os.path.lexists(args.output):
        raise UserError(f"output={escape(args.output)} already exists and is not overwritten. Choose another name.")
    fit = fit_budget(
        baseline,
        macs=args.target_macs,
        params=args.target_params,
        memory_bytes=args.target_memory,
        batch=args.batch,
        precision=args.precision,
        coefficients=coefficients,
        measured=_latency_limit(args),
    )
    _show_fit(fit)
    if args.output:
        comment = f"# phi {fit.phi:.3f} from {escape(args.baseline)}. The binding limit is {fit.binding}.\n"
        write_text(args.output, comment + dump_variant(fit.spec))
        show(f"Wrote {args.output}. Train it with: python -m efficientnet_tf.train --variant={args.output}")


def _coefficient(text: str) -> float:
    value = float(text)
    if not 1 < value < 10:
        raise ValueError
    return value


_coefficient.__name__ = "number above 1 and below 10"  # argparse puts it into its error messages


def make_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = cli.make_parser(
        "scale",
        "Find the network that makes the most of a budget, by compound scaling (equation 2 of the paper), and write it "
        "as a variant file, which every command accepts: --variant=mine.yaml.",
    )
    number, count = cli.positive_number, cli.positive_int
    parser.add_argument("--baseline", default="b0", help="Network to scale: a variant, or the path of a variant file.")
    parser.add_argument("--target_macs", type=number, help="Maximum number of multiply-adds, for example 1.8e9.")
    parser.add_argument("--target_params", type=number, help="Maximum number of trainable parameters, such as 12e6.")
    parser.add_argument("--target_memory", type=number, help="Maximum bytes of a training step, such as 16e9.")
    parser.add_argument("--batch", type=count, default=32, help="Images in that training step.")
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "mixed_bfloat16"], help="Precision of that training step."
    )
    parser.add_argument(
        "--target_latency_ms", type=number, help="Maximum time of a forward pass, measured on this device."
    )
    parser.add_argument("--latency_batch", type=count, default=1, help="Images in that forward pass.")
    parser.add_argument("--alpha", type=_coefficient, default=1.2, help="Growth of the depth per unit of phi.")
    parser.add_argument("--beta", type=_coefficient, default=1.1, help="Growth of the width per unit of phi.")
    parser.add_argument("--gamma", type=_coefficient, default=1.15, help="Growth of the resolution per unit of phi.")
    parser.add_argument("--output", type=cli.path, help="YAML file to write. It must not exist.")
    parser.add_argument(
        "--explain", action="store_true", help="Show how the published variants follow from the coefficients, and exit."
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

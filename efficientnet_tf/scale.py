"""Scale a network to a budget: `python -m efficientnet_tf.scale --target_macs=1.8e9 --output=mine.yaml`.

With --explain, how the published variants follow from the coefficients, and where they do not.
"""

import functools
import os
import sys

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import dump_variant, load_variant
from efficientnet_tf.scaling.compound import Coefficients, compound, implied_phi

VARIANTS = [f"b{i}" for i in range(9)] + ["l2"]


def explain(coefficients, baseline):
    """Return a table of the variants: their multipliers, the phi that each implies, and what the formula would give.

    Args:
        coefficients: scaling.Coefficients.
        baseline: schema.ModelSpec.

    Returns:
        A list of dict, a variant each: "variant"; "depth", "width", "resolution" as published; "phi_depth",
        "phi_width", "phi_resolution"; "alpha^phi" and "beta^phi" at the resolution's phi.
    """
    rows = []
    for name in VARIANTS:
        spec = load_variant(name)
        phi = implied_phi(spec.resolution / baseline.resolution, coefficients.gamma)
        depth, width, _ = compound(phi, coefficients)
        rows.append(
            {
                "variant": name,
                "depth": spec.depth,
                "width": spec.width,
                "resolution": spec.resolution,
                "phi_depth": implied_phi(spec.depth / baseline.depth, coefficients.alpha),
                "phi_width": implied_phi(spec.width / baseline.width, coefficients.beta),
                "phi_resolution": phi,
                "alpha^phi": depth * baseline.depth,
                "beta^phi": width * baseline.width,
            }
        )
    return rows


def _format_explanation(rows, coefficients):
    lines = [f"{'':8}{'published':^24}{'phi implied by':^27}{'at the phi of the resolution':^30}"]
    lines += [
        f"{'variant':8}{'depth':>7}{'width':>7}{'pixels':>8}  {'depth':>7}{'width':>8}{'pixels':>8}"
        f"{'alpha^phi':>14}{'beta^phi':>12}"
    ]
    lines += [
        f"{r['variant']:8}{r['depth']:7.1f}{r['width']:7.1f}{r['resolution']:8d}  {r['phi_depth']:7.2f}"
        f"{r['phi_width']:8.2f}{r['phi_resolution']:8.2f}{r['alpha^phi']:14.2f}{r['beta^phi']:12.2f}"
        for r in rows
    ]
    lines.append(
        f"alpha {coefficients.alpha:g}, beta {coefficients.beta:g}, gamma {coefficients.gamma:g}: "
        f"alpha * beta^2 * gamma^2 = {coefficients.growth:.3f}, the multiply-adds' growth with each unit of phi. The "
        "published depths lag behind alpha^phi from b3 on; the table, not the formula, is the family."
    )
    return "\n".join(lines)


def _write(path, text):
    try:
        with open(path, "x") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error}") from None


def _latency_limit(args):
    """Return the limit on the time of a forward pass on this device; None where none is asked for."""
    if args.target_latency_ms is None:
        return None
    from tqdm import tqdm

    from efficientnet_tf.benchmark.measure import inference_seconds
    from efficientnet_tf.scaling.budget import Limit

    @functools.cache
    def milliseconds(spec):
        taken = inference_seconds(spec, batch=args.latency_batch) * 1e3
        tqdm.write(f"depth {spec.depth:g}, width {spec.width:g}, {spec.resolution} pixels: {taken:.1f} ms", sys.stderr)
        return taken

    return Limit("latency", args.target_latency_ms, milliseconds, "ms")


def main(args):
    """Explain, or fit a budget and write the variant."""
    from efficientnet_tf.scaling.budget import counted_limits, fit_budget
    from efficientnet_tf.scaling.complexity import count_cost

    coefficients = Coefficients(args.alpha, args.beta, args.gamma)
    baseline = load_variant(args.baseline)
    if args.explain:
        print(_format_explanation(explain(coefficients, baseline), coefficients))
        return
    if args.output and not args.output.endswith(".yaml"):
        raise UserError(f"--output={args.output}: a variant's name must end in .yaml, for --variant to take it")
    if args.output and os.path.exists(args.output):
        raise UserError(f"--output={args.output} exists: take another, nothing is overwritten")
    limits = counted_limits(args.target_macs, args.target_params, args.target_memory, args.batch, args.precision)
    fit = fit_budget(baseline, limits, coefficients, _latency_limit(args))
    spec, total = fit.spec, count_cost(fit.spec)["total"]
    shares = ", ".join(f"{share:.1%} of the {name}" for name, share in fit.used.items())
    print(
        f"depth {spec.depth:g}, width {spec.width:g}, {spec.resolution} pixels, dropout {spec.dropout:g}: "
        f"{total.macs / 1e9:.3f} B multiply-adds, {total.trainable_params / 1e6:.2f} M parameters; phi {fit.phi:.2f}\n"
        f"uses {shares}; {fit.binding} binds"
    )
    if args.output:
        _write(args.output, f"# phi {fit.phi:.3f} from {args.baseline}; {fit.binding} binds.\n{dump_variant(spec)}")
        print(f"written to {args.output}: python -m efficientnet_tf.train --variant={args.output} ...")


def _base(text):
    value = float(text)
    if not 1 < value < 10:
        raise ValueError
    return value


_base.__name__ = "number above 1 and below 10"


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "scale",
        "Find the network that uses a budget best, by compound scaling (the paper's equation 2), and write it as a "
        "variant's YAML, which every command takes: --variant=mine.yaml.",
    )
    parser.add_argument("--baseline", default="b0", help="the network to scale: a variant, or the path of its YAML")
    parser.add_argument("--target_macs", type=cli.positive_number, help="multiply-adds at most, such as 1.8e9")
    parser.add_argument("--target_params", type=cli.positive_number, help="trainable parameters at most, such as 12e6")
    parser.add_argument("--target_memory", type=cli.positive_number, help="bytes of a training step at most: 16e9")
    parser.add_argument("--batch", type=cli.positive_int, default=32, help="images of that training step")
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"], help="of that step")
    parser.add_argument(
        "--target_latency_ms", type=cli.positive_number, help="time of a forward pass at most, measured on this device"
    )
    parser.add_argument("--latency_batch", type=cli.positive_int, default=1, help="images of that forward pass")
    parser.add_argument("--alpha", type=_base, default=1.2, help="depth grows by this with each unit of phi")
    parser.add_argument("--beta", type=_base, default=1.1, help="width")
    parser.add_argument("--gamma", type=_base, default=1.15, help="resolution")
    parser.add_argument("--output", help="YAML file to write; must not exist")
    parser.add_argument("--explain", action="store_true", help="print how the published variants follow, and end")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

"""Measure this package's networks on Keras's JAX backend against timm's, without TensorFlow.

    python scripts/gpu_benchmark.py --output=gpu.json

Training and inference of b0 and b4 in bfloat16: one compiled program a step here, torch.compile, channels_last and
autocast there; the same batch, size, optimiser, label smoothing and dropout. Each has a process of its own; they are
measured in turns; what is timed ends when the device has ended. Takes jax and torch for the device, and timm.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys

from tqdm import tqdm

from efficientnet_tf import cli
from efficientnet_tf.benchmark.__main__ import format_table
from efficientnet_tf.benchmark.rounds import Worker, operations_of, run_rounds
from efficientnet_tf.benchmark.worker import Setting
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import describe_environment, load_variant
from efficientnet_tf.runtime.hardware import describe_hardware
from efficientnet_tf.scaling.complexity import count_cost

NAMES = ("jax", "timm")
PACKAGES = ("jax", "jaxlib", "torch", "timm")


def measure(mode, variant, size, batch, args, bar):
    """Return a row for each contestant.

    Args:
        mode: str, "train" or "infer".
        variant: str.
        size: int >= 1, image side in pixels.
        batch: int >= 1.
        args: the flags; contestants, precision, rounds and seconds count.
        bar: tqdm, a step for each measurement.
    """
    with contextlib.ExitStack() as stack:
        runners = {}
        for name in args.contestants:
            setting = Setting(name, mode, variant, size, batch, args.precision)
            runners[name] = stack.enter_context(Worker(setting))
        taken = run_rounds(runners, args.rounds, args.seconds, bar.update)
    median = {name: statistics.median(steps) for name, steps in taken.items()}
    operations = operations_of(mode) * batch * count_cost(load_variant(variant), size)["total"].macs
    rows = []
    for name, runner in runners.items():
        peak = runner.facts["device_peak_bytes"]
        row = {"mode": mode, "variant": variant, "size": size, "batch": batch, "contestant": name}
        row["images_per_second"] = round(batch / median[name], 2)
        row |= {"low": round(batch / max(taken[name]), 2), "high": round(batch / min(taken[name]), 2)}
        row |= {f"of_{other}": round(median[other] / median[name], 3) for other in median if other != "jax"}
        row |= {"milliseconds": round(1e3 * median[name], 2), "tflops": round(operations / median[name] / 1e12, 3)}
        row |= {"device_peak_mib": peak and round(peak / 2**20), "start_seconds": round(runner.start_seconds, 1)}
        rows.append(row | {"device": runner.facts["device"]})
    return rows


def main(args):
    """Measure all, print the table, write the JSON."""
    for flag, given, allowed in (("contestants", args.contestants, NAMES), ("modes", args.modes, ("train", "infer"))):
        for name in given:
            if name not in allowed:
                raise UserError(f"--{flag}={name}: allowed are {', '.join(allowed)}")
    cases = list(itertools.product(args.modes, args.variants, args.sizes or [None]))
    rows = []
    with tqdm(total=len(cases) * (args.rounds + 1) * len(args.contestants), unit="measurement") as bar:
        for mode, variant, size in cases:
            bar.set_description(f"{mode}, {variant}")
            rows += measure(mode, variant, size or load_variant(variant).resolution, args.batch, args, bar)
    print(format_table(rows))
    if args.output:
        report = {
            "precision": args.precision,
            "environment": describe_environment(*PACKAGES) | describe_hardware(),
            "rows": rows,
        }
        with open(args.output, "w") as file:
            json.dump(report, file, indent=1)


def make_parser():
    """Return the script's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=cli.names, default=["b0", "b4"], help="networks: b0,b4")
    parser.add_argument("--modes", type=cli.names, default=["train", "infer"], help="train,infer")
    parser.add_argument("--sizes", type=cli.positive_ints, help="image sides, pixels; by default a variant's own")
    parser.add_argument("--batch", type=cli.positive_int, default=128, help="images a step (128)")
    parser.add_argument("--precision", default="mixed_bfloat16", choices=["float32", "mixed_bfloat16"])
    parser.add_argument("--contestants", type=cli.names, default=list(NAMES), help="jax,timm")
    parser.add_argument("--rounds", type=cli.positive_int, default=5, help="turns that count, after one that does not")
    parser.add_argument("--seconds", type=cli.positive_number, default=3.0, help="length of a measurement")
    parser.add_argument("--output", help="JSON file to write, with hardware and versions")
    return parser


if __name__ == "__main__":
    try:
        main(make_parser().parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")

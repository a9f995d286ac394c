"""Measure training and inference with JAX against timm, on a GPU and without TensorFlow.

    python scripts/gpu_benchmark.py --output=gpu.json

It measures b0, b4 and v2-s in bfloat16 at several batch sizes. This package runs its training loop, that of `train
--backend=jax`. timm runs with torch.compile, channels_last and autocast. Batch, image size, optimizer, label smoothing
and dropout are the same. Each implementation has its own process. These start one after the other, and are then
measured in rounds. A measurement ends when the device has finished. A batch that does not fit is left out. The output
is written after each network, and cases that it already has are kept. Install jax and torch for your device, and timm.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from efficientnet_tf import cli
from efficientnet_tf.benchmark.report import format_markdown
from efficientnet_tf.benchmark.rounds import Worker, count_operations_per_mac, run_rounds
from efficientnet_tf.benchmark.setting import Setting
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import describe_environment, load_variant
from efficientnet_tf.runtime.hardware import describe_hardware
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.scaling.complexity import count_cost

NAMES = ("jax", "timm")
PACKAGES = ("jax", "jaxlib", "torch", "timm")


def measure(mode, variant, size, batch, args, bar):
    """Return a row for each implementation.

    Args:
        mode: "train" or "infer".
        variant: Name of the network.
        size: Image side in pixels, int >= 1.
        batch: Images per step, int >= 1.
        args: The flags, of which implementations, precision, rounds and seconds are used.
        bar: A ProgressBar, which advances with each measurement.
    """
    with contextlib.ExitStack() as stack:
        # One starts after the other. While XLA compiles, it times several algorithms for each convolution, and it picks
        # slow ones if another process uses the GPU at that time: B4's training step took 79 ms instead of 56.
        settings = [Setting(name, mode, variant, size, batch, args.precision) for name in args.implementations]
        workers = {setting.implementation: stack.enter_context(Worker(setting)) for setting in settings}
        step_seconds = run_rounds(workers, args.rounds, args.seconds, bar.advance)
    median = {name: statistics.median(steps) for name, steps in step_seconds.items()}
    operations = count_operations_per_mac(mode) * batch * count_cost(load_variant(variant), size)["total"].macs
    rows = []
    for name, worker in workers.items():
        peak = worker.facts["device_peak_bytes"]
        row = {"mode": mode, "variant": variant, "size": size, "batch": batch, "implementation": name}
        row["images_per_second"] = round(batch / median[name], 2)
        row |= {"low": round(batch / max(step_seconds[name]), 2), "high": round(batch / min(step_seconds[name]), 2)}
        row |= {f"of_{other}": round(median[other] / median[name], 3) for other in median if other != "jax"}
        row |= {"milliseconds": round(1e3 * median[name], 2), "tflops": round(operations / median[name] / 1e12, 3)}
        row |= {"device_peak_mib": peak and round(peak / 2**20), "start_seconds": round(worker.start_seconds, 1)}
        rows.append(row | {"device": worker.facts["device"]})
    return rows


def main(args):
    """Measure all cases, print the table, and write the JSON file."""
    choices = (("implementations", args.implementations, NAMES), ("modes", args.modes, ("train", "infer")))
    for flag, given, allowed in choices:
        for name in given:
            if name not in allowed:
                raise UserError(f"--{flag}={name} is not known. Use {' or '.join(allowed)}.")
    cases: list[Any] = list(itertools.product(args.modes, args.variants, args.sizes or [None], args.batch))
    report: dict[str, Any] = {"rows": []}
    if args.output and args.output.exists():
        report = json.loads(args.output.read_text())
    known = {(row["mode"], row["variant"], row["size"], row["batch"]) for row in report["rows"]}
    report |= {"precision": args.precision, "environment": describe_environment(*PACKAGES) | describe_hardware()}
    each, skipped = (args.rounds + 1) * len(args.implementations), []
    with ProgressBar(len(cases) * each, "networks", "measurements") as bar:
        for index, (mode, variant, size, batch) in enumerate(cases):
            size, name = size or load_variant(variant).resolution, f"{mode}, {variant}, batch {batch}"
            bar.describe(name)
            try:
                if (mode, variant, size, batch) not in known:
                    report["rows"] += measure(mode, variant, size, batch, args, bar)
            except UserError as error:
                skipped.append(f"{name}: {error}")
                bar.print(f"skipped: {skipped[-1]}", sys.stderr)
            bar.advance((index + 1) * each - bar.completed)
            if args.output:
                args.output.write_text(json.dumps(report | {"skipped": skipped}, indent=1) + "\n")
    if not report["rows"]:
        raise UserError(f"Nothing could be measured. {skipped[0]}")
    print(format_markdown(report["rows"]))


def make_parser():
    """Return the flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants", type=cli.names, default=["b0", "b4", "v2-s"], help="Networks to measure, for example b0,b4."
    )
    parser.add_argument(
        "--modes", type=cli.names, default=["train", "infer"], help="What to measure: train, infer or both."
    )
    parser.add_argument("--sizes", type=cli.positive_ints, help="Image sides in pixels. Defaults to the variant's own.")
    parser.add_argument(
        "--batch", type=cli.positive_ints, default=[32, 128, 256], help="Images per step. Defaults to 32,128,256."
    )
    parser.add_argument("--precision", default="mixed_bfloat16", choices=["float32", "mixed_bfloat16"])
    parser.add_argument(
        "--implementations", "--contestants", type=cli.names, default=list(NAMES), help="What to compare: jax,timm."
    )
    parser.add_argument("--rounds", type=cli.positive_int, default=5, help="Rounds that count. One more comes first.")
    parser.add_argument(
        "--seconds", type=cli.positive_number, default=3.0, help="Length of one measurement in seconds."
    )
    parser.add_argument("--output", type=Path, help="JSON file to write, with hardware and versions.")
    return parser


if __name__ == "__main__":
    try:
        main(make_parser().parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")

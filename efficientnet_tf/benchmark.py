"""Measure speed: `python -m efficientnet_tf.benchmark --mode=train --variant=b0,b1 --compare=keras`.

Everything that is compared is measured in turns, in one run, after a turn that does not count; the table has medians
and the spread over the turns. `--mode=input` measures how fast training images come (`input_speed`); `train` and
`infer` how fast networks are, beside what others make of the same and beside the machine's limits (`contestants`);
`export` how fast the files are that `export` writes for other runtimes.
"""

import contextlib
import itertools
import json
import os
import statistics
import sys
from dataclasses import replace

from efficientnet_tf import cli, contestants
from efficientnet_tf.contestants import Contestant, Setting
from efficientnet_tf.machine import cores, hardware

LIMITS, OTHERS = ("product", "copy"), ("keras", "timm")


def measure_networks(
    mode, variants, batches, compare, rounds, seconds, sizes=(None,), threads=(None,), precision="float32"
):
    """Measure networks, each beside the same network of others, and beside the machine.

    Args:
        mode: str, "train", "infer" or "export": steps of `train`'s loop, or forward passes; of exported files, too.
        variants: sequence of str.
        batches: sequence of int >= 1.
        compare: sequence of str, others of `contestants.CONTESTANTS`: "keras", "timm".
        rounds: int >= 1, turns that count.
        seconds: float > 0, length of a measurement; a step at least.
        sizes: sequence of int or None, image sides in pixels; None for a variant's own.
        threads: sequence of int or None, cores to run on; None for all.
        precision: str, "float32" or "mixed_bfloat16".

    Yields:
        dict: variant, size, batch, threads, contestant; images_per_second (median), low, high; of_NAME, the share of
        the rate of each that is compared; of_product, the share of the arithmetic of a product of large matrices;
        milliseconds, of a batch; peak_mib, of the whole process; start_seconds, from its beginning to the end of its
        first step; product_gflops and copy_gb_per_second, the machine's limits as measured between.

    Raises:
        UserError: when a contestant cannot run.
    """
    from tqdm import tqdm

    from efficientnet_tf.config import load_variant

    names = ["efficientnet_tf", *compare, *(contestants.EXPORTS if mode == "export" else ())]
    cases = [
        Setting("", mode, variant, size or load_variant(variant).resolution, batch, precision, count)
        for variant, size, batch, count in itertools.product(variants, sizes, batches, threads)
    ]
    with tqdm(total=len(cases) * (rounds + 1) * len([*LIMITS, *names]), unit="measurement", file=sys.stderr) as bar:
        for case in cases:
            bar.set_description(f"{case.variant}, {case.size} pixels, batch {case.batch}")
            with contextlib.ExitStack() as stack:
                runners = {
                    name: stack.enter_context(Contestant(replace(case, contestant=name))) for name in (*LIMITS, *names)
                }
                taken = {name: [] for name in runners}
                for turn in range(rounds + 1):
                    for name, runner in runners.items():
                        step = runner.run(seconds)
                        if turn:
                            taken[name].append(step)
                        bar.update()
                yield from _rows(case, names, runners, taken)


def _rows(case, names, runners, taken):
    from efficientnet_tf import complexity
    from efficientnet_tf.config import load_variant

    median = {name: statistics.median(steps) for name, steps in taken.items()}
    # Of each multiply-add two operations; there and back about three times as many.
    flops = 2 * complexity.count_cost(load_variant(case.variant), case.size)["total"].macs
    flops *= case.batch * (3 if case.mode == "train" else 1)
    product = 2 * contestants.PRODUCT**3 / median["product"]
    for name in names:
        yield {
            "variant": case.variant,
            "size": case.size,
            "batch": case.batch,
            "threads": case.threads or cores(),
            "contestant": name,
            "images_per_second": round(case.batch / median[name], 2),
            "low": round(case.batch / max(taken[name]), 2),
            "high": round(case.batch / min(taken[name]), 2),
            **{f"of_{other}": round(median[other] / median[name], 3) for other in names[1:] if other in OTHERS},
            "of_product": round(flops / median[name] / product, 3),
            "milliseconds": round(1e3 * median[name], 2),
            "peak_mib": runners[name].peak_bytes and round(runners[name].peak_bytes / 2**20),
            "start_seconds": round(runners[name].start_seconds, 1),
            "product_gflops": round(product / 1e9),
            "copy_gb_per_second": round(2 * contestants.COPIED_BYTES / median["copy"] / 1e9, 1),
        }


def format_table(rows):
    """Return rows, dicts with the same keys, as a Markdown table; what starts with `of_` is a share."""
    header = list(rows[0])

    def text(key, value):
        if key.startswith("of_"):
            return f"{value:.0%}"
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return str(value)

    lines = [[key.replace("_", " ") for key in header], *([text(key, row[key]) for key in header] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _measure(args):
    if args.mode == "input":
        from efficientnet_tf.input_speed import measure_input

        sizes, threads = args.sizes or [224, 380, 600], args.threads or [1, 2, 4]
        return measure_input(sizes, threads, args.rounds, args.seconds)
    return measure_networks(
        args.mode,
        args.variant,
        args.batch,
        args.compare,
        args.rounds,
        args.seconds,
        args.sizes or [None],
        args.threads or [None],
        args.precision,
    )


def main(args):
    """Measure, print the table, write the JSON; stopped by Ctrl-C, print what is complete."""
    from efficientnet_tf.config import UserError, environment, nearest

    folder = os.path.dirname(os.path.abspath(args.output or ""))
    if args.output and (os.path.isdir(args.output) or not os.access(folder, os.W_OK)):
        # Said now, not after minutes of measuring.
        raise UserError(f"--output={args.output} cannot be written: expected a file's path in an existing folder")
    for name in args.compare:
        if name not in OTHERS:
            raise UserError(f"--compare={name}: allowed are {', '.join(OTHERS)}.{nearest(name, OTHERS)}")
    stated = environment() | hardware()  # of what is measured: the tree may change while it runs
    rows, stopped = [], False
    try:
        for row in _measure(args):
            rows.append(row)
    except KeyboardInterrupt:
        stopped = True
    if rows:
        print(format_table(rows))
    if stopped:
        raise UserError("stopped before all was measured" + (f"; {args.output} was not written" * bool(args.output)))
    if args.output:
        with open(args.output, "w") as file:
            json.dump({"mode": args.mode, "environment": stated, "rows": rows}, file, indent=1)


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser("benchmark", "Measure speed; what is compared is measured in turns, in one run.")
    parser.add_argument(
        "--mode",
        default="input",
        choices=["input", "train", "infer", "export"],
        help="input: decoding and augmenting; train: the training step; infer: the forward pass; "
        "export: the forward pass of exported files",
    )
    parser.add_argument("--variant", type=cli.names, default=["b0"], metavar="NAME,...", help="networks: b0,b1")
    parser.add_argument("--batch", type=cli.positive_ints, default=[32], help="images a step: 1,32")
    parser.add_argument(
        "--compare",
        type=cli.names,
        default=[],
        metavar="NAME,...",
        help=f"the same networks of others, where they are installed: {', '.join(OTHERS)}",
    )
    parser.add_argument(
        "--sizes",
        type=cli.positive_ints,
        help="image sides, pixels: 224,380; by default a variant's own, and of the input 224,380,600",
    )
    parser.add_argument(
        "--threads",
        type=cli.positive_ints,
        help="cores to run on: 1,2,4; by default all; of the input threads, by default 1,2,4",
    )
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16"], help="of the networks")
    parser.add_argument("--rounds", type=cli.positive_int, default=3, help="turns that count, after one that does not")
    parser.add_argument("--seconds", type=cli.positive_number, default=3.0, help="length of a measurement")
    parser.add_argument("--output", help="JSON file to write, with hardware and versions")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

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

from efficientnet_tf import cli
from efficientnet_tf.benchmark.rounds import PROCESS_BYTES, Worker, WorkerKilled, operations_of, run_rounds
from efficientnet_tf.benchmark.worker import CLASSES, COPIED_BYTES, EXPORTS, PACKAGES, PRODUCT, Setting
from efficientnet_tf.runtime.hardware import available_cores, available_memory_bytes, describe_hardware

LIMITS, OTHERS = ("product", "copy"), ("keras", "timm")


def measure_networks(
    mode,
    variants,
    batches,
    compare,
    rounds,
    seconds,
    sizes=(None,),
    threads=(None,),
    precision="float32",
    longest_step=None,
    skipped=None,
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
        longest_step: float > 0 or None, seconds; a step whose arithmetic would take longer at the rate of the product
            of large matrices is skipped.
        skipped: list or None; what is not measured is added, a dict each: variant, size, batch, threads, reason. So
            are cases whose predicted memory this machine does not have, and those that a signal ended.

    Yields:
        dict: variant, size, batch, threads, contestant, gmacs, multiply-adds of an image in billions;
        images_per_second (median), low, high; of_NAME, the share of the rate of each that is compared; of_product, the
        share of the arithmetic of a product of large matrices; milliseconds, of a batch; peak_mib, of the whole
        process; start_seconds, from its beginning to the end of its first step; first_step_seconds, of these, tracing
        included; product_gflops and copy_gb_per_second, the machine's limits as measured between. With "export" also
        file_mib, None for networks that are no file.

    Raises:
        UserError: when a contestant cannot run.
    """
    from tqdm import tqdm

    from efficientnet_tf.config.load import load_variant

    names = ["efficientnet_tf", *compare, *(EXPORTS if mode == "export" else ())]
    kind = "train" if mode == "train" else "infer"
    cases = [
        Setting("", kind, variant, size or load_variant(variant).resolution, batch, precision, count)
        for count, variant, size, batch in itertools.product(threads, variants, sizes, batches)
    ]
    measurements = (rounds + 1) * len([*LIMITS, *names])
    with tqdm(total=len(cases) * measurements, unit="measurement", file=sys.stderr) as bar:
        for _, group in itertools.groupby(cases, lambda case: case.threads):
            group = list(group)
            with _started(group[0], LIMITS) as limits:
                for case in group:
                    bar.set_description(f"{case.variant}, {case.size} pixels, batch {case.batch}")
                    end = bar.n + measurements
                    reason = _too_large(case, names) or _too_long(case, limits["product"], longest_step)
                    try:
                        if not reason:
                            with _started(case, names) as runners:
                                runners = limits | runners
                                taken = run_rounds(runners, rounds, seconds, bar.update)
                                yield from _rows(case, names, runners, taken, mode == "export")
                    except WorkerKilled as error:
                        reason = str(error)
                    if reason:
                        told = {key: getattr(case, key) for key in ("variant", "size", "batch")}
                        told |= {"threads": case.threads or available_cores(), "reason": reason}
                        line = "skipped: {variant}, {size} pixels, batch {batch}, {threads} thread{s}: {reason}"
                        bar.write(line.format(**told, s="s" * (told["threads"] > 1)), sys.stderr)
                        if skipped is not None:
                            skipped.append(told)
                        bar.update(end - bar.n)


@contextlib.contextmanager
def _started(case, names):
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Worker(replace(case, contestant=name))) for name in names}


def _layers(case):
    from efficientnet_tf.config.load import load_variant
    from efficientnet_tf.scaling.complexity import list_layers

    return list_layers(load_variant(case.variant), case.size, CLASSES)


def _too_large(case, names):
    """Return why a case would not fit into memory, all processes at once, or None."""
    from efficientnet_tf.scaling.memory import inference_memory, training_memory

    predict = training_memory if case.mode == "train" else inference_memory
    needed = len(names) * (predict(_layers(case), case.batch, case.precision).total + PROCESS_BYTES)
    available = available_memory_bytes()
    if available is None or needed <= available:
        return None
    processes = f"{len(names)} processes" if len(names) > 1 else "one process"
    return f"{processes} would take {needed / 2**30:.1f} GiB, of {available / 2**30:.1f} GiB available"


def _too_long(case, product, longest_step):
    """Return why a step would take too long, or None."""
    if longest_step is None:
        return None
    rate = 2 * PRODUCT**3 / product.run(0)
    seconds = _operations(case) / rate
    if seconds <= longest_step:
        return None
    return f"a step would take {seconds:.2g} s at the rate of a matrix product, longer than {longest_step:g} s"


def _operations(case):
    """Return the operations of a step."""
    return operations_of(case.mode) * case.batch * sum(layer.macs for layer in _layers(case))


def _rows(case, names, runners, taken, with_files):
    median = {name: statistics.median(steps) for name, steps in taken.items()}
    product = 2 * PRODUCT**3 / median["product"]
    for name in names:
        facts = runners[name].facts
        yield {
            "variant": case.variant,
            "size": case.size,
            "batch": case.batch,
            "threads": case.threads or available_cores(),
            "contestant": name,
            "gmacs": round(sum(layer.macs for layer in _layers(case)) / 1e9, 4),
            "images_per_second": round(case.batch / median[name], 2),
            "low": round(case.batch / max(taken[name]), 2),
            "high": round(case.batch / min(taken[name]), 2),
            **{f"of_{other}": round(median[other] / median[name], 3) for other in names[1:] if other in OTHERS},
            "of_product": round(_operations(case) / median[name] / product, 3),
            "milliseconds": round(1e3 * median[name], 2),
            **({"file_mib": _mib(facts.get("file_bytes"), 1)} if with_files else {}),
            "peak_mib": _mib(facts["peak_bytes"]),
            "start_seconds": round(runners[name].start_seconds, 1),
            "first_step_seconds": round(facts["first_step_seconds"], 1),
            "product_gflops": round(product / 1e9),
            "copy_gb_per_second": round(2 * COPIED_BYTES / median["copy"] / 1e9, 1),
        }


def _mib(count, digits=None):
    """Return bytes in MiB; None, which is not told, stays None."""
    return None if count is None else round(count / 2**20, digits)


def format_table(rows):
    """Return rows, dicts with the same keys, as a Markdown table; what starts with `of_` is a share."""
    header = list(rows[0])

    def text(key, value):
        if key.startswith("of_"):
            return f"{value:.0%}"
        if isinstance(value, float):
            return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return "" if value is None else str(value)

    lines = [[key.replace("_", " ") for key in header], *([text(key, row[key]) for key in header] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _measure(args, skipped):
    if args.mode == "input":
        from efficientnet_tf.benchmark.input import measure_input

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
        args.longest_step,
        skipped,
    )


def main(args):
    """Measure, print the table, write the JSON and the picture; stopped by Ctrl-C, print what is complete."""
    from efficientnet_tf.benchmark.plot import check_picture, draw_speed
    from efficientnet_tf.config.errors import UserError, suggest
    from efficientnet_tf.config.load import describe_environment

    # Said now, not after minutes of measuring.
    for flag, path in (("--output", args.output), ("--picture", args.picture)):
        folder = os.path.dirname(os.path.abspath(path or ""))
        if path and (os.path.isdir(path) or not os.access(folder, os.W_OK)):
            raise UserError(f"{flag}={path} cannot be written: expected a file's path in an existing folder")
    if args.picture:
        if args.mode == "input":
            raise UserError("--picture draws networks: it goes with --mode=train, infer or export, received input")
        check_picture("--picture", args.picture)
    for name in args.compare:
        if name not in OTHERS:
            raise UserError(f"--compare={name}: allowed are {', '.join(OTHERS)}.{suggest(name, OTHERS)}")
    stated = (
        describe_environment(*PACKAGES) | describe_hardware()
    )  # of what is measured: the tree may change while it runs
    rows, skipped, stopped = [], [], False
    try:
        for row in _measure(args, skipped):
            rows.append(row)
    except KeyboardInterrupt:
        stopped = True
    if rows:
        print(format_table(rows))
    if stopped:
        raise UserError("stopped before all was measured" + (f"; {args.output} was not written" * bool(args.output)))
    if args.output:
        with open(args.output, "w") as file:
            report = {"mode": args.mode, "command": cli.format_command(make_parser(), args), "environment": stated}
            json.dump(report | {"rows": rows, "skipped": skipped}, file, indent=1)
    if not rows:
        raise UserError("nothing was measured: each case was skipped")
    if args.picture:
        draw_speed(rows, args.mode).savefig(args.picture, dpi=150)


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
    parser.add_argument(
        "--longest_step",
        type=cli.positive_number,
        metavar="SECONDS",
        help="skip what would take longer for a step, even at the rate of a matrix product; by default nothing",
    )
    parser.add_argument("--output", help="JSON file to write, with hardware and versions")
    parser.add_argument(
        "--picture", metavar="FILE", help="picture to draw, .png or .svg: multiply-adds against the time of an image"
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

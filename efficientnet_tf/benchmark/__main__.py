"""Measure speed: `python -m efficientnet_tf.benchmark --mode=train --variant=b0,b1 --compare=keras`.

Everything in one table is measured in the same run, in rounds. The first round does not count. The table has the
medians, the lowest and the highest rates.
"""

from collections.abc import Iterable

from efficientnet_tf import cli
from efficientnet_tf.benchmark.networks import OTHERS, NetworkBenchmark, Plan, list_others
from efficientnet_tf.benchmark.plot import check_picture, draw_speed
from efficientnet_tf.benchmark.report import Row, print_table, write_json
from efficientnet_tf.benchmark.worker import PACKAGES
from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.load import describe_environment
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import check_output
from efficientnet_tf.runtime.hardware import describe_hardware
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.visualization.figures import save_figure

LONGEST_SECONDS = 3600.0  # of one measurement


def main(args):
    """Measure, print the table, and write the JSON file and the plot."""
    check_flags(args)
    skipped = []
    report(args, measure(args, skipped), skipped)


def check_flags(args):
    """Check before minutes of measuring that the flags are valid and that the files can be written."""
    check_output("--output", args.output, [""], args.variant)
    check_output("--picture", args.picture, [""], [args.output, *args.variant])
    if args.seconds > LONGEST_SECONDS:
        raise UserError(f"--seconds={args.seconds:g} is too long. Use at most {LONGEST_SECONDS:g} for a measurement.")
    if args.picture:
        if args.mode in ("input", "startup"):
            raise UserError(f"--picture plots networks, not --mode={args.mode}. Use --mode=train, infer or export.")
        check_picture(args.picture)
    others = list_others(args.mode)
    for name in args.compare:
        if name not in others:
            known = f"is not measured with --mode={args.mode}" if name in OTHERS else "is not known"
            raise UserError(f"--compare={escape(name)} {known}. Use {' or '.join(others)}.{suggest(name, others)}")


def measure(args, skipped: list[Row]) -> Iterable[Row]:
    """Yield a row for each measurement, and add the cases that are left out to `skipped`."""
    if args.mode == "input":
        from efficientnet_tf.benchmark.input import measure_input

        sizes, threads = args.sizes or [224, 380, 600], args.threads or [1, 2, 4]
        yield from measure_input(sizes, threads, args.rounds, args.seconds)
        return
    if args.mode == "startup":
        from efficientnet_tf.benchmark.startup import measure_startup

        yield from measure_startup(args.variant, args.compare, args.rounds)
        return
    benchmark = NetworkBenchmark(
        Plan(
            mode=args.mode,
            variants=args.variant,
            batches=args.batch,
            compare=args.compare,
            rounds=args.rounds,
            seconds=args.seconds,
            sizes=args.sizes or [None],
            threads=args.threads or [None],
            precision=args.precision,
            longest_step_seconds=args.longest_step,
        )
    )
    benchmark.skipped = skipped
    with ProgressBar(benchmark.total, "networks", "measurements") as bar:
        yield from benchmark.measure(bar)


def report(args, measurements: Iterable[Row], skipped: list[Row]):
    """Collect the measurements, print their table, and write the JSON file and the plot.

    Ctrl-C ends the measurements. The table then has those that are complete.

    Args:
        args: The flags.
        measurements: The rows, one after the other as they are measured.
        skipped: The cases that are left out, complete after the last row.
    """
    # Described before the measurements, because the source tree may change while they run.
    environment = describe_environment(*PACKAGES) | describe_hardware()
    rows, stopped = [], False
    try:
        for row in measurements:
            rows.append(row)
    except KeyboardInterrupt:
        stopped = True
    if rows:
        print_table(rows)
    if stopped:
        raise UserError(
            "The benchmark was stopped before everything was measured."
            + (f" --output={args.output} was not written." if args.output else "")
        )
    if args.output:
        write_json(args.output, args.mode, cli.format_command(make_parser(), args), environment, rows, skipped)
    if not rows:
        raise UserError("Nothing was measured because every case was skipped.")
    if args.picture:
        save_figure(draw_speed(rows, args.mode), args.picture, "--picture", dpi=150)


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "benchmark",
        "Measure the speed of the input pipeline, of training, of inference, or of starting. Everything in one table "
        "is measured in the same run, in rounds.",
    )
    parser.add_argument(
        "--mode",
        default="input",
        choices=["input", "train", "infer", "export", "startup"],
        help="What to measure. 'input': decoding and augmentation. 'train': training steps. 'infer': the forward "
        "pass. 'export': the forward pass of exported files. 'startup': how long commands take from their start to "
        "their answer.",
    )
    _add_case_flags(parser)
    parser.add_argument(
        "--rounds", type=cli.positive_int, default=3, help="Rounds that count. One more comes first to warm up."
    )
    parser.add_argument(
        "--seconds", type=cli.positive_number, default=3.0, help="Length of one measurement in seconds."
    )
    parser.add_argument(
        "--longest_step",
        type=cli.positive_number,
        metavar="SECONDS",
        help="Skip a case if one step would take longer even at the rate of a product of large matrices. By default "
        "nothing is skipped.",
    )
    parser.add_argument("--output", type=cli.path, help="JSON file to write, with hardware and versions.")
    parser.add_argument(
        "--picture",
        type=cli.path,
        metavar="FILE",
        help="Plot to write, .png or .svg: time per image against multiply-adds.",
    )
    return parser


def _add_case_flags(parser):
    """Add the flags that choose what is measured."""
    parser.add_argument(
        "--variant", type=cli.names, default=["b0"], metavar="NAME,...", help="Networks to measure, for example b0,b1."
    )
    parser.add_argument(
        "--batch", type=cli.positive_ints, default=[32], help="Batch sizes to measure, for example 1,32."
    )
    parser.add_argument(
        "--compare",
        type=cli.names,
        default=[],
        metavar="NAME,...",
        help="Other implementations of the same networks to measure as well: keras (keras.applications), timm, jax "
        "(this package with JAX), and in training keras_fit_jax (keras.applications, trained by Keras's fit with JAX).",
    )
    parser.add_argument(
        "--sizes",
        type=cli.positive_ints,
        help="Image sides in pixels, for example 224,380. Defaults to the variant's own, and for the input to "
        "224,380,600.",
    )
    parser.add_argument(
        "--threads",
        type=cli.positive_ints,
        help="Numbers of cores to run on, for example 1,2,4. Defaults to all cores. For the input these are numbers of "
        "threads, by default 1,2,4.",
    )
    parser.add_argument(
        "--precision", default="float32", choices=["float32", "mixed_bfloat16"], help="Precision of the networks."
    )


if __name__ == "__main__":
    cli.run(main, make_parser())

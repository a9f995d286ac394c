"""Does it train on that TPU? `python -m efficientnet_tf.preflight --variant=b4 --topology=v5e:2x4`.

Without a TPU: the steps of `train` are traced by TPUStrategy and compiled by the TPU's own compiler. Nothing is run.
"""

import json
import sys

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.preflight.checks import check_files, check_places
from efficientnet_tf.preflight.compile import parse_topology
from efficientnet_tf.preflight.report import _versions, format_markdown, format_report, run_preflight


def main(args):
    """Check the places, then trace and compile; print the report."""
    topology = parse_topology(args.topology)
    batch = [] if args.batch is None else [f"train.batch_size={args.batch}"]
    config = load_config(args.variant, args.recipe, [*batch, *cli.overrides(args)])
    if args.fast and args.largest_batch:
        raise UserError("--fast ends before --largest_batch begins: give one of them")
    data = config.data
    findings = check_places(args.tpu, args.model_dir, data.dir, topology.hosts)
    if data.dir and not data.dir.startswith("gs://") and (data.source == "records" or data.source.startswith("tfds:")):
        findings += check_files(data.dir, data.train_split.partition("[")[0], topology.hosts)
    report = run_preflight(config, topology, args.classes, args.images, args.fast, args.largest_batch, findings)
    words = [word for word in sys.argv[1:] if word != "--markdown"]
    report |= {"command": " ".join(["python -m efficientnet_tf.preflight", *words]), "environment": _versions()}
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        print(format_markdown(report) if args.markdown else format_report(report))
    return 0 if report["ready"] else cli.EXIT_ERROR


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "preflight",
        "Trace and compile, without a TPU, what a training run would run on one: whether it fits, what it takes, how "
        "fast it can be at best, and what would stop it. Exit status 0 only when nothing would.",
    )
    cli.add_config_arguments(parser, recipe="imagenet")
    parser.add_argument("--topology", required=True, help="the slice: v2:2x2, v3:2x2, v4:2x2x1, v5e:2x4, v5p:2x2x1 ...")
    parser.add_argument("--batch", type=cli.positive_int, help="short for --set train.batch_size=...: of all replicas")
    parser.add_argument("--classes", type=cli.positive_int, default=1000, help="those of the data set")
    parser.add_argument("--images", type=cli.positive_int, default=1_281_167, help="size of the training set")
    parser.add_argument("--tpu", help="as train is to get it; only paths are checked against it")
    parser.add_argument("--model_dir", help="as train is to get it; only looked at")
    parser.add_argument("--fast", action="store_true", help="end after tracing; needs no compiler")
    parser.add_argument("--largest_batch", action="store_true", help="find the largest batch that fits, by compiling")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print a page, with command and versions")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

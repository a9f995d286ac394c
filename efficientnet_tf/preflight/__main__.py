"""Check a TPU run without a TPU: `python -m efficientnet_tf.preflight --variant=b4 --topology=v5e:2x4`.

The training and evaluation steps are traced by TPUStrategy, or by JAX, and compiled by the TPU compiler. Nothing is
run.
"""

import json
import shlex
import sys
from dataclasses import replace

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.config.text import escape
from efficientnet_tf.preflight.checks import check_files, check_places
from efficientnet_tf.preflight.report import describe_versions, format_markdown, make_parts
from efficientnet_tf.preflight.run import run_preflight
from efficientnet_tf.preflight.topology import parse_topology
from efficientnet_tf.runtime.backend import choose_backend
from efficientnet_tf.runtime.terminal import show


def main(args):
    """Check paths and files, trace and compile the steps, and print the report."""
    choose_backend(args.backend)
    topology = parse_topology(args.topology)
    batch = [] if args.batch is None else [f"train.batch_size={args.batch}"]
    config = load_config(args.variant, args.recipe, [*batch, *cli.overrides(args)])
    if args.fast and args.largest_batch:
        raise UserError("--fast stops before --largest_batch begins. Use one of them.")
    data = config.data
    problems = check_places(args.tpu, args.model_dir, data.dir, topology.hosts)
    if data.dir and not data.dir.startswith("gs://") and (data.source == "records" or data.source.startswith("tfds:")):
        problems += check_files(data.dir, data.train_split.partition("[")[0], topology.hosts)
    problems = [replace(problem, text=cli.add_flags(problem.text, make_parser())) for problem in problems]
    report = run_preflight(config, topology, args.classes, args.images, args.fast, args.largest_batch, problems)
    words = [word for word in sys.argv[1:] if word != "--markdown"]
    report |= {
        "command": f"python -m efficientnet_tf.preflight {escape(shlex.join(words))}",
        "environment": describe_versions(),
    }
    if args.json:
        print(json.dumps(report, indent=1))
    elif args.markdown:
        print(format_markdown(report))
    else:
        show(*make_parts(report))
    return 0 if report["ready"] else cli.EXIT_ERROR


def _classes(text):
    if not 2 <= int(text) <= 10**6:
        raise ValueError
    return int(text)


_classes.__name__ = "integer from 2 to 1000000"  # argparse names the type in its error messages.


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "preflight",
        "Trace and compile the steps of a training run for a TPU slice, without a TPU. The report says whether they "
        "fit, how much memory they use, how fast they can be at best, and what would stop the run. The exit status is "
        "0 only if nothing would stop it.",
    )
    cli.add_config_arguments(parser, recipe="imagenet")
    parser.add_argument(
        "--topology", required=True, help="TPU slice, for example v2:2x2, v3:2x2, v4:2x2x1, v5e:2x4 or v5p:2x2x1."
    )
    parser.add_argument(
        "--batch",
        type=cli.positive_int,
        help="Training batch of all replicas together. Short for --set train.batch_size=...",
    )
    parser.add_argument("--classes", type=_classes, default=1000, help="Number of classes of the dataset.")
    parser.add_argument("--images", type=cli.positive_int, default=1_281_167, help="Number of training images.")
    parser.add_argument(
        "--tpu", help="The --tpu that you will give to train. It is only used to check whether paths are reachable."
    )
    parser.add_argument(
        "--model_dir",
        type=cli.path,
        help="The --model_dir that you will give to train. Only the path is checked. Nothing is written.",
    )
    cli.add_backend_argument(parser)
    parser.add_argument("--fast", action="store_true", help="Stop after tracing. No compiler is needed.")
    parser.add_argument(
        "--largest_batch", action="store_true", help="Also find the largest batch that fits, by compiling."
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="Print one JSON object.")
    form.add_argument(
        "--markdown", action="store_true", help="Print a Markdown page with the command and the versions."
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

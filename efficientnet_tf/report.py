"""Show and compare training runs on a page: `python -m efficientnet_tf.report --model_dir=DIR --output=report.html`.

The page has curves, evaluations and configs. It is one file that works offline. A run may still be training.
"""

import argparse
import os

from efficientnet_tf import cli
from efficientnet_tf.config.text import escape


def main(args: argparse.Namespace) -> None:
    """Read the runs and write the page."""
    from efficientnet_tf.runtime.files import check_output, write_output
    from efficientnet_tf.visualization.page import PLOTLY, read_plotly, require_plotly
    from efficientnet_tf.visualization.runs import name_runs, read_run
    from efficientnet_tf.visualization.training_report import make_report

    check_output("output", args.output, [".html"])
    name_runs(args.model_dir)
    runs = [read_run(model_dir) for model_dir in args.model_dir]
    require_plotly("report")
    page = make_report(runs, PLOTLY if args.share_plotly else None)
    if args.share_plotly:
        write_output("output", os.path.join(os.path.dirname(args.output), PLOTLY), read_plotly())
    write_output("output", args.output, page)
    plural = "run" if len(runs) == 1 else "runs"
    print(f"{escape(args.output)}: {len(runs)} {plural}. Open it in a browser.")


def make_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = cli.make_parser(
        "report",
        "Write a page with the training curves, the evaluations and the configs of runs. The runs may be unfinished.",
    )
    parser.add_argument(
        "--model_dir",
        type=cli.path,
        required=True,
        action="append",
        help="Model directory of a run. Can be given several times, to compare runs.",
    )
    parser.add_argument("--output", type=cli.path, default="report.html", help="HTML file to write.")
    parser.add_argument(
        "--share_plotly",
        action="store_true",
        help="Let the page load plotly.min.js from its own folder, and write it there. Several pages then share this "
        "file of 5 MB. Without this flag, the page is one file that contains everything.",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

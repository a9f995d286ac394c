"""Publish a trained model with a model card: `python -m efficientnet_tf.push --model_dir=DIR --to=hf://user/name`."""

from __future__ import annotations

import argparse

from efficientnet_tf import cli
from efficientnet_tf.config.text import escape


def main(args: argparse.Namespace) -> None:
    """Write the folder or upload it, and print where the model is."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.export.check import check_model
    from efficientnet_tf.hub.publish import check_push, push_model
    from efficientnet_tf.runtime.files import read_text

    check_push(args.to)
    if check_model(args.model_dir, checkpoint=args.checkpoint) != "model_dir":
        raise UserError(
            f"model_dir={escape(args.model_dir)} is not a model directory. Publish the directory of the run, because "
            "the model card needs its config and its metrics."
        )
    description = None if args.description is None else read_text(args.description)
    place = push_model(
        args.model_dir,
        args.to,
        checkpoint=args.checkpoint,
        model_license=args.license,
        dataset=args.dataset,
        description=description,
        private=args.private,
    )
    print(f"{escape(place)}: published. README.md is the model card.")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser(
        "push",
        "Publish a trained model on the Hugging Face Hub, or write it into a folder, with a model card. Every command "
        "then takes it as hf://user/name.",
    )
    parser.add_argument("--model_dir", type=cli.path, required=True, help="Model directory of a run.")
    parser.add_argument(
        "--to",
        type=cli.model_path,
        required=True,
        metavar="hf://USER/NAME|DIR",
        help="Where to publish: a model on the Hub, which is created if needed, or a local folder that does not exist.",
    )
    cli.add_checkpoint_argument(parser)
    parser.add_argument("--license", help="Identifier of the license, for example apache-2.0.")
    parser.add_argument("--dataset", help="Name of the data set for the card, for example cifar10.")
    parser.add_argument(
        "--description",
        type=cli.path,
        metavar="FILE.md",
        help="Markdown text for the card: what the model is for, and where it fails.",
    )
    parser.add_argument("--private", action="store_true", help="Create the model on the Hub as a private one.")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

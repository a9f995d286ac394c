"""Classify images: `python -m efficientnet_tf.predict --model_dir=DIR photo.jpg folder/ ...`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from efficientnet_tf import cli

if TYPE_CHECKING:
    from efficientnet_tf.export.load import LoadedModel


def predict_images(
    model: str | os.PathLike[str] | LoadedModel, images: Any, top: int = 5, batch_size: int = 32
) -> list[list[tuple[str, float]]]:
    """Classify images.

    Given a path, the model is loaded and traced at the first call and kept in memory, so that you can call this in a
    loop. It is loaded again if its files change.

    Args:
        model: A model of `load_model`, or a path that `load_model` takes.
        images: A sequence of images. Each is the path of an image file, the content of an image file as bytes, or
            pixels of the model's size, uint8 or float [S, S, C] in [0, 255]. A single path or an array [N, S, S, C]
            works, too.
        top: Number of classes to return per image, at least 1.
        batch_size: Number of images to compute together, at least 1.

    Returns:
        For each image, a list of (class name, probability), the most likely class first.

    Raises:
        UserError: If there is no model at the path, or an image cannot be read or has another shape.

    Example:
        >>> from efficientnet_tf import predict_images
        >>> predictions = predict_images("runs/digits", ["seven.png"], top=3)
        >>> [(class_name, probability), *others] = predictions[0]
        >>> class_name, len(others)
        ('7', 2)
    """
    from efficientnet_tf.export.load import LoadedModel, load_cached

    loaded = model if isinstance(model, LoadedModel) else load_cached(model)
    return loaded.predict(images, top, batch_size)


def main(args: argparse.Namespace) -> int:
    """Classify images and print the results. The status is 1 if a file could not be read."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.data.scan import find_images
    from efficientnet_tf.export.check import check_model

    # Everything that can be refused is refused before TensorFlow is imported, which takes seconds.
    check_model(args.model_dir, checkpoint=args.checkpoint)
    paths = find_images(args.images)
    from efficientnet_tf.export.load import load_model

    model = load_model(args.model_dir, checkpoint=args.checkpoint)
    failed = 0
    for path, answer in zip(paths, model.iterate_predictions(paths, args.top), strict=True):
        if isinstance(answer, UserError):
            failed += 1
            print(escape(str(answer)), file=sys.stderr)
        elif args.json:
            labels = [{"label": name, "probability": probability} for name, probability in answer]
            # A path that is not UTF-8 is written with escapes such as \udcff, from which Python reads the same path.
            print(json.dumps({"path": path, "labels": labels}), flush=True)
        else:
            classes = ", ".join(f"{escape(name)} {probability:.1%}" for name, probability in answer)
            print(f"{escape(path)}: {classes}", flush=True)
    if failed:
        print(f"{failed} file(s) could not be read. All others are classified.", file=sys.stderr)
    return cli.EXIT_ERROR if failed else 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser("predict", "Classify images with a trained or exported model.")
    parser.add_argument("images", type=cli.path, nargs="+", metavar="IMAGE", help="Image files, or folders of them.")
    parser.add_argument(
        "--model_dir", type=cli.path, required=True, help="Model directory of a run, or an exported model."
    )
    cli.add_checkpoint_argument(parser)
    parser.add_argument("--top", type=cli.positive_int, default=5, help="Number of classes to print per image.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object per image and line.")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

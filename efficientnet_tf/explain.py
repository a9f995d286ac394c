"""Show where models look: `python -m efficientnet_tf.explain --model_dir=A --model_dir=B photo.jpg`.

The picture has a row for each photo and a column for each model. Each cell is the square that the model sees, with a
heat map of where it finds the class. The photos are cut to squares unless a model sees them whole (`data.crop`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError, closest_names
from efficientnet_tf.config.image_size import format_size
from efficientnet_tf.config.text import escape, shorten

if TYPE_CHECKING:
    from efficientnet_tf.visualization.heatmap import Cell

MOST_PHOTOS = 100
LAST_LAYER = "top_activation"  # its mean is the input of the classifier


def explain_photos(
    model_dir: str,
    paths: Sequence[str],
    method: str = "cam",
    layer: str = LAST_LAYER,
    label: str | None = None,
    checkpoint: str | int | None = None,
) -> tuple[str, list[Cell]]:
    """Compute where a trained model sees a class in photos.

    Args:
        model_dir: A model directory.
        paths: Image files.
        method: "cam" or "grad_cam".
        layer: Name of the layer, for Grad-CAM.
        label: Name or number of the class. The default is the most likely class of each photo.
        checkpoint: The checkpoint, as for `restore_model`.

    Returns:
        The name and the image size of the model, for display, and a cell for each path.

    Raises:
        UserError: If there is no model, a file cannot be read, the class or the layer is unknown, or the model has
            another head.
    """
    from efficientnet_tf.data.pipeline import eval_image, make_image_reader
    from efficientnet_tf.models.model_dir import restore_model
    from efficientnet_tf.runtime.terminal import track

    model, config, class_names = restore_model(model_dir, checkpoint=checkpoint)
    _check_task(config, model_dir)
    number = None if label is None else find_class(label, class_names, model_dir)
    read = make_image_reader(lambda encoded: eval_image(encoded, config), config.data.channels)
    cells = []
    # One by one, because the gradients of a large model take gigabytes per photo.
    for path in track(paths, len(paths), os.path.basename(model_dir.rstrip("/")), "photos"):
        images, errors = read([path])
        if errors:
            raise UserError(f"{escape(path)} can no longer be read: {errors[path]}")
        try:
            cells.append(_explain_photo(model, images[path], class_names, config.data.task, method, layer, number))
        except UserError as error:
            raise UserError(f"{escape(model_dir)}: {error}") from None
    return f"{config.model.name}, {format_size(config.image_size)} pixels", cells


def _explain_photo(
    model: Any, pixels: Any, class_names: Sequence[str], task: str, method: str, layer: str, number: int | None
):
    """Return the cell of one photo. Without a number it shows the most likely class or label."""
    import keras
    import numpy as np

    from efficientnet_tf.evaluation.attribution import class_activation_map, grad_cam
    from efficientnet_tf.visualization.heatmap import Cell

    pixels = np.asarray(pixels)  # TensorFlow has read them, and JAX may compute with them.
    images = pixels[None]
    logits: Any = model(images, training=False)
    compute = keras.ops.softmax if task == "classification" else keras.ops.sigmoid
    probabilities = np.asarray(compute(logits))[0]
    shown = int(probabilities.argmax()) if number is None else number
    if method == "cam":
        [heat] = class_activation_map(model, images, shown)
    else:
        [heat] = grad_cam(model, images, layer, shown)
    return Cell(pixels[..., :3], heat, class_names[shown], float(probabilities[shown]))


def _check_task(config, model_dir):
    if config.data.task == "regression":
        raise UserError(
            f"model_dir={escape(model_dir)} predicts numbers (data.task=regression). Only where a class or a label is "
            "seen can be shown."
        )


def find_class(label: str, class_names: Sequence[str], model_dir: str) -> int:
    """Return the number of a class from its name or, if no class has this name, from its number as text."""
    if label in class_names:
        return list(class_names).index(label)
    if label.isdecimal() and len(label) < 20 and int(label) < len(class_names):
        return int(label)
    similar = ", ".join(f"'{escape(name)}'" for name in closest_names(label, class_names))
    raise UserError(
        f"--class={shorten(escape(label))} is not a class of {escape(model_dir)}. Use a number from 0 to "
        f"{len(class_names) - 1}, or a name. Similar names are {similar}."
    )


def main(args):
    """Explain the photos and save the picture. The status is 1 if a file could not be read."""
    from efficientnet_tf.runtime.backend import choose_backend

    choose_backend(args.backend)
    paths = _check(args)
    from efficientnet_tf.models.run_directory import read_config
    from efficientnet_tf.runtime.hub import fetch
    from efficientnet_tf.visualization.figures import save_figure
    from efficientnet_tf.visualization.heatmap import Column, draw_comparison

    configs = [read_config(fetch(model_dir)) for model_dir in args.model_dir]
    sees_more = any(each.data.crop != "center" or len(set(each.image_shape)) > 1 for each in configs)
    photos, errors = _read_photos(paths, sees_more, max(each.data.channels for each in configs))
    columns = [
        Column(
            title, *explain_photos(fetch(model_dir), list(photos), args.method, args.layer, args.label, args.checkpoint)
        )
        for title, model_dir in zip(column_titles(args.model_dir), args.model_dir, strict=True)
    ]
    note = "class activation maps" if args.method == "cam" else f"Grad-CAM of {escape(args.layer)}"
    figure = draw_comparison(photos, columns, note)
    save_figure(figure, args.output, "--output")
    size = f"{figure.bbox.width:.0f}x{figure.bbox.height:.0f} pixels"
    print(f"{escape(args.output)}: {size}, {len(photos)} photo(s), {len(columns)} model(s)")
    if errors:
        print(f"{len(errors)} file(s) could not be read. All others are done.", file=sys.stderr)
    return cli.EXIT_ERROR if errors else 0


def _check(args):
    """Refuse what can be refused before TensorFlow is imported, in all models, and return the paths of the photos."""
    from efficientnet_tf.data.image_formats import find_unreadable
    from efficientnet_tf.data.scan import find_images
    from efficientnet_tf.export.check import check_model
    from efficientnet_tf.models.run_directory import read_class_names, read_config
    from efficientnet_tf.runtime.files import check_output, is_remote
    from efficientnet_tf.runtime.hub import fetch
    from efficientnet_tf.visualization.figures import require_matplotlib

    if args.method == "cam" and args.layer != LAST_LAYER:
        raise UserError(
            f"--layer={escape(args.layer)} needs --method=grad_cam. The method cam always uses {LAST_LAYER}."
        )
    require_matplotlib("explain")
    check_output("--output", args.output, (".png", ".jpg", ".jpeg"))
    for model_dir in map(fetch, args.model_dir):
        if check_model(model_dir, checkpoint=args.checkpoint) != "model_dir":
            raise UserError(
                f"model_dir={escape(model_dir)} is not a model directory. Explanations need the layers of the network, "
                "which only the directory of a run has."
            )
        if not is_remote(model_dir):
            _check_task(read_config(model_dir), model_dir)
        if args.label is not None and not is_remote(model_dir):
            find_class(args.label, read_class_names(model_dir), model_dir)
        if args.layer != LAST_LAYER and not is_remote(model_dir):
            _check_layer(args.layer, model_dir)
    paths = list(dict.fromkeys(find_images(args.images)))
    if len(paths) > MOST_PHOTOS:
        raise UserError(f"{len(paths)} images do not fit into one picture. Use at most {MOST_PHOTOS}.")
    check_output("--output", args.output, (".png", ".jpg", ".jpeg"), paths)
    unreadable = find_unreadable(paths)
    if len(unreadable) == len(paths):
        raise _explain_unreadable(list(unreadable.values()))
    return paths


def _explain_unreadable(sentences):
    """Return the error for photos of which none can be read, after printing why."""
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return UserError(f"None of {len(sentences)} image(s) can be read.")


def _check_layer(layer: str, model_dir: str) -> None:
    """Raise UserError if a network has no layer of this name."""
    from efficientnet_tf.models.run_directory import read_config
    from efficientnet_tf.scaling.layers import list_layers

    # The entries "..._output" are no layers. Dropout, which is one, is not listed.
    layers = [each for each in list_layers(read_config(model_dir).model) if not each.name.endswith("_output")]
    if layer not in [each.name for each in layers] and not layer.endswith("_drop"):
        similar = closest_names(layer, [each.name for each in layers if each.height * each.width > 1])
        raise UserError(
            f"{escape(model_dir)}: unknown layer={escape(shorten(layer))}. Similar names are {', '.join(similar)}."
        )


def _read_photos(paths: Sequence[str], whole: bool, channels: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return photos as squares by path, and why the others cannot be read. Print the latter, too.

    Args:
        paths: Image files.
        whole: Whether to show whole photos on a white square instead of their central squares.
        channels: Channels that the networks see. Of more than 3, the first three are shown.
    """
    import tensorflow as tf

    from efficientnet_tf.data.decode import decode_window, pad
    from efficientnet_tf.data.pipeline import make_image_reader
    from efficientnet_tf.data.windows import center_window, whole_window
    from efficientnet_tf.visualization.heatmap import SIDE

    def decode(encoded, choose_window):
        image: Any = decode_window(encoded, max(channels, 3), choose_window)
        return image[..., :3]

    def read_square(encoded):
        if whole:
            return pad(decode(encoded, whole_window), (SIDE, SIDE), "area")
        image = decode(encoded, lambda shape: center_window(shape, (1, 1), 0))
        return tf.image.resize(image, [SIDE, SIDE], "area")

    photos, errors = make_image_reader(read_square, channels)(paths)
    sentences = [f"{escape(path)}: cannot be read: {message}" for path, message in errors.items()]
    if not photos:
        raise _explain_unreadable(sentences)
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return {path: photo.numpy() for path, photo in photos.items()}, errors


def column_titles(model_dirs: Sequence[str]) -> Sequence[str]:
    """Return the last part of each directory's path, or the whole paths if the last parts are not unique."""
    names = [os.path.basename(os.path.abspath(model_dir)) for model_dir in model_dirs]
    return names if len(set(names)) == len(names) else model_dirs


def make_parser():
    """Return the parser of the command's flags."""
    parser = cli.make_parser("explain", "Draw where trained models see their classes in photos.")
    parser.add_argument("images", type=cli.path, nargs="+", metavar="IMAGE", help="Image files, or folders of them.")
    parser.add_argument(
        "--model_dir",
        type=cli.model_path,
        required=True,
        action="append",
        help="Model directory of a run, or hf://user/name on the Hugging Face Hub. Can be given several times, for a "
        "column each.",
    )
    cli.add_checkpoint_argument(parser)
    cli.add_backend_argument(parser)
    parser.add_argument("--output", type=cli.path, default="explain.png", help="PNG or JPEG file to write.")
    parser.add_argument(
        "--method",
        default="cam",
        choices=["cam", "grad_cam"],
        help="'cam' draws class activation maps, which are exact. 'grad_cam' draws Grad-CAM, at any layer.",
    )
    parser.add_argument("--layer", default=LAST_LAYER, help="Layer for grad_cam, for example block5c_add.")
    parser.add_argument(
        "--class",
        dest="label",
        metavar="NAME_OR_INDEX",
        help="Class to explain. The default is the most likely class of each photo, for each model.",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

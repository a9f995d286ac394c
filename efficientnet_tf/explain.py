"""See why: `python -m efficientnet_tf.explain --model_dir=A --model_dir=B photo.jpg ... --output=explain.png`.

A row a photo, a column a model: where in the crop that it sees a model finds its class.
"""

import os
import sys

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError, closest_names
from efficientnet_tf.visualization.heatmap import SIDE, Cell, draw_comparison

MOST_PHOTOS = 100  # in a picture
LAST = "top_activation"  # the layer whose mean the classifier gets


def explain(model_dir, paths, method="cam", layer=LAST, label=None):
    """Explain what the model of a model directory says of photos.

    Args:
        model_dir: str.
        paths: sequence of str, image files that can be read.
        method: "cam" or "grad_cam".
        layer: str, for Grad-CAM.
        label: str, a class's name or number; None for the model's likeliest class of each photo.

    Returns:
        (the model's name and image size, str; list of Cell, one a path).

    Raises:
        UserError: for a directory that is not a model's, a file that cannot be read, an unknown class, and a model or
            layer that `attribution` cannot explain.
    """
    import keras
    from tqdm import tqdm

    from efficientnet_tf.data.pipeline import eval_image, make_image_reader
    from efficientnet_tf.evaluation.attribution import class_activation_map, grad_cam
    from efficientnet_tf.models.model_dir import restore_model

    model, config, class_names = restore_model(model_dir)
    chosen = None if label is None else _find_class(label, class_names, model_dir)
    read = make_image_reader(lambda encoded: eval_image(encoded, config))
    cells = []
    # One by one: the gradients of a large model take gigabytes a photo.
    for path in tqdm(paths, desc=os.path.basename(model_dir.rstrip("/")), unit="photo", disable=None):
        images, errors = read([path])
        if errors:
            raise UserError(f"{path} can no longer be read: {errors[path]}")
        images = images[path][None]
        probabilities = keras.ops.softmax(model(images, training=False)).numpy()[0]
        shown = int(probabilities.argmax()) if chosen is None else chosen
        try:
            if method == "cam":
                [heat] = class_activation_map(model, images, shown)
            else:
                [heat] = grad_cam(model, images, layer, shown)
        except UserError as error:
            raise UserError(f"{model_dir}: {error}") from None
        cells.append(Cell(images[0].numpy(), heat, class_names[shown], float(probabilities[shown])))
    return f"{config.model.name}, {config.image_size} pixels", cells


def _find_class(label, class_names, model_dir):
    """Return the number of the class that a name or, where no class is named so, a number means."""
    if label in class_names:
        return class_names.index(label)
    if label.isdecimal() and int(label) < len(class_names):
        return int(label)
    raise UserError(
        f"--class={label}: {model_dir} has no such class; allowed are 0 to {len(class_names) - 1} and the names, "
        f"near it {', '.join(map(repr, closest_names(label, class_names)))}"
    )


def main(args):
    """Explain, draw and save; the status is 1 where a file could not be read."""
    import tensorflow as tf

    from efficientnet_tf.data.decode import center_window, decode_window
    from efficientnet_tf.data.folders import find_images
    from efficientnet_tf.data.pipeline import make_image_reader
    from efficientnet_tf.models.model_dir import read_config
    from efficientnet_tf.runtime.files import check_output
    from efficientnet_tf.visualization.grids import require_pillow, save_picture

    if args.method == "cam" and args.layer != LAST:
        raise UserError(f"--layer={args.layer} is for --method=grad_cam: cam has no other layer than {LAST}")
    check_output("--output", args.output, (".png", ".jpg", ".jpeg"))
    require_pillow("explain")
    for model_dir in args.model_dir:
        read_config(model_dir)  # all of them, before the work with the first
    paths = find_images(args.images)
    if len(paths) > MOST_PHOTOS:
        raise UserError(f"{len(paths)} images are more than a picture can show: at most {MOST_PHOTOS}")

    def square(encoded):
        """Decode the photo's central square, of which a model's crop is the better part."""
        image = decode_window(encoded, 3, lambda shape: center_window(shape, 1, 0))
        return tf.image.resize(image, [SIDE, SIDE], "area")

    photos, errors = make_image_reader(square)(paths)
    for path, message in errors.items():
        print(f"{path}: cannot be read: {message}", file=sys.stderr)
    if not photos:
        raise UserError(f"none of {len(paths)} image(s) can be read")
    columns = [
        (name, *explain(model_dir, list(photos), args.method, args.layer, args.label))
        for name, model_dir in zip(_names(args.model_dir), args.model_dir, strict=True)
    ]
    note = "class activation maps" if args.method == "cam" else f"Grad-CAM of {args.layer}"
    picture = draw_comparison({path: image.numpy() for path, image in photos.items()}, columns, note)
    save_picture(picture, args.output, "--output")
    print(f"{args.output}: {picture.width}x{picture.height} pixels, {len(photos)} photo(s), {len(columns)} model(s)")
    if errors:
        print(f"{len(errors)} file(s) could not be read; all others are done", file=sys.stderr)
    return cli.EXIT_ERROR if errors else 0


def _names(model_dirs):
    """Return the last parts of the directories' paths, or the paths where these are not enough to tell them apart."""
    names = [os.path.basename(os.path.abspath(model_dir)) for model_dir in model_dirs]
    return names if len(set(names)) == len(names) else model_dirs


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser("explain", "Draw where in photos trained models find their classes.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--model_dir", required=True, action="append", help="a model directory; given again, another column"
    )
    parser.add_argument("--output", default="explain.png", help="the picture to write: PNG or JPEG")
    parser.add_argument(
        "--method",
        default="cam",
        choices=["cam", "grad_cam"],
        help="class activation maps, exact, of the last features; or Grad-CAM at a layer",
    )
    parser.add_argument("--layer", default=LAST, help="with grad_cam: a layer's name, such as block5c_add")
    parser.add_argument(
        "--class",
        dest="label",
        metavar="NAME_OR_INDEX",
        help="the class to explain; left out, each model's likeliest",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

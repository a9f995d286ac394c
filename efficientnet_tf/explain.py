"""See why: `python -m efficientnet_tf.explain --model_dir=A --model_dir=B photo.jpg ... --output=explain.png`.

A row a photo, a column a model: where in the crop that it sees a model finds its class.
"""

import os
import sys
from typing import NamedTuple

import numpy as np

from efficientnet_tf import cli
from efficientnet_tf.config import UserError, closest

SIDE, GAP, FONT_SIZE, LINE = 224, 10, 13, 17  # pixels
MOST_PHOTOS = 100  # in a picture
LAST = "top_activation"  # the layer whose mean the classifier gets
# From nothing to most, in even steps of lightness (CIELAB's L from 10 to 95), so that no step looks like an edge.
RAMP = np.array(
    [(34, 18, 62), (98, 25, 96), (163, 41, 99), (218, 77, 66), (238, 137, 36), (243, 194, 66), (252, 243, 162)]
)


class Cell(NamedTuple):
    """What one model says of one photo: the crop it saw, [S, S, C], a map over it, [h, w], class and probability."""

    pixels: np.ndarray
    heat: np.ndarray
    class_name: str
    probability: float


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

    from efficientnet_tf import attribution, checkpoint, data

    model, config, class_names = checkpoint.load_model(model_dir)
    chosen = None if label is None else _find_class(label, class_names, model_dir)
    read = data.make_reader(lambda encoded: data.eval_image(encoded, config))
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
                [heat] = attribution.class_activation_map(model, images, shown)
            else:
                [heat] = attribution.grad_cam(model, images, layer, shown)
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
        f"near it {', '.join(map(repr, closest(label, class_names)))}"
    )


def draw_heat_map(pixels, heat):
    """Draw a map over its image: the image in grey, the map from its least value to its greatest as colour.

    Args:
        pixels: [H, W, 1 or 3], in [0, 255].
        heat: float [h, w]; where all values are the same, no place stands out and none is coloured.

    Returns:
        PIL.Image.Image, 224x224 pixels.
    """
    from PIL import Image

    grey = np.asarray(_picture(pixels).convert("L"), np.float32)[..., None]
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    # Bicubic, for between few pixels a linear map has creases; it overshoots.
    large = Image.fromarray(scaled.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(large), 0, 1)
    # The photo is dimmed, lest a bright sky be taken for heat; beneath the heat it stays as shades of its colour.
    weight = 0.4 + 0.4 * share[..., None]
    mixed = (1 - weight) * 0.7 * grey + weight * _colour(share) * (0.55 + 0.45 * grey / 255)
    return Image.fromarray(np.uint8(np.round(mixed)))


def _colour(share):
    """Return the colours of shares in [0, 1]: [..., 3], in [0, 255]."""
    stops = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(share, stops, channel) for channel in RAMP.T], axis=-1)


def _picture(pixels):
    from PIL import Image

    pixels = np.uint8(np.clip(np.round(pixels), 0, 255))
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def draw_comparison(photos, columns, note):
    """Draw photos and what models see in them: a row a photo, a column a model.

    Args:
        photos: {path: [S, S, 3], in [0, 255]}.
        columns: list of (name, description, list of Cell, one a photo).
        note: str, said beside the legend.

    Returns:
        PIL.Image.Image.
    """
    from PIL import Image, ImageDraw, ImageFont

    from efficientnet_tf import pictures

    font = ImageFont.load_default(FONT_SIZE)

    def lines_of(*words):
        return pictures.wrap(font, words, SIDE)

    heads = [["photo"], *([*lines_of(name), *lines_of(*text.split(" "))] for name, text, _ in columns)]
    rows = [
        [(_picture(pixels), lines_of(os.path.basename(path)))]
        + [
            (draw_heat_map(cell.pixels, cell.heat), lines_of(*cell.class_name.split(" "), f"{cell.probability:.1%}"))
            for cell in cells
        ]
        for (path, pixels), *cells in zip(photos.items(), *(cells for _, _, cells in columns), strict=True)
    ]
    heights = [SIDE + LINE * max(len(lines) for _, lines in row) + GAP for row in rows]
    top = GAP + LINE * max(map(len, heads)) + GAP // 2
    canvas = Image.new("RGB", (GAP + len(heads) * (SIDE + GAP), top + sum(heights) + LINE + 2 * GAP), "white")
    pen = ImageDraw.Draw(canvas)

    def write(x, y, lines):
        for i, line in enumerate(lines):
            pen.text((x, y + i * LINE), line, fill="dimgray" if i else "black", font=font)

    for column, lines in enumerate(heads):
        write(GAP + column * (SIDE + GAP), GAP, lines)
    for y, row in zip(top + np.cumsum([0, *heights]), rows, strict=False):
        for column, (picture, lines) in enumerate(row):
            x = GAP + column * (SIDE + GAP)
            canvas.paste(picture, (x, int(y)))
            write(x, int(y) + SIDE + 1, lines)
    _draw_legend(canvas, pen, font, note)
    return canvas


def _draw_legend(canvas, pen, font, note):
    from PIL import Image

    width = SIDE // 2
    bar = np.tile(_colour(np.linspace(0, 1, width)), (LINE - 4, 1, 1))
    y = canvas.height - GAP - LINE
    canvas.paste(Image.fromarray(np.uint8(np.round(bar))), (GAP, y + 2))
    pen.text((2 * GAP + width, y), f"least to most of each map; {note}", fill="dimgray", font=font)


def main(args):
    """Explain, draw and save; the status is 1 where a file could not be read."""
    import tensorflow as tf

    from efficientnet_tf import checkpoint, data, files, pictures
    from efficientnet_tf.decoding import center_window, decode_window
    from efficientnet_tf.folders import find_images

    if args.method == "cam" and args.layer != LAST:
        raise UserError(f"--layer={args.layer} is for --method=grad_cam: cam has no other layer than {LAST}")
    files.check_output("--output", args.output, (".png", ".jpg", ".jpeg"))
    pictures.require_pillow("explain")
    for model_dir in args.model_dir:
        checkpoint.read_config(model_dir)  # all of them, before the work with the first
    paths = find_images(args.images)
    if len(paths) > MOST_PHOTOS:
        raise UserError(f"{len(paths)} images are more than a picture can show: at most {MOST_PHOTOS}")

    def square(encoded):
        """Decode the photo's central square, of which a model's crop is the better part."""
        image = decode_window(encoded, 3, lambda shape: center_window(shape, 1, 0))
        return tf.image.resize(image, [SIDE, SIDE], "area")

    photos, errors = data.make_reader(square)(paths)
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
    pictures.save_picture(picture, args.output, "--output")
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

"""Look at the data before training: `python -m efficientnet_tf.show --recipe=digits --output=grid.png`.

Left, training images as the network will see them, with what the policy did; right, the evaluation's crops.
"""

from efficientnet_tf import cli


def draw_grid(config, rows, columns):
    """Draw training images and evaluation crops.

    Args:
        config: config.Config.
        rows: int >= 1.
        columns: int >= 1, images a row on each side.

    Returns:
        PIL.Image.Image.
    """
    from PIL import Image, ImageDraw

    train = _train_cells(config, rows * columns)
    evaluation = _eval_cells(config, rows * columns)
    side, text, gap = max(config.image_size, 96), 24, 4
    cell, middle = side + gap, 24
    canvas = Image.new("RGB", (2 * columns * cell + middle, rows * (side + text) + text), "white")
    pen = ImageDraw.Draw(canvas)
    for offset, title, cells in ((0, "training", train), (columns * cell + middle, "evaluation", evaluation)):
        pen.text((offset + 2, 4), f"{title}: {config.data.source}, {config.image_size} pixels", fill="black")
        for i, (pixels, label, note) in enumerate(cells):
            x, y = offset + i % columns * cell, text + i // columns * (side + text)
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
            canvas.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
            pen.text((x + 2, y + side), _fit(pen, label, side), fill="black")
            pen.text((x + 2, y + side + 11), _fit(pen, note, side), fill="gray")
    return canvas


def _fit(pen, text, width):
    while text and pen.textlength(text) > width:
        text = text[:-1]
    return text


def _train_cells(config, count):
    import tensorflow as tf

    from efficientnet_tf import augment, data, sources

    source = sources.open_source(config.data, config.data.train_split, training=True)
    policy = augment.make_policy(config.augment)
    order = sources.Order(batch=config.train.batch_size, shuffle=True, seed=config.train.seed)
    for position, id_, payload in source.stream(order).take(count):
        encoded, label = source.load(payload)
        seed = data.example_seed(source, config, position, id_)
        note = ""
        if policy:
            operations, levels = augment.draw_policy(policy, data.split_seed(seed)[2])
            drawn = zip(operations.numpy(), levels.numpy(), strict=True)
            note = ", ".join(f"{augment.NAMES[o]} {level:g}" for o, level in drawn if o != augment.NOTHING)
        try:
            yield data.train_image(encoded, seed, config).numpy(), source.class_names[int(label)], note
        except tf.errors.OpError:
            yield _blank(config), source.class_names[int(label)], f"unreadable: {source.describe(int(id_))}"


def _eval_cells(config, count):
    import tensorflow as tf

    from efficientnet_tf import data, sources

    source = sources.open_source(config.data, config.data.eval_split, training=False)
    count = min(count, source.size)
    order = sources.Order(batch=source.size, shuffle=True, steps=1)  # shuffled, for neighbours are of one class
    for _, id_, payload in source.stream(order).take(count):
        encoded, label = source.load(payload)
        try:
            pixels = tf.saturate_cast(tf.round(data.eval_image(encoded, config)), tf.uint8).numpy()
            yield pixels, source.class_names[int(label)], ""
        except tf.errors.OpError:
            yield _blank(config), source.class_names[int(label)], f"unreadable: {source.describe(int(id_))}"


def _blank(config):
    import numpy as np

    return np.zeros((config.image_size, config.image_size, config.data.channels), np.uint8)


def main(args):
    """Draw and save."""
    from efficientnet_tf.config import UserError, load_config

    config = load_config(args.variant, args.recipe, cli.overrides(args))
    try:
        from PIL import Image  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("show draws with Pillow, which is not installed: pip install pillow") from None
    image = draw_grid(config, args.rows, args.columns)
    try:
        image.save(args.output)
    except (OSError, ValueError) as error:
        raise UserError(f"--output={args.output} cannot be written: {error}") from None
    print(f"{args.output}: {image.width}x{image.height} pixels")


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser("show", "Draw training images as the network will see them, and evaluation crops.")
    cli.add_config_arguments(parser)
    parser.add_argument("--output", default="grid.png", help="the picture to write: PNG or JPEG")
    parser.add_argument("--rows", type=cli.positive_int, default=5, help="rows of images")
    parser.add_argument("--columns", type=cli.positive_int, default=5, help="images a row, on either side")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

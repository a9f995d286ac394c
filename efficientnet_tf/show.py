"""Look at the data before training: `python -m efficientnet_tf.show --recipe=digits --output=grid.png`.

Left, training images as the network will see them, with what the policy did; right, the evaluation's crops.
"""

from efficientnet_tf import cli

GAP, FONT_SIZE, LINE, LEAST_SIDE = 8, 13, 17, 128  # pixels


def draw_grid(config, rows, columns):
    """Draw training images and evaluation crops.

    Args:
        config: config.Config.
        rows: int >= 1.
        columns: int >= 1, images a row on each side.

    Returns:
        PIL.Image.Image; the images have their own size, or are enlarged to 128 pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    from efficientnet_tf.visualization.grids import wrap

    font = ImageFont.load_default(FONT_SIZE)
    side = max(config.image_size, LEAST_SIDE)
    titles = f"Training: {_describe(config)}", f"Evaluation: {config.data.source}, {config.image_size} pixels"
    cells = [list(make(config, rows * columns)) for make in (_train_cells, _eval_cells)]
    titles = [wrap(font, title.split(" "), columns * (side + GAP)) for title in titles]
    texts = [[wrap(font, [label], side) + wrap(font, notes, side) for _, label, notes in half] for half in cells]

    top = GAP + LINE * max(map(len, titles)) + GAP
    tall = side + LINE * max(len(lines) for half in texts for lines in half) + GAP
    wide = columns * (side + GAP) + 2 * GAP  # one half
    canvas = Image.new("RGB", (2 * wide, top + rows * tall), "white")
    pen = ImageDraw.Draw(canvas)
    pen.line([(wide, GAP), (wide, canvas.height - GAP)], fill="lightgray")
    for half, (title, images, captions) in enumerate(zip(titles, cells, texts, strict=True)):
        left = half * wide + GAP + GAP // 2
        pen.text((left, GAP), "\n".join(title), fill="black", font=font, spacing=LINE - FONT_SIZE)
        for i, ((pixels, _, _), (label, *notes)) in enumerate(zip(images, captions, strict=True)):
            x, y = left + i % columns * (side + GAP), top + i // columns * tall
            picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
            canvas.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
            for line, text in enumerate([label, *notes]):
                pen.text((x, y + side + 1 + line * LINE), text, fill="dimgray" if line else "black", font=font)
    return canvas


def _describe(config):
    """Say what training images go through; what is mixed on the device is not in the picture."""
    augment = config.augment
    text = f"{config.data.source}, {config.image_size} pixels, policy {augment.policy}"
    mixing = [f"{name} {getattr(augment, name):g}" for name in ("mixup", "cutmix") if getattr(augment, name)]
    return text + (f"; then {' and '.join(mixing)}, not drawn here" if mixing else "")


def _train_cells(config, count):
    import tensorflow as tf

    from efficientnet_tf.data.open import Order, open_source
    from efficientnet_tf.data.pipeline import example_seed, split_seed, train_image
    from efficientnet_tf.data.policies import NAMES, NOTHING, draw_policy, make_policy

    source = open_source(config.data, config.data.train_split, training=True)
    policy = make_policy(config.augment)
    order = Order(batch=config.train.batch_size, shuffle=True, seed=config.train.seed)
    for position, id_, payload in source.stream(order).take(count):
        encoded, label = source.load(payload)
        seed = example_seed(source, config, position, id_)
        notes = []
        if policy:
            operations, levels = draw_policy(policy, split_seed(seed)[2])
            drawn = zip(operations.numpy(), levels.numpy(), strict=True)
            notes = [f"{NAMES[o]} {level:g}" for o, level in drawn if o != NOTHING]
            notes = [*(f"{note}," for note in notes[:-1]), *notes[-1:]]
        try:
            yield train_image(encoded, seed, config).numpy(), source.class_names[int(label)], notes
        except tf.errors.OpError:
            yield _blank(config), source.class_names[int(label)], ["unreadable:", source.describe(int(id_))]


def _eval_cells(config, count):
    import tensorflow as tf

    from efficientnet_tf.data.open import Order, open_source
    from efficientnet_tf.data.pipeline import eval_image

    source = open_source(config.data, config.data.eval_split, training=False)
    count = min(count, source.size)
    order = Order(batch=source.size, shuffle=True, steps=1)  # shuffled, for neighbours are of one class
    for _, id_, payload in source.stream(order).take(count):
        encoded, label = source.load(payload)
        try:
            pixels = tf.saturate_cast(tf.round(eval_image(encoded, config)), tf.uint8).numpy()
            yield pixels, source.class_names[int(label)], []
        except tf.errors.OpError:
            yield _blank(config), source.class_names[int(label)], ["unreadable:", source.describe(int(id_))]


def _blank(config):
    import numpy as np

    return np.zeros((config.image_size, config.image_size, config.data.channels), np.uint8)


def main(args):
    """Draw and save."""
    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.visualization.grids import require_pillow, save_picture

    config = load_config(args.variant, args.recipe, cli.overrides(args))
    require_pillow("show")
    image = draw_grid(config, args.rows, args.columns)
    save_picture(image, args.output, "--output")
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

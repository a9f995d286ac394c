"""Look at the data before training: `python -m efficientnet_tf.show --recipe=digits --output=grid.png`.

The left half shows training images as the network will see them, with the operations of the policy. The right half
shows the crops for evaluation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.image_size import format_size
from efficientnet_tf.config.text import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from efficientnet_tf.config.schema import Config
    from efficientnet_tf.data.source import Source
    from efficientnet_tf.visualization.grids import Cell


def draw_data(config: Config, rows: int, columns: int) -> Figure:
    """Draw training images and evaluation crops side by side.

    Args:
        config: The configuration of a run.
        rows: Rows of images, >= 1.
        columns: Images per row in each half, >= 1.

    Returns:
        A figure. Images have their own size, or are enlarged to at least 128 pixels.
    """
    from efficientnet_tf.visualization.grids import Grid, draw_grids

    train = Grid(f"Training: {describe_augmentation(config)}", list(train_cells(config, rows * columns)))
    evaluation = Grid(
        f"Evaluation: {config.data.source}, {format_size(config.image_size)} pixels",
        list(eval_cells(config, rows * columns)),
    )
    return draw_grids([train, evaluation], rows, columns)


def describe_augmentation(config: Config) -> str:
    """Describe what happens to training images. Mixing happens on the device, and is not drawn."""
    augment = config.augment
    text = f"{config.data.source}, {format_size(config.image_size)} pixels, policy {augment.policy}"
    text += f", shift {augment.shift}" if augment.shift else ""
    text += f", color jitter {augment.color_jitter:g}" if augment.color_jitter else ""
    mixing = [f"{name} {getattr(augment, name):g}" for name in ("mixup", "cutmix") if getattr(augment, name)]
    return text + (f", then {' and '.join(mixing)} (not shown)" if mixing else "")


def train_cells(config: Config, count: int) -> Iterator[Cell]:
    """Yield the first training images of a run, with the operations of the policy as notes."""
    import tensorflow as tf

    from efficientnet_tf.data.open import Order, open_source
    from efficientnet_tf.data.pipeline import image_seed, split_seed, train_image
    from efficientnet_tf.data.policies import make_policy
    from efficientnet_tf.visualization.grids import Cell

    data = config.data.model_copy(update={"weight_column": None})  # Only labels are shown.
    source = open_source(data, data.train_split, training=True)
    policy = make_policy(config.augment)
    order = Order(batch=config.train.batch_size, shuffle=True, seed=config.train.seed)
    for position, id_, payload in source.stream(order).take(count):
        encoded, label = source.load(payload)
        seed = image_seed(source, config, position, id_)
        notes = _describe_operations(policy, split_seed(seed)[2]) if policy else []
        try:
            pixels = train_image(encoded, seed, config).numpy()[..., :3]  # of more channels, the first three
            yield Cell(pixels, name_label(source, label, config.data.task), notes)
        except tf.errors.OpError:
            yield _failed_cell(config, source, id_, label)


def name_label(source: Source, label: Any, task: str) -> str:
    """Return the label of an image for people: its class, its labels, or its numbers."""
    import numpy as np

    values = np.asarray(label)
    if task == "classification":
        return source.class_names[int(values if values.ndim == 0 else values.argmax())]
    pairs = list(zip(source.class_names, values.tolist(), strict=True))
    if task == "multilabel":
        return ", ".join(name for name, value in pairs if value) or "no label"
    return ", ".join(f"{name} {value:.4g}" for name, value in pairs)


def _describe_operations(policy, seed):
    """Return the operations that a policy applies, as words with commas: ["Rotate 9,", "Invert 9"]."""
    from efficientnet_tf.data.policies import IDENTITY, OPERATION_NAMES, choose_operations

    operations, levels = choose_operations(policy, seed)
    applied = [
        f"{OPERATION_NAMES[operation]} {level:.3g}"
        for operation, level in zip(operations.numpy(), levels.numpy(), strict=True)
        if operation != IDENTITY
    ]
    return [*(f"{text}," for text in applied[:-1]), *applied[-1:]]


def eval_cells(config: Config, count: int) -> Iterator[Cell]:
    """Yield evaluation images, shuffled, because neighbors in a folder have the same class."""
    import tensorflow as tf

    from efficientnet_tf.data.open import Order, open_source
    from efficientnet_tf.data.pipeline import eval_image
    from efficientnet_tf.visualization.grids import Cell

    source = open_source(config.data, config.data.eval_split, training=False)
    order = Order(batch=source.size, shuffle=True, steps=1)
    for _, id_, payload in source.stream(order).take(min(count, source.size)):
        encoded, label = source.load(payload)
        try:
            pixels = tf.saturate_cast(tf.round(eval_image(encoded, config)), tf.uint8).numpy()[..., :3]
            yield Cell(pixels, name_label(source, label, config.data.task))
        except tf.errors.OpError:
            yield _failed_cell(config, source, id_, label)


def _failed_cell(config, source, id_, label):
    """Return a black image with the name of the file that could not be decoded."""
    import numpy as np

    from efficientnet_tf.visualization.grids import Cell

    pixels = np.zeros((*config.image_shape, min(config.data.channels, 3)), np.uint8)
    return Cell(
        pixels, name_label(source, label, config.data.task), ["unreadable:", source.describe(int(id_))], failed=True
    )


def main(args):
    """Draw and save the figure."""
    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.data.listing import check_data
    from efficientnet_tf.visualization.figures import check_picture, require_matplotlib, save_figure
    from efficientnet_tf.visualization.grids import check_grids

    config = load_config(args.variant, args.recipe, cli.overrides(args))
    check_picture("output", args.output)
    _check_is_no_image(args.output, config.data.dir)
    check_grids(config.image_shape, args.rows, args.columns)
    check_data(config.data)
    require_matplotlib("show")
    figure = draw_data(config, args.rows, args.columns)
    save_figure(figure, args.output, "output")
    width, height = figure.canvas.get_width_height()
    print(f"{escape(args.output)}: {width}x{height} pixels")


def _check_is_no_image(output, data_dir):
    """Raise UserError if the output would replace a file in a subfolder of the data."""
    if not data_dir or not os.path.exists(output):
        return
    inner = os.path.relpath(os.path.realpath(output), os.path.realpath(data_dir))
    if os.path.dirname(inner) and not inner.startswith(os.pardir):
        raise UserError(f"output={escape(output)} is a file of the data, which would be overwritten. Use another name.")


def make_parser():
    """Return the parser of the command's flags."""
    parser = cli.make_parser("show", "Draw training images as the network will see them, and evaluation crops.")
    cli.add_config_arguments(parser)
    parser.add_argument(
        "--output", type=cli.path, default="grid.png", help="Image file to write, for example PNG or JPEG."
    )
    parser.add_argument("--rows", type=cli.positive_int, default=5, help="Rows of images.")
    parser.add_argument("--columns", type=cli.positive_int, default=5, help="Images per row in each half.")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

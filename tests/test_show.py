"""The picture of the data: its pixels are those that training gets."""

import numpy as np
import PIL.Image
import pytest

from efficientnet_tf import show
from efficientnet_tf.config import load
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.open import Order, open_source
from efficientnet_tf.data.pipeline import example_seed, train_image
from efficientnet_tf.show import FONT_SIZE, draw_grid, main, make_parser
from efficientnet_tf.visualization.grids import wrap


def load_config(*overrides):
    return load.load_config("b0", "digits", ["data.image_size=128", "augment.policy=randaugment", *overrides])


def find(canvas, pixels):
    """Return where in the canvas, [y, x], an image's pixels are."""
    height, width, _ = pixels.shape
    middle = pixels[height // 2]
    for y in range(canvas.shape[0] - height + 1):
        windows = np.lib.stride_tricks.sliding_window_view(canvas[y + height // 2], width, axis=0)
        for x in np.flatnonzero((windows == middle.T).all(axis=(1, 2))):
            if (canvas[y : y + height, x : x + width] == pixels).all():
                return y, x
    return None


def as_rgb(pixels):
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def test_grid_holds_the_images_that_training_gets():
    settings = load_config()
    canvas = np.asarray(draw_grid(settings, 2, 2))
    source = open_source(settings.data, settings.data.train_split, training=True)
    order = Order(batch=settings.train.batch_size, shuffle=True, seed=settings.train.seed)
    places = []
    for position, id_, payload in source.stream(order).take(4):
        seed = example_seed(source, settings, position, id_)
        places.append(find(canvas, as_rgb(train_image(source.load(payload)[0], seed, settings).numpy())))
    rows, columns = zip(*places, strict=True)
    assert rows[0] == rows[1] < rows[2] == rows[3]
    assert columns[0] == columns[2] < columns[1] == columns[3] < canvas.shape[1] // 2


def test_small_images_are_enlarged_and_evaluation_is_on_the_right():
    settings = load_config("data.image_size=32")
    canvas = np.asarray(draw_grid(settings, 1, 1))
    pixels, label, notes = next(show._eval_cells(settings, 1))
    assert label in "0123456789" and notes == []
    _, x = find(canvas, as_rgb(pixels.repeat(4, axis=0).repeat(4, axis=1)))
    assert x > canvas.shape[1] // 2


def test_title_says_what_the_images_went_through():
    assert show._describe(load_config("augment.mixup=0.2")) == (
        "digits, 128 pixels, policy randaugment; then mixup 0.2, not drawn here"
    )


def test_notes_name_the_operations():
    notes = [notes for _, _, notes in show._train_cells(load_config("augment.randaugment_level=7"), 6)]
    assert all(len(note) == 2 and note[0].endswith(" 7,") and note[1].endswith(" 7") for note in notes)


def test_texts_keep_within_their_width():
    font = pytest.importorskip("PIL.ImageFont").load_default(FONT_SIZE)
    lines = wrap(font, ["a", "b", "W" * 50, "c"], 100)
    assert lines[0] == "a b" and lines[1].endswith("W...") and lines[2] == "c"
    assert all(font.getlength(line) <= 100 for line in lines)


def run(*flags):
    return main(make_parser().parse_args(["--rows=1", "--columns=1", *flags]))


def test_command_writes_a_picture(tmp_path, capsys):
    run(f"--output={tmp_path}/grid.png")
    with PIL.Image.open(tmp_path / "grid.png") as image:
        assert f"{image.width}x{image.height} pixels" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing/grid.png", "grid.abc", "grid"])
def test_command_says_what_it_cannot_write(tmp_path, name):
    with pytest.raises(UserError, match=f"--output=.*{name} cannot be written"):
        run(f"--output={tmp_path}/{name}")

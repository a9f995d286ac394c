"""Test that `show` draws the pixels that training and evaluation get."""

import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from efficientnet_tf.config import load
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.open import Order, open_source
from efficientnet_tf.data.pipeline import image_seed, train_image
from efficientnet_tf.show import describe_augmentation, draw_data, eval_cells, main, make_parser, train_cells


def load_config(*overrides):
    return load.load_config("b0", "digits", ["data.image_size=128", "augment.policy=randaugment", *overrides])


def render(figure):
    """Return the pixels of a figure, uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def find(canvas, pixels):
    """Return the position [y, x] of an image in a larger one, or None."""
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


def test_left_grid_has_the_images_that_training_gets():
    settings = load_config()
    canvas = render(draw_data(settings, 2, 2))
    source = open_source(settings.data, settings.data.train_split, training=True)
    order = Order(batch=settings.train.batch_size, shuffle=True, seed=settings.train.seed)
    places = []
    for position, id_, payload in source.stream(order).take(4):
        seed = image_seed(source, settings, position, id_)
        places.append(find(canvas, as_rgb(train_image(source.load(payload)[0], seed, settings).numpy())))
    rows, columns = zip(*places, strict=True)
    assert rows[0] == rows[1] < rows[2] == rows[3]
    assert columns[0] == columns[2] < columns[1] == columns[3] < canvas.shape[1] // 2


def test_right_grid_has_the_images_of_evaluation_and_small_ones_are_enlarged():
    settings = load_config("data.image_size=32")
    canvas = render(draw_data(settings, 1, 1))
    cell = next(eval_cells(settings, 1))
    assert cell.label in "0123456789" and not cell.notes
    _, x = find(canvas, as_rgb(cell.pixels.repeat(4, axis=0).repeat(4, axis=1)))
    assert x > canvas.shape[1] // 2


def test_title_describes_the_augmentation():
    assert describe_augmentation(load_config("augment.mixup=0.2")) == (
        "digits, 128 pixels, policy randaugment, then mixup 0.2 (not shown)"
    )


def test_notes_name_the_operations():
    notes = [cell.notes for cell in train_cells(load_config("augment.randaugment_level=7"), 6)]
    assert all(len(note) == 2 and note[0].endswith(" 7,") and note[1].endswith(" 7") for note in notes)


def test_unreadable_images_are_marked(tmp_path):
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "broken.png").write_bytes(b"no image")
    settings = load.load_config("b0", "folder", [f"data.dir={tmp_path}", "data.image_size=16"])
    for cell in (*train_cells(settings, 2), *eval_cells(settings, 2)):
        assert cell.failed and not cell.pixels.any()
        assert cell.notes[0] == "unreadable:" and cell.notes[1].endswith(f"{cell.label}/broken.png")
    assert render(draw_data(settings, 1, 2)).shape[2] == 3


def run(*flags):
    return main(make_parser().parse_args(["--rows=1", "--columns=1", *flags]))


def test_command_writes_an_image(tmp_path, capsys):
    run(f"--output={tmp_path}/grid.png")
    with PIL.Image.open(tmp_path / "grid.png") as image:
        assert f"{image.width}x{image.height} pixels" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing/grid.png", "grid.abc", "grid"])
def test_output_that_cannot_be_written_is_an_error(tmp_path, name):
    with pytest.raises(UserError, match=f"output=.*{name} cannot be written"):
        run(f"--output={tmp_path}/{name}")


def test_numbers_out_of_range_are_refused_before_any_image_is_read():
    with pytest.raises(UserError, match=r"^The picture would have .* pixels\. At most 65,535 per side"):
        main(make_parser().parse_args(["--rows=1000000000", "--columns=1000000000"]))
    with pytest.raises(UserError, match="The picture would have"):
        main(make_parser().parse_args(["--rows=1000000000", "--columns=1"]))


def test_an_image_of_the_data_is_not_overwritten(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    image = tmp_path / "train" / "a" / "cat.png"
    image.write_bytes(b"an image")
    for folder in (tmp_path, tmp_path / "train"):
        with pytest.raises(UserError, match=f"^output={image} is a file of the data, which would be overwritten"):
            run("--recipe=folder", f"--data_dir={folder}", f"--output={image}")
    assert image.read_bytes() == b"an image"


def test_more_images_than_the_data_has_and_images_of_one_pixel(tmp_path):
    names = "$x$ <b>", "_b"
    for split in ("train", "val"):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            PIL.Image.new("RGB", (1, 1)).save(tmp_path / split / name / "one.png")
    settings = load.load_config("b0", "folder", [f"data.dir={tmp_path}", "data.image_size=8", "train.batch_size=2"])
    texts = [text.get_text() for text in draw_data(settings, 2, 2).texts]
    assert sum(map(texts.count, names)) == 4 + 2, "training repeats its images, evaluation does not"

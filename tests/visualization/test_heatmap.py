"""Heat maps over photos, and the picture that compares models."""

import re

import numpy as np
import PIL.Image
import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.visualization.figures import save_figure
from efficientnet_tf.visualization.heatmap import SIDE, Cell, Column, draw_comparison, draw_heat_map

PHOTO = np.full((40, 40, 1), 128.0)


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (4, 4, 3)).repeat(SIDE // 4, axis=0).repeat(SIDE // 4, axis=1).astype(np.float32)


def contains(canvas, cell):
    """Return whether the pixels of a cell are somewhere in a picture."""
    return any(
        (canvas[y : y + SIDE, x : x + SIDE] == cell).all()
        for y, x in np.argwhere((canvas == cell[0, 0]).all(axis=-1))
        if y + SIDE <= canvas.shape[0] and x + SIDE <= canvas.shape[1]
    )


@pytest.mark.tensorflow
def test_heat_is_brightest_at_the_maximum():
    drawn = draw_heat_map(PHOTO, np.array([[-3.0, -1.0], [-2.0, 5.0]])).astype(int).sum(axis=-1)
    assert drawn.shape == (SIDE, SIDE)
    assert min(np.unravel_index(drawn.argmax(), drawn.shape)) > 0.6 * SIDE
    assert drawn[0, 0] < drawn[-1, 0] < drawn[0, -1] < drawn[-1, -1], "the order of the map's values"


@pytest.mark.tensorflow
def test_constant_map_marks_no_place():
    flat = draw_heat_map(PHOTO, np.full((2, 2), 7.0))
    assert flat.dtype == np.uint8 and (flat == flat[0, 0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_maps_that_are_not_finite_are_refused(value):
    with pytest.raises(UserError, match="^The heat map has values that are not finite"):
        draw_heat_map(PHOTO, np.array([[0.0, value]]))


@pytest.mark.tensorflow
def test_photo_stays_visible_below_the_heat(photo):
    """Also where resizing overshoots, which must not wrap around."""
    for heat in (np.zeros((3, 3)), np.eye(3)):
        drawn = draw_heat_map(np.where(photo > 128, 255.0, 0.0), heat).astype(int)
        dark, bright = (drawn[(photo > 128).all(axis=-1) == is_bright].sum(axis=-1) for is_bright in (False, True))
        assert bright.min() > np.median(dark)


@pytest.mark.tensorflow
def test_row_per_photo_and_column_per_model(photo, tmp_path):
    heats = [np.eye(3), np.eye(3)[::-1], np.ones((2, 2)), np.arange(4.0).reshape(2, 2)]
    names = ["cat", "dog", "$tower$ of $babel$", "temple"]
    cells = [Cell(photo[..., :1], heat, name, 0.125) for heat, name in zip(heats, names, strict=True)]
    columns = [Column("first run", "b0, 224 pixels", cells[:2]), Column("second", "b4, 380 pixels", cells[2:])]
    figure = draw_comparison({"a/one.jpg": photo, "b/two.jpg": 255 - photo}, columns, "class activation maps")
    save_figure(figure, str(tmp_path / "explain.png"), "output")
    canvas = np.asarray(PIL.Image.open(tmp_path / "explain.png").convert("RGB"))
    width = canvas.shape[1] // 3
    for column, shown in enumerate(([photo, 255 - photo], cells[:2], cells[2:])):
        strip = canvas[:, column * width :][:, : width + SIDE // 4]
        halves = strip[: len(strip) // 2], strip[len(strip) // 2 - SIDE // 4 :]
        for half, cell in zip(halves, shown, strict=True):
            assert contains(half, draw_heat_map(*cell[:2]) if isinstance(cell, Cell) else cell.astype(np.uint8))
    texts = [text.get_text() for text in figure.texts]
    assert texts[:5] == ["photo", "first run", "b0, 224 pixels", "second", "b4, 380 pixels"]
    assert texts[5:] == [
        *("one.jpg", "cat 12.5%", "$tower$ of $babel$ 12.5%"),
        *("two.jpg", "dog 12.5%", "temple 12.5%"),
        "lowest to highest value of each map, class activation maps",
    ]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.texts if text.get_text()]
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
        assert not any(box.overlaps(other) for other in boxes[:index])


@pytest.mark.tensorflow
def test_long_class_names_are_wrapped(photo):
    cell = Cell(photo, np.eye(3), "a long name of a class, with all of its synonyms " + "x" * 100, 0.5)
    figure = draw_comparison({"photo.jpg": photo}, [Column("run", "b0", [cell])], "")
    lines = [text.get_text() for text in figure.texts]
    assert "a long name of a class, with all" in " ".join(lines) and lines[-2].endswith("50.0%")
    assert any(re.fullmatch(r"x+\.\.\.", line) for line in lines)
    figure.draw_without_rendering()
    assert all(text.get_window_extent().width <= SIDE + 4 for text in figure.texts[:-1])

"""Test that grids of images show every pixel."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from efficientnet_tf.visualization.grids import Cell, Grid, draw_grids


def render(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize(("size", "scale"), [(16, 8), (100, 2), (128, 1), (200, 1)])
def test_pixels_are_squares_of_whole_pixels(size, scale):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    canvas = render(draw_grids([Grid("title", [Cell(pixels, "label")])], 1, 1))
    corner = np.flatnonzero((canvas[40 : 40 + size] != 255).any(axis=(0, 2)))[0]
    enlarged = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    rows = [y for y in range(20, 50) if (canvas[y, corner : corner + size * scale] == enlarged[0]).all()]
    assert rows
    region = canvas[rows[0] : rows[0] + size * scale, corner : corner + size * scale]
    np.testing.assert_array_equal(region, enlarged)


@pytest.mark.parametrize("shape", [(40, 72), (72, 40)])
def test_images_that_are_not_square_are_next_to_each_other(shape):
    """None covers a part of another one."""
    colors = [(10 + number, 200, 90) for number in range(6)]
    cells = [Cell(np.broadcast_to(np.array(color, np.uint8), (*shape, 3)), "label") for color in colors]
    canvas = render(draw_grids([Grid("one", cells[:3]), Grid("two", cells[3:])], 2, 2))
    for color in colors:
        ys, xs = np.nonzero((canvas == color).all(-1))
        assert (np.ptp(ys) + 1, np.ptp(xs) + 1) == (4 * shape[0], 4 * shape[1]), "at least 128 pixels"
        assert len(ys) == 16 * shape[0] * shape[1]


def test_grids_are_side_by_side_and_texts_are_wrapped():
    cells = [Cell(np.full((64, 64, 1), 7 * i, np.uint8), "a label", ["several", "words" * 20]) for i in range(6)]
    figure = draw_grids([Grid("long title " * 20, cells), Grid("$title$", cells[:1])], 2, 3)
    texts = [text.get_text() for text in figure.texts]
    assert texts.count("a label") == 7 and "several" in texts and "$title$" in texts
    assert any(text.endswith("words...") or text.endswith("...") for text in texts)
    one = draw_grids([Grid("title", cells)], 2, 3)
    assert figure.canvas.get_width_height()[0] == 2 * one.canvas.get_width_height()[0]


def test_failures_are_red():
    blank = np.zeros((128, 128, 3), np.uint8)
    figure = draw_grids([Grid("title", [Cell(blank, "label", ["unreadable"], failed=True)])], 1, 1)
    assert {text.get_text(): text.get_color() for text in figure.texts}["unreadable"] == "firebrick"

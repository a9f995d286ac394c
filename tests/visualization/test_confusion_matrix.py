"""The picture of a confusion matrix: colors of the cells, counts, names and sizes."""

import numpy as np
import PIL.Image
import pytest

from efficientnet_tf.visualization.confusion_matrix import CORRECT, MISTAKE, draw_confusion
from efficientnet_tf.visualization.figures import save_figure

WHITE = (255, 255, 255)
NAMES = ["ant", "$bee$", "a name that is much too long to be written in full"]
COUNTS = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 0]])


def blend(color, share):
    """Return the color of a cell: at least 10% of the full color."""
    weight = 0.1 + 0.9 * share
    return tuple(255 + (np.array(color) - 255) * weight)


def read_texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.tensorflow
def test_cells_are_colored_by_their_share_of_the_row(tmp_path):
    figure = draw_confusion(COUNTS, NAMES, "title")
    save_figure(figure, str(tmp_path / "matrix.png"), "confusion")
    pixels = np.asarray(PIL.Image.open(tmp_path / "matrix.png").convert("RGB"))
    assert pixels.shape[:2] == (round(figure.bbox.height), round(figure.bbox.width))

    def color(row, column):
        x, y = figure.axes[0].transData.transform((column + 0.15, row + 0.15))
        return pixels[len(pixels) - round(y), round(x)]

    expected = {(0, 0): blend(CORRECT, 0.8), (0, 1): blend(MISTAKE, 0.2), (2, 0): MISTAKE}
    for row, column in np.ndindex(3, 3):
        np.testing.assert_allclose(color(row, column), expected.get((row, column), WHITE), atol=2)


def test_names_and_counts_and_legend_are_written():
    figure = draw_confusion(COUNTS, NAMES, "run: top-1 72.73%")
    matrix, *legend = figure.axes
    assert read_texts(matrix) == ["8", "2", "1"]
    for labels in (matrix.get_xticklabels(), matrix.get_yticklabels()):
        ant, bee, long = (label.get_text() for label in labels)
        assert (ant, bee) == ("ant", "$bee$") and NAMES[2].startswith(long.removesuffix("...")) and len(long) < 40
        assert not any(label.get_parse_math() for label in labels)
    assert [text.get_text() for text in figure.texts] == ["run: top-1 72.73%"]
    assert [read_texts(axes) for axes in legend] == [
        [f"{what}, 0 to 100% of the row"] for what in ("correct", "mistakes")
    ]


@pytest.mark.parametrize("classes", [2, 100])
def test_number_of_classes(classes):
    counts = np.random.default_rng(0).integers(0, 2000, (classes, classes))
    figure = draw_confusion(counts, [f"class {i}" for i in range(classes)], "a title")
    assert figure.bbox.width < 2200 and figure.bbox.height < 2200
    written = read_texts(figure.axes[0])
    assert set(written) <= set(map(str, counts.flat))
    assert len(written) == 4 if classes == 2 else max(map(len, written)) == 2  # longer counts do not fit


@pytest.mark.parametrize("classes", [1, 2, 12, 100])
def test_everything_is_inside_the_figure_and_nothing_overlaps(classes):
    names = [f"a rather long name of class {i}" for i in range(classes)]
    figure = draw_confusion(np.eye(classes, dtype=int), names, "a long title " * 5)
    figure.draw_without_rendering()
    matrix = figure.axes[0]
    parts = [
        *figure.texts,
        matrix.xaxis.label,
        matrix.yaxis.label,
        *(text for axes in figure.axes[1:] for text in axes.texts),
    ]
    boxes = [part.get_window_extent() for part in parts] + [matrix.get_window_extent()]
    for labels in (matrix.get_xticklabels(), matrix.get_yticklabels()):
        boxes.append(type(boxes[0]).union([label.get_window_extent() for label in labels]))
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
        assert not any(box.overlaps(other) for other in boxes[:index])

"""Test sizes, texts and files of figures."""

import sys

import PIL.Image
import pytest
from hostile import NAMES
from outputs import full_disk

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.visualization.figures import (
    Canvas,
    add_legend,
    make_figure,
    measure_text,
    require_matplotlib,
    save_figure,
    shorten,
    wrap,
)


@pytest.mark.parametrize("size", [(1, 1), (101, 333), (1999, 7)])
def test_a_figure_has_exactly_its_size(tmp_path, size):
    save_figure(make_figure(*size), str(tmp_path / "figure.png"), "output")
    with PIL.Image.open(tmp_path / "figure.png") as image:
        assert image.size == size


def test_lines_are_not_wider_than_allowed():
    lines = wrap(["a", "b", "W" * 50, "c"], 100, 13)
    assert lines[0] == "a b" and "W..." in lines[1] and lines[-1].endswith("c")
    assert all(measure_text(line, 13) <= 100 for line in lines)


def test_only_long_texts_are_shortened():
    assert shorten("short", 100, 13) == "short"
    assert shorten("a longer text", 60, 13).endswith("...")
    assert measure_text("$x$", 13) > measure_text("x", 13)  # A dollar sign is a character, not math.


@pytest.mark.parametrize("name", ["missing/figure.png", "figure.abc", "figure", "figure.pgf", "figure.raw"])
def test_files_that_cannot_be_written(tmp_path, name):
    with pytest.raises(UserError, match=f"^output={tmp_path}/{name} cannot be written"):
        save_figure(make_figure(10, 10), str(tmp_path / name), "output")


def test_missing_matplotlib_names_the_extra(monkeypatch):
    require_matplotlib("show")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"^show draws with .* pip install 'efficientnet_tf\[picture\]'.$"):
        require_matplotlib("show")


def test_texts_are_drawn_literally_and_without_warnings(tmp_path):
    canvas = Canvas(300, 20 * len(NAMES), 13, 17)
    for i, name in enumerate(NAMES):
        canvas.write(0, 20 * i, [shorten(name, 200, 13)], "black")
    save_figure(canvas.figure, str(tmp_path / "names.png"), "output")
    texts = [text.get_text() for text in canvas.figure.texts]
    assert texts[:4] == ["$x$ and $", "$\\frac{1}{$", "\\frac{}}{{", "_hidden"]
    assert texts[4] == "two\\nlines\\r\\tand\\x1b[31m red" and "\\u2028" in texts[5] and "\\u202e" in texts[5]
    assert texts[6:8] == ["\\u732b\\u72ac \\U0001f951", NAMES[7]], "Hebrew and Arabic are in the default font"
    assert texts[10] == "file \\udcff"
    assert all(measure_text(text, 13) <= 200 for text in texts)


def test_legends_show_names_with_underscores_and_dollar_signs():
    axes = make_figure(400, 400).subplots()
    legend = add_legend(axes, [axes.plot([0, 1])[0] for _ in NAMES], NAMES)
    axes.figure.draw_without_rendering()
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:4] == NAMES[:4] and len(texts) == len(NAMES) and not texts[-1]


@pytest.mark.parametrize("size", [(2**16, 1), (20_000, 20_000), (10**9, 10**9)])
def test_pictures_that_are_too_large_are_refused(size):
    with pytest.raises(UserError, match=rf"^The picture would have {size[0]:,} x {size[1]:,} pixels"):
        make_figure(*size)


def test_a_picture_on_a_full_disk_leaves_nothing(tmp_path):
    figure = make_figure(200, 200)
    for name in ("a.png", "b.svg", "c.pdf", "d.JPG"):
        with full_disk(100), pytest.raises(UserError, match=f"^output=.*{name} cannot be written: File too large.$"):
            save_figure(figure, str(tmp_path / name), "output")
    assert not list(tmp_path.iterdir())

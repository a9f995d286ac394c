"""Test sizes, texts and files of figures."""

import sys

import PIL.Image
import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.visualization.figures import (
    make_figure,
    measure_text,
    require_matplotlib,
    save_figure,
    shorten,
    wrap,
)


@pytest.mark.tensorflow
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


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["missing/figure.png", "figure.abc", "figure"])
def test_files_that_cannot_be_written(tmp_path, name):
    with pytest.raises(UserError, match=f"^output={tmp_path}/{name} cannot be written"):
        save_figure(make_figure(10, 10), str(tmp_path / name), "output")


def test_missing_matplotlib_names_the_extra(monkeypatch):
    require_matplotlib("show")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"^show draws with .* pip install 'efficientnet_tf\[picture\]'.$"):
        require_matplotlib("show")

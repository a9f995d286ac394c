"""Test what all interactive pages share: the colors, and plotly, which is optional."""

import itertools
import sys

import numpy as np
import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.visualization.page import COLORS, SHELL, require_plotly

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def read_linear_rgb(color):
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_lab(rgb):
    """Return CIELAB for linear sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    x, y, z = np.cbrt(np.clip(xyz / [0.9505, 1, 1.089], 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_lines_can_be_told_apart_with_any_color_vision(vision):
    seen = [to_lab(np.clip(np.array(VISION[vision]) @ read_linear_rgb(color), 0, 1)) for color in COLORS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 11  # 2.3 is just noticeable


def test_lines_stand_out_from_both_backgrounds():
    style = SHELL.with_suffix(".css").read_text()
    assert "--background: #fff" in style and "--background: #15181c" in style
    for color in COLORS:
        light, dark, line = (read_linear_rgb(c) @ [0.2126, 0.7152, 0.0722] for c in ("#ffffff", "#15181c", color))
        assert (light + 0.05) / (line + 0.05) > 2.5 and (line + 0.05) / (dark + 0.05) > 3


def test_missing_plotly_names_the_extra(monkeypatch):
    require_plotly("report")
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=r"^report draws with .* pip install 'efficientnet_tf\[picture\]'.$"):
        require_plotly("report")

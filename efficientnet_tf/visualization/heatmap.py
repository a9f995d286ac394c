"""TODO docstring (from explain)."""

import os
from typing import NamedTuple

import numpy as np

SIDE, GAP, FONT_SIZE, LINE = 224, 10, 13, 17  # pixels
# From nothing to most, in even steps of lightness (CIELAB's L from 10 to 95), so that no step looks like an edge.
RAMP = np.array(
    [(34, 18, 62), (98, 25, 96), (163, 41, 99), (218, 77, 66), (238, 137, 36), (243, 194, 66), (252, 243, 162)]
)


class Cell(NamedTuple):
    """What one model says of one photo: the crop it saw, [S, S, C], a map over it, [h, w], class and probability."""

    pixels: np.ndarray
    heat: np.ndarray
    class_name: str
    probability: float


def draw_heat_map(pixels, heat):
    """Draw a map over its image: the image in grey, the map from its least value to its greatest as colour.

    Args:
        pixels: [H, W, 1 or 3], in [0, 255].
        heat: float [h, w]; where all values are the same, no place stands out and none is coloured.

    Returns:
        PIL.Image.Image, 224x224 pixels.
    """
    from PIL import Image

    grey = np.asarray(_picture(pixels).convert("L"), np.float32)[..., None]
    low, high = heat.min(), heat.max()
    scaled = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    # Bicubic, for between few pixels a linear map has creases; it overshoots.
    large = Image.fromarray(scaled.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(large), 0, 1)
    # The photo is dimmed, lest a bright sky be taken for heat; beneath the heat it stays as shades of its colour.
    weight = 0.4 + 0.4 * share[..., None]
    mixed = (1 - weight) * 0.7 * grey + weight * _colour(share) * (0.55 + 0.45 * grey / 255)
    return Image.fromarray(np.uint8(np.round(mixed)))


def _colour(share):
    """Return the colours of shares in [0, 1]: [..., 3], in [0, 255]."""
    stops = np.linspace(0, 1, len(RAMP))
    return np.stack([np.interp(share, stops, channel) for channel in RAMP.T], axis=-1)


def _picture(pixels):
    from PIL import Image

    pixels = np.uint8(np.clip(np.round(pixels), 0, 255))
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def draw_comparison(photos, columns, note):
    """Draw photos and what models see in them: a row a photo, a column a model.

    Args:
        photos: {path: [S, S, 3], in [0, 255]}.
        columns: list of (name, description, list of Cell, one a photo).
        note: str, said beside the legend.

    Returns:
        PIL.Image.Image.
    """
    from PIL import Image, ImageDraw, ImageFont

    from efficientnet_tf.visualization.grids import wrap

    font = ImageFont.load_default(FONT_SIZE)

    def lines_of(*words):
        return wrap(font, words, SIDE)

    heads = [["photo"], *([*lines_of(name), *lines_of(*text.split(" "))] for name, text, _ in columns)]
    rows = [
        [(_picture(pixels), lines_of(os.path.basename(path)))]
        + [
            (draw_heat_map(cell.pixels, cell.heat), lines_of(*cell.class_name.split(" "), f"{cell.probability:.1%}"))
            for cell in cells
        ]
        for (path, pixels), *cells in zip(photos.items(), *(cells for _, _, cells in columns), strict=True)
    ]
    heights = [SIDE + LINE * max(len(lines) for _, lines in row) + GAP for row in rows]
    top = GAP + LINE * max(map(len, heads)) + GAP // 2
    canvas = Image.new("RGB", (GAP + len(heads) * (SIDE + GAP), top + sum(heights) + LINE + 2 * GAP), "white")
    pen = ImageDraw.Draw(canvas)

    def write(x, y, lines):
        for i, line in enumerate(lines):
            pen.text((x, y + i * LINE), line, fill="dimgray" if i else "black", font=font)

    for column, lines in enumerate(heads):
        write(GAP + column * (SIDE + GAP), GAP, lines)
    for y, row in zip(top + np.cumsum([0, *heights]), rows, strict=False):
        for column, (picture, lines) in enumerate(row):
            x = GAP + column * (SIDE + GAP)
            canvas.paste(picture, (x, int(y)))
            write(x, int(y) + SIDE + 1, lines)
    _draw_legend(canvas, pen, font, note)
    return canvas


def _draw_legend(canvas, pen, font, note):
    from PIL import Image

    width = SIDE // 2
    bar = np.tile(_colour(np.linspace(0, 1, width)), (LINE - 4, 1, 1))
    y = canvas.height - GAP - LINE
    canvas.paste(Image.fromarray(np.uint8(np.round(bar))), (GAP, y + 2))
    pen.text((2 * GAP + width, y), f"least to most of each map; {note}", fill="dimgray", font=font)

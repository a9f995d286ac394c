"""The square that a network sees in evaluation, by formulas and Pillow's decoder alone."""

import io
from fractions import Fraction

import numpy as np
import PIL.Image
import PIL.ImageOps


def make_picture(mode, shape):
    """Return a smooth picture with some noise."""
    rng = np.random.default_rng(1)
    waves = np.sin(np.arange(shape[0])[:, None] / 9 + np.arange(shape[1]) / 5)[..., None] * [90, -80, 70, 120] + 128
    pixels = np.clip(waves + rng.normal(0, 8, waves.shape), 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def save(picture, kind="PNG", **arguments):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **arguments)
    return buffer.getvalue()


def decode_whole(encoded, background):
    """Return the pixels of a file by Pillow alone: upright, on the color, uint8 [H, W, 3]."""
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
    color = PIL.Image.new("RGBA", image.size, (*background, 255))
    return np.asarray(PIL.Image.alpha_composite(color, image.convert("RGBA")).convert("RGB"))


def weigh(length, size, interpolation):
    """Return the matrix of a resize with half-pixel centers, by the formula of the kernel."""
    where = (np.arange(size)[:, None] + 0.5) * length / size - 0.5
    t = np.abs(where - np.arange(length))
    linear = np.maximum(1 - t, 0)
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t <= 1, near, np.where(t < 2, far, 0)) if interpolation == "bicubic" else linear
    return weights / weights.sum(1, keepdims=True)


def compute_square(pixels, size, crop, interpolation, background):
    """Return the square of an image, by formulas."""
    height, width = pixels.shape[:2]
    if crop == "center":
        side = min(pixels.shape[:2])
        y, x = (height - side + 1) // 2, (width - side + 1) // 2
        pixels, rows, columns = pixels[y : y + side, x : x + side], size, size
    elif crop == "squash":
        rows, columns = size, size
    else:
        scale = Fraction(size, max(height, width))
        rows, columns = (max(1, int(side * scale + Fraction(1, 2))) for side in (height, width))
    vertical, horizontal = weigh(pixels.shape[0], rows, interpolation), weigh(pixels.shape[1], columns, interpolation)
    resized = np.einsum("oi,ijc,pj->opc", vertical, pixels.astype(float), horizontal, optimize=True)
    square = np.broadcast_to(np.array(background, float), (size, size, 3)).copy()
    top, left = (size - rows) // 2, (size - columns) // 2
    square[top : top + rows, left : left + columns] = resized
    return square

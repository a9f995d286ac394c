"""The pixels that a network sees in evaluation, by formulas and Pillow's decoder alone."""

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


def compute_crop(pixels, shape, crop, interpolation, background):
    """Return what is seen of an image, by formulas. The center crop has no padding."""
    scales = [Fraction(new, old) for new, old in zip(shape, pixels.shape[:2], strict=True)]
    rows, columns = shape
    if crop == "center":
        h, w = (max(1, int(side / max(scales))) for side in shape)
        y, x = (pixels.shape[0] - h + 1) // 2, (pixels.shape[1] - w + 1) // 2
        pixels = pixels[y : y + h, x : x + w]
    elif crop == "pad":
        rows, columns = (max(1, int(side * min(scales) + Fraction(1, 2))) for side in pixels.shape[:2])
    vertical, horizontal = weigh(pixels.shape[0], rows, interpolation), weigh(pixels.shape[1], columns, interpolation)
    resized = np.einsum("oi,ijc,pj->opc", vertical, pixels.astype(float), horizontal, optimize=True)
    padded = np.broadcast_to(np.array(background, float), (*shape, 3)).copy()
    top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    padded[top : top + rows, left : left + columns] = resized
    return padded

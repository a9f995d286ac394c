"""Shows where a model sees a class by covering parts of the image. It needs nothing but the model's logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np


def occlusion_map(
    compute_logits: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray, label: int, grid: int = 7
) -> np.ndarray:
    """Return how much the logit of a class falls when a part of an image is covered.

    A patch with the mean color of the image covers one position after another, `grid` in each direction. Neighboring
    patches overlap by half.

    Args:
        compute_logits: Function from pixels, float32 [N, H, W, C], to logits [N, classes].
        pixels: The image, float32 [H, W, C] with sides of at least `grid` + 1 pixels.
        label: Number of the class.
        grid: Number of patches in each direction.

    Returns:
        float32 [grid, grid]. Positive values speak for the class.

    Source: Zeiler & Fergus 2014, https://arxiv.org/abs/1311.2901, section 4.2.

    Deviates: The map shows logits instead of probabilities, which hardly change for a class that is almost certain.
    """
    bounds = [np.round(np.linspace(0, side, grid + 2)).astype(int) for side in pixels.shape[:2]]
    rows, columns = ([slice(*pair) for pair in zip(each, each[2:], strict=False)] for each in bounds)
    covered = np.repeat(pixels[None].astype(np.float32), grid * grid + 1, axis=0)
    for number, (row, column) in enumerate(itertools.product(rows, columns), 1):
        covered[number, row, column] = pixels.mean(axis=(0, 1))
    logits = np.asarray(compute_logits(covered), np.float32)[:, label]
    return (logits[0] - logits[1:]).reshape(grid, grid)

"""Several views of an image, whose predictions are averaged (test-time augmentation)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from efficientnet_tf.config.errors import UserError, suggest

VIEWS = {"none": 1, "flip": 2, "crops": 10}  # how many views of an image there are


def check_views(tta: str) -> str:
    """Return the name of a kind of views, or raise UserError if there is no such kind."""
    if tta not in VIEWS:
        raise UserError(f"tta={tta!r} is not one of {', '.join(VIEWS)}." + suggest(str(tta), list(VIEWS)))
    return tta


def make_views(pixels: np.ndarray, shape: Sequence[int], tta: str) -> list[np.ndarray]:
    """Return the views of images.

    Args:
        pixels: Images [N, H + B, W + B, C]. For "crops" there is a border of B pixels, and else B is 0.
        shape: Height H and width W of the views in pixels.
        tta: "none" for the images themselves; "flip" for these and their mirror images; "crops" for the center, the
            four corners, and the mirror images of all five.

    Returns:
        `VIEWS[tta]` arrays [N, H, W, C].

    Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012, section 4.1, for
    the ten crops.
    """
    height, width = shape
    border = pixels.shape[1] - height
    middle, places = border // 2, [(0, 0)]
    if tta == "crops":
        places = [(middle, middle), (0, 0), (0, border), (border, 0), (border, border)]
    views = [pixels[:, y : y + height, x : x + width] for y, x in places]
    return views if tta == "none" else [*views, *(view[:, :, ::-1] for view in views)]

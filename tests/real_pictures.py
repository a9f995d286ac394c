"""Photographs that scikit-learn and scikit-image contain, and crops of them at many sizes and positions."""

import importlib.util
from pathlib import Path

import numpy as np

# The photographs by package, and the folder in it. Textures, drawings and pages of text are left out.
FOLDERS = {"sklearn": "datasets/images", "skimage": "data"}
PHOTOS = {
    "sklearn": ("china.jpg", "flower.jpg"),
    "skimage": (
        *("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "astronaut.png", "camera.png"),
        *("coins.png", "clock_motion.png", "hubble_deep_field.jpg", "moon.png", "retina.jpg", "ihc.png"),
        *("brick.png", "grass.png", "gravel.png"),
    ),
}
SMALLEST = 0.25  # side of a crop as a share of the shorter side of its photograph


def find_photos() -> dict[str, Path]:
    """Return the paths of the photographs whose package is installed, by their names without suffix."""
    found = {}
    for module, folder in FOLDERS.items():
        spec = importlib.util.find_spec(module)
        for root in (spec and spec.submodule_search_locations) or ():
            found |= {name.partition(".")[0]: Path(root) / folder / name for name in PHOTOS[module]}
    return found


def crop_photo(path: Path, count: int, side: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return square crops of a photograph at random sizes and positions, resized: uint8 [side, side, 3] each."""
    from PIL import Image

    crops = []
    with Image.open(path) as file:
        photo = file.convert("RGB")
    for _ in range(count):
        size = int(min(photo.size) * rng.uniform(SMALLEST, 1))
        left, top = (int(rng.integers(0, length - size + 1)) for length in photo.size)
        box = (left, top, left + size, top + size)
        crops.append(np.asarray(photo.resize((side, side), Image.Resampling.BICUBIC, box)))
    return crops

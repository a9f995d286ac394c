"""Random images, and networks with random weights whose logits depend on the image."""

import keras
import numpy as np


def images(count, height, width, channels=3, seed=0):
    """Return images [count, height, width, channels] of large random patches and noise, whole numbers as float32."""
    rng = np.random.default_rng(seed)
    patches = rng.uniform(0, 255, (count, 4, 4, channels))
    coarse = np.kron(patches, np.ones((1, -(-height // 4), -(-width // 4), 1)))[:, :height, :width]
    return np.clip(coarse + rng.normal(0, 30, coarse.shape), 0, 255).round().astype("float32")


def randomize(model, height, width):
    """Randomize biases and batch norm. Statistics fit images of this size, so that logits differ between images."""
    rng = np.random.default_rng(0)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = norms[0].momentum
    for layer in norms:
        layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape) * (0.5 if "project" in layer.name else 1))
        layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
        layer.momentum = 0.0
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.3, layer.bias.shape))
    classifier = model.get_layer("predictions")
    classifier.kernel.assign(rng.normal(0, 0.2, classifier.kernel.shape))
    model(images(4, height, width), training=True)
    for layer in norms:
        variance = layer.moving_variance.numpy()
        layer.moving_variance.assign((variance + variance.mean()) / 2)  # far from 0
        layer.momentum = momentum

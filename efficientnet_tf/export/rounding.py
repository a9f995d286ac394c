"""Rounds weights for int8 so that what a layer computes changes least, not so that each weight changes least."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf.export.quantization import kernel_step, list_kernel_layers

POSITIONS = 256  # of each calibration image at which the inputs of a layer are sampled
_DAMPING = 0.01  # added to the variances, as a share of their mean, so that every covariance can be inverted


def round_weights(model: keras.Model, calibration: Iterable[np.ndarray], keep_float: Sequence[str] = ()) -> None:
    """Round the kernels of a model in place to the values that int8 can represent, and correct the biases.

    Each weight is rounded to one of 255 evenly spaced values around zero, with a scale per output channel. Its error is
    then compensated in the weights that have not been rounded yet, weighted by how their inputs vary together in the
    calibration images. What is left of the mean error goes into the bias, which int8 networks store in 32 bits. The
    quantizer of any runtime finds the same scales and the same values again.

    Args:
        model: A model of `models.folding.fold_batch_norm`. Its weights are changed.
        calibration: Batches of one image, float32 [1, H, W, C], pixels in [0, 255].
        keep_float: Names of convolutions and dense layers that are left as they are.

    Source: GPTQ (Frantar et al., 2023), section 3, for the compensation; Nagel et al., 2019, section 4.2, for the bias.
    Deviates: The inputs of a layer are those of the float network.
    """
    names = [name for name in list_kernel_layers(model) if name not in keep_float]
    for name, (means, products) in zip(names, _measure_inputs(model, names, calibration), strict=True):
        layer: Any = model.get_layer(name)
        kernel = layer.kernel.numpy().astype(np.float64)
        weights, steps = _to_rows(layer, kernel), _to_rows(layer, np.broadcast_to(kernel_step(layer), kernel.shape))
        if layer.use_bias:  # which takes the mean error, so that only deviations from the mean count
            products = products - means[:, :, None] * means[:, None, :]
        rounded = _round_rows(weights, steps[..., 0], products)
        layer.kernel.assign(_from_rows(layer, rounded, kernel.shape))
        if layer.use_bias:
            layer.bias.assign_add(np.einsum("goi,gi->go", weights - rounded, means).ravel())


def _round_rows(weights, steps, covariance):
    """Return rows of weights [G, out, in], rounded to multiples of the steps [G, out], given covariances [G, in, in].

    The largest weight of a row keeps its value, because it determines the step that a quantizer chooses.
    """
    size = weights.shape[2]
    mean = np.trace(covariance, axis1=1, axis2=2)[:, None, None] / size
    damped = covariance + np.eye(size) * np.maximum(_DAMPING * mean, 1e-12)
    # Row i of the factor: how much of an error in weight i the weights after it must take over.
    factor = np.linalg.cholesky(np.linalg.inv(damped)).swapaxes(1, 2)
    largest = np.abs(weights).argmax(axis=2)
    rest, rounded = weights.copy(), np.zeros_like(weights)
    for i in range(size):
        levels = np.clip(np.round(rest[:, :, i] / steps), -127, 127)
        levels = np.where(largest == i, np.sign(weights[:, :, i]) * 127, levels)
        rounded[:, :, i] = levels * steps
        error = (rest[:, :, i] - rounded[:, :, i]) / factor[:, i, i][:, None]
        rest[:, :, i:] -= error[:, :, None] * factor[:, None, i, i:]
    return rounded


def _to_rows(layer, kernel):
    """Return a kernel as [G, out, in]: a group per channel of a depthwise convolution, and one group of all others."""
    if isinstance(layer, keras.layers.DepthwiseConv2D):  # [k, k, C, 1]
        return kernel.reshape(-1, kernel.shape[2]).T[:, None, :]
    return kernel.reshape(-1, kernel.shape[-1]).T[None]


def _from_rows(layer, rows, shape):
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return rows[:, 0, :].T.reshape(shape)
    return rows[0].T.reshape(shape)


def _measure_inputs(model, names, calibration) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each layer, the means [G, in] of its inputs and the means of their products [G, in, in]."""
    layers = [model.get_layer(name) for name in names]
    tensors = keras.Model(model.inputs, [layer.input for layer in layers])

    @tf.function(autograph=False)
    def measure(image):
        samples: list[Any] = [
            _sample(layer, x) for layer, x in zip(layers, tensors(image, training=False), strict=True)
        ]
        return [(tf.reduce_mean(s, axis=1), tf.matmul(s, s, transpose_a=True) / float(s.shape[1])) for s in samples]

    count, totals = 0, []
    for image in calibration:
        count += 1
        measured = [part.numpy().astype(np.float64) for pair in measure(image) for part in pair]
        totals = [a + b for a, b in zip(totals, measured, strict=True)] if totals else measured
    means = [total / count for total in totals]
    return list(zip(means[::2], means[1::2], strict=True))


def _sample(layer, x):
    """Return what the kernel of a layer is multiplied by, at some positions of one image: [G, positions, in]."""
    if isinstance(layer, keras.layers.Dense):
        return x[None]
    sides, strides = layer.kernel_size, layer.strides
    patches = tf.image.extract_patches(x, [1, *sides, 1], [1, *strides, 1], [1, 1, 1, 1], layer.padding.upper())
    rows: Any = tf.reshape(patches, [-1, sides[0] * sides[1], x.shape[-1]])
    rows = rows[:: max(1, rows.shape[0] // POSITIONS)]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return tf.transpose(rows, [2, 0, 1])
    return tf.reshape(rows, [1, rows.shape[0], -1])

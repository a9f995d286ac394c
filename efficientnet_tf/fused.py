"""Operations that train fast on a processor: batch norm with its activation, and depthwise convolutions.

Time goes into passes over memory there. Keras writes batch norm out in a dozen; TensorFlow's own kernel takes few, and
the gradient of the activation, compiled by XLA, one more. What waits for the backward pass is the input alone.
"""

import tensorflow as tf

from efficientnet_tf.image_ops import compiled

FAST_COLUMNS = 3  # up to so many of a depthwise kernel its gradient is fast in TensorFlow 2.21


@compiled
def _swish_gradient(x, scale, shift, gradient):
    """Return the gradient of swish(z) for z = x * scale + shift, times `gradient`, as x; z is not stored."""
    z = tf.cast(x, tf.float32) * scale + shift
    gate = tf.sigmoid(z)
    return tf.cast(tf.cast(gradient, tf.float32) * gate * (1 + z * (1 - gate)), x.dtype)


def batch_norm(x, gamma, beta, epsilon, swish):
    """Normalise by the batch's own mean and variance, scale, shift, and apply swish or nothing.

    Args:
        x: float32 or bfloat16 [B, H, W, C].
        gamma: float32 [C].
        beta: float32 [C].
        epsilon: float > 0.
        swish: bool.

    Returns:
        (outputs as x; mean and variance of the batch, float32 [C], without a gradient).
    """

    @tf.custom_gradient
    def normalise(x, gamma, beta):
        y, mean, unbiased, *kept = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
        )
        count = tf.cast(tf.size(x) // x.shape[-1], tf.float32)
        variance = unbiased * (count - 1) / count

        def backward(gradient, *_):
            if swish:
                scale = gamma * tf.math.rsqrt(variance + epsilon)
                gradient = _swish_gradient(x, scale, beta - mean * scale, gradient)
            reserved = {f"reserve_space_{i}": value for i, value in enumerate(kept, 1)}
            gradients = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=gradient, x=x, scale=gamma, epsilon=epsilon, is_training=True, **reserved
            )
            return gradients[:3]

        return (y * tf.sigmoid(y) if swish else y, mean, variance), backward

    return normalise(x, gamma, beta)


def depthwise_conv(x, kernel, stride):
    """Convolve each channel with a kernel of its own, padding "SAME".

    Args:
        x: [B, H, W, C].
        kernel: [K, K, C, 1], as x.
        stride: int >= 1.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), C].
    """
    strides = [1, stride, stride, 1]

    @tf.custom_gradient
    def convolve(x, kernel):
        def backward(gradient):
            of_input = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=gradient, strides=strides, padding="SAME"
            )
            return of_input, _kernel_gradient(x, gradient, kernel.shape[0], stride)

        return tf.nn.depthwise_conv2d(x, kernel, strides, "SAME"), backward

    return convolve(x, kernel)


def _kernel_gradient(x, gradient, size, stride):
    """Return the gradient of a depthwise kernel [size, size, C, 1], some columns at a time."""

    def columns(x, count, padding):
        return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=x,
            filter_sizes=[size, count, x.shape[3], 1],
            out_backprop=gradient,
            strides=[1, stride, stride, 1],
            padding=padding,
        )

    if size <= FAST_COLUMNS:
        return columns(x, size, "SAME")
    # What "SAME" adds to rows and columns: half before, and behind, where an odd one goes, too.
    rows, cols = (
        max(0, (after - 1) * stride + size - before)
        for before, after in zip(x.shape[1:3], gradient.shape[1:3], strict=True)
    )
    width, reach, parts, done = x.shape[2], (gradient.shape[2] - 1) * stride + FAST_COLUMNS, [], 0
    # The last columns overlap those before them, rather than being fewer: the ends of x need no cutting then.
    for first in (*range(0, size - FAST_COLUMNS, FAST_COLUMNS), size - FAST_COLUMNS):
        start = first - cols // 2
        stop = start + reach
        seen = x[:, :, max(0, start) : min(stop, width)]
        seen = tf.pad(seen, [[0, 0], [rows // 2, rows - rows // 2], [max(0, -start), max(0, stop - width)], [0, 0]])
        parts.append(columns(seen, FAST_COLUMNS, "VALID")[:, done - first :])
        done = first + FAST_COLUMNS
    return tf.concat(parts, axis=1)

"""Layers in a row, each as one operation that trains fast on a processor.

Time goes into passes over memory there, of which Keras's layers take dozens. So the gradient computes again what
follows from a layer's input, value by value, by XLA; squeeze-and-excite belongs to the batch norm before it; and behind
a 1x1 convolution batch norm comes out of sums over the convolution's input, which is smaller than its output.
"""

import functools
import itertools
import math

import tensorflow as tf

from efficientnet_tf.ops.xla import compile_for_cpu

# sigmoid(z) is 1/2 + z P(z^2) / Q(z^2) on [-16, 16], P and Q in ascending powers, by `scripts/fit_sigmoid.py`.
SIGMOID_P = (0.249999766, 0.00793736395, 4.19452461e-05, 2.76697369e-08, -5.87890312e-12)
SIGMOID_Q = (1.0, 0.115081938, 0.00142483705, 3.05154901e-06)
PARTS = 8  # by XLA, rows add up two to three times as fast where so many parts of them are added first


def batch_norm(x, gamma, beta, epsilon, swish):
    """Normalise by the batch's own mean and variance, scale, shift, and apply swish or nothing.

    Args:
        x: float32 or bfloat16 [B, H, W, C], its shape known.
        gamma: float32 [C].
        beta: float32 [C].
        epsilon: float > 0.
        swish: bool.

    Returns:
        (outputs as x; mean and variance of the batch, float32 [C], without a gradient).
    """

    @tf.custom_gradient
    def run(x, gamma, beta):
        y, mean, variance, normalise_gradient = _normalise(x, gamma, beta, epsilon)

        def backward(gradient, *_):
            if swish:
                gradient = _swish_gradient(x, *_as_product(mean, variance, gamma, beta, epsilon), gradient)
            return normalise_gradient(gradient)

        return (_activate(y) if swish else y, mean, variance), backward

    return run(x, gamma, beta)


def batch_norm_squeeze_excite(x, gamma, beta, epsilon, gate_of, weights):
    """Normalise as `batch_norm` with swish, then scale each channel by a gate, computed from the channels' means.

    Args:
        x: float32 or bfloat16 [B, H, W, C], its shape known.
        gamma: float32 [C].
        beta: float32 [C].
        epsilon: float > 0.
        gate_of: function from (means [B, 1, 1, C], weights) to gates [B, 1, 1, C], all as x.
        weights: sequence of tensors.

    Returns:
        As `batch_norm`.
    """
    pixels = x.shape[1] * x.shape[2]

    @tf.custom_gradient
    def run(x, gamma, beta, *weights):
        normal, mean, variance, normalise_gradient = _normalise(x, gamma, beta, epsilon)
        with tf.GradientTape() as tape:
            squeezed = _squeeze(normal)
            tape.watch((squeezed, *weights))
            gate = gate_of(squeezed, weights)

        def backward(gradient, *_):
            product = _as_product(mean, variance, gamma, beta, epsilon)
            of_gate = _gate_gradient(x, *product, gradient)
            of_squeezed, *of_weights = tape.gradient(gate, (squeezed, *weights), output_gradients=of_gate)
            gradient = _gated_swish_gradient(x, *product, gradient, gate, of_squeezed / pixels)
            return *normalise_gradient(gradient), *of_weights

        return (_excite(normal, gate), mean, variance), backward

    return run(x, gamma, beta, *weights)


def conv_batch_norm_swish(x, kernel, gamma, beta, epsilon):
    """Convolve by 1x1, normalise as `batch_norm`, and apply swish.

    The convolution is linear. So the mean and the variance of what it gives follow from the mean m and the covariance K
    of x: W'm and diag(W'KW); batch norm becomes part of the kernel; and its gradient is taken out of sums that the
    kernel's gradient needs anyway. What is normalised is never written, nor read.

    Args:
        x: float32 [B, H, W, I], its shape known.
        kernel: float32 [1, 1, I, O]; faster than layer by layer where O is larger than I.
        gamma: float32 [O].
        beta: float32 [O].
        epsilon: float > 0.

    Returns:
        As `batch_norm`: outputs [B, H, W, O]; of the convolution's outputs, mean and variance.
    """

    @tf.custom_gradient
    def run(x, kernel, gamma, beta):
        weights, count = tf.reshape(kernel, kernel.shape[2:]), _row_count(x)
        center = _sum_rows(x) / count
        centered = x - center
        spread = tf.matmul(_sum_products(centered, centered) / count, weights)
        mean, variance = tf.linalg.matvec(weights, center, transpose_a=True), tf.reduce_sum(weights * spread, axis=0)
        inverse = tf.math.rsqrt(variance + epsilon)
        z = _multiply(centered, weights * (gamma * inverse), beta)

        def backward(gradient, *_):
            gradient = _swish_gradient(z, 1.0, 0.0, gradient)
            products = _sum_products(centered, gradient)
            of_beta, of_gamma = _sum_rows(gradient), inverse * tf.reduce_sum(weights * products, axis=0)
            scale = gamma * inverse
            of_weights = scale * (products - spread * (inverse * of_gamma))
            back = tf.matmul(weights * (-scale * inverse * of_gamma / count), weights, transpose_b=True)
            shift = tf.linalg.matvec(weights, -scale * of_beta / count)
            of_x = _multiply(gradient, tf.transpose(weights * scale), shift) + _multiply(centered, back)
            return of_x, of_weights[None, None], of_gamma, of_beta

        return (_activate(z), mean, variance), backward

    return run(x, kernel, gamma, beta)


def _normalise(x, gamma, beta, epsilon):
    """Return batch norm by TensorFlow's kernel: outputs, mean, variance, and the function for its gradients."""
    y, mean, unbiased, *kept = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = _row_count(x)

    def gradients(gradient):
        reserved = {f"reserve_space_{i}": value for i, value in enumerate(kept, 1)}
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=gradient, x=x, scale=gamma, epsilon=epsilon, is_training=True, **reserved
        )[:3]

    return y, mean, unbiased * (count - 1) / count, gradients


def _as_product(mean, variance, gamma, beta, epsilon):
    """Return scale and shift, float32 [C], by which batch norm is x * scale + shift."""
    scale = gamma * tf.math.rsqrt(variance + epsilon)
    return scale, beta - mean * scale


def _multiply(x, weights, bias=None):
    """Multiply the channels of [B, H, W, I] by [I, O], and add [O]."""
    y = tf.matmul(tf.reshape(x, [-1, x.shape[3]]), weights)
    if bias is not None:
        y = tf.nn.bias_add(y, bias)
    sizes = x.shape[:3] if x.shape.is_fully_defined() else tf.unstack(tf.shape(x)[:3])
    return tf.reshape(y, [*sizes, weights.shape[1]])


def _sum_products(x, y):
    """Return the sum over rows of the products of each channel of [B, H, W, I] with each of [B, H, W, O]: [I, O]."""
    return tf.matmul(*(tf.reshape(t, [-1, t.shape[3]]) for t in (x, y)), transpose_a=True)


def _row_count(x):
    """Return how many rows [C] there are in [B, H, W, C]."""
    return math.prod(x.shape[:3])


def _sum_rows(x):
    """Return the sum over all but channels, [C]; as a product several times as fast as `tf.reduce_sum`."""
    rows = tf.reshape(x, [_row_count(x), x.shape[3]])
    return tf.reshape(tf.matmul(tf.ones([1, rows.shape[0]]), rows), [-1])


# ------------------------------------------------------------------------------------ value by value, compiled by XLA


def _sigmoid(z):
    """Return the sigmoid, within 3e-7 of it."""
    # XLA's own takes longer. Nor does XLA count the arithmetic in an exponential, and gives what has little of it the
    # square root of the cores.
    z = tf.clip_by_value(z, -16.0, 16.0)
    square = z * z
    return 0.5 + z * _polynomial(square, SIGMOID_P) / _polynomial(square, SIGMOID_Q)


def _polynomial(x, coefficients):
    return functools.reduce(lambda sum_, c: sum_ * x + c, reversed(coefficients))


def _swish(z):
    return z * _sigmoid(z)


def _swish_slope(z):
    gate = _sigmoid(z)
    return gate * (1 + z * (1 - gate))


def _sum_pixels(function, *images):
    """Return the sums over pixels [B, 1, 1, C] of what a function computes from the values of [B, H, W, C]."""
    pixels = images[0].shape[1] * images[0].shape[2]
    rows = [tf.cast(tf.reshape(image, [-1, pixels, image.shape[3]]), tf.float32) for image in images]
    size, function = pixels // PARTS, tf.function(function, autograph=False)  # traced once, not for each part
    parts = sum(function(*(r[:, i * size : (i + 1) * size] for r in rows)) for i in range(PARTS))
    rest = function(*(r[:, PARTS * size :] for r in rows))
    return sum(tf.reduce_sum(value, axis=1)[:, None, None] for value in (parts, rest))


@compile_for_cpu
def _activate(z):
    """Return swish(z)."""
    return tf.cast(_swish(tf.cast(z, tf.float32)), z.dtype)


@compile_for_cpu
def _swish_gradient(x, scale, shift, gradient):
    """Return the gradient of swish(z) for z = x * scale + shift, times `gradient`."""
    slope = _swish_slope(tf.cast(x, tf.float32) * scale + shift)
    return tf.cast(tf.cast(gradient, tf.float32) * slope, x.dtype)


@compile_for_cpu
def _gated_swish_gradient(x, scale, shift, gradient, gate, of_squeezed):
    """Return `_swish_gradient` behind a gate and a mean over pixels, both [B, 1, 1, C]."""
    gradient, gate, of_squeezed = (tf.cast(t, tf.float32) for t in (gradient, gate, of_squeezed))
    slope = _swish_slope(tf.cast(x, tf.float32) * scale + shift)
    return tf.cast((gradient * gate + of_squeezed) * slope, x.dtype)


@compile_for_cpu
def _squeeze(z):
    """Return the means of swish(z) over pixels, [B, 1, 1, C]."""
    return tf.cast(_sum_pixels(_swish, z) / (z.shape[1] * z.shape[2]), z.dtype)


@compile_for_cpu
def _excite(z, gate):
    """Return swish(z) times a gate [B, 1, 1, C]."""
    return tf.cast(_swish(tf.cast(z, tf.float32)) * tf.cast(gate, tf.float32), z.dtype)


@compile_for_cpu
def _gate_gradient(x, scale, shift, gradient):
    """Return the gradient of a gate behind swish(x * scale + shift), [B, 1, 1, C]."""
    return tf.cast(_sum_pixels(lambda x, g: _swish(x * scale + shift) * g, x, gradient), x.dtype)


# ------------------------------------------------------------------------------------------- convolutions by themselves


def pointwise_conv(x, kernel):
    """Convolve by 1x1, as products of matrices: up to half as fast again as TensorFlow's convolution.

    Args:
        x: [B, H, W, I].
        kernel: [1, 1, I, O], as x.

    Returns:
        [B, H, W, O].
    """
    return _multiply(x, tf.reshape(kernel, kernel.shape[2:]))


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
            return of_input, _kernel_gradient(x, gradient, kernel.shape, strides)

        return tf.nn.depthwise_conv2d(x, kernel, strides, "SAME"), backward

    return convolve(x, kernel)


def _kernel_gradient(x, gradient, shape, strides):
    """Return the gradient of a depthwise kernel [K, K, C, 1], as x."""
    dtype, padding = x.dtype, {"padding": "SAME"}
    if shape[0] > 3 or strides[1] > 1:
        # oneDNN, slow at such kernels, takes no padding told by numbers. TensorFlow 2.21's own code does, at up to four
        # times the rate; it adds up in the dtype that it is given.
        x, gradient = (tf.cast(t, tf.float32) for t in (x, gradient))
        sides = (_same_padding(x.shape[i], gradient.shape[i], shape[0], strides[i]) for i in (1, 2))
        padding = {"padding": "EXPLICIT", "explicit_paddings": [0, 0, *itertools.chain(*sides), 0, 0]}
    of_kernel = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=x, filter_sizes=shape, out_backprop=gradient, strides=strides, **padding
    )
    return tf.cast(of_kernel, dtype)


def _same_padding(read, written, size, stride):
    """Return how many zeros "SAME" puts before and behind a side."""
    total = max(0, (written - 1) * stride + size - read)
    return total // 2, total - total // 2

"""Where in an image a model sees a class: class activation maps and Grad-CAM."""

import keras
import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError, closest_names


def class_activation_map(model, images, classes=None):
    """Compute what each position of the last features adds to a class's logit.

    map[h, w] = sum over c of features[h, w, c] * kernel[c, class]. Its mean over the positions plus the class's bias is
    the logit, exactly: averaging and the classifier are both linear.

    Args:
        model: keras.Model with the head of `build_model`: `avg_pool`, then the dense layer `predictions`.
        images: [B, H, W, C], pixels in [0, 255], float or uint8.
        classes: int or ints [B], in [0, classes); None for the likeliest class of each image.

    Returns:
        float32 array [B, h, w], of either sign.

    Raises:
        UserError: for a model with another head, a class out of range, or last features of a single pixel.

    Source: Zhou et al. 2016, https://arxiv.org/abs/1512.04150.
    """
    dense, pool = _dense(model), _layers(model).get("avg_pool")
    source = dense.input
    dropouts = {id(each.output): each.input for each in model.layers if isinstance(each, keras.layers.Dropout)}
    while id(source) in dropouts:
        source = dropouts[id(source)]
    if not isinstance(pool, keras.layers.GlobalAveragePooling2D) or source is not pool.output:
        raise UserError(f"model {model.name!r} has no 'avg_pool' before 'predictions': only Grad-CAM can explain it")
    features = keras.Model(model.input, pool.input)(images, training=False)
    _check_extent(features.shape, "avg_pool's input")
    features = tf.cast(features, tf.float32)
    chosen = _choose(_logits(dense, tf.reduce_mean(features, axis=[1, 2])), classes)
    weights = tf.gather(tf.cast(dense.kernel, tf.float32), chosen, axis=1)
    return tf.einsum("bhwc,cb->bhw", features, weights).numpy()


def grad_cam(model, images, layer="top_activation", classes=None):
    """Compute Grad-CAM at a layer: its channels, each weighted by its mean gradient, summed and cut off at zero.

    At `top_activation` it is the positive part of `class_activation_map`, divided by the number of positions.

    Args:
        model: keras.Model with the dense layer `predictions` at its end.
        images: [B, H, W, C], pixels in [0, 255], float or uint8.
        layer: str, the name of a layer with output [B, h, w, c].
        classes: int or ints [B], in [0, classes); None for the likeliest class of each image.

    Returns:
        float32 array [B, h, w], >= 0.

    Raises:
        UserError: for a model with another end, an unknown layer, one without extent in space, or a class out of range.

    Source: Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2; of the logit, not the
        probability.
    """
    dense, layers = _dense(model), _layers(model)
    if layer not in layers:
        names = [name for name, each in layers.items() if _has_extent(each.output.shape)]
        raise UserError(f"unknown layer {layer!r}; near it are {', '.join(closest_names(layer, names))}")
    _check_extent(layers[layer].output.shape, f"layer {layer!r}")
    images = tf.cast(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)  # so that a model that is not trainable is recorded, too
        inner = keras.Model(model.input, [layers[layer].output, dense.input])
        features, pooled = inner(images, training=False)
        logits = _logits(dense, pooled)
        score = tf.gather(logits, _choose(logits, classes), batch_dims=1)
    _check_extent(features.shape, f"layer {layer!r}")
    gradients = tf.cast(tape.gradient(score, features), tf.float32)
    weights = tf.reduce_mean(gradients, axis=[1, 2])
    return tf.nn.relu(tf.einsum("bhwc,bc->bhw", tf.cast(features, tf.float32), weights)).numpy()


def _layers(model):
    return {layer.name: layer for layer in model.layers}


def _dense(model):
    dense = _layers(model).get("predictions")
    if not isinstance(dense, keras.layers.Dense):
        raise UserError(f"model {model.name!r} has no classifier: a dense layer of the name 'predictions'")
    return dense


def _logits(dense, pooled):
    """Return the classifier's output [B, classes] before its activation, if it has any."""
    return tf.cast(pooled, tf.float32) @ tf.cast(dense.kernel, tf.float32) + tf.cast(dense.bias, tf.float32)


def _choose(logits, classes):
    """Return the classes to explain, int [B]."""
    images, count = logits.shape
    if classes is None:
        return np.argmax(logits, axis=1)
    chosen = np.asarray(classes)
    if not np.issubdtype(chosen.dtype, np.integer) or chosen.shape not in ((), (images,)):
        raise UserError(f"classes must be an int, or one for each of {images} images, received {classes!r}")
    if chosen.min() < 0 or chosen.max() >= count:
        raise UserError(f"classes must be in 0 ... {count - 1}, received {classes!r}")
    return np.broadcast_to(chosen, [images])


def _has_extent(shape):
    return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def _check_extent(shape, name):
    if not _has_extent(shape):
        raise UserError(
            f"{name} has no extent in space, its output is {list(shape[1:])}: take an earlier layer, with Grad-CAM, or "
            "a larger image size"
        )

"""Pillow's counterparts of the image operations, and images to compare their results on."""

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import scipy.stats
import tensorflow as tf

from efficientnet_tf.ops import image as image_ops

GRAY = 128
NEAREST = PIL.Image.Resampling.NEAREST


def add_below_128(image, addition):
    table = [min(v + addition, 255) if v < 128 else v for v in range(256)]
    return image.point(table * len(image.getbands()))


def fill(image):
    return (GRAY,) * 3 if image.mode == "RGB" else GRAY


def transform(image, *matrix):
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix, NEAREST, fillcolor=fill(image))


# By name: this package's operation, Pillow's, and the range of their argument, or None if they have no argument.
OPERATIONS = {
    "AutoContrast": (image_ops.autocontrast, PIL.ImageOps.autocontrast, None),
    "Equalize": (image_ops.equalize, PIL.ImageOps.equalize, None),
    "Invert": (image_ops.invert, PIL.ImageOps.invert, None),
    "Posterize": (image_ops.posterize, PIL.ImageOps.posterize, (1, 8)),
    "Solarize": (image_ops.solarize, PIL.ImageOps.solarize, (0, 256)),
    "SolarizeAdd": (image_ops.solarize_add, add_below_128, (0, 127)),
    "Color": (image_ops.color, lambda image, f: PIL.ImageEnhance.Color(image).enhance(f), (0.0, 3.0)),
    "Contrast": (image_ops.contrast, lambda image, f: PIL.ImageEnhance.Contrast(image).enhance(f), (0.0, 3.0)),
    "Brightness": (image_ops.brightness, lambda image, f: PIL.ImageEnhance.Brightness(image).enhance(f), (0.0, 3.0)),
    "Sharpness": (image_ops.sharpness, lambda image, f: PIL.ImageEnhance.Sharpness(image).enhance(f), (0.0, 3.0)),
    "Rotate": (image_ops.rotate, lambda image, d: image.rotate(d, NEAREST, fillcolor=fill(image)), (-90.0, 90.0)),
    "ShearX": (image_ops.shear_x, lambda image, a: transform(image, 1, a, 0, 0, 1, 0), (-0.9, 0.9)),
    "ShearY": (image_ops.shear_y, lambda image, a: transform(image, 1, 0, 0, a, 1, 0), (-0.9, 0.9)),
    "TranslateX": (image_ops.translate_x, lambda image, p: transform(image, 1, 0, p, 0, 1, 0), (-80.0, 80.0)),
    "TranslateY": (image_ops.translate_y, lambda image, p: transform(image, 1, 0, 0, 0, 1, p), (-80.0, 80.0)),
}


def make_images(rng, count, channels, size, first=0):
    """Return random images of five kinds in turn: noise, low contrast, one constant channel, a gradient, few values."""
    images = []
    height, width = size
    for i in range(first, first + count):
        image = rng.integers(0, 256, (height, width, channels))
        if i % 5 == 1:
            low, high = np.sort(rng.integers(0, 256, 2))
            image = rng.integers(low, high + 1, image.shape)
        elif i % 5 == 2:
            image[..., rng.integers(channels)] = rng.integers(0, 256)
        elif i % 5 == 3:
            slope_y, slope_x, start = rng.uniform(-4, 4, channels), rng.uniform(-4, 4, channels), rng.uniform(0, 255)
            image = np.arange(height)[:, None, None] * slope_y + np.arange(width)[:, None] * slope_x + start
        elif i % 5 == 4:
            image = rng.choice(rng.integers(0, 256, 3), image.shape)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


def sample_arguments(rng, bounds, count):
    """Return `count` tuples of arguments for an operation, among them the bounds and the neutral values."""
    if bounds is None:
        return [()] * count
    if isinstance(bounds[0], int):
        return [(int(v),) for v in rng.integers(bounds[0], bounds[1] + 1, count)]
    ends_and_neutral = [(bound,) for bound in (*bounds, 0.0, 1.0) if bounds[0] <= bound <= bounds[1]]
    return ends_and_neutral + [(float(v),) for v in rng.uniform(*bounds, count - len(ends_and_neutral)).astype("f")]


def run_pillow(operation, pixels, *arguments):
    """Return the result of a Pillow operation on an array, uint8 [H, W, C]."""
    image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.asarray(operation(image, *arguments)).reshape(pixels.shape)


def as_tensors(arguments):
    return [tf.constant(argument, tf.int32 if isinstance(argument, int) else tf.float32) for argument in arguments]


def call_many(function, *arguments):
    """Return function(*row) for every row of the arguments as arrays, computed inside tf.data."""
    rows = tf.data.Dataset.from_tensor_slices(arguments).map(function, num_parallel_calls=2).batch(len(arguments[0]))
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), next(iter(rows)))


def make_seeds(count):
    return np.stack([np.full(count, 3), np.arange(count)], axis=1).astype(np.int64)


def check_frequencies(observed, probabilities):
    """Check counts against probabilities by a chi-square test. Outcomes of probability 0 must not occur."""
    observed, expected = np.asarray(observed), np.asarray(probabilities) * np.sum(observed)
    assert not observed[expected == 0].any()
    assert scipy.stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-4

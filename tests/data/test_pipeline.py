"""Compare crops, resizing and batches with formulas and other decoders, and test broken images."""

import importlib.resources
import io
import math
import sys
import threading
from fractions import Fraction

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import sklearn.model_selection
import tensorflow as tf
from pillow import check_frequencies

from efficientnet_tf.config import load, schema
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.data.batch_sizes import check_batches
from efficientnet_tf.data.decode import decode_window
from efficientnet_tf.data.open import Order, open_source
from efficientnet_tf.data.pipeline import (
    Failures,
    eval_dataset,
    eval_image,
    eval_steps,
    sample_images,
    split_seed,
    train_dataset,
    train_image,
)
from efficientnet_tf.data.windows import center_window, random_window
from efficientnet_tf.ops import image as image_ops

# Crop fractions of the published checkpoints (three digits, some cut, some rounded).
CROP_FRACTIONS = {
    **{"b0": 0.875, "b1": 0.882, "b2": 0.890, "b3": 0.904, "b4": 0.922, "b5": 0.934, "b6": 0.942, "b7": 0.949},
    **{"b8": 0.954, "l2": 0.960},
}
CONTEXT = tf.distribute.InputContext()


def load_config(*overrides, recipe="folder"):
    """Load a config with images of 8 pixels. Tests that read a folder set `data.dir`."""
    keys = [override.partition("=")[0] for override in overrides]
    defaults = {"data.dir": "none", "data.image_size": 8} if recipe == "folder" else {"data.image_size": 8}
    return load.load_config("b0", recipe, [f"{k}={v}" for k, v in defaults.items() if k not in keys] + [*overrides])


def contexts(hosts, replicas):
    return [tf.distribute.InputContext(hosts, host, replicas) for host in range(hosts)]


def encode(pixels, kind, mode=None, **arguments):
    image, buffer = PIL.Image.fromarray(pixels), io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **arguments)
    return buffer.getvalue()


def call_many(function, *arguments):
    """Return function(*row) for every row of the arguments. The function is traced once."""
    dataset = tf.data.Dataset.from_tensor_slices(arguments).map(function)
    return next(iter(dataset.batch(len(arguments[0])))).numpy()


def seeds(count, first=0):
    return np.stack([np.full(count, 7), np.arange(first, first + count)], axis=1).astype(np.int64)


@pytest.fixture(scope="module")
def photo_jpeg():
    return importlib.resources.files("sklearn.datasets.images").joinpath("china.jpg").read_bytes()


@pytest.fixture(scope="module")
def photo():
    """Return a photo, uint8 [427, 640, 3]."""
    return sklearn.datasets.load_sample_images().images[0]


# -------------------------------------------------------------------------------------------------- windows


def expected_center(height, width, size, padding):
    """Return the evaluation crop, computed with integers."""
    side = max(1, size * min(height, width) // (size + padding))
    return [(height - side + 1) // 2, (width - side + 1) // 2, side, side]


@pytest.mark.parametrize("variant", CROP_FRACTIONS)
def test_center_window_of_every_variant(variant):
    size = load_variant(variant).resolution
    shapes = np.random.default_rng(0).integers(1, 3000, (300, 3))
    shapes[:4, :2] = [(1, 1), (1, 2999), (size + 32, size + 32), (100000, 100000)]
    windows = call_many(lambda shape: center_window(shape, (size, size), 32), shapes.astype(np.int32))
    np.testing.assert_array_equal(windows, [expected_center(h, w, size, 32) for h, w, _ in shapes])
    assert windows[2, 2] == size
    assert windows[3, 2] / 100000 == pytest.approx(CROP_FRACTIONS[variant], abs=2e-3)


@pytest.mark.parametrize(("height", "width", "padding"), [(30, 50, 0), (50, 30, 8), (192, 320, 32), (64, 64, 9)])
def test_center_window_for_images_that_are_not_square(height, width, padding):
    """An image resized to cover (height + padding) x (width + padding) shows it in its center, by the definition."""
    shapes = np.random.default_rng(0).integers(1, 3000, (300, 3))
    shapes[:3, :2] = [(1, 1), (height + padding, width + padding), (1_000_000, 4_000)]
    windows = call_many(lambda shape: center_window(shape, (height, width), padding), shapes.astype(np.int32))
    for (h, w, _), (y, x, rows, columns) in zip(shapes.tolist(), windows.tolist(), strict=True):
        scale = max(Fraction(height + padding, h), Fraction(width + padding, w))
        assert (rows, columns) == tuple(max(1, math.floor(side / scale)) for side in (height, width))
        assert rows <= h and columns <= w and (y, x) == ((h - rows + 1) // 2, (w - columns + 1) // 2)
    assert windows[1].tolist() == [(padding + 1) // 2, (padding + 1) // 2, height, width]


@pytest.mark.parametrize("aspect", [5 / 3, 0.6])
def test_random_windows_have_the_aspect_of_the_input(aspect):
    augment = schema.AugmentConfig(crop_area=(0.1, 0.4), crop_aspect=(0.9, 1.2))
    fallback = tf.constant([-1, -1, -1, -1])
    shape = tf.constant([400, 400, 3])
    windows = call_many(lambda s: random_window(shape, s, augment, fallback, aspect), seeds(400))
    assert np.all(windows[:, 0] >= 0)
    _, _, h, w = windows.T
    assert np.all((w + 0.5) / h >= 0.9 * aspect - 1e-6) and np.all((w - 0.5) / h <= 1.2 * aspect + 1e-6)
    assert np.ptp(w / h) > 0.2 * aspect


@pytest.mark.parametrize("area", [(0.08, 1.0), (0.25, 0.5)])
@pytest.mark.parametrize("aspect", [(3 / 4, 4 / 3), (0.5, 0.8)])
@pytest.mark.parametrize("shape", [(427, 640), (300, 90), (17, 20)])
def test_random_windows_have_the_given_area_and_aspect(area, aspect, shape):
    height, width = shape
    augment = schema.AugmentConfig(crop_area=area, crop_aspect=aspect)
    fallback = tf.constant([-1, -1, -1, -1])
    windows = call_many(lambda s: random_window(tf.constant([*shape, 3]), s, augment, fallback), seeds(400))
    windows = windows[windows[:, 0] >= 0]
    assert len(windows) > 200
    y, x, h, w = windows.T
    assert np.all((y >= 0) & (x >= 0) & (h > 0) & (w > 0) & (y + h <= height) & (x + w <= width))
    # Sides are rounded by up to half a pixel.
    assert np.all((w + 0.5) / h >= aspect[0] - 1e-6) and np.all((w - 0.5) / h <= aspect[1] + 1e-6)
    share = h * w / (height * width)
    slack = (h + w) / 2 / (height * width)
    assert np.all(share + slack >= area[0]) and np.all(share - slack <= area[1])
    # The ranges are used: there are many sizes, shapes and places.
    if min(shape) > 50:
        assert len(np.unique(windows, axis=0)) > 0.9 * len(windows)
        assert np.quantile(w / h, 0.9) - np.quantile(w / h, 0.1) > 0.4 * (aspect[1] - aspect[0])
        assert share.max() > 1.5 * share.min()
        assert np.ptp(y) > (height - h.max()) / 2 and np.ptp(x) > (width - w.max()) / 2


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (1, 1)])
def test_impossible_crop_falls_back(shape):
    augment = schema.AugmentConfig(crop_area=(0.5, 1.0))
    fallback = tf.constant([3, 1, 4, 1])
    windows = call_many(lambda s: random_window(tf.constant([*shape, 3]), s, augment, fallback), seeds(50))
    assert np.all(windows == [3, 1, 4, 1])


def test_impossible_crop_of_an_image_is_its_center(photo):
    """In a strip of 20 x 640 pixels, crops of at least half the area would have a larger aspect ratio than allowed."""
    strip = photo[:20]
    run = load_config("data.image_size=20", "data.crop_padding=0", "augment.crop_area=[0.5, 1.0]", "augment.flip=false")
    image = train_image(tf.constant(encode(strip, "PNG")), tf.constant([0, 0], tf.int64), run)
    np.testing.assert_array_equal(image, strip[:, 310:330])


def test_training_crops_have_the_aspect_of_the_input():
    """Circles stay circles: a grid of dots keeps its spacing in both directions."""
    yx = np.stack(np.meshgrid(np.arange(240), np.arange(400), indexing="ij"), -1)
    picture = (127 + 127 * np.cos(yx * (2 * np.pi / 40))).astype(np.uint8)
    encoded = encode(np.concatenate([picture, picture[..., :1]], -1), "PNG")
    run = load_config("data.image_size=[48, 80]", "augment.crop_area=[0.3, 0.5]", "augment.crop_aspect=[1.0, 1.0]")
    for number in range(4):
        image = train_image(tf.constant(encoded), tf.constant([0, number], tf.int64), run).numpy().astype(float)
        assert image.shape == (48, 80, 3)
        down, across = np.abs(np.diff(image[..., 0], axis=0)).mean(), np.abs(np.diff(image[..., 1], axis=1)).mean()
        assert down == pytest.approx(across, rel=0.15)


def test_crop_of_the_whole_area_is_the_whole_image():
    augment = schema.AugmentConfig(crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0))
    for shape in ((30, 30, 3), (30, 41, 3)):
        window = random_window(tf.constant(shape), tf.constant([0, 0], tf.int64), augment, tf.constant([9] * 4))
        np.testing.assert_array_equal(window, [0, 0, *shape[:2]])


# ------------------------------------------------------------------------------------------- decode and resize


def resize_weights(size, new_size, kernel):
    """Return the matrix of a resize with half-pixel centers. Rows are normalized at the edges."""
    place = (np.arange(new_size)[:, None] + 0.5) * size / new_size - 0.5
    weights = kernel(np.abs(place - np.arange(size)))
    return weights / weights.sum(1, keepdims=True)


def keys_kernel(a):
    """Return the cubic convolution kernel of Keys (1981)."""

    def kernel(t):
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        return np.where(t <= 1, near, np.where(t < 2, far, 0))

    return kernel


def resize(pixels, new_size, kernel):
    rows, columns = (resize_weights(size, new_size, kernel) for size in pixels.shape[:2])
    return np.einsum("oi,ijc,pj->opc", rows, pixels.astype(float), columns, optimize=True)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("size", "padding", "corner"),
    [(224, 203, (102, 208)), (395, 32, (16, 123)), (427, 0, (0, 107)), (32, 395, (198, 304))],
)
def test_eval_crop_is_exactly_the_center(photo, transposed, size, padding, corner):
    """With a crop as large as the network's input, nothing is resized, and the pixels are those of the file."""
    pixels = photo.transpose(1, 0, 2) if transposed else photo
    y, x = corner[::-1] if transposed else corner
    run = load_config(f"data.image_size={size}", f"data.crop_padding={padding}")
    image = eval_image(tf.constant(encode(pixels, "PNG")), run)
    assert image.dtype == tf.float32
    np.testing.assert_array_equal(image, pixels[y : y + size, x : x + size])


@pytest.mark.parametrize("size", [32, 64, 223])
def test_the_default_crop_of_small_images_covers_as_much_as_the_published_one(photo, size):
    """Before, 32 pixels were cut off at any size: half of each side of an image of 32 pixels."""
    image = eval_image(tf.constant(encode(photo, "PNG")), load_config(f"data.image_size={size}"))
    side = 427 * size // (size + min(32, round(size / 7)))
    assert side / 427 == pytest.approx(7 / 8, abs=0.02)
    y, x = (427 - side + 1) // 2, (640 - side + 1) // 2
    crop = photo[y : y + side, x : x + side]
    assert np.abs(image - resize(crop, size, keys_kernel(-0.5))).max() < 0.3


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_eval_image_resizes_with_the_cubic_kernel_of_keys(photo, variant):
    size = load_variant(variant).resolution
    run = load.load_config(variant, "folder", ["data.dir=none"])
    image = eval_image(tf.constant(encode(photo, "PNG")), run).numpy()
    y, x, side, _ = expected_center(427, 640, size, 32)
    crop = photo[y : y + side, x : x + side]
    # TensorFlow tabulates the kernel in steps of 1/1024 pixel.
    assert np.abs(image - resize(crop, size, keys_kernel(-0.5))).max() < 0.3
    assert np.abs(image - resize(crop, size, keys_kernel(-0.75))).max() > 5  # the other common cubic kernel
    assert np.abs(image - resize(crop, size, lambda t: np.maximum(1 - t, 0))).max() > 5
    assert image.max() > 256  # Bicubic overshoots. Only training images are rounded and clipped.


def test_eval_image_bilinear(photo):
    run = load_config("data.image_size=100", "data.interpolation=bilinear", "data.crop_padding=0")
    image = eval_image(tf.constant(encode(photo, "PNG")), run)
    expected = resize(photo[:, 107:534], 100, lambda t: np.maximum(1 - t, 0))
    np.testing.assert_allclose(image, expected, atol=0.01)


@pytest.mark.parametrize("window", [(0, 0, 427, 640), (26, 132, 374, 374), (101, 57, 200, 333), (7, 9, 16, 5)])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_window_of_a_jpeg_matches_the_whole_image(photo, window, subsampling):
    """Except for the last column: the decoder interpolates subsampled color with the column after it."""
    encoded = encode(photo, "JPEG", quality=90, subsampling=subsampling)
    part = decode_window(tf.constant(encoded), 3, lambda _: tf.constant(window)).numpy().astype(int)
    y, x, height, width = window
    whole = np.asarray(PIL.Image.open(io.BytesIO(encoded)))[y : y + height, x : x + width].astype(int)
    assert np.abs(part[:, :-1] - whole[:, :-1]).max() <= 1
    assert np.abs(part[:, -1] - whole[:, -1]).max() <= (12 if subsampling else 1)


def test_jpeg_of_a_camera(photo, photo_jpeg):
    """`load_sample_images` reads the same file with Pillow."""
    run = load_config("data.image_size=395", "data.crop_padding=32")
    image = eval_image(tf.constant(photo_jpeg), run).numpy()
    assert np.abs(image - photo[16:411, 123:518])[:, :-1].max() <= 1


NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
SMOOTH = np.stack([np.add.outer(np.arange(20) * 4, np.arange(30) * k) for k in (1, 3, 5)], axis=2).astype(np.uint8)
FORMATS = {
    "PNG": (NOISE, encode(NOISE, "PNG")),
    "PNG with alpha": (NOISE, encode(np.concatenate([NOISE, np.full_like(NOISE[:, :, :1], 255)], axis=2), "PNG")),
    "PNG with palette": (NOISE // 128 * 255, encode(NOISE // 128 * 255, "PNG", "P")),
    "gray PNG": (NOISE[:, :, :1], encode(NOISE[:, :, 0], "PNG")),
    "BMP": (NOISE, encode(NOISE, "BMP")),
    "gray BMP": (NOISE[:, :, :1], encode(NOISE[:, :, 0], "BMP")),
    "GIF": (NOISE // 128 * 255, encode(NOISE // 128 * 255, "GIF", "P")),
    "gray GIF": (NOISE[:, :, :1], encode(NOISE[:, :, 0], "GIF")),
    "JPEG": (SMOOTH, encode(SMOOTH, "JPEG", quality=95)),
    "progressive JPEG": (SMOOTH, encode(SMOOTH, "JPEG", quality=95, progressive=True)),
    "gray JPEG": (SMOOTH[:, :, :1], encode(SMOOTH[:, :, 0], "JPEG", quality=95)),
    "CMYK JPEG": (SMOOTH, encode(SMOOTH, "JPEG", "CMYK", quality=95)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_decoded_as_rgb_and_gray(name):
    pixels, encoded = FORMATS[name]
    encoded = tf.constant(encoded)
    rgb, gray = (decode_window(encoded, c, lambda s: tf.stack([0, 0, s[0], s[1]])).numpy() for c in (3, 1))
    assert rgb.dtype == gray.dtype == np.uint8
    assert rgb.shape == (20, 30, 3) and gray.shape == (20, 30, 1)
    tolerance = 6 if "JPEG" in name else 0
    assert np.abs(rgb.astype(int) - pixels).max() <= tolerance
    luma = pixels if "gray" in name else pixels @ [[0.299], [0.587], [0.114]]
    assert np.abs(gray - luma.astype(float)).max() <= (tolerance if "gray" in name else tolerance + 1)


def test_first_frame_of_an_animated_gif():
    frames = [PIL.Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    image = decode_window(tf.constant(buffer.getvalue()), 3, lambda s: tf.stack([0, 0, s[0], s[1]]))
    np.testing.assert_array_equal(image, np.full((4, 6, 3), 10))


# ----------------------------------------------------------------------------------------------- train_image


@pytest.fixture(scope="module")
def augment(photo):
    """Return a function from overrides and seeds to training images of a thumbnail, uint8 [N, S, S, C]."""
    encoded = tf.constant(encode(photo[::8, ::8], "PNG"))

    def make(seeds_, *overrides):
        run = load_config("data.image_size=16", "augment.crop_area=[0.08, 1.0]", *overrides)
        return call_many(lambda seed: train_image(encoded, seed, run), seeds_)

    return make


def test_train_image_depends_only_on_its_seed(augment):
    images = augment(seeds(50))
    assert images.shape == (50, 16, 16, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(augment(seeds(30, first=20)), images[20:])
    assert len(np.unique(images.reshape(50, -1), axis=0)) == 50
    other_epoch = augment(seeds(50) + [[2**32, 0]])
    assert not np.any(np.all(other_epoch == images, axis=(1, 2, 3)))


def test_half_of_all_images_are_flipped(augment):
    whole = ("augment.crop_area=[1.0, 1.0]", "augment.crop_aspect=[0.1, 10.0]")
    images = augment(seeds(400), *whole)
    unflipped = augment(seeds(400), *whole, "augment.flip=false")
    assert np.all(unflipped == unflipped[0])
    plain = np.all(images == unflipped[0], axis=(1, 2, 3))
    mirrored = np.all(images == unflipped[0, :, ::-1], axis=(1, 2, 3))
    assert np.all(plain ^ mirrored)
    assert 160 < np.count_nonzero(mirrored) < 240  # 4 standard deviations


def test_vertical_and_horizontal_flips_are_independent(augment):
    whole = ("augment.crop_area=[1.0, 1.0]", "augment.crop_aspect=[0.1, 10.0]")
    image = augment(seeds(1), *whole, "augment.flip=false")[0]
    images = augment(seeds(400), *whole, "augment.flip_vertical=true")
    outcomes = [image, image[:, ::-1], image[::-1], image[::-1, ::-1]]
    check_frequencies([np.all(images == outcome, axis=(1, 2, 3)).sum() for outcome in outcomes], np.full(4, 1 / 4))


@pytest.mark.slow
def test_shifted_images_keep_their_pixels_and_every_shift_is_as_likely(augment):
    whole = ("augment.crop_area=[1.0, 1.0]", "augment.crop_aspect=[0.1, 10.0]", "augment.flip=false")
    image = augment(seeds(1), *whole)[0]
    images = augment(seeds(1000), *whole, "augment.shift=2")
    padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
    outcomes = [padded[y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    check_frequencies([np.all(images == outcome, axis=(1, 2, 3)).sum() for outcome in outcomes], np.full(25, 1 / 25))
    np.testing.assert_array_equal(augment(seeds(20), *whole, "augment.shift=2"), images[:20])
    np.testing.assert_array_equal(augment(seeds(3), *whole, "augment.shift=0"), np.stack([image] * 3))


def test_a_shift_out_of_sight_is_refused():
    for size in ("data.image_size=16", "train.phases=[{until: 1, set: {data.image_size: 16}}]"):
        with pytest.raises(UserError, match="augment.shift=16 would move images of 16 pixels out of sight"):
            load_config(size, "augment.shift=16")


def test_color_jitter_follows_the_policy_and_precedes_erasing(photo):
    encoded = tf.constant(encode(photo[::8, ::8], "PNG"))
    keys = ("augment.policy=randaugment", "augment.color_jitter=0.4", "augment.erase=1.0")
    plain, changed = load_config(*keys[:1]), load_config(*keys)
    for seed in seeds(3):
        expected = image_ops.color_jitter(train_image(encoded, seed, plain), split_seed(seed)[5], 0.4)
        expected = image_ops.random_erase(expected, split_seed(seed)[3], 1.0)
        np.testing.assert_array_equal(train_image(encoded, seed, changed), expected)


def test_seeds_of_crop_flip_policy_and_erasing_are_those_of_older_versions():
    seed = tf.constant([3, 5], tf.int64)
    np.testing.assert_array_equal(split_seed(seed)[:4], tf.random.split(seed, 4))
    np.testing.assert_array_equal(split_seed(seed)[:6], tf.random.split(seed, 6))


def test_flip_and_crop_are_independent():
    """Red grows to the right and green downward, so a crop shows its width, its height and whether it was flipped."""
    ramp = np.arange(256, dtype=np.uint8)
    encoded = tf.constant(encode(np.stack([*np.meshgrid(ramp, ramp), np.zeros((256, 256), np.uint8)], axis=2), "PNG"))
    run = load_config("data.image_size=16")
    images = call_many(lambda seed: train_image(encoded, seed, run), seeds(400)).astype(int)
    width = (images[:, :, -1, 0] - images[:, :, 0, 0]).mean(1)
    height = (images[:, -1, :, 1] - images[:, 0, :, 1]).mean(1)
    for other in (np.abs(width) / height, np.abs(width) * height, images[:, 0, :, 1].mean(1)):
        assert abs(np.corrcoef(width < 0, other)[0, 1]) < 0.2  # 4 standard deviations


def test_train_image_is_the_rounded_resize_of_its_crop(photo):
    run = load_config("data.image_size=24", "augment.flip=false")
    pixels = (photo[::4, ::4] > 100).astype(np.uint8) * 255  # The cubic kernel overshoots at every edge.
    seed = tf.constant([5, 6], tf.int64)
    image = train_image(tf.constant(encode(pixels, "PNG")), seed, run).numpy().astype(int)
    crop_seed = tf.random.experimental.stateless_split(seed, 4)[0]
    y, x, h, w = random_window(tf.shape(pixels), crop_seed, run.augment, tf.zeros(4, tf.int32)).numpy()
    assert h * w < pixels.shape[0] * pixels.shape[1]
    expected = np.clip(resize(pixels[y : y + h, x : x + w], 24, keys_kernel(-0.5)), 0, 255)
    assert np.abs(image - expected).max() < 0.5 + 0.3


def test_gray_training_image(augment):
    images = augment(seeds(3), "data.channels=1", "model.mean=[128.0]", "model.std=[64.0]")
    assert images.shape == (3, 16, 16, 1)


# -------------------------------------------------------------------------------------------- training batches


@pytest.fixture(scope="module")
def image_dir(tmp_path_factory):
    """Write 40 images of 4 classes in every format and in different sizes. The name is the number of the image."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(40):
        folder = root / f"class{i // 10}"
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (10 + i % 7, 30 - i % 5, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{i:02}.{('jpg', 'png', 'bmp', 'gif')[i % 4]}")
    return root


def open_run(root, *overrides):
    """Return the config and the source of all images in a folder of class folders."""
    run = load_config(f"data.dir={root.parent}", f"data.train_split={root.name}", *overrides)
    return run, open_source(run.data, root.name, training=True)


def train_batches(run, source, steps, first_step=0, context=CONTEXT, failures=None, options=None):
    """Return (images, labels) of consecutive batches of a host."""
    failures = failures or Failures(source)
    dataset = train_dataset(source, run, failures, first_step, context).take(steps)
    batches = list((dataset.with_options(options) if options else dataset).as_numpy_iterator())
    return tuple(np.stack(parts) for parts in zip(*batches, strict=True))


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def trained(image_dir):
    """Return config, source and 12 batches of 8 images, which are two epochs and a part of the third."""
    run, source = open_run(image_dir, "train.batch_size=8")
    return run, source, train_batches(run, source, 12)


def test_batches_are_uint8_and_full(trained):
    run, source, (images, labels) = trained
    assert images.shape == (12, 8, 8, 8, 3) and images.dtype == np.uint8
    assert labels.shape == (12, 8) and labels.dtype == np.int32
    assert source.size == 40
    for epoch in range(2):
        assert np.bincount(labels[5 * epoch : 5 * epoch + 5].ravel()).tolist() == [10, 10, 10, 10]
    spec = train_dataset(source, run, Failures(source), 0, CONTEXT).element_spec
    assert spec[0].shape.as_list() == [8, 8, 8, 3] and spec[1].shape.as_list() == [8]


def test_autograph_converts_no_function(image_dir):
    # It would write files, which fails where the folder of temporary files is full.
    run, source = open_run(image_dir, "train.batch_size=8", "eval.batch_size=8")
    before = {name for name in sys.modules if "autograph_generated" in name}
    for make in (lambda *a: train_dataset(*a, 0, CONTEXT), lambda *a: eval_dataset(*a, CONTEXT)):
        next(iter(make(source, run, Failures(source))))
    next(iter(sample_images(source, run, Failures(source), 3)))
    next(iter(source.stream(Order(batch=8, shuffle=True))))
    assert {name for name in sys.modules if "autograph_generated" in name} == before


def test_batches_are_the_images_of_their_positions(trained):
    """Each is the result of train_image for the file, with a seed from the run's seed, the epoch and the id."""
    run, source, (images, labels) = trained
    order = Order(batch=8, shuffle=True, seed=run.train.seed)
    for position, id_, payload in source.stream(order).take(60):
        encoded, label = source.load(payload)
        seed = tf.stack([run.train.seed + position // 40 * 2**32, id_])
        step, row = divmod(int(position), 8)
        np.testing.assert_array_equal(images[step, row], train_image(encoded, seed, run))
        assert labels[step, row] == label == int(source.describe(int(id_)).split("class")[1][0])


@pytest.mark.parametrize("first_step", [4, 5])
def test_resumed_batches_are_the_same_bit_for_bit(trained, first_step):
    run, source, (images, labels) = trained
    resumed = train_batches(run, source, 9 - first_step, first_step)
    assert_same(resumed, (images[first_step:9], labels[first_step:9]))


@pytest.mark.parametrize(
    ("hosts", "replicas"), [(2, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 2), (4, 4)))]
)
def test_hosts_and_replicas_share_the_same_batches(trained, hosts, replicas):
    run, source, whole = trained
    local = replicas // hosts
    parts = [train_batches(run, source, 6 * local, context=context) for context in contexts(hosts, replicas)]
    for i in range(2):
        shape = (6, 8 // hosts, *whole[i].shape[2:])
        together = np.concatenate([np.reshape(part[i], shape) for part in parts], axis=1)
        np.testing.assert_array_equal(together, whole[i][:6])


@pytest.mark.parametrize("threads", [1, 7])
def test_batches_do_not_depend_on_threads(trained, threads):
    run, source, (images, labels) = trained
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.autotune.enabled = threads > 1
    assert_same(train_batches(run, source, 12, options=options), (images, labels))


def test_seeds_give_different_batches(image_dir, trained):
    _, _, (images, labels) = trained
    run, source = open_run(image_dir, "train.batch_size=8", "train.seed=1")
    others, other_labels = train_batches(run, source, 12)
    assert np.any(other_labels != labels)
    rows = {image.tobytes() for image in images.reshape(96, -1)}
    assert len(rows) == 96 and not rows & {image.tobytes() for image in others.reshape(96, -1)}


def test_an_image_is_augmented_differently_in_every_epoch(tmp_path):
    """Each class has one image, so the label identifies it."""
    rng = np.random.default_rng(0)
    for i in range(6):
        (tmp_path / "train" / f"class{i}").mkdir(parents=True)
        PIL.Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f"train/class{i}/image.png")
    run, source = open_run(tmp_path / "train", "train.batch_size=6")
    images, labels = train_batches(run, source, 5)
    assert np.all(np.sort(labels) == np.arange(6))
    for label in range(6):
        assert len({images[epoch][labels[epoch] == label].tobytes() for epoch in range(5)}) == 5


# ---------------------------------------------------------------------------------------------- broken images


def broken_contents():
    """Return {file name: content of a broken image}: None for a missing file, "folder" for a folder of that name."""
    noise = np.random.default_rng(1).bytes(500)
    pixels = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    jpeg, png, gif = (encode(pixels, kind) for kind in ("JPEG", "PNG", "GIF"))
    return {
        "empty.jpg": b"",
        "header_cut.jpg": jpeg[:200],
        "cut.jpg": jpeg[:700],  # within the first row of blocks; crops before the cut can be decoded
        "signature_then_noise.jpg": b"\xff\xd8\xff" + noise,
        "text.jpg": b"This is not an image.\n",
        "noise.png": noise,
        "half.png": png[: len(png) // 2],
        "signature_then_noise.png": png[:8] + noise,
        "damaged.png": png[:300] + bytes([png[300] ^ 255]) + png[301:],
        "header_cut.bmp": encode(pixels, "BMP")[:30],
        "header_cut.gif": gif[:12],
        "gone.png": None,
        "replaced.png": "folder",
    }


def write_broken(folder, contents):
    """Replace files in a folder by broken ones."""
    for name, content in contents.items():
        path = folder / name
        path.unlink()
        if content == "folder":
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)


def run_within(seconds, function):
    """Return the result or the exception of a function. Fail instead of hanging if it does not return."""
    result = []

    def call():
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, f"still running after {seconds} seconds"
    return result[0]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Return config, source, ids of the broken images, and the batches from before they were broken."""
    root = tmp_path_factory.mktemp("broken") / "train"
    rng = np.random.default_rng(0)
    names = (
        [f"a/{i}.png" for i in range(14)]
        + [f"b/{i}.jpg" for i in range(13)]
        + [f"a/{name}" for name in broken_contents()]
    )
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        (root / name).write_bytes(encode(pixels, "PNG"))  # Decoders ignore the suffix.
    run, source = open_run(root, "train.batch_size=10", "eval.batch_size=7")
    assert source.size == 40
    before = train_batches(run, source, 8)
    evaluated = list(eval_dataset(source, run, Failures(source), CONTEXT).as_numpy_iterator())
    write_broken(root / "a", broken_contents())
    numbers = [i for i in range(40) if source.describe(i).rpartition("/")[2] in broken_contents()]
    return run, source, numbers, before, evaluated


@pytest.mark.slow
def test_training_continues_after_broken_images(broken):
    """Good images are bit for bit the same. A broken one is replaced by the first good one of its batch."""
    run, source, numbers, before, _ = broken
    failures = Failures(source)
    assert failures.names() == []
    failures.check(0)
    images, labels = run_within(120, lambda: train_batches(run, source, 8, failures=failures))
    order = Order(batch=10, shuffle=True, seed=run.train.seed)
    ids = np.array([int(id_) for _, id_, _ in source.stream(order).take(80)]).reshape(8, 10)
    good = ~np.isin(ids, numbers)
    assert np.count_nonzero(~good) == 2 * len(numbers) == 2 * len(broken_contents())
    for step in range(8):
        rows = np.where(good[step], np.arange(10), np.argmax(good[step]))
        np.testing.assert_array_equal(images[step], before[0][step][rows])
        np.testing.assert_array_equal(labels[step], before[1][step][rows])
    again = train_batches(run, source, 3, first_step=5)
    assert_same(again, (images[5:], labels[5:]))

    names = failures.names()
    assert names == sorted(source.describe(i) for i in numbers)
    failures.check(len(numbers) / 40)
    with pytest.raises(UserError) as caught:
        failures.check(0.3)
    message = str(caught.value)
    assert message.startswith("13 of 40 images cannot be read or decoded, more than data.max_bad_fraction=0.3 allows: ")
    assert all(f"{name}: " in message for name in names[:10]) and message.endswith("; and 3 more.")


def test_broken_images_have_weight_zero_in_evaluation(broken):
    run, source, numbers, _, before = broken
    failures = Failures(source)
    batches = run_within(120, lambda: list(eval_dataset(source, run, failures, CONTEXT).as_numpy_iterator()))
    images, _, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    sound = np.concatenate([images for images, _, _ in before])
    good = ~np.isin(np.arange(40), numbers)
    assert len(images) == 42
    np.testing.assert_array_equal(weights, [*good, 0, 0])
    np.testing.assert_array_equal(images[:40][good], sound[:40][good])
    assert np.all(images[:40][~good] == 0)
    assert failures.names() == sorted(source.describe(i) for i in numbers)
    with pytest.raises(UserError, match="13 of 40 images cannot be read"):
        failures.check(0)


def test_truncated_jpeg_fails_if_the_crop_needs_the_missing_part(photo):
    encoded = encode(photo, "JPEG")
    half = tf.constant(encoded[: len(encoded) // 2])
    sound = decode_window(tf.constant(encoded), 3, lambda _: tf.constant([0, 100, 50, 300]))
    np.testing.assert_array_equal(decode_window(half, 3, lambda _: tf.constant([0, 100, 50, 300])), sound)
    with pytest.raises(tf.errors.InvalidArgumentError):
        eval_image(half, load_config("data.crop_padding=0"))


def test_a_batch_of_broken_images_is_an_error(tmp_path):
    for i in range(12):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    run, source = open_run(tmp_path / "train", "train.batch_size=6")
    failures = Failures(source)
    error = run_within(60, lambda: train_batches(run, source, 1, failures=failures))
    assert isinstance(error, tf.errors.InvalidArgumentError) and "no image of a batch can be read" in error.message
    assert len(failures.names()) >= 6
    with pytest.raises(UserError, match=r"of 12 images cannot be read or decoded"):
        failures.check(run.data.max_bad_fraction)


# ------------------------------------------------------------------------------------------------ evaluation


@pytest.fixture(scope="module")
def digit_labels():
    """Return the labels of the 360 test digits in order, by scikit-learn."""
    labels = sklearn.datasets.load_digits(return_X_y=True)[1]
    return sklearn.model_selection.train_test_split(labels, test_size=360, random_state=0, stratify=labels)[1]


@pytest.fixture(scope="module")
def digits():
    return open_source(schema.DataConfig(), "test", training=False)


@pytest.mark.parametrize(
    ("batch", "hosts", "replicas"),
    [
        *((7, 1, 1), (360, 1, 1), (63, 1, 3), (360, 2, 4)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((1, 1, 1), (64, 1, 1), (500, 1, 1), (64, 1, 2), (9, 3, 3), (500, 2, 2))
        ),
    ],
)
def test_evaluation_counts_every_image_once(digits, digit_labels, batch, hosts, replicas):
    run = load_config(f"eval.batch_size={batch}", recipe="digits")
    steps = eval_steps(digits, run)
    assert steps == -(-360 // batch)
    hosts_rows = []
    for context in contexts(hosts, replicas):
        batches = list(eval_dataset(digits, run, Failures(digits), context).as_numpy_iterator())
        assert len(batches) == steps * replicas // hosts  # All hosts have the same number, so none waits for another.
        assert {images.shape for images, _, _ in batches} == {(batch // replicas, 8, 8, 3)}
        hosts_rows.append([np.stack(parts).reshape(steps, batch // hosts, -1) for parts in zip(*batches, strict=True)])
    images, labels, weights = (np.concatenate(parts, axis=1) for parts in zip(*hosts_rows, strict=True))
    images, labels, weights = images.reshape(steps * batch, -1), labels.ravel(), weights.ravel()
    assert images.dtype == weights.dtype == np.float32 and labels.dtype == np.int32
    np.testing.assert_array_equal(weights, np.arange(steps * batch) < 360)
    np.testing.assert_array_equal(labels[:360], digit_labels)
    pixels = sklearn.datasets.load_digits().images
    split = sklearn.model_selection.train_test_split(
        pixels, test_size=360, random_state=0, stratify=sklearn.datasets.load_digits().target
    )[1]
    expected = np.repeat(np.round(split * 255 / 16).reshape(360, 64), 3, axis=1)
    np.testing.assert_allclose(images[:360], expected, atol=1e-3)


def test_batch_size_that_is_not_divisible_by_replicas():
    run = load_config("train.batch_size=30", "eval.batch_size=32")
    check_batches(run, 2)
    with pytest.raises(
        UserError,
        match="train.batch_size=30 is not divisible by 4 replicas. Use a multiple of 4, .* 28 or 32.",
    ):
        check_batches(run, 4)
    run = load_config("train.batch_size=32", "eval.batch_size=30")
    with pytest.raises(UserError, match="eval.batch_size=30 is not divisible by 4 replicas"):
        check_batches(run, 4)

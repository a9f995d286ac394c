"""Compare each way to bring an image to a size with formulas, in TensorFlow and in Pillow and NumPy."""

import tracemalloc

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from crops import compute_crop, decode_whole, make_picture, save

from efficientnet_tf.config import load
from efficientnet_tf.config.preprocessing import Preprocessing
from efficientnet_tf.data.decode import decode_evaluation
from efficientnet_tf.data.load_image import load_image_by_pillow, load_image_by_tensorflow
from efficientnet_tf.data.pipeline import eval_image, train_image

BACKGROUND = (9, 200, 30)
SHAPES = [(77, 120), (120, 77), (3, 200), (41, 1), (1, 60), (64, 64), (2, 3)]


@pytest.mark.parametrize("load_image", [load_image_by_tensorflow, load_image_by_pillow])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
def test_pixels_are_those_of_the_formulas(crop, interpolation, load_image):
    for shape in SHAPES:
        for size in ((32, 32), (33, 33), (96, 96), (24, 41), (41, 24)):
            encoded = save(make_picture("RGB", shape))
            pixels = load_image(encoded, Preprocessing(size, 3, crop, 0, interpolation, BACKGROUND))
            assert pixels.shape == (*size, 3) and pixels.dtype == np.float32
            expected = compute_crop(decode_whole(encoded, BACKGROUND), size, crop, interpolation, BACKGROUND)
            # TensorFlow tabulates the cubic kernel in steps of 1/1024 pixel.
            limit = 0.4 if interpolation == "bicubic" else 0.02
            np.testing.assert_allclose(pixels, expected, atol=limit, err_msg=f"{shape} to {size}")


def turned(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


FILES = {
    "png": save(make_picture("RGB", (77, 120))),
    "png transparent": save(make_picture("RGBA", (77, 120))),
    "png gray": save(make_picture("L", (120, 77))),
    "png turned": save(make_picture("RGB", (77, 120)), exif=turned(6)),
    "gif": save(make_picture("P", (77, 120)), "GIF"),
    "jpeg": save(make_picture("RGB", (77, 120)), "JPEG", subsampling=0),
    "jpeg with color at half the size": save(make_picture("RGB", (77, 120)), "JPEG", subsampling=2),
    "jpeg gray": save(make_picture("L", (120, 77)), "JPEG"),
    "jpeg turned": save(make_picture("RGB", (77, 120)), "JPEG", subsampling=0, exif=turned(5)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("crop", ["squash", "pad"])
def test_whole_images_of_every_kind_are_the_same_with_and_without_tensorflow(crop, name):
    """Unlike those of the center crop, whose edges differ in a JPEG with color at half the size."""
    whole = decode_whole(FILES[name], BACKGROUND)
    for size, interpolation in (((40, 40), "bicubic"), ((97, 61), "bilinear")):
        preprocessing = Preprocessing(size, 3, crop, 0, interpolation, BACKGROUND)
        pixels = load_image_by_tensorflow(FILES[name], preprocessing)
        np.testing.assert_allclose(load_image_by_pillow(FILES[name], preprocessing), pixels, atol=1e-3)
        expected = compute_crop(whole, size, crop, interpolation, BACKGROUND)
        np.testing.assert_allclose(pixels, expected, atol=1.5 if "jpeg" in name else 0.4)


def test_the_border_of_a_gray_image_has_the_level_of_transparent_pixels():
    clear = PIL.Image.new("RGBA", (30, 20), (1, 2, 3, 0))
    level = np.dot(BACKGROUND, [0.299, 0.587, 0.114])
    for background, expected in ((BACKGROUND, level), ((255,), 255), ((77,), 77)):
        preprocessing = Preprocessing((32, 32), 1, "pad", background=background)
        for load_image in (load_image_by_tensorflow, load_image_by_pillow):
            pixels = load_image(save(clear), preprocessing)
            assert pixels.shape == (32, 32, 1) and np.ptp(pixels) < 1e-3
            assert pixels[0, 0, 0] == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("size", [(48, 48), (36, 56)])
def test_pixels_in_a_graph_and_of_a_config_are_the_same(size, crop):
    encoded = FILES["png transparent"]
    run = load.load_config(
        "b0",
        "folder",
        ["data.dir=none", f"data.image_size={[*size]}", f"data.crop={crop}", "data.background=[9, 200, 30]"],
    )
    padding = round(min(size) / 7) if crop == "center" else 0
    expected = load_image_by_pillow(encoded, Preprocessing(size, 3, crop, padding, "bicubic", BACKGROUND))
    assert run.preprocessing == Preprocessing(size, 3, crop, padding, "bicubic", BACKGROUND)
    np.testing.assert_allclose(eval_image(tf.constant(encoded), run), expected, atol=1e-3)
    in_graph = tf.function(lambda file: decode_evaluation(file, run.preprocessing, portable=True), autograph=False)
    np.testing.assert_allclose(in_graph(tf.constant(encoded)), expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_long_images_take_little_memory(interpolation, shape):
    """One axis after the other, all of the image would be resized to 224 x 1,000,000 pixels: 2.7 GB."""
    encoded = save(PIL.Image.fromarray(np.full((*shape, 3), 99, np.uint8)))
    for crop in ("squash", "pad"):
        tracemalloc.start()
        pixels = load_image_by_pillow(encoded, Preprocessing((224, 224), 3, crop, 0, interpolation, (99,)))
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        np.testing.assert_allclose(pixels, 99, atol=1e-3)
        assert peak_bytes < 100e6


@pytest.mark.parametrize("crop", ["squash", "pad"])
def test_training_uses_random_crops_in_every_mode(crop):
    seeds = [tf.constant([0, number], tf.int64) for number in range(3)]
    options = ["data.dir=none", "data.image_size=24"]
    center, other = (load.load_config("b0", "folder", [*options, f"data.crop={c}"]) for c in ("center", crop))
    for seed in seeds:
        image = train_image(tf.constant(FILES["png"]), seed, other)
        np.testing.assert_array_equal(image, train_image(tf.constant(FILES["png"]), seed, center))


@pytest.mark.parametrize("crop", ["squash", "pad"])
def test_an_image_without_a_possible_random_crop_gives_its_largest_central_square(crop):
    strip = np.asarray(make_picture("RGB", (20, 400)))
    options = ["data.dir=none", "data.image_size=20", "augment.crop_area=[0.5, 1.0]", "augment.flip=false"]
    run = load.load_config("b0", "folder", [*options, f"data.crop={crop}"])
    image = train_image(tf.constant(save(PIL.Image.fromarray(strip))), tf.constant([0, 0], tf.int64), run)
    np.testing.assert_array_equal(image, strip[:, 190:210])

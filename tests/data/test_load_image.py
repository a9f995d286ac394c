"""Test that `load_image` returns the pixels of evaluation, for paths and bytes."""

import io
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from real_pictures import find_photos

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import load_config
from efficientnet_tf.config.preprocessing import Preprocessing
from efficientnet_tf.data import decode as decode_module
from efficientnet_tf.data.load_image import load_image, load_image_by_pillow
from efficientnet_tf.data.pipeline import eval_image


def encode(shape=(60, 90, 3), kind="JPEG"):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 32},
        {"image_size": 24, "channels": 1},
        {"image_size": 24, "crop_padding": 0, "interpolation": "bilinear"},
        {"image_size": 24, "crop": "squash"},
        {"image_size": 24, "crop": "pad", "channels": 1},
    ],
)
def test_pixels_are_those_of_evaluation(tmp_path, settings):
    encoded = encode()
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded)
    config = load_config(
        "b0",
        "folder",
        ["data.dir=none", *(f"data.{k}={v}" for k, v in settings.items())]
        + (["model.mean=[128.0]", "model.std=[64.0]"] if settings.get("channels") == 1 else []),
    )
    expected = eval_image(tf.constant(encoded), config).numpy()
    for source in (encoded, path, str(path)):
        pixels = load_image(source, **settings)
        assert isinstance(pixels, np.ndarray) and pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, expected)


def test_default_is_the_input_of_b0():
    assert load_image(encode()).shape == (224, 224, 3)


def test_decoding_is_traced_once_per_setting(monkeypatch):
    traced = []

    def decode(encoded, preprocessing):
        traced.append(preprocessing)
        return tf.zeros([8, 8, 3])

    monkeypatch.setattr(decode_module, "decode_evaluation", decode)
    encoded = encode(kind="PNG")
    for _ in range(20):
        for size in (11, 12):
            load_image(encoded, size)
    # The first eight are decoded without a graph, because tracing takes longer.
    for size in (11, 12):
        assert traced.count(Preprocessing((size, size), crop_padding=2)) == 8 + 1


def test_images_are_the_same_with_and_without_a_graph():
    for kind in ("JPEG", "PNG"):
        encoded = encode(kind=kind)
        images = [load_image(encoded, 23) for _ in range(10)]
        assert all((image == images[0]).all() for image in images)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"missing.jpg: no such file or folder\.$"):
        load_image(tmp_path / "missing.jpg")
    with pytest.raises(UserError, match=f"^{tmp_path}: this is a folder, not a file"):
        load_image(str(tmp_path))
    path = pathlib.Path(tmp_path / "text.jpg")
    path.write_text("This is not an image.")
    with pytest.raises(UserError, match="text.jpg cannot be decoded: this is a text file, not an image.$") as caught:
        load_image(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^The image of 3 bytes cannot be decoded: the JPEG image is trunc"):
        load_image(b"\xff\xd8\xff")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size=0 is not between 1 and 8,192"),
        ({"image_size": 2**40}, "image_size=1099511627776 is not between 1 and 8,192"),
        ({"image_size": 32.5}, "image_size=32.5 is not a whole number"),
        ({"background": [0, 1]}, "is not a list of one or three levels"),
        ({"background": 255}, "is not a list of one or three levels"),
        ({"background": [256]}, "is not a list of one or three levels"),
        ({"channels": 2}, "channels=2 is not supported. Use 3 for color, 1 for gray, or the number of channels of an"),
        ({"crop_padding": -1}, "crop_padding=-1 is negative"),
        ({"crop": "skwash"}, "crop='skwash' is not one of center, squash, pad. Did you mean 'squash'?"),
        ({"crop": "squash", "crop_padding": 0}, "crop_padding=0 is only for crop='center', received crop='squash'"),
        ({"interpolation": "bicubik"}, "interpolation='bicubik' is not one of .* Did you mean 'bicubic'?"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(UserError, match=message):
        load_image(encode(), **arguments)


@pytest.mark.parametrize("source", [None, 3, ["photo.jpg"], np.zeros([8, 8, 3])])
def test_sources_of_other_types(source):
    with pytest.raises(UserError, match="Pass the path of an image file, or its content as bytes"):
        load_image(source)


@pytest.mark.parametrize(("path", "message"), [("", "is empty"), ("a\0b", "null character"), ("s3://a/b.jpg", "s3://")])
def test_paths_that_cannot_be(path, message):
    with pytest.raises(UserError, match=message):
        load_image(path)


def test_pipes_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(UserError, match="x.jpg: this is a FIFO, not a file"):
        load_image(tmp_path / "x.jpg")


def test_other_types_of_bytes():
    encoded = encode()
    for source in (bytearray(encoded), memoryview(encoded)):
        np.testing.assert_array_equal(load_image(source, 16), load_image(encoded, 16))


def test_transparent_pixels_have_the_color_of_the_background():
    clear = encode((8, 8, 4), "PNG")
    image = PIL.Image.open(io.BytesIO(clear))
    for background in ([255], [0], [10, 200, 30]):
        color = tuple(background) * (3 // len(background))
        flat = PIL.Image.alpha_composite(PIL.Image.new("RGBA", (8, 8), (*color, 255)), image).convert("RGB")
        pixels = load_image(clear, 8, crop_padding=0, background=background)
        np.testing.assert_allclose(pixels, np.asarray(flat), atol=1e-3)


# ------------------------------------------------------------------------------------------------- without TensorFlow

COLOR = {"channels": 3, "crop_padding": 32, "interpolation": "bicubic", "background": (9, 200, 30)}
GRAY = {"channels": 1, "crop_padding": 3, "interpolation": "bilinear", "background": (255,)}


def picture(mode, shape=(77, 120)):
    """Return a smooth picture with some noise. In a picture of noise alone, a shift would not be seen."""
    rng = np.random.default_rng(1)
    waves = np.sin(np.arange(shape[0])[:, None] / 9 + np.arange(shape[1]) / 5)[..., None] * [90, -80, 70, 120] + 128
    pixels = np.clip(waves + rng.normal(0, 8, waves.shape), 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def save(mode, kind, **arguments):
    buffer = io.BytesIO()
    picture(mode).save(buffer, kind, **arguments)
    return buffer.getvalue()


def turned(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


EXACT = {
    "png": save("RGB", "PNG"),
    "png gray": save("L", "PNG"),
    "png transparent": save("RGBA", "PNG"),
    "png palette": save("P", "PNG"),
    "png turned": save("RGB", "PNG", exif=turned(5)),
    "bmp": save("RGB", "BMP"),
    "gif": save("P", "GIF"),
    "webp": save("RGB", "WEBP", lossless=True),
    "tiff": save("RGB", "TIFF"),
    "jpeg gray": save("L", "JPEG"),
    "jpeg with color at full size": save("RGB", "JPEG", subsampling=0),
    "jpeg turned": save("RGB", "JPEG", subsampling=0, exif=turned(8)),
}


@pytest.mark.parametrize("name", EXACT)
def test_pixels_without_tensorflow_are_equal(name):
    for size, settings in ((40, COLOR), (96, GRAY)):
        with_tensorflow = load_image(EXACT[name], size, **settings)
        pixels = load_image_by_pillow(EXACT[name], Preprocessing((size, size), **settings))
        assert pixels.dtype == np.float32 and np.ptp(pixels) > 30
        # Equal on x86. Processors that multiply and add in one step round differently.
        np.testing.assert_allclose(pixels, with_tensorflow, atol=1e-3)


@pytest.mark.parametrize("name", ["china", "flower"])
def test_only_the_outermost_columns_of_a_jpeg_with_reduced_color_differ_without_tensorflow(name):
    buffer = io.BytesIO()
    PIL.Image.open(find_photos()[name]).save(buffer, "JPEG", subsampling=2, quality=90)
    # A crop of 395 pixels. Where images shrink, bicubic interpolation may not read the outermost column at all.
    with_tensorflow = load_image(buffer.getvalue(), 400, **COLOR)
    difference = np.abs(load_image_by_pillow(buffer.getvalue(), Preprocessing((400, 400), **COLOR)) - with_tensorflow)
    assert difference[:, 3:-3].max() < 1e-3
    assert 0 < difference.max() <= 8


def test_color_of_a_cmyk_jpeg_differs_by_up_to_one_gray_level_without_tensorflow():
    encoded = save("CMYK", "JPEG", subsampling=0)
    difference = load_image_by_pillow(encoded, Preprocessing((40, 40), **COLOR)) - load_image(encoded, 40, **COLOR)
    assert np.abs(difference).max() <= 1.6  # Bicubic interpolation can add to it.


@pytest.mark.parametrize("encoded", [b"", b"This is not an image.", EXACT["png"][:500], EXACT["jpeg gray"][:300]])
def test_the_cause_of_a_failure_is_the_same_without_tensorflow(encoded):
    with pytest.raises(UserError) as expected:
        load_image(encoded, 40, **COLOR)
    with pytest.raises(UserError) as caught:
        load_image_by_pillow(encoded, Preprocessing((40, 40), **COLOR))
    assert str(caught.value) == str(expected.value)

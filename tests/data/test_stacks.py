"""Arrays of NumPy, and images of 4 to 16 channels, compared with NumPy, tifffile and Pillow."""

import io

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tifffile

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.preprocessing import Preprocessing
from efficientnet_tf.config.schema import DataConfig
from efficientnet_tf.data.decode import decode_window
from efficientnet_tf.data.load_image import load_image, load_image_by_pillow, load_image_by_tensorflow
from efficientnet_tf.data.stacks import decode_array, decode_stack

RNG = np.random.default_rng(0)
FIVE = RNG.integers(0, 256, (12, 17, 5), dtype=np.uint8)
DEEP = RNG.integers(0, 2**16, (12, 17, 5), dtype=np.uint16)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack", **options)
    return file.getvalue()


def picture(kind, mode):
    file = io.BytesIO()
    array = FIVE[..., :4] if mode == "RGBA" else FIVE[..., :3]
    PIL.Image.fromarray(np.ascontiguousarray(array), mode).save(
        file, kind, **({"lossless": True} if kind == "webp" else {})
    )
    return file.getvalue()


FILES = {
    "npy": (npy(FIVE), FIVE),
    "npy by columns": (npy(np.asfortranarray(FIVE)), FIVE),
    "npy of 16 bits": (npy(DEEP), DEEP >> 8),
    "npy with the other byte order": (npy(DEEP.astype(">u2")), DEEP >> 8),
    "tiff of pages": (tiff(FIVE.transpose(2, 0, 1)), FIVE),
    "tiff of samples": (tiff(FIVE, planarconfig="contig"), FIVE),
    "tiff of planes": (tiff(FIVE.transpose(2, 0, 1), planarconfig="separate"), FIVE),
    "tiff of ImageJ": (tiff(FIVE.transpose(2, 0, 1), imagej=True), FIVE),
    "tiff, compressed": (tiff(FIVE, planarconfig="contig", compression="zlib"), FIVE),
    "tiff of 16 bits": (tiff(DEEP, planarconfig="contig"), DEEP >> 8),
    "tiff that ends with zeros": (tiff(np.zeros_like(FIVE), planarconfig="contig"), np.zeros_like(FIVE)),
    "npy that ends with zeros": (npy(np.zeros_like(FIVE)), np.zeros_like(FIVE)),
    "tiff of 16 channels": (tiff(np.tile(FIVE, 4)[..., :16], planarconfig="contig"), np.tile(FIVE, 4)[..., :16]),
    "png with alpha": (picture("png", "RGBA"), FIVE[..., :4]),
    "webp with alpha": (picture("webp", "RGBA"), FIVE[..., :4]),
}


@pytest.mark.parametrize("name", [*FILES])
def test_pixels_are_those_that_were_written(name):
    encoded, expected = FILES[name]
    if name == "webp with alpha":  # A lossless WebP does not keep colors behind full transparency.
        expected = np.asarray(PIL.Image.open(io.BytesIO(encoded)))
    channels = expected.shape[2]
    np.testing.assert_array_equal(decode_stack(encoded, channels), expected)
    whole = load_image_by_tensorflow(encoded, Preprocessing((12, 12), channels, "squash", interpolation="bilinear"))
    assert whole.shape == (12, 12, channels)
    window = decode_window(tf.constant(encoded), channels, lambda shape: tf.constant([3, 5, 7, 9]))
    np.testing.assert_array_equal(window, expected[3:10, 5:14])


@pytest.mark.parametrize("array", [FIVE[..., 0], FIVE[..., :1], FIVE[..., :3]])
def test_arrays_are_also_gray_and_color_images(array):
    color = np.broadcast_to(array if array.ndim == 3 else array[..., None], [12, 17, 3])
    options = {"crop": "squash", "image_size": 20}
    file = io.BytesIO()
    PIL.Image.fromarray(color.copy()).save(file, "png")
    for channels in (1, 3):
        expected = load_image(file.getvalue(), channels=channels, **options)
        np.testing.assert_array_equal(load_image(npy(array), channels=channels, **options), expected)


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
def test_evaluation_with_and_without_tensorflow(crop):
    for name in ("npy", "tiff of samples"):
        preprocessing = Preprocessing((11, 11), 5, crop, 2, "bicubic", (40,))
        with_tensorflow = load_image_by_tensorflow(FILES[name][0], preprocessing)
        np.testing.assert_allclose(load_image_by_pillow(FILES[name][0], preprocessing), with_tensorflow, atol=1e-4)
        for channel in range(5):  # as a gray image
            alone = load_image_by_tensorflow(npy(FIVE[..., channel]), preprocessing._replace(channels=1))
            np.testing.assert_allclose(with_tensorflow[..., channel : channel + 1], alone, atol=1.01)


def header(form, shape):
    text = f"{{'descr': '{form}', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


BROKEN = {
    "Python objects": (header("|O", (2, 2, 5)), "values of the type '|O'"),
    "floats": (npy(FIVE.astype(float)), "values of the type '<f8', and uint8 or uint16 are needed"),
    "a vector": (npy(FIVE.ravel()), "the shape [1020]"),
    "four axes": (npy(FIVE[None]), "the shape [1, 12, 17, 5]"),
    "channels first": (npy(FIVE.transpose(2, 0, 1)), "with up to 16 channels are needed"),
    "no rows": (npy(FIVE[:0]), "the shape [0, 17, 5]"),
    "a bomb": (header("|u1", (100000, 100000, 5)), "100,000 x 100,000 pixels"),
    "cut off": (npy(FIVE)[:-1], "declares an array [12, 17, 5] of uint8, but has 1,019 bytes"),
    "too long": (npy(FIVE) + b"x", "but has 1,021 bytes"),
    "a broken header": (header("|u1", "(2, 2"), "the NumPy file is damaged: its header does not describe"),
    "half a header": (npy(FIVE)[:20], "the NumPy file is damaged: its header does not describe"),
    "other channels": (npy(FIVE[..., :4]), "the NumPy image has 4 channels, and data.channels=5 are needed"),
    "a cut TIFF": (tiff(FIVE, planarconfig="contig")[:300], "the TIFF image"),
    "a TIFF of floats": (tiff(FIVE.astype("float32"), planarconfig="contig"), "values of the type '<f4'"),
    "a TIFF of time and channels": (tiff(np.stack([FIVE, FIVE]), planarconfig="contig"), "has the axes"),
    "a gray TIFF": (tiff(FIVE[..., 0]), "the TIFF image has 1 channels"),
    "a photo": (picture("jpeg", "RGB"), "data.channels=5 needs TIFF or .npy files, and this is a JPEG image"),
    "alpha": (picture("png", "RGBA"), "data.channels=5 needs TIFF or .npy files, and this is a PNG image"),
    "text": (b"hello", "this is a text file"),
    "nothing": (b"", "the file is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*BROKEN])
def test_what_is_no_such_image(name):
    encoded, message = BROKEN[name]
    for load in (load_image_by_tensorflow, load_image_by_pillow):
        with pytest.raises(UserError) as caught:
            load(encoded, Preprocessing((8, 8), 5))
        assert message in str(caught.value)


@hypothesis.given(st.integers(0, len(npy(FIVE)) - 1), st.integers(0, 255), st.booleans())
def test_damage_is_a_sentence_or_other_pixels(place, value, is_cut):
    for whole in (npy(FIVE), tiff(FIVE, planarconfig="contig")):
        damaged = whole[:place] if is_cut else whole[:place] + bytes([value]) + whole[place + 1 :]
        try:
            assert decode_stack(damaged, 5).dtype == np.uint8
        except UserError as error:
            assert len(str(error)) < 500


def test_a_color_image_of_other_channels():
    for encoded in (npy(FIVE), tiff(FIVE, planarconfig="contig")):
        for load in (load_image_by_tensorflow, load_image_by_pillow):
            with pytest.raises(UserError, match=r"has 5 channels, and 1 or 3 are needed\. Set data\.channels=5"):
                load(encoded, Preprocessing((8, 8)))
    with pytest.raises(UserError, match="the TIFF image is damaged"):
        load_image(tiff(FIVE, planarconfig="contig")[:-30])
    assert decode_array(npy(FIVE)).shape == (12, 17, 5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": 2}, "data.channels=2 is not supported"),
        ({"channels": 5, "source": "digits"}, "data.channels=5 needs data.source=folder or data.source=table"),
        ({"channels": 5, "source": "folder", "background": (1, 2, 3)}, "not for data.channels=5"),
        ({"channels": 5, "source": "folder", "service": "grpc://a:1"}, "not for data.channels=5"),
    ],
)
def test_settings_that_contradict_each_other(keys, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**keys).check()

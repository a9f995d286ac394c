"""Compare `decode_window` with Pillow for every format and orientation, and test damaged files."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from efficientnet_tf.data.decode import decode_window
from efficientnet_tf.data.source import map_with_fallback

ORIENTATION = 0x0112
HEIGHT, WIDTH = 40, 56


def encode(image, kind, **arguments):
    file = io.BytesIO()
    image.save(file, kind, **arguments)
    return file.getvalue()


def reference(encoded, background=(255, 255, 255)):
    """Return the upright RGB pixels that Pillow decodes, on a background."""
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")).astype(int)
    flat = PIL.Image.new("RGBA", image.size, (*background, 255))
    return np.asarray(PIL.Image.alpha_composite(flat, image.convert("RGBA")).convert("RGB")).astype(int)


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)])
def _window(encoded, window):
    # A window without a height stands for the whole image.
    return decode_window(
        encoded, 3, lambda shape: tf.where(window[2] > 0, window, tf.stack([0, 0, shape[0], shape[1]]))
    )


def decode(encoded, window=(0, 0, 0, 0)):
    return _window(encoded, tf.constant(window, tf.int32)).numpy().astype(int)


def assert_close(one, other, tolerance):
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= tolerance


@pytest.fixture(scope="module")
def picture():
    """Return a smooth image without symmetry, on which decoders agree except for rounding."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)


# ------------------------------------------------------------------------------------------------------- Exif


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def exif(order, orientation, entries_before=3, offset=8):
    """Return an Exif segment as the standard defines it: TIFF header, one directory, short values."""
    mark = {"<": b"II", ">": b"MM"}[order]
    other = [struct.pack(order + "HHIHH", 0x0100 + i, 3, 1, 6 - i, 0) for i in range(entries_before)]
    entry = struct.pack(order + "HHIHH", ORIENTATION, 3, 1, orientation, 0)
    directory = struct.pack(order + "H", entries_before + 1) + b"".join([*other, entry]) + bytes(4)
    return segment(0xE1, b"Exif\0\0" + mark + struct.pack(order + "HI", 42, offset) + bytes(offset - 8) + directory)


def with_segments(jpeg, *segments, keep_jfif=True):
    assert jpeg[2:4] == b"\xff\xe0"
    end = 4 + struct.unpack(">H", jpeg[4:6])[0]
    return jpeg[:2] + (jpeg[2:end] if keep_jfif else b"") + b"".join(segments) + jpeg[end:]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_every_orientation_matches_pillow(picture, order, orientation):
    plain = encode(picture, "JPEG", quality=95)
    comment, xmp = segment(0xFE, b"a comment"), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    tag = exif(order, orientation)
    encoded = [
        with_segments(plain, tag, keep_jfif=False),
        with_segments(plain, tag),
        with_segments(plain, comment, tag),
        with_segments(plain, xmp, tag, keep_jfif=False),
        with_segments(plain, exif(order, orientation, entries_before=0, offset=5000)),
    ]
    for jpeg in encoded:
        expected = reference(jpeg)
        assert expected.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
        assert_close(decode(jpeg), expected, 0)
    if orientation > 1:
        wrong = reference(plain)
        assert wrong.shape != expected.shape or np.abs(wrong - expected).max() > 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_pillow_writes_it_with_a_long_color_profile(picture, orientation):
    tags = PIL.Image.Exif()
    tags[ORIENTATION] = orientation
    jpeg = encode(picture, "JPEG", quality=95, exif=tags, icc_profile=bytes(150_000))
    assert_close(decode(jpeg), reference(jpeg), 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_window_is_cut_from_the_upright_image(picture, orientation):
    jpeg = with_segments(encode(picture, "JPEG", quality=95, subsampling=0), exif("<", orientation))
    whole = decode(jpeg)
    for y, x, height, width in [(0, 0, 1, 1), (3, 5, 20, 11), (8, 0, 32, 40), (0, 17, 9, 23), (39, 39, 1, 1)]:
        np.testing.assert_array_equal(
            decode(jpeg, (y, x, height, width)), whole[y : y + height, x : x + width], err_msg=f"{y} {x}"
        )


@pytest.mark.parametrize(
    "tag",
    [
        pytest.param(exif("<", 0), id="orientation 0"),
        pytest.param(exif(">", 9), id="orientation 9"),
        pytest.param(exif("<", 65535), id="orientation 65535"),
        pytest.param(segment(0xE1, b"Exif\0\0"), id="nothing after the signature"),
        pytest.param(segment(0xE1, b"Exif\0\0II"), id="only a byte order"),
        pytest.param(segment(0xE1, b"Exif\0\0II*\0" + b"\xff" * 4), id="directory far after the end"),
        pytest.param(segment(0xE1, b"Exif\0\0MM\0*" + b"\xff" * 4), id="directory far after the end, MM"),
        pytest.param(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + b"\xff\xff"), id="65535 entries, all missing"),
        pytest.param(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 40), id="65535 invalid entries"),
        pytest.param(segment(0xE1, b"Exif\0\0II*\0\x08\0\x01\0" + exif("<", 6)[18:]), id="directory at 65,544"),
    ],
)
def test_invalid_exif_data_are_ignored(picture, tag):
    plain = encode(picture, "JPEG")
    np.testing.assert_array_equal(decode(with_segments(plain, tag)), decode(plain))


def test_jpeg_without_a_segment_before_its_tables(picture):
    plain = encode(picture, "JPEG")
    np.testing.assert_array_equal(decode(with_segments(plain, keep_jfif=False)), decode(plain))


# ---------------------------------------------------------------------------------------------------- formats


def ycck(cmyk_jpeg):
    """Relabel an Adobe CMYK JPEG as YCCK. The same numbers then describe a different image."""
    at = cmyk_jpeg.index(b"Adobe") + 11
    assert cmyk_jpeg[at] == 0
    return cmyk_jpeg[:at] + b"\2" + cmyk_jpeg[at + 1 :]


# All agree exactly, except for rounding from CMYK to RGB.
@pytest.mark.parametrize(
    ("mode", "kind", "arguments", "tolerance"),
    [
        ("RGB", "JPEG", {}, 0),
        ("RGB", "JPEG", {"progressive": True}, 0),
        ("RGB", "JPEG", {"subsampling": 0, "quality": 100}, 0),
        ("RGB", "JPEG", {"subsampling": 1, "optimize": True}, 0),
        ("RGB", "JPEG", {"restart_marker_blocks": 1}, 0),
        ("L", "JPEG", {}, 0),
        ("CMYK", "JPEG", {}, 1),
        ("RGB", "PNG", {}, 0),
        ("P", "PNG", {}, 0),
        ("RGBA", "PNG", {}, 0),
        ("LA", "PNG", {}, 0),
        ("L", "PNG", {}, 0),
        ("1", "PNG", {}, 0),
        ("L", "PNG", {"bits": 4}, 0),
        ("P", "PNG", {"bits": 2}, 0),
        ("P", "GIF", {}, 0),
        ("L", "GIF", {"interlace": True}, 0),
        ("RGB", "BMP", {}, 0),
        ("RGBA", "BMP", {}, 0),
        ("L", "BMP", {}, 0),
    ],
)
def test_pixels_match_pillow(picture, mode, kind, arguments, tolerance):
    image = picture.convert(mode)
    if mode == "P":
        image = picture.quantize(2 ** arguments.get("bits", 8))
    if mode in ("RGBA", "LA"):
        image.putalpha(PIL.Image.fromarray(np.arange(HEIGHT * WIDTH).astype(np.uint8).reshape(HEIGHT, WIDTH)))
    encoded = encode(image, kind, **arguments)
    expected = reference(encoded)
    assert np.ptp(expected) > 100
    assert_close(decode(encoded), expected, tolerance)
    window, whole = decode(encoded, (3, 5, 20, 31)), decode(encoded)[3:23, 5:36]
    # If color is stored at half the size, libjpeg smooths it less at the edges of the window.
    np.testing.assert_array_equal(window[:, 1:-1], whole[:, 1:-1])
    assert_close(window, whole, 8)


def test_ycck(picture):
    encoded = ycck(encode(picture.convert("CMYK"), "JPEG", quality=100))
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        assert image.mode == "CMYK" and image.info["adobe_transform"] == 2
    assert np.abs(reference(encoded) - reference(encode(picture.convert("CMYK"), "JPEG", quality=100))).max() > 50
    assert_close(decode(encoded), reference(encoded), 1)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels, color_type):
    """Encode uint16 [H, W, C] as a PNG with 16 bits per sample, as the standard defines it."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("channels", "color_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_sixteen_bits_keep_the_upper_eight(channels, color_type):
    pixels = np.random.default_rng(1).integers(0, 2**16, (9, 11, channels), dtype=np.uint16)
    upper = (pixels >> 8).astype(int)
    expected = np.repeat(upper[..., :1], 3, axis=2) if channels < 3 else upper[..., :3]
    if channels in (2, 4):
        alpha = upper[..., -1:]
        expected = np.round((expected * alpha + 255 * (255 - alpha)) / 255)
    np.testing.assert_array_equal(decode(png(pixels, color_type)), expected)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp(picture, lossless, mode):
    if "decode_webp" not in dir(tf.io):
        pytest.skip("this version of TensorFlow cannot read WebP")
    encoded = encode(picture.convert(mode), "WEBP", lossless=lossless)
    assert_close(decode(encoded), reference(encoded), 0 if lossless else 1)


def test_first_frame_of_an_animated_gif(picture):
    frames = [picture.convert("L").rotate(angle) for angle in (0, 90, 180)]
    encoded = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with PIL.Image.open(io.BytesIO(encoded)) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(decode(encoded), np.asarray(frames[0].convert("RGB")))


def test_bitmap_stored_from_top_to_bottom(picture):
    """It has a negative height. Pillow can read such a file, but does not write it."""
    encoded = bytearray(encode(picture, "BMP"))
    encoded[22:26] = struct.pack("<i", -HEIGHT)
    np.testing.assert_array_equal(reference(bytes(encoded)), np.asarray(picture)[::-1])
    np.testing.assert_array_equal(decode(bytes(encoded)), reference(bytes(encoded)))


def test_gray_bitmap_with_few_levels():
    """The palette has 16 levels of gray, and the pixels follow it directly."""
    levels = np.arange(16, dtype=np.uint8).repeat(4).reshape(8, 8)
    full = encode(PIL.Image.fromarray(levels), "BMP")
    palette, pixels = full[54:1078], full[1078:]
    header = bytearray(full[:54])
    header[2:6] = struct.pack("<I", 54 + 64 + len(pixels))
    header[10:14] = struct.pack("<I", 54 + 64)
    header[46:50] = struct.pack("<I", 16)
    few = bytes(header) + palette[:64] + pixels
    np.testing.assert_array_equal(reference(few)[..., 0], levels)
    np.testing.assert_array_equal(decode(few)[..., 0], levels)


# ------------------------------------------------------------------------------------------------------- fuzz


def damage(rng, encoded):
    """Return a file with a few bytes changed, a range set to 0 or 255, or truncated. Mostly the start is damaged."""
    file = bytearray(encoded)
    reach = len(file) if rng.random() < 0.4 else min(len(file), 64)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, reach))
        match rng.integers(0, 4):
            case 0:
                file[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                file[at] = int(rng.integers(0, 256))
            case 2:
                length = int(rng.integers(1, 9))
                file[at : at + length] = (b"\xff" if rng.random() < 0.5 else b"\0") * length
                file = file[: len(encoded)]
            case 3:
                reach = max(1, min(reach, int(rng.integers(1, len(file) + 1)))) if rng.random() < 0.3 else reach
    return bytes(file[: int(rng.integers(0, len(file)))] if rng.random() < 0.3 else file)


def test_damaged_files_are_decoded_or_fail_without_a_crash(picture):
    """1,500 files are read in one pass as in the pipelines. An intact file of each kind is decoded correctly."""
    rng = np.random.default_rng(0)
    small = picture.resize((14, 10))
    seeds = [
        encode(small, "JPEG"),
        encode(small, "JPEG", progressive=True),
        encode(small.convert("CMYK"), "JPEG"),
        with_segments(encode(small, "JPEG"), exif("<", 6)),
        with_segments(encode(small, "JPEG"), exif(">", 3), keep_jfif=False),
        encode(small, "PNG"),
        encode(small.convert("P"), "PNG"),
        encode(small, "GIF"),
        encode(small, "BMP"),
        encode(small.convert("L"), "BMP"),
    ]
    files = [file for seed in seeds for file in [*(damage(rng, seed) for _ in range(150)), seed]]
    files += [b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", b"BM", b"BM\0", b"GIF89a", b"\x89PNG"]

    def convert(_position, _id, encoded):
        image = decode_window(encoded, 3, lambda shape: tf.stack([0, 0, shape[0], shape[1]]))
        return (tf.io.serialize_tensor(image),)  # a scalar for images of any shape

    numbers = tf.data.Dataset.range(len(files))
    examples = tf.data.Dataset.zip(numbers, numbers, tf.data.Dataset.from_tensor_slices(files))
    fallback = tf.io.serialize_tensor(tf.zeros([0, 0, 3], tf.uint8))
    rows = [
        (position, id_, tf.io.parse_tensor(image, tf.uint8).numpy(), ok)
        for position, id_, image, ok in map_with_fallback(examples, convert, (fallback,)).as_numpy_iterator()
    ]
    assert [int(row[0]) for row in rows] == list(range(len(files)))
    is_decoded = [bool(row[3]) for row in rows]
    for number, seed in enumerate(seeds):
        last = 151 * number + 150
        assert is_decoded[last]
        expected = reference(seed) if seed[:3] != b"GIF" else decode(seed)
        assert_close(rows[last][2].astype(int), expected, 1)
    assert not any(is_decoded[-9:])
    assert 200 < sum(is_decoded) < 1300  # Some damage is detected, some is not.
    for row in rows:
        assert row[2].dtype == np.uint8 and row[2].ndim == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_header_of_an_image_of_gigabytes_is_an_error(picture, kind):
    """The file is small, but its header says that a side has 65,535 pixels or more."""
    encoded = bytearray(encode(picture, kind))
    if kind == "JPEG":
        at = encoded.index(b"\xff\xc0")
        encoded[at + 5 : at + 9] = b"\xff" * 4
    elif kind == "PNG":
        encoded = bytearray(png(np.zeros([1, 1, 3], np.uint16), 2))
        encoded[16:24] = struct.pack(">II", 2**17, 2**17)
        encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    elif kind == "GIF":
        at = encoded.index(b"\x2c" + bytes(4) + struct.pack("<HH", WIDTH, HEIGHT))
        encoded[6:10] = encoded[at + 5 : at + 9] = b"\xff" * 4
    else:
        encoded[18:26] = struct.pack("<ii", 2**17, 2**17)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(bytes(encoded))

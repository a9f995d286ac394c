"""Compare the decoder with Pillow on unusual forms of image files, in a pipeline and in an exported graph.

Each case is a file, and says whether an exported graph can decode it, which has no Pillow.
"""

import io
import itertools
import re
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data import image_formats, pillow_decoder
from efficientnet_tf.data.decode import decode_window
from efficientnet_tf.data.windows import whole_window

HEIGHT, WIDTH = 18, 26
RNG = np.random.default_rng(0)
ORIENTATIONS = range(1, 9)


def encode(image, kind, **arguments):
    file = io.BytesIO()
    image.save(file, kind, **arguments)
    return file.getvalue()


def reference(encoded, background=(255, 255, 255)):
    """Return the upright RGB pixels that Pillow decodes, on a background."""
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    flat = PIL.Image.new("RGBA", image.size, (*background, 255))
    return np.asarray(PIL.Image.alpha_composite(flat, image.convert("RGBA")).convert("RGB"))


def make_decoder(**arguments):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(encoded):
        return decode_window(encoded, 3, whole_window, **arguments)

    return lambda encoded: decode(encoded).numpy()


decode = make_decoder()
decode_portably = make_decoder(portable=True)
decode_on_color = make_decoder(background=(200, 30, 7))


def noise(channels, shape=(HEIGHT, WIDTH)):
    """Return an image of random pixels. The corners have alpha 0 and 255."""
    pixels = RNG.integers(0, 256, (*shape, channels), dtype=np.uint8)
    pixels[0, 0, -1], pixels[-1, -1, -1] = 0, 255
    return PIL.Image.fromarray(pixels.squeeze())


RGBA = noise(4)
RGB = RGBA.convert("RGB")
GRAY = RGB.convert("L")
LA = noise(2)
PALETTE = RGB.quantize(16)
CLEAR_PALETTE = RGBA.quantize(16, PIL.Image.Quantize.FASTOCTREE)  # every color has its own alpha


# ----------------------------------------------------------------------------------------------------------- cases


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def insert_chunk(png, kind, content, before):
    """Insert a chunk into a PNG, before its first chunk of another kind."""
    at = png.index(before) - 4
    return png[:at] + chunk(kind, content) + png[at:]


def make_png(samples, depth, color_type, chunks=b""):
    """Encode unsigned integers [H, W, C] as the standard defines it, with 8 or 16 bits."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + ends


def make_interlaced_png(image):
    """Encode an RGB image with Adam7 interlacing, which Pillow reads but does not write."""
    pixels, rows = np.asarray(image), []
    for y, x, down, right in [
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
    ]:  # fmt: skip
        rows += [b"\0" + row.tobytes() for row in pixels[y::down, x::right] if row.size]
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    content = chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b"")


def make_bmp(pixels, depth, compression, masks=b"", palette=b""):
    header = struct.pack("<IiiHHIIiiII", 40 + len(masks), WIDTH, HEIGHT, 1, depth, compression, len(pixels), 0, 0, 0, 0)
    start = 14 + len(header) + len(masks) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + header + masks + palette + pixels


def make_bmp_with_alpha():
    """Encode RGBA with bit masks and a header of version 4, as browsers and GIMP do."""
    masks = struct.pack("<IIIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, 0x73524742) + bytes(48)
    return make_bmp(np.asarray(RGBA)[::-1, :, [2, 1, 0, 3]].tobytes(), 32, 3, masks)


def make_bmp_with_runs():
    palette = b"".join(bytes([*np.random.default_rng(i).integers(0, 256, 3), 0]) for i in range(256))
    runs = b"".join(bytes([WIDTH, y % 256, 0, 0]) for y in range(HEIGHT)) + b"\0\1"
    return make_bmp(runs, 8, 1, palette=palette)


def with_gif_canvas(gif, width, height):
    return gif[:6] + struct.pack("<HH", width, height) + gif[10:]


def without_global_table(gif):
    """Move the colors of a GIF from the whole file to its first frame."""
    assert gif[10] & 0x80
    size = 3 * 2 ** (gif[10] % 8 + 1)
    at = gif.index(b"\x2c", 13 + size)
    frame = gif[at : at + 9] + bytes([gif[at + 9] | 0x80 | gif[10] % 8])
    return (
        gif[:10]
        + bytes([gif[10] & 0x7F])
        + gif[11:13]
        + gif[13 + size : at]
        + frame
        + gif[13 : 13 + size]
        + gif[at + 10 :]
    )


def animate(image, kind, **arguments):
    return encode(image, kind, save_all=True, append_images=[image.rotate(90), image.rotate(180)], **arguments)


GIF = encode(PALETTE, "GIF")
CLEAR_GIF = encode(PALETTE, "GIF", transparency=3)
COMMENT = b"\x21\xfe" + (b"\xff" + bytes(range(255))) * 3 + b"\x05\x2c\x21\xf9\x04\x3b\0"
COLOR = bytes(v for pair in zip(b"\0\0\0", RGB.getpixel((3, 4)), strict=True) for v in pair)
SIXTEEN = RNG.integers(0, 2**16, (HEIGHT, WIDTH, 3), dtype=np.uint16)

PORTABLE = {
    "png rgba": encode(RGBA, "PNG"),
    "png gray and alpha": encode(LA, "PNG"),
    "png rgba, 16 bits": make_png(RNG.integers(0, 2**16, (HEIGHT, WIDTH, 4), dtype=np.uint16), 16, 6),
    "png palette, one transparent color": encode(PALETTE, "PNG", transparency=3),
    "png palette, alpha of each color": encode(CLEAR_PALETTE, "PNG"),
    "png palette, two bits, transparent": encode(RGB.quantize(4), "PNG", transparency=1),
    "png rgb, one transparent color": encode(RGB, "PNG", transparency=RGB.getpixel((3, 4))),
    "png gray, one transparent level": encode(GRAY, "PNG", transparency=GRAY.getpixel((3, 4))),
    "png one bit, transparent": encode(RGB.convert("1"), "PNG", transparency=1),
    "png with transparency after a color profile and text": insert_chunk(
        insert_chunk(encode(RGB, "PNG", icc_profile=bytes(70_000)), b"tRNS", COLOR, b"IDAT"),
        b"tEXt",
        b"a\0IDAT",
        b"tRNS",
    ),
    "png interlaced": make_interlaced_png(RGB),
    "png animated": animate(RGB, "PNG"),
    "png animated, transparent": animate(RGBA, "PNG"),
    "gif": GIF,
    "gif transparent": CLEAR_GIF,
    "gif transparent, colors of the frame": without_global_table(CLEAR_GIF),
    "gif transparent, after a comment": CLEAR_GIF.replace(b"\x21\xf9", COMMENT + b"\x21\xf9", 1),
    "gif transparent, before a comment": CLEAR_GIF.replace(b"\x2c\0\0\0\0", COMMENT + b"\x2c\0\0\0\0", 1),
    "gif animated, transparent": animate(PALETTE, "GIF", transparency=3, disposal=2),
    "gif long, animated, transparent": animate(noise(3, (300, 400)).quantize(256), "GIF", transparency=3),
    "bmp 32 bits": encode(RGBA, "BMP"),
}
if "decode_webp" in dir(tf.io):
    PORTABLE |= {
        "webp rgba": encode(RGBA, "WEBP", lossless=True),
        "webp rgba, exact": encode(RGBA, "WEBP", lossless=True, exact=True),
        "webp rgb": encode(RGB, "WEBP", lossless=True),
        "webp extended": encode(RGB, "WEBP", lossless=True, icc_profile=bytes(1001)),
    }
WITH_PILLOW = {
    "webp animated": animate(RGB, "WEBP", lossless=True),
    "webp animated, transparent": animate(RGBA, "WEBP", lossless=True, exact=True),
    "bmp with alpha": make_bmp_with_alpha(),
    "bmp palette": encode(PALETTE, "BMP"),
    "bmp one bit": encode(RGB.convert("1"), "BMP"),
    "bmp with runs": make_bmp_with_runs(),
    "bmp 16 bits": make_bmp(RNG.integers(0, 2**15, (HEIGHT, WIDTH), dtype=np.uint16).tobytes(), 16, 0),
    "gif with a larger canvas": with_gif_canvas(GIF, WIDTH + 5, HEIGHT + 9),
    "gif transparent with a larger canvas": with_gif_canvas(CLEAR_GIF, WIDTH + 5, HEIGHT + 9),
    "tiff rgb": encode(RGB, "TIFF"),
    "tiff rgba": encode(RGBA, "TIFF"),
    "tiff lzw": encode(RGB, "TIFF", compression="tiff_lzw"),
    "tiff jpeg": encode(RGB, "TIFF", compression="jpeg"),
    "tiff palette": encode(PALETTE, "TIFF"),
    "tiff gray and alpha": encode(LA, "TIFF"),
    "tiff cmyk": encode(RGB.convert("CMYK"), "TIFF"),
    "tiff one bit": encode(RGB.convert("1"), "TIFF", compression="group4"),
    "tiff pages": animate(RGB, "TIFF"),
    "tiff big": encode(RGB, "TIFF", big_tiff=True),
}
CASES = PORTABLE | WITH_PILLOW


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_pillow_on_white(name):
    expected = reference(CASES[name])
    assert expected.std() > 5
    np.testing.assert_array_equal(decode(CASES[name]), expected)


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_those_of_pillow_on_a_color(name):
    np.testing.assert_array_equal(decode_on_color(CASES[name]), reference(CASES[name], (200, 30, 7)))


@pytest.mark.parametrize("name", PORTABLE)
def test_a_graph_without_pillow_decodes_the_same_pixels(name):
    np.testing.assert_array_equal(decode_portably(CASES[name]), reference(CASES[name]))


@pytest.mark.parametrize("name", WITH_PILLOW)
def test_a_graph_without_pillow_refuses_what_it_would_misread(name):
    with pytest.raises(tf.errors.InvalidArgumentError, match="needs Pillow, .* convert it to JPEG or PNG"):
        decode_portably(CASES[name])


def test_rare_formats_are_known_from_their_headers():
    rare = {name for name, encoded in CASES.items() if image_formats.describe_rare(encoded)}
    assert rare == set(WITH_PILLOW)


@pytest.mark.parametrize("name", CASES)
def test_header_tells_the_size(name):
    with PIL.Image.open(io.BytesIO(CASES[name])) as image:
        assert image_formats.read_size(CASES[name]) == (None if image.format == "TIFF" else image.size)


def test_one_transparent_color_of_16_bits():
    """All 16 bits count, as the standard says. Pillow ignores such a color, and would decode another picture."""
    encoded = make_png(SIXTEEN, 16, 2, chunk(b"tRNS", SIXTEEN[3, 4].astype(">u2").tobytes()))
    expected = (SIXTEEN >> 8).astype(np.uint8)
    expected[3, 4] = 255
    np.testing.assert_array_equal(decode_portably(encoded), expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a transparent color of 16 bits"):
        decode(encoded)


def test_sixteen_bit_tiff_keeps_the_upper_eight():
    gray = SIXTEEN[..., 0]
    expected = np.repeat((gray >> 8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode(encode(PIL.Image.fromarray(gray), "TIFF")), expected)


def test_values_of_32_bits_are_an_error():
    image = PIL.Image.fromarray(RNG.random((HEIGHT, WIDTH), np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="32 bits of an unknown range"):
        decode(encode(image, "TIFF"))


# ----------------------------------------------------------------------------------------------------------- Exif


def exif(orientation):
    tags = PIL.Image.Exif()
    tags[0x010F], tags[0x0112], tags[0x0131] = "maker", orientation, "software"
    return tags.tobytes().removeprefix(b"Exif\0\0")


def exif_text(orientation, prefix=b"Exif\0\0"):
    """Return Exif data as ImageMagick writes them as text."""
    content = prefix + exif(orientation)
    digits = content.hex().encode()
    lines = b"\n".join(digits[i : i + 72] for i in range(0, len(digits), 72))
    return b"Raw profile type exif\0", b"\nexif\n%8d\n%s\n" % (len(content), lines)


def with_orientation(form, orientation):
    png = encode(RGB, "PNG")
    keyword, text = exif_text(orientation)
    match form:
        case "png, before the pixels":
            return insert_chunk(png, b"eXIf", exif(orientation), b"IDAT")
        case "png, after the pixels":
            return insert_chunk(png, b"eXIf", exif(orientation), b"IEND")
        case "png, in compressed text":
            return insert_chunk(png, b"zTXt", keyword + b"\0" + zlib.compress(text), b"IDAT")
        case "png, in text after the pixels":
            return insert_chunk(png, b"tEXt", keyword + text, b"IEND")
        case "png, transparent":
            return insert_chunk(encode(RGBA, "PNG"), b"eXIf", exif(orientation), b"IDAT")
        case "webp":
            return encode(RGB, "WEBP", lossless=True, exif=exif(orientation))
        case "webp, with prefix":
            return encode(RGBA, "WEBP", lossless=True, icc_profile=bytes(333), exif=b"Exif\0\0" + exif(orientation))
        case "tiff":
            return encode(RGB, "TIFF", tiffinfo={0x0112: orientation})
        case "tiff, 16 bits":
            return encode(
                PIL.Image.fromarray(np.asarray(GRAY).astype(np.uint16) << 8), "TIFF", tiffinfo={274: orientation}
            )


FORMS = (
    "png, before the pixels", "png, after the pixels", "png, in compressed text", "png, in text after the pixels",
    "png, transparent", "webp", "webp, with prefix", "tiff", "tiff, 16 bits",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_orientation_outside_jpeg(form):
    if form.startswith("webp") and "decode_webp" not in dir(tf.io):
        pytest.skip("this version of TensorFlow cannot read WebP")
    plain = reference(encode(RGBA if form in ("png, transparent", "webp, with prefix") else RGB, "PNG"))
    plain = np.repeat(np.asarray(GRAY)[..., None], 3, axis=2) if form == "tiff, 16 bits" else plain
    seen = []
    for orientation in ORIENTATIONS:
        tags = {0x0112: orientation}
        image = PIL.Image.fromarray(plain)
        image.getexif().update(tags)
        expected = np.asarray(PIL.ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(decode(with_orientation(form, orientation)), expected, err_msg=str(orientation))
        if form.startswith(("png, b", "png, a", "png, tr", "webp")):
            np.testing.assert_array_equal(decode_portably(with_orientation(form, orientation)), expected)
        seen.append(expected.tobytes())
    assert len(set(seen)) == 8


def test_window_of_a_turned_png_is_cut_from_the_upright_image():
    encoded = with_orientation("png, before the pixels", 6)
    window = decode_window(tf.constant(encoded), 3, lambda shape: tf.constant([3, 5, 11, 7])).numpy()
    np.testing.assert_array_equal(window, reference(encoded)[3:14, 5:12])


def jpeg_with(*segments):
    plain = encode(RGB, "JPEG")
    return plain[:2] + b"".join(segments) + plain[2:]


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def broken_exif(changed_at, value):
    data = bytearray(exif(6))
    data[changed_at : changed_at + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([segment(0xE2 + i, bytes(100 * i)) for i in range(9)], id="nine segments before"),
        pytest.param([segment(0xFE, bytes(60_000))] * 5, id="long comments before"),
        pytest.param([segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")] * 4, id="XMP before"),
        pytest.param([b"\xff\xff\xff"], id="fill bytes"),
        pytest.param([], id="none before"),
    ],
)
def test_exif_after_other_segments_of_a_jpeg(segments):
    encoded = jpeg_with(*segments, segment(0xE1, b"Exif\0\0" + exif(6)))
    expected = reference(encoded)
    assert expected.shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(decode(encoded), expected)


def long_orientation(order):
    """Return Exif data with an orientation of 32 bits, which some cameras write."""
    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return header + struct.pack(order + "HHHII", 1, 0x0112, 4, 1, 6) + bytes(4)


@pytest.mark.parametrize("order", "<>")
def test_orientation_of_32_bits(order):
    encoded = jpeg_with(segment(0xE1, b"Exif\0\0" + long_orientation(order)))
    assert reference(encoded).shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(decode(encoded), reference(encoded))


def test_broken_exif_data_never_fail():
    plain = decode(encode(RGB, "PNG"))
    good = exif(6)
    broken = [good[:length] for length in range(len(good))]
    broken += [broken_exif(at, value) for at in range(len(good)) for value in (b"\xff", b"\xff\xff\xff\xff")]
    for content in broken[:: 1 if len(broken) < 400 else 2]:
        pixels = decode(insert_chunk(encode(RGB, "PNG"), b"eXIf", content, b"IDAT"))
        assert pixels.shape in (plain.shape, (WIDTH, HEIGHT, 3))


def test_broken_exif_text_is_an_error_or_has_no_effect():
    keyword, text = exif_text(6)
    for content in (b"", b"\n\n\n\n", text[:-9], b"\nexif\n 3\nxyz\n"):
        png = insert_chunk(encode(RGB, "PNG"), b"tEXt", keyword + content, b"IDAT")
        try:
            decode(png)
        except tf.errors.OpError:
            continue


# ------------------------------------------------------------------------------------------ damage and large images


def damage(rng, encoded):
    """Return a file that is cut off, or has some bytes changed, mostly near its start."""
    if rng.random() < 0.4:
        return encoded[: rng.integers(0, len(encoded))]
    file = bytearray(encoded)
    reach = len(file) if rng.random() < 0.4 else min(len(file), 80)
    for at in rng.integers(0, reach, rng.integers(1, 5)):
        file[at] = rng.choice([0, 255, rng.integers(0, 256)])
    return bytes(file)


@pytest.mark.parametrize("decoder", [decode, decode_portably])
def test_damaged_files_are_decoded_or_an_error(decoder):
    rng = np.random.default_rng(0)
    seeds = [encoded for encoded in CASES.values() if len(encoded) < 9000]
    seeds += [with_orientation(form, 6) for form in FORMS if not form.startswith("webp")]
    decoded = 0
    for encoded in (damage(rng, seed) for seed in seeds for _ in range(12)):
        try:
            pixels = decoder(encoded)
        except tf.errors.OpError:
            assert pillow_decoder.explain_failure(encoded)
            continue
        decoded += 1
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    assert decoded > 50


def test_every_start_of_a_file_is_decoded_or_an_error():
    for name in ("png rgba", "gif transparent", "bmp with alpha", "tiff rgb", "webp animated"):
        for length in itertools.chain(range(64), range(64, len(CASES[name]), 97)):
            try:
                decode(CASES[name][:length])
            except tf.errors.OpError:
                assert pillow_decoder.explain_failure(CASES[name][:length])


def large_bmp(compression):
    header = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 8 if compression else 24, compression, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 2**31 - 1, 0, 0, 54) + header + bytes(99)


def large_gif():
    at = GIF.index(b"\x2c", 13)
    return GIF[:6] + b"\xff" * 4 + GIF[10 : at + 5] + b"\xff" * 4 + GIF[at + 9 :]


def large_webp():
    """Return a WebP whose extended header declares 2**24 pixels in each direction."""
    return b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff" * 6 + b"VP8L" + bytes(40)


def large_jpeg():
    at = (jpeg := encode(RGB, "JPEG")).index(b"\xff\xc0")
    return jpeg[: at + 5] + b"\xff" * 4 + jpeg[at + 9 :]


LARGE = {
    "PNG": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)) + bytes(50),
    "GIF": large_gif(),
    "BMP": large_bmp(0),
    "BMP with runs": large_bmp(1),
    "WebP": large_webp(),
    "JPEG": large_jpeg(),
    "TIFF": encode(PIL.Image.new("1", (20_000, 20_000)), "TIFF", compression="group4"),
}


@pytest.mark.parametrize("name", LARGE)
def test_images_of_gigapixels_are_refused_before_memory_is_allocated(name):
    if name == "WebP" and "decode_webp" not in dir(tf.io):
        pytest.skip("this version of TensorFlow cannot read WebP")
    with pytest.raises(tf.errors.InvalidArgumentError, match="ExtractJpegShape" if name == "JPEG" else "pixels"):
        decode(LARGE[name])
    with pytest.raises(tf.errors.InvalidArgumentError, match="needs Pillow|pixels|ExtractJpegShape"):
        decode_portably(LARGE[name])
    assert re.search("more than the 67,108,864.* allowed", pillow_decoder.explain_failure(LARGE[name]))


def test_frames_after_the_first_are_not_decoded():
    """A GIF of a few megabytes may have thousands of frames, each of many pixels."""
    plain = encode(noise(3, (300, 400)).quantize(256), "GIF")
    at = plain.index(b"\x2c", 13)
    assert len(plain) > 2**16
    broken = plain[:-1] + plain[at : at + 40] + b"\xff" * 999
    np.testing.assert_array_equal(decode(broken), reference(plain))


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000), (20_000, 1), (3, 2)])
def test_narrow_images(shape):
    image = noise(4, shape)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encode(image, kind)), reference(encode(image, kind)))


# --------------------------------------------------------------------------------------------------- names of causes


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "the file is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "this is a HEIC image, which is not supported. Convert it to JPEG or PNG"),
        (b"\0\0\0\x1cftypavif", "this is an AVIF image, which is not supported. Convert it to JPEG or PNG"),
        (b"\0\0\0\x20ftypisom", "this is a video"),
        (b"\0\0\0\x0cjP  \r\n", "this is a JPEG 2000 image, which is not supported. Convert it to JPEG or PNG"),
        (b"<?xml version='1.0'?>\n<!-- a -->\n<svg/>", "this is an SVG drawing"),
        (b"\n<!DOCTYPE html><p>", "this is an HTML page, not an image"),
        (b"<?xml version='1.0'?><Error/>", "this is an XML file, not an image"),
        (b"%PDF-1.7", "this is a PDF file"),
        (b"PK\x03\x04", "this is a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a pointer of Git LFS"),
        (bytes(5000), "this is a file of zero bytes"),
        (b"no image", "this is a text file, not an image"),
        (b"\xfe\xff\x12", "this is not an image in a known format"),
        (encode(RGB, "JPEG")[:-20], "the JPEG image is truncated"),
        (encode(RGB, "PNG")[:-20], "the PNG image is truncated"),
        (encode(RGB, "JPEG").replace(b"\xff\xc0", b"\xff\xc3", 1), "this is a JPEG of a special kind (lossless)"),
        (encode(RGB, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c", 1), "a special kind (12-bit)"),
    ],
)
def test_cause_names_what_a_file_is(content, cause):
    assert cause in pillow_decoder.explain_failure(content)
    if "truncated" not in cause:
        with pytest.raises(tf.errors.OpError):
            decode(content)


def test_formats_that_need_pillow_are_refused_without_it(tmp_path, monkeypatch):
    names = {
        "a.tif": "tiff rgb",
        "b.bmp": "bmp palette",
        "c.gif": "gif with a larger canvas",
        "d.webp": "webp animated",
    }
    for name, case in names.items():
        (tmp_path / name).write_bytes(CASES[case])
    ordinary = {"e.gif": GIF, "f.bmp": encode(RGB, "BMP"), "g.jpg": b"not read", "h.webp": encode(RGB, "WEBP")}
    for name, content in ordinary.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    image_formats.check_readable(paths)
    monkeypatch.setattr(image_formats, "has_pillow", lambda: False)
    monkeypatch.setattr(image_formats, "_reads_webp", lambda: True)
    image_formats.check_readable(paths[4:])
    for path in paths[:4]:
        with pytest.raises(UserError, match=rf"{path} is .* needs Pillow\. .*pip install 'efficientnet_tf\[images\]'"):
            image_formats.check_readable([paths[4], path])
    with pytest.raises(UserError, match="needs Pillow, as 3 others do"):
        image_formats.check_readable(paths)
    monkeypatch.setattr(image_formats, "_reads_webp", lambda: False)
    with pytest.raises(UserError, match="needs Pillow, or TensorFlow 2.20 or later"):
        image_formats.check_readable(paths[-1:])

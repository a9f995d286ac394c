"""Images of every mode and format, with all orientations and kinds of transparency, and files that are no images.

The reference is Pillow: `convert("RGB")` of the upright first frame, composited on white.
"""

import io
import json
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
from robustness.harness import EITHER, OK
from robustness.kit import write_photos

SIZE = (40, 32)  # width, height: the center crop of 32 x 32 is cut out without resizing
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "DDS", "PCX")
# What must be read. Other formats may be refused, but must not be read wrongly.
READABLE = {"PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"}
ALPHA = ("LA", "PA", "RGBA")


def pattern(mode="RGB", seed=0, size=SIZE):
    """Return an image with another color at every place, and, if the mode has it, every degree of transparency."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    rgb = np.stack([x * 255 // width, y * 255 // height, rng.integers(0, 255, (height, width))], -1).astype(np.uint8)
    image = PIL.Image.fromarray(rgb)
    alpha = PIL.Image.fromarray(((x + y) * 255 // (width + height)).astype(np.uint8))
    if mode == "PA":
        image = image.quantize(64).convert("PA")
        image.putalpha(alpha)
        return image
    if mode in ALPHA:
        image.putalpha(alpha)
        return image.convert(mode)
    if mode in ("I", "I;16"):
        values = (x * 65535 // width).astype(np.int32 if mode == "I" else np.uint16)
        return PIL.Image.fromarray(values)
    if mode == "F":
        return PIL.Image.fromarray((x * 255.0 / width).astype(np.float32))
    if mode == "LAB":
        return PIL.Image.frombytes("LAB", size, rgb.tobytes())
    return image.convert(mode)


def reference(data):
    """Return the pixels, uint8 [32, 32, 3], that an encoded image stands for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged Exif data and continues without it.
        image = PIL.Image.open(io.BytesIO(data))
        image.seek(0)
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits per value
        image = PIL.Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    pixels = np.asarray(image.convert("RGB"))
    top, left = (pixels.shape[0] - 32) // 2, (pixels.shape[1] - 32) // 2
    return pixels[top : top + 32, left : left + 32]


def encode(image, kind, **options):
    buffer = io.BytesIO()
    if kind == "WEBP":
        options = {"lossless": True, "exact": True} | options
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _equals(data, tolerance):
    """Return a check that pixels.npy holds the pixels of an encoded image."""

    def check(case, answer):
        path = case.folder / "pixels.npy"
        if answer["status"]:
            return ""
        found = np.load(path)
        path.unlink()
        expected = reference(data).astype(np.float32)
        if found.shape != expected.shape:
            return f"shape {found.shape}"
        distance = float(np.abs(found - expected).max())
        return "" if distance <= tolerance else f"pixels differ by {distance:g}"

    return check


def _add(write, name, data, ending, must_read, tolerance=0.5, item="A1 images"):
    folder = write.folder("image")
    path = folder / f"image.{ending}"
    path.write_bytes(data)
    write.add(
        folder,
        name,
        ["@pixels", path],
        status=OK if must_read else EITHER,
        writes=("pixels.npy",),
        check=_equals(data, tolerance),
        item=item,
    )


def pixels(write):
    """Every mode in every format that can hold it, all orientations, all kinds of transparency, and other endings."""
    for kind in FORMATS:
        for mode in MODES:
            try:
                data = encode(pattern(mode), kind)
                reference(data)
            except (OSError, ValueError, KeyError, DeprecationWarning):  # Pillow does not write it, or will not.
                continue
            must_read = kind in READABLE and mode not in ("I", "F", "LAB", "PA", "HSV", "RGBX")
            # Rounding differs between decoders of JPEG, and in the blending of half transparent pixels.
            tolerance = 24 if kind in ("JPEG", "JPEG2000") else 1.01
            item = "A1 transparency" if mode in ALPHA else "A1 formats"
            _add(write, f"{kind} {mode}", data, kind.lower(), must_read, tolerance, item)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for value in (*range(10), 255, 65535):
            exif = PIL.Image.Exif()
            exif[0x112] = value
            data = encode(pattern(), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
            tolerance = 24 if kind == "JPEG" else 0.5
            _add(write, f"{kind} orientation {value}", data, kind.lower(), True, tolerance, "A1 Exif outside JPEG")
    _transparent(write)
    _unusual(write)


def _transparent(write):
    item = "A1 transparency"
    rng = np.random.default_rng(1)
    hidden = rng.integers(0, 255, (SIZE[1], SIZE[0], 4), dtype=np.uint8)
    hidden[..., 3] = 0
    hidden[10:20, 10:20, 3] = 255
    image = PIL.Image.fromarray(hidden)
    for kind in ("PNG", "WEBP", "TIFF"):
        _add(write, f"{kind} colors hidden by alpha 0", encode(image, kind), kind.lower(), True, 0.5, item)
    palette = pattern().quantize(32)
    _add(
        write, "PNG palette with one transparent color", encode(palette, "PNG", transparency=3), "png", True, 0.5, item
    )
    steps = bytes(range(0, 256, 8))
    _add(write, "PNG palette with 32 degrees", encode(palette, "PNG", transparency=steps), "png", True, 1.01, item)
    _add(write, "GIF with a transparent color", encode(palette, "GIF", transparency=3), "gif", True, 0.5, item)
    _add(write, "PNG gray with tRNS", encode(pattern("L"), "PNG", transparency=7), "png", True, 0.5, item)
    color = pattern().getpixel((20, 20))
    _add(write, "PNG RGB with tRNS", encode(pattern(), "PNG", transparency=color), "png", True, 0.5, item)
    _add(write, "PNG opaque RGBA", encode(pattern().convert("RGBA"), "PNG"), "png", True, 0.5, item)
    exif = PIL.Image.Exif()
    exif[0x112] = 8
    _add(write, "PNG with alpha and orientation", encode(image, "PNG", exif=exif), "png", True, 0.5, item)
    _add(write, "PNG 16 bits with alpha", _png_of_16_bits(hidden), "png", True, 1.01, item)


def _png_of_16_bits(rgba):
    """Return a PNG with 16 bits per value."""
    height, width, _ = rgba.shape
    wide = (rgba.astype(">u2") * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    return _png(width, height, 16, 6, zlib.compress(rows))


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width, height, depth, color, data, *chunks, interlace=0):
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + b"".join(chunks) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    )


def _unusual(write):
    """Valid images in unusual forms, and with another ending than their content."""
    contents = {kind: encode(pattern(), kind) for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG")}
    for kind, data in contents.items():
        ending = "jpg" if kind != "JPEG" else "png"
        _add(write, f"{kind} named .{ending}", data, ending, True, 24 if kind == "JPEG" else 0.5, "A1 formats")
    for ending in ("jfif", "jpe", "JPG"):
        _add(write, f"JPEG named .{ending}", contents["JPEG"], ending, True, 24, "A1 endings")
    jpeg = {
        "progressive": {"progressive": True},
        "4:4:4": {"subsampling": 0, "quality": 100},
        "optimized": {"optimize": True},
    }
    for name, options in jpeg.items():
        _add(write, f"JPEG {name}", encode(pattern(), "JPEG", **options), "jpg", True, 24, "A1 formats")
    for name in ("tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate", "jpeg"):
        data = encode(pattern(), "TIFF", compression=name)
        _add(write, f"TIFF {name}", data, "tif", name != "jpeg", 24 if name == "jpeg" else 0.5, "A1 formats")
    top_down = bytearray(encode(pattern(), "BMP"))
    struct.pack_into("<i", top_down, 22, -SIZE[1])
    _add(write, "BMP from the top down", bytes(top_down), "bmp", False, 0.5, "A1 formats")
    frames = [pattern(seed=i) for i in range(3)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        _add(write, f"{kind} with three frames", data, kind.lower(), False, 0.5, "A1 animations")
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("Comment", "\x1b[31m" * 100)
    _add(write, "PNG with a comment", encode(pattern(), "PNG", pnginfo=info), "png", True, 0.5, "A1 formats")
    _add(write, "PNG with a gamma", _with_chunk(contents["PNG"], b"gAMA", struct.pack(">I", 100000)), "png", True, 0.5)
    _add(write, "PNG with a wrong profile", _with_chunk(contents["PNG"], b"iCCP", b"x\0\0abc"), "png", False, 0.5)
    _add(write, "JPEG with bytes behind it", contents["JPEG"] + b"PK\3\4" + bytes(1000), "jpg", True, 24)
    for name, exif in (
        ("cut", b"Exif\0\0II*\0\10\0\0\0"),
        ("garbage", b"Exif\0\0" + bytes(range(200))),
        ("empty", b""),
    ):
        data = encode(pattern(), "JPEG", exif=exif)
        _add(write, f"JPEG with {name} Exif", data, "jpg", True, 24, "A1 Exif")


def _with_chunk(png, name, data):
    return png[:33] + _chunk(name, data) + png[33:]


# --------------------------------------------------------------------------------------------------------- no images


def hostile_contents(random, count):
    """Yield (ending, name, content) of files that are no images, damaged, or declare a size that they do not have."""
    valid = {kind: encode(pattern(), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")}
    for kind, data in valid.items():
        for percent in (0, 5, 30, 60, 95):
            yield kind.lower(), f"{kind} cut to {percent} %", data[: len(data) * percent // 100]
        for number in range(count):
            content = bytearray(data)
            for _ in range(random.choice((1, 3, 30))):
                content[random.randrange(len(content))] = random.randrange(256)
            yield kind.lower(), f"{kind} damaged {number}", bytes(content)
    for name, content in {
        "HTML": b"<!DOCTYPE html><html>404</html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "PDF": b"%PDF-1.7\n%\xe2\xe3\n1 0 obj",
        "ZIP": b"PK\3\4" + bytes(100),
        "ELF": b"\x7fELF" + bytes(100),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
        "MP4": b"\0\0\0\x18ftypmp42" + bytes(100),
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(100),
        "AVIF": b"\0\0\0\x18ftypavif" + bytes(100),
        "zeros": bytes(5000),
        "one byte": b"\xff",
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "escape sequences": b"\x1b[31m\x1b]0;title\7" * 20,
    }.items():
        yield "jpg", name, content
    yield "gif", "GIF without a frame", b"GIF89a\x08\0\x08\0\0\0\0;"
    yield "png", "PNG of 0 x 0", _png(0, 0, 8, 2, b"")
    yield "png", "PNG with a wrong checksum", valid["PNG"][:30] + b"\0\0\0\0" + valid["PNG"][34:]
    yield "png", "PNG with a chunk of 2 GB", valid["PNG"][:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + bytes(100)
    yield "png", "PNG with color type 7", _png(4, 4, 8, 7, zlib.compress(bytes(100)))


def bombs():
    """Yield (ending, name, content) of small files that declare or hold very many pixels."""
    few = zlib.compress(bytes(100))
    for side in (30_000, 60_000, 1_000_000, 2**31 - 1):
        yield "png", f"PNG declares {side}", _png(side, side, 8, 2, few)
    rows = zlib.compressobj(1)
    line = bytes(1 + 3 * 20_000)
    data = b"".join(rows.compress(line * 100) for _ in range(200)) + rows.flush()
    yield "png", "PNG of 20,000 x 20,000 zeros", _png(20_000, 20_000, 8, 2, data)
    yield "png", "PNG of 20,000 x 20,000 zeros, interlaced", _png(20_000, 20_000, 8, 2, data, interlace=1)
    text = zlib.compress(bytes(200_000_000), 1)
    small = encode(pattern(), "PNG")
    yield "png", "PNG with a text bomb", _with_chunk(small, b"zTXt", b"Comment\0\0" + text)
    yield "png", "PNG with a profile bomb", _with_chunk(small, b"iCCP", b"x\0\0" + text)
    jpeg = encode(pattern(), "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    for height, width in ((65_500, 65_500), (65_535, 65_535), (0, 65_535), (1, 65_535)):
        content = bytearray(jpeg)
        struct.pack_into(">HH", content, start, height, width)
        yield "jpg", f"JPEG declares {height} x {width}", bytes(content)
    progressive = bytearray(encode(pattern(), "JPEG", progressive=True))
    struct.pack_into(">HH", progressive, progressive.index(b"\xff\xc2") + 5, 60_000, 60_000)
    yield "jpg", "progressive JPEG declares 60,000", bytes(progressive)
    bmp = encode(pattern(), "BMP")
    for width, height in ((2**31 - 1, 1), (60_000, 60_000), (-40, 32), (40, -(2**31)), (2**30, 2**30), (0, 0)):
        content = bytearray(bmp)
        struct.pack_into("<ii", content, 18, width, height)
        yield "bmp", f"BMP declares {width} x {height}", bytes(content)
    gif = bytearray(encode(pattern().quantize(16), "GIF"))
    struct.pack_into("<HH", gif, 6, 65_535, 65_535)
    yield "gif", "GIF declares 65,535", bytes(gif)
    frame = encode(PIL.Image.new("P", (4000, 4000)), "GIF")
    start = frame.index(b",")
    yield "gif", "GIF of 60 frames of 4,000", frame[:start] + frame[start:-1] * 60 + b";"
    # The head of a lossless WebP holds 14 bits for each side, less 1.
    webp = bytearray(encode(pattern(), "WEBP"))
    struct.pack_into("<I", webp, webp.index(b"VP8L") + 9, (1 << 28) - 1)
    yield "webp", "WebP declares 16,384", bytes(webp)
    for side in (60_000, 2**31 - 1):
        yield "tif", f"TIFF declares {side}", _tiff(side, side)


def _tiff(width, height):
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 100)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4 + 200)


def hostile(write):
    """Files that are no images. Each is refused by its name, alone and among others."""
    folder = write.folder("files")
    (folder / "bad").mkdir()
    names = []
    item = "B1 causes are named"
    for number, (ending, name, content) in enumerate(hostile_contents(write.random, write.count)):
        path = folder / "bad" / f"{number}.{ending}"
        path.write_bytes(content)
        # Decoders read on where only some bytes are damaged.
        damaged = "damaged" in name or "95" in name or "checksum" in name
        settings = {"status": EITHER if damaged else (1,), "says": "" if damaged else rf"\b{number}\.{ending}"}
        writes = ("pixels.npy",) if damaged else ()
        write.add(folder, f"load_image: {name}", ["@pixels", path], seconds=30, item=item, writes=writes, **settings)
        names += [] if damaged else [path.name]

    def check(case, answer):
        missing = [name for name in names if f"bad/{name}" not in answer["stderr"]]
        return f"does not name {missing}" if missing else ""

    argv = ["predict", f"--model_dir={write.kit.model}", "bad"]
    write.add(folder, "predict: a folder of all of them", argv, status=(1,), check=check, item=item)
    argv = ["explain", f"--model_dir={write.kit.model}", "--output=x.png", folder / "bad" / names[0]]
    write.add(folder, "explain: a file that is no image", argv, status=(1,), item=item)
    write_photos(folder / "data")
    for name in names:
        (folder / "data/train/cat" / name).write_bytes((folder / "bad" / name).read_bytes())
    argv = ["prepare", "--data_dir=data", "--output=records", "--splits=train", "--shards=1"]
    write.add(folder, "prepare: a folder of all of them", argv, status=(0, 1), writes=("records*",), item=item)
    argv = ["show", *write.kit.config, "--data_dir=data", "--output=x.png", "--rows=1", "--columns=1"]
    write.add(folder, "show: a folder of all of them", argv, status=(0, 1), writes=("x.png",), item=item)


def image_bombs(write):
    """Images that declare or hold very many pixels."""
    folder = write.folder("bombs")
    (folder / "bad").mkdir()
    for number, (ending, name, content) in enumerate(bombs()):
        path = folder / "bad" / f"{number}.{ending}"
        path.write_bytes(content)
        settings = {"status": (0, 1), "writes": ("pixels.npy",), "seconds": 60, "item": "C1 bombs"}
        write.add(folder, f"load_image: {name}", ["@pixels", path], **settings)
    argv = ["predict", f"--model_dir={write.kit.model}", "bad"]
    write.add(folder, "predict: all bombs", argv, status=(1,), seconds=120, item="C1 bombs")


# -------------------------------------------------------------------------------------------------- through commands


def same_answer(write):
    """`predict` gives an odd image and its reference as a plain PNG the same probabilities."""
    folder = write.folder("pairs")
    images = {}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        images[f"{mode}.png"] = encode(pattern(mode), "PNG")
    images["cmyk.tif"] = encode(pattern("CMYK"), "TIFF")
    images["rgba.webp"] = encode(pattern("RGBA"), "WEBP")
    images["p.gif"] = encode(pattern("P"), "GIF")
    for value in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x112] = value
        images[f"{value}.png"] = encode(pattern(), "PNG", exif=exif)
        images[f"{value}.tif"] = encode(pattern(), "TIFF", exif=exif)
    paths = []
    for name, data in images.items():
        (folder / name).write_bytes(data)
        PIL.Image.fromarray(reference(data)).save(folder / f"{name}.reference.png")
        paths += [folder / name, folder / f"{name}.reference.png"]

    def check(case, answer):
        rows = [json.loads(line) for line in answer["stdout"].splitlines() if line.startswith("{")]
        if len(rows) != len(paths):
            return f"{len(rows)} answers for {len(paths)} images"
        wrong = []
        for odd, plain in zip(rows[::2], rows[1::2], strict=True):
            one, two = ({label["label"]: label["probability"] for label in row["labels"]} for row in (odd, plain))
            if max(abs(one[label] - two.get(label, 9)) for label in one) > 1e-3:
                wrong.append(odd["path"].rsplit("/", 1)[-1])
        return f"other answers than the reference's for {wrong}" if wrong else ""

    for name, model in write.kit.models().items():
        argv = ["predict", f"--model_dir={model}", "--json", "--top=10", *paths]
        write.add(folder, f"predict with {name}", argv, status=OK, check=check, item="A1 transparency and Exif")
    write.add(
        folder,
        "explain",
        ["explain", f"--model_dir={write.kit.model}", "--output=x.png", *paths[:4]],
        status=OK,
        writes=("x.png",),
    )

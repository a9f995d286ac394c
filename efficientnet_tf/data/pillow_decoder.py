"""Decodes the images that TensorFlow does not decode, or decodes wrongly: with Pillow, which is optional, or NumPy.

Input pipelines call it for these images only. An exported graph cannot.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.image_formats import (
    MOST_PIXELS,
    describe_bomb,
    describe_rare,
    find_cause,
    find_kind,
    has_pillow,
    read_size,
)
from efficientnet_tf.data.stacks import count_channels, decode_array, decode_stack

_TEXT_LIMIT_BYTES = 2**20  # of Exif data as text. Pillow has the same limit.
_ROWS = 256
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def decode(encoded: bytes, background: Sequence[int]) -> np.ndarray:
    """Decode the first frame of an image.

    Args:
        encoded: Bytes of an image file.
        background: Red, green and blue behind transparent pixels, in [0, 255].

    Returns:
        uint8 [H, W, 3], upright. Of 16-bit values, the upper eight bits are kept.

    Raises:
        UserError: If the file is no image, needs Pillow, which is not installed, or has too many pixels.
        OSError: If the file is damaged. Pillow has other types for this as well.
    """
    kind = find_kind(encoded)
    if kind == "NumPy":
        return _decode_numpy(encoded)
    if kind is None or not has_pillow():
        raise UserError(find_cause(encoded))
    size = read_size(encoded)
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        raise UserError(describe_bomb(kind, *size))
    if kind == "PNG" and encoded[24] == 16 and encoded[25] in (0, 2) and b"tRNS" in encoded:
        raise UserError("the PNG image has a transparent color of 16 bits, which Pillow ignores. Convert it to 8 bits")
    import PIL.Image
    import PIL.ImageOps

    try:
        with PIL.Image.open(io.BytesIO(encoded), formats=[kind.upper()]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(describe_bomb(kind, *image.size))
            if image.mode in ("I", "F"):
                raise UserError(f"the {kind} image has values of 32 bits of an unknown range. Convert it to 8 bits")
            PIL.ImageOps.exif_transpose(image, in_place=True)
            pixels = np.empty([image.height, image.width, 3], np.uint8)
            for top in range(0, image.height, _ROWS):  # In parts, for an image of Pillow has four bytes per pixel.
                strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
                pixels[top : top + _ROWS] = _to_rgb(strip, tuple(background))
            return pixels
    except PIL.Image.DecompressionBombError:
        raise UserError(f"the {kind} image has more than the {MOST_PIXELS:,} pixels that are allowed") from None


def _decode_numpy(encoded):
    pixels = decode_array(encoded)
    if pixels.shape[2] not in (1, 3):
        raise UserError(_describe_channels("NumPy", pixels.shape[2]))
    return np.broadcast_to(pixels, [*pixels.shape[:2], 3]).copy()


def _describe_channels(kind, channels):
    return f"the {kind} image has {channels} channels, and 1 or 3 are needed. Set data.channels={channels} to use them"


def _to_rgb(image, background):
    """Return a part of an image as an array, uint8 [H, W, 3], or [H, W, 1] for grays of 16 bits."""
    import PIL.Image

    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return np.asarray(image.convert("RGB"))
    foreground = image.convert("RGBA")
    flat = PIL.Image.new("RGB", image.size, background)
    flat.paste(foreground, mask=foreground)
    return np.asarray(flat)


def read_declared_size(encoded: bytes) -> tuple[int, int] | None:
    """Return the width and height that an image file declares, or None if it cannot be read. Nothing is decoded."""
    if find_kind(encoded) != "TIFF":
        return read_size(encoded)
    if not has_pillow():
        return None
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(encoded), formats=["TIFF"]) as image:
            return image.size
    except Exception:  # Pillow has many types for damaged files.
        return None


def explain_failure(encoded: bytes, channels: int = 3) -> str:
    """Return why an image cannot be decoded, as the end of a sentence. Call it after a decoder has failed.

    Args:
        encoded: Bytes of the file.
        channels: `data.channels`.
    """
    if channels > 3:
        try:
            decode_stack(encoded, channels)
        except UserError as error:
            return str(error)
        return find_cause(encoded)
    rare = "a NumPy image" if find_kind(encoded) == "NumPy" else describe_rare(encoded)
    if rare and (has_pillow() or rare == "a NumPy image"):
        try:
            decode(encoded, (255, 255, 255))
        except UserError as error:
            return str(error)
        except Exception:  # Pillow has many types for damaged files.
            return find_cause_in_pillow(encoded)
        return f"this is {rare}, which TensorFlow does not decode, and a tf.data service does not use Pillow"
    return find_cause(encoded)


def find_cause_in_pillow(encoded: bytes) -> str:
    """Return why Pillow cannot decode an image, as the end of a sentence. It does not know TIFF of many channels."""
    channels = count_channels(encoded) if find_kind(encoded) == "TIFF" else None
    return find_cause(encoded) if channels in (None, 1, 3) else _describe_channels("TIFF", channels)


def read_text_exif(encoded: bytes) -> bytes:
    """Return Exif data that ImageMagick has written into a PNG as text, after one zero byte. There may be none."""
    at, text = 8, b""
    while at + 12 <= len(encoded):
        length, kind = struct.unpack(">I4s", encoded[at : at + 8])
        keyword, _, content = encoded[at + 8 : at + 8 + length].partition(b"\0")
        if keyword == b"Raw profile type exif" and kind in (b"tEXt", b"zTXt"):
            text = content if kind == b"tEXt" else zlib.decompressobj().decompress(content[1:], _TEXT_LIMIT_BYTES)
        at += 12 + length
    digits = b"".join(text.split(b"\n")[3:])  # after the name and the length
    return b"\0" + bytes.fromhex(digits.decode("ascii"))

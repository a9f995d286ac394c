"""What image files are, by their first bytes: which can be read, and why one cannot.

This module reads headers only and needs neither TensorFlow nor Pillow.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import struct
from collections.abc import Iterable

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import is_remote, read_bytes

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp")
READABLE_SUFFIXES = (*_JPEG_SUFFIXES, ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".npy")

# 8,192 x 8,192, more than cameras of 64 megapixels have. A process with TensorFlow, which has 0.8 GB by itself, stays
# below 1.5 GB when it decodes such an image, whatever the format and the number of channels.
MOST_PIXELS = 2**26

LARGEST_FILE_BYTES = 2**29  # Without compression, an image of that size has half of this.

INSTALL_PILLOW = "Install Pillow: pip install 'efficientnet_tf[images]'."

_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu", "tensorflow-cpu-aws", "tensorflow-intel")

_CONVERT = ", which is not supported. Convert it to JPEG or PNG"
_OTHER_KINDS = (  # what files that are no readable image start with, and what they are
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", f"a JPEG 2000 image{_CONVERT}"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", f"a JPEG XL image{_CONVERT}"),
    (rb"....ftyp(avif|avis)", f"an AVIF image{_CONVERT}"),
    (rb"....ftyp(hei|hev|mif1|msf1)", f"a HEIC image{_CONVERT}"),
    (rb"....ftyp", "a video"),
    (rb"8BPS", f"a Photoshop file{_CONVERT}"),
    (rb"\x00\x00\x01\x00", f"an icon{_CONVERT}"),
    (rb"(?-i:P)[1-7]\s", f"a PNM image{_CONVERT}"),
    (rb"\x76\x2f\x31\x01", f"an OpenEXR image{_CONVERT}"),
    (rb".{128}DICM", f"a DICOM file{_CONVERT}"),
    (rb"%PDF", "a PDF file"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"version https://git-lfs", "a pointer of Git LFS. Run git lfs pull to get the image"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*|<!--.*?-->\s*|<!doctype svg[^>]*>\s*)*<svg", f"an SVG drawing{_CONVERT}"),
    (rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype html|html|head|body)", "an HTML page, not an image"),
    (rb"\s*<\?xml", "an XML file, not an image"),
    (rb"\0{16}", "a file of zero bytes, for example from a download that did not end"),
    (rb"[\t\n\r\x20-\x7e]+$", "a text file, not an image"),
)


def find_kind(data: bytes) -> str | None:
    """Return the format of an image file from its first bytes, or None for others.

    It is JPEG, PNG, GIF, BMP, WebP, TIFF, or NumPy.
    """
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    starts = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP"}
    starts[b"\x93NUMPY"] = "NumPy"
    return next((kind for start, kind in starts.items() if data.startswith(start)), None)


def describe_rare(data: bytes) -> str | None:
    """Return what an image is if TensorFlow misreads or refuses it and Pillow does not, or None for others."""
    kind = find_kind(data)
    if kind == "TIFF":
        return "a TIFF image"
    if kind == "BMP" and not _is_plain_bmp(data):
        return "a BMP image with a palette, compression or transparency"
    if kind == "WebP" and data[12:16] == b"VP8X" and data[20:21] and data[20] & 2:
        return "an animated WebP image"
    if kind == "GIF" and (frame := _find_gif_frame(data)) and frame != (0, 0, *(read_size(data) or ())):
        return "a GIF image whose first frame does not cover it"
    return None


def read_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height that the header of an image file declares, or None if it has none.

    A TIFF has no header of this kind.
    """
    try:
        match find_kind(data):
            case "PNG":
                return struct.unpack(">II", data[16:24])
            case "GIF":
                return struct.unpack("<HH", data[6:10])
            case "BMP":
                core = data[14] == 12
                width, height = struct.unpack("<HH" if core else "<ii", data[18:22] if core else data[18:26])
                return width, abs(height)
            case "WebP":
                return _read_webp_size(data)
            case "JPEG":
                frame = _find_jpeg_frame(data)
                return None if frame is None else (frame[3], frame[2])
    except (struct.error, IndexError):
        pass
    return None


def _read_webp_size(data):
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", data[26:30]))
    return width, height


def _find_jpeg_frame(data):
    """Return the last byte of the frame marker, the bits per sample, the height and the width of a JPEG, or None."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker, *struct.unpack(">BHH", data[at + 4 : at + 9])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _is_plain_bmp(data):
    """Return whether a BMP has 24 or 32 bits per pixel or a palette of grays, and no compression."""
    if len(data) < 54 or data[14] < 40 or data[30:34] != bytes(4):
        return False
    start, first = int.from_bytes(data[10:14], "little"), 14 + data[14]
    size = min(max(start - first, 0), 1024) // 4
    palette = [data[first + 4 * i : first + 4 * i + 3] for i in range(size)]
    return data[28] in (24, 32) or (data[28] == 8 and all(color == bytes([i] * 3) for i, color in enumerate(palette)))


def _find_gif_frame(data):
    """Return left, top, width and height of the first frame of a GIF, or None."""
    try:
        at = 13 + (3 * 2 ** (data[10] % 8 + 1) if data[10] & 0x80 else 0)
        while data[at] == 0x21:
            at += 2
            while data[at]:
                at += 1 + data[at]
            at += 1
        return struct.unpack("<HHHH", data[at + 1 : at + 9]) if data[at] == 0x2C else None
    except (struct.error, IndexError):
        return None


# ---------------------------------------------------------------------------------------------- before work starts


def read_file(path: str) -> tuple[bytes, str | None]:
    """Return the content of an image file and None, or why it cannot be read as the end of a sentence."""
    try:
        return read_bytes(path, LARGEST_FILE_BYTES), None
    except UserError as error:
        return b"", str(error).removeprefix(f"{escape(path)}: ").removesuffix(".")


def find_unreadable(paths: Iterable[str]) -> dict[str, str]:
    """Return which local files cannot be images, judged by their first bytes, each with a sentence that says why."""
    sentences = {}
    for path in paths:
        if is_remote(path):
            continue
        encoded, error = read_file(path)
        if error is not None:
            sentences[path] = f"{escape(path)}: {error}."
        elif find_kind(encoded) is None:
            sentences[path] = f"{escape(path)} cannot be decoded: {find_cause(encoded)}."
    return sentences


def has_pillow() -> bool:
    """Return whether Pillow is installed."""
    return importlib.util.find_spec("PIL") is not None


def check_readable(paths: Iterable[str]) -> None:
    """Check before training that this installation can decode the image files of a data set.

    Nothing is read if Pillow is installed. Otherwise local GIF, BMP and WebP files are read, and no JPEG or PNG.

    Args:
        paths: Image files, local or gs://.

    Raises:
        UserError: If some need Pillow. The message names the extra to install.
    """
    if has_pillow():
        return
    needing = [(path, what) for path in paths if (what := _needs_pillow(path))]
    if needing:
        path, what = needing[0]
        others = f", as {len(needing) - 1} others do" if len(needing) > 1 else ""
        newer = ", or TensorFlow 2.20 or later" if what == "a WebP image" else ""
        raise UserError(f"{escape(path)} is {what} and needs Pillow{newer}{others}. {INSTALL_PILLOW}")


def _needs_pillow(path):
    """Return what a file is if TensorFlow cannot decode it, judged by its ending and, if that is not enough, itself."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".tif", ".tiff"):
        return "a TIFF image"
    if suffix == ".webp" and not _reads_webp():
        return "a WebP image"
    if suffix not in (".webp", ".bmp", ".gif") or is_remote(path):
        return None
    try:
        return describe_rare(read_bytes(path))
    except UserError:
        return None  # It is counted during training, as any other file that cannot be read.


def _reads_webp():
    """Return whether the installed TensorFlow has a decoder for WebP, without importing it."""
    for name in _DISTRIBUTIONS:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= (2, 20)
    return True


# ------------------------------------------------------------------------------------------------ after a failure


def find_cause(data: bytes) -> str:
    """Return why a file cannot be decoded, as the end of a sentence.

    Args:
        data: Content of a file that could not be decoded.

    Returns:
        For example "this is a HEIC image, which is not supported. Convert it to JPEG or PNG", or "the PNG image is
        truncated".
    """
    if not data:
        return "the file is empty"
    kind = find_kind(data)
    if kind is None:
        what = next((what for start, what in _OTHER_KINDS if re.match(start, data[:4096], re.I | re.S)), None)
        return f"this is {what}" if what else "this is not an image in a known format"
    size = read_size(data)
    if size and size[0] * size[1] > MOST_PIXELS:
        return describe_bomb(kind, *size)
    if kind == "JPEG" and (frame := _find_jpeg_frame(data)):
        special = {0xC3: "lossless", 0xC9: "arithmetic-coded", 0xCA: "arithmetic-coded"}.get(frame[0])
        special = special or (f"{frame[1]}-bit" if frame[1] != 8 else None)
        if special:
            return f"this is a JPEG of a special kind ({special}){_CONVERT}"
    what = describe_rare(data) or ("a WebP image" if kind == "WebP" and not _reads_webp() else None)
    if what and not has_pillow():
        return f"this is {what}, which needs Pillow. {INSTALL_PILLOW.removesuffix('.')}"
    return f"the {kind} image is {'truncated' if _is_truncated(kind, data) else 'damaged'}"


def describe_bomb(kind: str, width: int, height: int, most_pixels: int = MOST_PIXELS) -> str:
    """Return the cause for an image with too many pixels."""
    return f"the {kind} image has {width:,} x {height:,} pixels, more than the {most_pixels:,} that are allowed"


def _is_truncated(kind, data):
    """Return whether the end of an image file is missing."""
    match kind:
        case "JPEG":
            return b"\xff\xd9" not in data[-1024:]
        case "PNG":
            return b"IEND" not in data[-1024:]
        case "GIF":
            return not data.rstrip(b"\0").endswith(b";")
        case "WebP":
            return len(data) < 8 + int.from_bytes(data[4:8], "little")
        case "BMP":
            return len(data) < int.from_bytes(data[2:6], "little")
    return False

"""Decodes arrays of NumPy, and images of 4 to 16 channels, such as those of satellites and microscopes.

Nothing in a file is trusted: what a header declares is compared with the size of the file before memory is allocated,
and pickled Python objects are never loaded. Imports no TensorFlow.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.fields import MOST_CHANNELS
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.data.array_files import read_npy_header
from efficientnet_tf.data.image_formats import MOST_PIXELS, describe_bomb, find_cause, find_kind, has_pillow


def decode_array(encoded: bytes) -> np.ndarray:
    """Decode a file of `np.save`.

    Args:
        encoded: Content of the file: an array [H, W] or [H, W, C] of uint8 or uint16.

    Returns:
        uint8 [H, W, C]. Of 16-bit values, the upper eight bits are kept.

    Raises:
        UserError: If the file has another array, or is damaged.
    """
    try:
        form, shape, column_major, start = read_npy_header(io.BytesIO(encoded))
    except ValueError as error:
        raise UserError(f"the NumPy file is damaged: {error}") from None
    _check("NumPy", shape, form)
    dtype, size = np.dtype(form), len(encoded) - start
    if size != math.prod(shape) * dtype.itemsize:
        raise UserError(f"the NumPy file declares an array {list(shape)} of {dtype.name}, but has {size:,} bytes")
    values = memoryview(encoded)[start:]
    pixels = np.frombuffer(values, dtype).reshape(shape[::-1] if column_major else shape)
    return _to_bytes(pixels.T if column_major else pixels)


def decode_stack(encoded: bytes, channels: int) -> np.ndarray:
    """Decode an image of 4 to 16 channels.

    Args:
        encoded: Content of a file of NumPy, or of a TIFF file with one sample or one page for each channel. For 4
            channels, also a PNG or WebP file with an alpha channel, which is taken as it is.
        channels: Number of channels that the image must have.

    Returns:
        uint8 [H, W, channels]. Of 16-bit values, the upper eight bits are kept.

    Raises:
        UserError: If the file is no such image, or has another number of channels.
    """
    kind = find_kind(encoded)
    if kind == "NumPy":
        pixels = decode_array(encoded)
    elif kind == "TIFF":
        pixels = _decode_tiff(encoded)
    elif kind in ("PNG", "WebP") and channels == 4:
        pixels = _decode_with_alpha(encoded, kind)
    elif kind is None:
        raise UserError(find_cause(encoded))
    else:
        raise UserError(f"data.channels={channels} needs TIFF or .npy files, and this is a {kind} image")
    if pixels.shape[2] != channels:
        raise UserError(f"the {kind} image has {pixels.shape[2]} channels, and data.channels={channels} are needed")
    return pixels


def count_channels(encoded: bytes) -> int | None:
    """Return the number of channels of a TIFF file, or None if it is damaged or no image, or tifffile is missing."""
    try:
        return _decode_tiff(encoded).shape[2]
    except UserError:
        return None


def _decode_tiff(encoded):
    if importlib.util.find_spec("tifffile") is None:
        raise UserError("TIFF images of 4 and more channels need tifffile: pip install 'efficientnet_tf[images]'")
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # Its errors about damaged files are raised as well.
    try:
        with tifffile.TiffFile(io.BytesIO(encoded)) as file:
            series = file.series[0]
            if "Y" not in series.axes or "X" not in series.axes or len(series.axes) > 3:
                raise UserError(f"the TIFF image has the axes {series.axes}, and rows, columns and channels are needed")
            order = sorted(range(len(series.axes)), key=lambda i: "YX".find(series.axes[i]) % 3)
            _check("TIFF", [series.shape[i] for i in order], np.dtype(series.dtype).str)
            return _to_bytes(series.asarray().transpose(order))
    except UserError:
        raise
    except Exception as error:  # tifffile has many types for damaged files.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the TIFF image is damaged, or tifffile cannot read it: {reason}") from None


def _decode_with_alpha(encoded, kind):
    if not has_pillow():
        raise UserError("images with an alpha channel need Pillow here: pip install 'efficientnet_tf[images]'")
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(encoded), formats=[kind.upper()]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(describe_bomb(kind, *image.size))
            channels = image.getbands()
            return np.asarray(image) if len(channels) == 4 else np.asarray(image.convert("RGB"))
    except (UserError, MemoryError):
        raise
    except Exception:  # Pillow has many types for damaged files.
        raise UserError(find_cause(encoded)) from None


def _check(kind, shape, form):
    """Raise UserError unless an array can be an image. `form` is its type as NumPy writes it."""
    if form not in ("|u1", "<u2", ">u2"):
        raise UserError(
            f"the {kind} image has values of the type '{escape(shorten(form))}', and uint8 or uint16 are needed"
        )
    if len(shape) not in (2, 3) or not all(shape) or len(shape) == 3 and shape[2] > MOST_CHANNELS:
        raise UserError(
            f"the {kind} image has the shape {list(shape)}, and [height, width] or [height, width, channels] with up "
            f"to {MOST_CHANNELS} channels are needed"
        )
    if shape[0] * shape[1] > MOST_PIXELS:
        raise UserError(describe_bomb(kind, shape[1], shape[0]))


def _to_bytes(pixels):
    """Return pixels as uint8 [H, W, C]."""
    pixels = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[..., None])

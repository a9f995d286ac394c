"""What the headers of encoded images say, read by TensorFlow operations: size, Exif orientation, transparency.

These functions run in input pipelines and in exported graphs. A header that ends early or points anywhere is an error
of TensorFlow, as any other broken image, or has no effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from efficientnet_tf.data.image_formats import MOST_PIXELS

_ORIENTATION_TAG = 0x0112
_APP1 = 0xFFE1 - 0x10000  # the marker of Exif data in a JPEG, as a signed number
_TRANSPARENCY, _EXIF, _END = (int.from_bytes(kind, "big") for kind in (b"tRNS", b"eXIf", b"IEND"))  # chunks of a PNG
_LAST_ENTRY = 512  # of an Exif directory. More would be another kind of file.
# LZW makes up to 2,700 pixels of a byte, so the frames of a shorter file have fewer pixels than two images may have.
_SHORT_GIF = 2**16


def cut(encoded: tf.Tensor, position: Any, count: int) -> tf.Tensor:
    """Return up to `count` bytes of a file from a position on, string scalar. There may be fewer, or none.

    `tf.strings.substr` quotes the file in its error if the position is outside, and Python cannot decode such an error.
    """
    return tf.strings.substr(encoded, tf.clip_by_value(position, 0, tf.strings.length(encoded)), count)


def with_size_check(encoded: tf.Tensor, width: tf.Tensor, height: tf.Tensor) -> tf.Tensor:
    """Return the encoded image after a check that its header does not declare too many pixels.

    A decoder allocates what the header declares, which may be gigabytes for a file of a few bytes.

    Args:
        encoded: Bytes of an image file, string scalar.
        width: Declared width, int32 scalar.
        height: Declared height, int32 scalar.
    """
    pixels = tf.cast(width, tf.int64) * tf.cast(height, tf.int64)
    fits = (width > 0) & (height > 0) & (pixels <= MOST_PIXELS)
    message = ["the image must have from 1 to", MOST_PIXELS, "pixels, and declares this width and height:"]
    with tf.control_dependencies([tf.debugging.Assert(fits, [*message, width, height])]):
        return tf.identity(encoded)


def _read_bytes(encoded, position, count) -> Any:
    """Return `count` bytes of a file, int32 [count]."""
    return tf.cast(tf.io.decode_raw(cut(encoded, position, count), tf.uint8), tf.int32)


def _read_little(encoded, position, count) -> Any:
    """Return the number in `count` bytes with the lowest first, int32 scalar."""
    return tf.reduce_sum(_read_bytes(encoded, position, count) * tf.constant([256**i for i in range(count)]))


# ------------------------------------------------------------------------------------------------------------ Exif


def parse_orientation(encoded: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Return the orientation that Exif data record.

    Args:
        encoded: Bytes of an image file, string scalar.
        start: Position of the Exif data, which start as a TIFF file does, int32 scalar. Negative if there are none.

    Returns:
        int32 scalar from 1 (upright, not recorded, or invalid data) to 8.
    """
    return tf.cond(start > 0, lambda: _parse_orientation(encoded, start), lambda: tf.constant(1))


def _parse_orientation(encoded, start):
    start += tf.where(cut(encoded, start, 6) == b"Exif\0\0", 6, 0)
    header = tf.io.decode_raw(cut(encoded, start, 2**16) + b"\0", tf.uint8)
    little_endian = header[0] == 0x49  # "II" for Intel, otherwise "MM" for Motorola

    def read_shorts(positions):
        last = tf.size(header) - 1
        first, second = (tf.cast(tf.gather(header, tf.clip_by_value(positions + k, 0, last)), tf.int32) for k in (0, 1))
        return tf.where(little_endian, second * 256 + first, first * 256 + second)

    # The position of the directory has four bytes. The upper two must be zero.
    directory, upper_half = read_shorts(tf.where(little_endian, 4, 6)), read_shorts(tf.where(little_endian, 6, 4))
    entries = directory + 2 + 12 * tf.range(tf.minimum(read_shorts(directory), _LAST_ENTRY))
    is_long = ~little_endian & (read_shorts(entries + 2) == 4)  # A value of four bytes ends with the lowest.
    shorts = read_shorts(entries + tf.where(is_long, 10, 8))
    values = tf.boolean_mask(shorts, read_shorts(entries) == _ORIENTATION_TAG)
    value = tf.reduce_max(tf.concat([values[:1], [1]], axis=0))
    return tf.where((value >= 1) & (value <= 8) & (upper_half == 0), value, 1)


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Return an image [H, W, C] turned and mirrored as an Exif orientation says."""

    def turn():
        transposed, mirrored, upside_down = split_orientation(orientation)
        turned = tf.cond(transposed, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        turned = tf.cond(mirrored, lambda: turned[:, ::-1], lambda: turned)
        return tf.cond(upside_down, lambda: turned[::-1], lambda: turned)

    return tf.cond(orientation > 1, turn, lambda: image)


def split_orientation(orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return what an Exif orientation consists of, in this order: transposed, mirrored, upside down, bool scalars."""
    return (
        orientation >= 5,
        tf.reduce_any(orientation == [2, 3, 6, 7]),
        tf.reduce_any(orientation == [3, 4, 7, 8]),
    )


# ------------------------------------------------------------------------------------------------------------ JPEG


def read_jpeg_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Return the Exif orientation of a JPEG, int32 scalar. Exif data are found in any segment before the frame."""
    length = tf.strings.length(encoded)

    def read_segment(position, start):
        # Two bytes of the marker, and two of the length, which includes themselves.
        header = tf.reshape(tf.io.decode_raw(cut(encoded, position, 4), tf.int32, little_endian=False), [])
        marker = tf.bitwise.right_shift(header, 16)  # It is negative, because its highest bit is set.
        is_exif = (marker == _APP1) & (cut(encoded, position + 4, 6) == b"Exif\0\0")
        # A marker may come after any number of fill bytes, which are equal to its first byte.
        step = tf.where(marker == -1, 1, 2 + tf.bitwise.bitwise_and(header, 0xFFFF))
        # The frame starts at markers from FFC0 to FFCF.
        is_end = (marker < -256) | (tf.bitwise.right_shift(marker, 4) == -4)
        return tf.where(is_end, length, position + step), tf.where(is_exif, position + 10, start)

    def is_searching(position, start):
        return (start < 0) & (position + 4 <= length)

    start = tf.while_loop(is_searching, read_segment, (2, -1), parallel_iterations=1)[1]
    return parse_orientation(encoded, start)


# ------------------------------------------------------------------------------------------------------------- PNG


def read_png_chunks(encoded: tf.Tensor) -> tuple[Any, Any, Any]:
    """Walk through the chunks of a PNG. It is an error if one declares more bytes than the file has.

    The decoder would allocate what a chunk declares, up to 2 GiB.

    Args:
        encoded: Bytes of a PNG file, string scalar.

    Returns:
        Whether it may have transparent pixels, bool scalar; the position of its Exif data or -1, int32 scalar; and
        whether it has Exif data as text, bool scalar, which ImageMagick writes.
    """
    length = tf.strings.length(encoded)

    def read_chunk(position, _, has_transparency, exif, has_text):
        header = tf.io.decode_raw(cut(encoded, position, 8), tf.int32, little_endian=False)
        size, kind = header[0], header[1]  # A size above 2**31 is read as negative.
        is_text = cut(encoded, position + 8, 21) == b"Raw profile type exif"
        fits = (size >= 0) & (size <= length - position - 12)
        return (
            tf.where(fits & (kind != _END), position + 12 + size, length),
            fits,
            has_transparency | (kind == _TRANSPARENCY),
            tf.where(kind == _EXIF, position + 8, exif),
            has_text | is_text,
        )

    color_type = _read_bytes(encoded, 25, 1)[0]
    _, fits, has_transparency, exif, has_text = tf.while_loop(
        lambda position, *_: position + 12 <= length,
        read_chunk,
        (8, True, color_type >= 4, -1, False),
        parallel_iterations=1,
    )
    with tf.control_dependencies([tf.debugging.Assert(fits, ["a part of the PNG is longer than the file"])]):
        return tf.identity(has_transparency), exif, has_text & (exif < 0)


def read_png_size(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the width and the height of a PNG, int32 scalars."""
    size = tf.io.decode_raw(cut(encoded, 16, 8), tf.int32, little_endian=False)
    return size[0], size[1]


# ------------------------------------------------------------------------------------------------------------- GIF


def prepare_gif(encoded: tf.Tensor, background: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Find the first frame of a GIF, and give its transparent color the color of the background.

    TensorFlow reads all frames before it returns the first, and ignores transparency. The frames after the first are
    therefore cut off, unless the file is short.

    Args:
        encoded: Bytes of a GIF file, string scalar.
        background: Red, green and blue of the background, from 0 to 255.

    Returns:
        Bytes of a GIF file, string scalar; its width and height, int32 scalars; and whether the first frame covers the
        whole image, bool scalar.
    """
    length = tf.strings.length(encoded)
    data: Any = tf.concat([tf.cast(tf.io.decode_raw(encoded, tf.uint8), tf.int32), tf.zeros([16], tf.int32)], axis=0)

    def skip_blocks(position):
        """Return the position after the blocks of data at a position. The last one is empty."""
        more = lambda at: (at < length) & (data[tf.minimum(at, length)] > 0)  # noqa: E731
        [last] = tf.while_loop(more, lambda at: (at + 1 + data[at],), (position,), parallel_iterations=1)
        return tf.minimum(last + 1, length)

    def read_extension(position, control):
        is_control = data[position + 1] == 0xF9
        return skip_blocks(position + 2), tf.where(is_control, position, control)

    def table_size(flags):
        return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)

    frame, control = tf.while_loop(
        lambda position, _: (position < length) & (data[tf.minimum(position, length)] == 0x21),
        read_extension,
        (tf.minimum(13 + table_size(data[10]), length), -1),
        parallel_iterations=1,
    )
    numbers = tf.reshape(data[frame + 1 : frame + 9], [4, 2])
    left, top, width, height = tf.unstack(numbers[:, 0] + 256 * numbers[:, 1])
    full_width, full_height = data[6] + 256 * data[7], data[8] + 256 * data[9]
    covers = (left == 0) & (top == 0) & (width == full_width) & (height == full_height) & (data[frame] == 0x2C)

    local = table_size(data[frame + 9])
    entry = tf.where(local > 0, frame + 10, 13) + 3 * data[control + 6]
    table_end = tf.where(local > 0, frame + 10 + local, 13 + table_size(data[10]))
    is_transparent = (control >= 0) & (data[control + 3] % 2 == 1) & (entry + 3 <= table_end) & (entry + 3 <= length)

    def replace(at, content):
        before, after = cut(prepared, 0, at), cut(prepared, at + len(content), -1)
        return tf.strings.join([before, content, after])

    def make_opaque():
        return replace(entry, bytes(background))

    def mark_as_opaque():  # Otherwise the decoder makes pixels of this color black.
        return replace(control + 3, b"\0")

    def cut_off():
        end = skip_blocks(tf.minimum(frame + 11 + local, length))
        return cut(prepared, 0, end) + b";"

    prepared = encoded
    prepared = tf.cond(is_transparent, make_opaque, lambda: prepared)
    prepared = tf.cond(is_transparent, mark_as_opaque, lambda: prepared)
    prepared = tf.cond(length > _SHORT_GIF, cut_off, lambda: prepared)
    return prepared, full_width, full_height, covers


# ------------------------------------------------------------------------------------------------------ BMP and WebP


def read_bitmap(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the width and the height of a BMP, int32 scalars, and whether TensorFlow decodes it correctly.

    TensorFlow reads 24 and 32 bits per pixel and 8-bit grays. It would take the numbers of a palette, and compressed
    data, for grays.
    """
    header = _read_bytes(encoded, 0, 34)
    width, height = _read_little(encoded, 18, 4), tf.abs(_read_little(encoded, 22, 4))
    # The palette is between the headers and the pixels, four bytes per color: blue, green, red, zero.
    depth, first, end = header[28], 14 + header[14], header[10] + 256 * header[11]
    size = tf.where(depth == 8, tf.clip_by_value(end - first, 0, 1024) // 4 * 4, 0)
    levels = tf.reshape(_read_bytes(encoded, first, size), [-1, 4])[:, :3]
    is_gray = tf.reduce_all(levels == tf.range(size // 4)[:, None])
    is_plain = (header[14] >= 40) & tf.reduce_all(header[30:34] == 0) & tf.reduce_any(depth == [8, 24, 32])
    return width, height, is_plain & is_gray


def is_plain_webp(encoded: tf.Tensor) -> tf.Tensor:
    """Return whether a file is a lossy WebP that is opaque, not animated, and records no orientation, bool scalar."""
    form, flags = cut(encoded, 12, 4), tf.io.decode_raw(cut(encoded, 20, 1) + b"\0", tf.uint8)[0]
    # Bits of an extended header: transparency, Exif, and animation. It may have a color profile.
    is_simple = (form == b"VP8 ") | ((form == b"VP8X") & (tf.bitwise.bitwise_and(flags, 0b11010) == 0))
    return (cut(encoded, 0, 4) == b"RIFF") & (cut(encoded, 8, 4) == b"WEBP") & is_simple


def read_plain_webp_size(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the width and the height of a WebP for which `is_plain_webp` holds, int32 scalars."""
    is_extended = cut(encoded, 12, 4) == b"VP8X"
    extended = [_read_little(encoded, position, 3) + 1 for position in (24, 27)]
    simple = [_read_little(encoded, position, 2) % 2**14 for position in (26, 28)]
    width, height = (tf.where(is_extended, *sizes) for sizes in zip(extended, simple, strict=True))
    return width, height


def read_webp(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return what the header of a WebP file says.

    Returns:
        Width and height, int32 scalars; whether it is animated, bool scalar, which TensorFlow must not decode because
        it writes beyond its memory; and the position of Exif data or -1, int32 scalar.
    """
    length, form = tf.strings.length(encoded), cut(encoded, 12, 4)

    def read_extended():
        flags = _read_bytes(encoded, 20, 1)[0]
        size = _read_little(encoded, 24, 3) + 1, _read_little(encoded, 27, 3) + 1
        return *size, flags // 2 % 2 == 1, tf.cond(flags // 8 % 2 == 1, find_exif, lambda: -1)

    def find_exif():
        def read_chunk(position, exif):
            is_exif = cut(encoded, position, 4) == b"EXIF"
            size = _read_little(encoded, position + 4, 4)
            return position + 8 + size + size % 2, tf.where(is_exif, position + 8, exif)

        more = lambda position, _: (position >= 12) & (position + 8 <= length)  # noqa: E731
        return tf.while_loop(more, read_chunk, (12, -1), parallel_iterations=1)[1]

    def read_lossless():
        bits = _read_little(encoded, 21, 4)
        return bits % 2**14 + 1, tf.bitwise.right_shift(bits, 14) % 2**14 + 1, False, -1

    def read_lossy():
        return _read_little(encoded, 26, 2) % 2**14, _read_little(encoded, 28, 2) % 2**14, False, -1

    return tf.case([(form == b"VP8X", read_extended), (form == b"VP8L", read_lossless)], default=read_lossy)

"""Decode the part of an image that a crop needs. Of a JPEG, nothing else is decoded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from efficientnet_tf.config.preprocessing import as_rgb
from efficientnet_tf.data import pillow_decoder
from efficientnet_tf.data.headers import (
    cut,
    is_plain_webp,
    parse_orientation,
    prepare_gif,
    read_bitmap,
    read_jpeg_orientation,
    read_plain_webp_size,
    read_png_chunks,
    read_png_size,
    read_webp,
    split_orientation,
    turn_upright,
    with_size_check,
)
from efficientnet_tf.data.image_formats import has_pillow
from efficientnet_tf.data.stacks import decode_stack
from efficientnet_tf.data.windows import center_window, whole_window

if TYPE_CHECKING:
    from efficientnet_tf.config.preprocessing import Preprocessing

_PNG = b"\x89PNG\r\n\x1a\n"
_STRIP_PIXELS = 2**22  # pixels that are converted at a time, which bounds the memory for large images
_READS_WEBP = "decode_webp" in dir(tf.io)  # since TensorFlow 2.20
_NOT_PORTABLE_STACK = "images of more than 3 channels are not decoded in exported models: pass their pixels"
_NOT_PORTABLE = "this image needs Pillow, which is not used in exported models: convert it to JPEG or PNG"


def decode_evaluation(encoded: tf.Tensor, preprocessing: Preprocessing, portable: bool = False) -> tf.Tensor:
    """Decode an image and bring it to the size that a network sees in evaluation.

    Args:
        encoded: Bytes of an image file, string scalar.
        preprocessing: The size, and how the image is brought to it.
        portable: As for `decode_window`.

    Returns:
        float32 [H, W, C], in about [0, 255]. Bicubic interpolation overshoots this range at edges.

    Source: official code, `preprocess_for_eval`, for the center crop.
    """
    size, channels, background = preprocessing.image_shape, preprocessing.channels, preprocessing.background

    def choose_window(shape):
        if preprocessing.crop == "center":
            return center_window(shape, size, preprocessing.crop_padding)
        return whole_window(shape)

    image = decode_window(encoded, channels, choose_window, background, portable)
    if preprocessing.crop == "pad":
        return pad(image, size, preprocessing.interpolation, background)
    image = tf.image.resize(image, size, preprocessing.interpolation)
    return tf.ensure_shape(image, [*size, channels])


def pad(image: tf.Tensor, shape: Sequence[int], interpolation: str, background: Sequence[int] = (255,)) -> tf.Tensor:
    """Resize an image until it just fits in a frame, and place it in the center of the frame.

    Args:
        image: uint8 [R, S, C].
        shape: Height H and width W of the frame in pixels.
        interpolation: As for `tf.image.resize`.
        background: Color of the border, in [0, 255]: one gray level, or red, green and blue.

    Returns:
        float32 [H, W, C]. If the border is an odd number of pixels, the larger part is on the right or at the bottom.
    """
    channels: Any = image.shape[-1]
    height, width = tf.unstack(tf.shape(image, tf.int64)[:2])
    # One side of the image gets that of the frame. Integers only, as for the center crop. Halves are rounded up.
    width_decides = height * shape[1] <= width * shape[0]
    side = tf.where(width_decides, width, height)
    whole = tf.cast(tf.where(width_decides, shape[1], shape[0]), tf.int64)
    rows, columns = (tf.cast(tf.maximum((each * whole + side // 2) // side, 1), tf.int32) for each in (height, width))
    image = tf.image.resize(image, tf.stack([rows, columns]), interpolation)
    top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    border = tf.stack([[top, shape[0] - rows - top], [left, shape[1] - columns - left], [0, 0]])
    inside = tf.pad(tf.ones([rows, columns, 1], tf.bool), border)
    color = tf.constant([[as_rgb(background)]], tf.uint8)
    if channels > 3:
        color = tf.fill([1, 1, channels], color[0, 0, 0])
    if channels == 1:
        color = tf.image.rgb_to_grayscale(color)  # the level that transparent pixels get, too
    return tf.ensure_shape(tf.where(inside, tf.pad(image, border), tf.cast(color, tf.float32)), [*shape, channels])


def decode_window(
    encoded: tf.Tensor,
    channels: int,
    choose_window: Callable[[tf.Tensor], tf.Tensor],
    background: Sequence[int] = (255,),
    portable: bool = False,
) -> tf.Tensor:
    """Decode the window of an image that `choose_window` returns.

    The content of a file says what it is, not its name. TensorFlow decodes JPEG, and PNG and WebP without transparency.
    Pillow decodes everything else if it is installed. Without it, TensorFlow decodes the rest, apart
    from TIFF, WebP before TensorFlow 2.20, animated WebP, BMP with a palette, compression or transparency, and GIF
    whose first frame does not cover it. The pixels are the same.

    Args:
        encoded: Bytes of a JPEG, PNG, BMP, GIF (first frame), WebP (first frame) or TIFF (first page) file, string
            scalar.
        channels: 1 or 3, to which gray, palette, CMYK and 16-bit images are converted, or 4 to 16 for files that have
            as many, see `stacks.decode_stack`.
        choose_window: Function of the shape of the upright image, int32 [3], that returns a window (y, x, height,
            width), int32 [4].
        background: Color behind transparent pixels, in [0, 255]: one gray level, or red, green and blue.
        portable: Whether to use TensorFlow's operations only, in a graph for another process. What needs Pillow is then
            an error.

    Returns:
        uint8 [height, width, channels]. The image is rotated as its Exif orientation says.
    """
    if channels > 3:
        image = _decode_stack(encoded, channels, portable)
        y, x, height, width = tf.unstack(choose_window(tf.shape(image)))
        return image[y : y + height, x : x + width]
    color = as_rgb(background)

    def decode_other():
        image = _make_whole_decoder(color, portable, has_pillow() and not portable)(encoded)
        y, x, height, width = tf.unstack(choose_window(tf.shape(image)))
        return image[y : y + height, x : x + width]

    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    image = tf.cond(is_jpeg, lambda: _decode_jpeg_window(encoded, choose_window), decode_other)
    image = tf.ensure_shape(image, [None, None, 3])
    if channels == 3:
        return image
    return _convert_strips(image, tf.image.rgb_to_grayscale, 1)  # Not every decoder can return gray.


def _decode_jpeg_window(encoded, choose_window):
    """Decode a window of a JPEG, uint8 [height, width, 3]."""
    orientation = read_jpeg_orientation(encoded)
    transposed, mirrored, upside_down = split_orientation(orientation)
    stored_shape = tf.io.extract_jpeg_shape(encoded)
    encoded = with_size_check(encoded, stored_shape[1], stored_shape[0])
    upright_shape = tf.where(transposed, tf.gather(stored_shape, [1, 0, 2]), stored_shape)
    height, width, depth = tf.unstack(upright_shape)
    y, x, tall, wide = tf.unstack(choose_window(tf.stack([height, width, depth])))
    y, x = tf.where(upside_down, height - y - tall, y), tf.where(mirrored, width - x - wide, x)
    window = tf.stack([y, x, tall, wide])
    window = tf.where(transposed, tf.gather(window, [1, 0, 3, 2]), window)
    # TensorFlow's default method differs from other decoders by up to 9 gray levels, this one by 0. Both are equally
    # fast, within 1%.
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_ACCURATE")
    return turn_upright(image, orientation)


def _decode_with_pillow(encoded, color):
    return _decode_in_python(encoded, lambda content: pillow_decoder.decode(content, color), 3)


def _decode_stack(encoded, channels, portable):
    if portable:
        with tf.control_dependencies([tf.debugging.Assert(False, [_NOT_PORTABLE_STACK])]):
            return tf.zeros([1, 1, channels], tf.uint8)
    return _decode_in_python(encoded, lambda content: decode_stack(content, channels), channels)


def _decode_in_python(encoded, decode, channels):
    """Return what a function of bytes returns, uint8 [H, W, channels]."""
    if tf.executing_eagerly():  # Outside of a graph, `numpy_function` drops zeros at the end of the bytes.
        try:
            return tf.constant(decode(tf.convert_to_tensor(encoded).numpy()))
        except Exception as error:
            raise tf.errors.InvalidArgumentError(None, None, str(error)) from error
    image = tf.numpy_function(decode, [encoded], tf.uint8, stateful=False)
    return tf.ensure_shape(image, [None, None, channels])


@functools.cache
def _make_whole_decoder(color, portable, use_pillow):
    """Return a function that decodes an image that is not a JPEG: uint8 [H, W, 3], upright and without transparency.

    It is traced once per process and not inlined. Its many operations would slow down the start of every pipeline, and
    the graphs of JPEGs.
    """

    @tf.function(
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    def decode(encoded):
        is_png = tf.strings.substr(encoded, 0, 8) == _PNG
        is_rare, exif, has_text = tf.cond(is_png, lambda: read_png_chunks(encoded), no_chunks)

        def decode_png():
            image = tf.io.decode_png(with_size_check(encoded, *read_png_size(encoded)), 3)
            return turn_upright(image, parse_orientation(encoded, exif))

        def decode_webp():
            checked = with_size_check(encoded, *read_plain_webp_size(encoded))
            return tf.ensure_shape(tf.io.decode_image(checked, 3, expand_animations=False), [None, None, 3])

        def decode_rare():
            if use_pillow:
                return _decode_with_pillow(encoded, color)
            return _decode_by_tensorflow(encoded, color, portable)

        kinds = [(~is_rare & ~has_text, decode_png), (is_plain_webp(encoded) & _READS_WEBP, decode_webp)]
        return tf.case(kinds, decode_rare)

    def no_chunks():
        return tf.constant(True), tf.constant(-1), tf.constant(False)

    return decode


def _decode_by_tensorflow(encoded, color, portable):
    """Decode an image that is not a JPEG without Pillow: uint8 [H, W, 3], upright and without transparency."""
    image, orientation = _decode_whole(encoded, color, portable)
    opaque = tf.cond(
        tf.shape(image)[2] == 4,
        lambda: _convert_strips(image, functools.partial(_composite, color=color), 3),
        lambda: image,
    )
    return tf.ensure_shape(turn_upright(opaque, orientation), [None, None, 3])


def _decode_whole(encoded, color, portable):
    """Decode an image that is not a JPEG: uint8 [H, W, 3], or [H, W, 4] with alpha, and its Exif orientation."""

    def decode_rare():
        if portable:
            with tf.control_dependencies([tf.debugging.Assert(False, [_NOT_PORTABLE])]):
                return tf.zeros([1, 1, 3], tf.uint8), 1
        return _decode_with_pillow(encoded, color), 1

    def decode_png():
        has_alpha, exif, has_text = read_png_chunks(encoded)
        checked = with_size_check(encoded, *read_png_size(encoded))
        decoders = [functools.partial(tf.io.decode_png, checked, channels) for channels in (4, 3)]
        orientation = tf.cond(has_text, read_text, lambda: parse_orientation(encoded, exif))
        return tf.cond(has_alpha, *decoders), orientation

    def read_text():
        if portable:
            with tf.control_dependencies([tf.debugging.Assert(False, [_NOT_PORTABLE])]):
                return tf.constant(1)
        exif = tf.numpy_function(pillow_decoder.read_text_exif, [encoded], tf.string, stateful=False)
        return parse_orientation(tf.ensure_shape(exif, []), tf.constant(1))

    def decode_gif():
        prepared, width, height, covers = prepare_gif(encoded, color)
        checked = with_size_check(prepared, width, height)
        return tf.cond(covers, lambda: (decode_image(checked, 3), 1), decode_rare)

    def decode_bitmap():
        width, height, is_plain = read_bitmap(encoded)
        checked = with_size_check(encoded, width, height)
        return tf.cond(is_plain, lambda: (decode_image(checked, 3), 1), decode_rare)

    def decode_webp():
        width, height, is_animated, exif = read_webp(encoded)
        checked = with_size_check(encoded, width, height)
        # The decoder accepts no other number of channels than that of the file.
        decode = lambda: (decode_image(checked, 0), parse_orientation(encoded, exif))  # noqa: E731
        return tf.cond(is_animated, decode_rare, decode)

    def decode_image(checked, channels):
        return tf.ensure_shape(tf.io.decode_image(checked, channels, expand_animations=False), [None, None, None])

    start, form = cut(encoded, 0, 8), cut(encoded, 8, 4)
    kinds = [
        (start == _PNG, decode_png),
        (tf.strings.substr(start, 0, 4) == b"GIF8", decode_gif),
        (tf.strings.substr(start, 0, 2) == b"BM", decode_bitmap),
    ]
    if _READS_WEBP:
        kinds.append(((tf.strings.substr(start, 0, 4) == b"RIFF") & (form == b"WEBP"), decode_webp))
    return tf.case(kinds, default=decode_rare)


def _convert_strips(image, convert, channels):
    """Convert the pixels of an image, uint8 [H, W, C] to [H, W, channels], some rows at a time."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    rows = tf.maximum(_STRIP_PIXELS // tf.maximum(width, 1), 1)
    count = (height + rows - 1) // rows

    def convert_strip(number, strips):
        return number + 1, strips.write(number, convert(image[number * rows : (number + 1) * rows]))

    strips = tf.TensorArray(tf.uint8, count, infer_shape=False, element_shape=[None, None, channels])
    _, strips = tf.while_loop(lambda number, _: number < count, convert_strip, (0, strips), parallel_iterations=1)
    return strips.concat()


def _composite(pixels, color):
    """Put pixels with alpha, uint8 [H, W, 4], on a color, as Pillow does: a division by 255 with rounding."""
    values = tf.cast(pixels, tf.uint16)
    alpha = values[..., 3:]
    total = values[..., :3] * alpha + tf.constant(color, tf.uint16) * (255 - alpha) + 128
    return tf.cast(tf.bitwise.right_shift(tf.bitwise.right_shift(total, 8) + total, 8), tf.uint8)

"""From encoded bytes to the pixels of a window: of a JPEG, nothing else is decoded."""

import tensorflow as tf


def _exif_orientation(encoded):
    """Return a JPEG's orientation, int32 scalar, 1 (upright) to 8; Exif is looked for in the first three segments."""
    length = tf.strings.length(encoded)

    def segment_length(position):
        position = tf.clip_by_value(position, 0, length - 2)  # whatever a broken header says
        two = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, position, 2), tf.uint8), tf.int32)
        return two[0] * 256 + two[1]

    at, exif = tf.constant(2), tf.constant(-1)
    for _ in range(3):
        is_exif = tf.strings.substr(encoded, tf.minimum(at + 4, length), 6) == b"Exif\0\0"
        exif = tf.where((exif < 0) & is_exif, at + 10, exif)
        at += 2 + segment_length(at + 2)

    def parse():
        header = tf.io.decode_raw(tf.strings.substr(encoded, exif, 2**16) + b"\0", tf.uint8)
        low_first = header[0] == 0x49  # "II", Intel's order; else "MM"

        def short(positions):
            last = tf.size(header) - 1
            first, second = (
                tf.cast(tf.gather(header, tf.clip_by_value(positions + k, 0, last)), tf.int32) for k in (0, 1)
            )
            return tf.where(low_first, second * 256 + first, first * 256 + second)

        directory, too_far = short(tf.where(low_first, 4, 6)), short(tf.where(low_first, 6, 4))
        entries = directory + 2 + 12 * tf.range(tf.minimum(short(directory), 64))
        values = tf.boolean_mask(short(entries + 8), short(entries) == 0x0112)
        value = tf.reduce_max(tf.concat([values[:1], [1]], axis=0))
        return tf.where((value >= 1) & (value <= 8) & (too_far == 0), value, 1)

    return tf.cond(exif > 0, parse, lambda: tf.constant(1))


def check_bitmap(encoded):
    """Fail for a BMP that TensorFlow would read as another picture: it knows neither palettes nor compression."""

    def check():
        header = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, 34), tf.uint8), tf.int32)
        depth, plain = header[28], tf.reduce_all(header[30:34] == 0)
        # From the end of the headers to the pixels: four bytes a colour, blue, green, red, and nothing.
        first, end = 14 + header[14], header[10] + 256 * header[11]
        size = tf.where(depth == 8, tf.clip_by_value(end - first, 0, 1024) // 4 * 4, 0)
        palette = tf.io.decode_raw(tf.strings.substr(encoded, first, size), tf.uint8)
        levels = tf.cast(tf.reshape(palette, [-1, 4])[:, :3], tf.int32)
        grey = tf.reduce_all(levels == tf.range(size // 4)[:, None])
        return tf.debugging.Assert(plain & grey, ["a BMP with a palette or compression cannot be read"])

    return tf.cond(tf.strings.substr(encoded, 0, 2) == b"BM", check, tf.no_op)


def decode_window(encoded, channels, choose_window):
    """Decode the part of an image that `choose_window` picks; of a JPEG, that part only.

    Args:
        encoded: string scalar, the bytes of a JPEG, PNG, BMP, GIF (its first frame) or, from TensorFlow 2.20 on, WebP.
        channels: 1 or 3. Grey, palette, CMYK and 16-bit images are converted, transparency is left out.
        choose_window: from a shape, int32 [3], to a window [y, x, height, width], int32 [4].

    Returns:
        uint8 [height, width, channels]. A JPEG whose Exif says so is turned upright, before the window is chosen.
    """

    def jpeg():
        orientation = _exif_orientation(encoded)
        mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
        upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
        transposed = orientation >= 5
        stored = tf.io.extract_jpeg_shape(encoded)
        height, width, depth = tf.unstack(tf.where(transposed, tf.gather(stored, [1, 0, 2]), stored))
        y, x, tall, wide = tf.unstack(choose_window(tf.stack([height, width, depth])))
        y, x = tf.where(upside_down, height - y - tall, y), tf.where(mirrored, width - x - wide, x)
        window = tf.stack([y, x, tall, wide])
        window = tf.where(transposed, tf.gather(window, [1, 0, 3, 2]), window)
        # TensorFlow's default is as slow, within 1 %, and up to 9 grey levels off other decoders; this is 0 off.
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_ACCURATE")

        def upright():
            turned = tf.cond(transposed, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
            turned = tf.cond(mirrored, lambda: turned[:, ::-1], lambda: turned)
            return tf.cond(upside_down, lambda: turned[::-1], lambda: turned)

        return tf.cond(orientation > 1, upright, lambda: image)

    def other():
        with tf.control_dependencies([check_bitmap(encoded)]):
            image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        y, x, height, width = tf.unstack(choose_window(tf.shape(image)))
        return image[y : y + height, x : x + width]

    image = tf.cond(tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff", jpeg, other)
    image = tf.ensure_shape(image, [None, None, 3])
    return tf.image.rgb_to_grayscale(image) if channels == 1 else image  # not every decoder can give grey


def center_window(shape, image_size, padding):
    """Choose the evaluation crop: a centred square of side size/(size + padding) of the shorter side.

    Args:
        shape: int32 [3], the image's height, width, channels.
        image_size: int, side of the network's input, pixels.
        padding: int >= 0.

    Returns:
        int32 [4]: y, x, height, width, pixels.

    Source: official code, `_decode_and_center_crop`; the fraction is .875 at 224 pixels and padding 32.
    """
    height, width = shape[0], shape[1]
    # In whole numbers: a product of floats may fall short of one, and the side be a pixel too small.
    side = tf.maximum(tf.minimum(height, width) * image_size // (image_size + padding), 1)
    return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def random_window(shape, seed, augment, fallback):
    """Choose a training crop of random area and aspect; after ten vain attempts, `fallback`.

    Args:
        shape: int32 [3], the image's height, width, channels.
        seed: int64 [2].
        augment: schema.AugmentConfig.
        fallback: int32 [4], a window.

    Returns:
        int32 [4]: y, x, height, width, pixels.

    Source: official code, `distorted_bounding_box_crop` with the whole image as the object.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=augment.crop_aspect,
        area_range=augment.crop_area,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    failed = tf.reduce_all(size[:2] == shape[:2])  # the operation answers with the whole image
    return tf.where(failed & (augment.crop_area[0] < 1), fallback, window)

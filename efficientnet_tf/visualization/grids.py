"""What all pictures share: Pillow, which is optional, text that fits its place, and the file."""

import io
import os

import tensorflow as tf

from efficientnet_tf.config.errors import UserError


def require_pillow(who):
    """Check that Pillow is there.

    Args:
        who: str, the command or flag that draws.

    Raises:
        UserError: when it is not.
    """
    try:
        from PIL import Image  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(f"{who} draws with Pillow, which is not installed: pip install pillow") from None


def shorten(font, text, width):
    """Return text that takes at most `width` pixels; what is too long is cut and ends in dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def wrap(font, words, width):
    """Put words into lines of at most `width` pixels; a word that is too long alone is cut."""
    lines = []
    for word in words:
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shorten(font, word, width))
    return lines


def save_picture(picture, path, flag):
    """Write a PIL.Image.Image, local or gs://, in the format that the name's ending says.

    Args:
        picture: PIL.Image.Image.
        path: str.
        flag: str, the flag that named the path.

    Raises:
        UserError: when the ending names no format, or the file cannot be written.
    """
    from PIL import Image

    encoded = io.BytesIO()
    try:
        suffix = os.path.splitext(path)[1].lower()
        picture.save(encoded, format=Image.registered_extensions().get(suffix, suffix))
        with tf.io.gfile.GFile(path, "wb") as file:
            file.write(encoded.getvalue())
    except (KeyError, ValueError):  # which of them depends on Pillow
        raise UserError(f"{flag}={path} cannot be written: the name must end as pictures do, in .png or .jpg") from None
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{flag}={path} cannot be written: {str(error)[:300]}") from None

"""Text that comes from outside: files in any encoding, and names with any character."""

import re
import unicodedata
from collections.abc import Sequence

from efficientnet_tf.config.errors import UserError

_JOINERS = "\u200c\u200d"  # invisible, but part of words in Persian and of emoji


def decode_text(data: bytes, where: object) -> str:
    r"""Return the text of a file in UTF-8, with `\n` as the only line ending and without a byte-order mark.

    Args:
        data: Content of the file.
        where: Name of the file, for the error message.

    Raises:
        UserError: If the content is not UTF-8. The message names the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise UserError(f"{escape(str(where))}, line {line}: the byte 0x{byte:02x} is not UTF-8. Save the file as "
                        "UTF-8.") from None  # fmt: skip
    return text.replace("\r\n", "\n").replace("\r", "\n")


def escape(text: str) -> str:
    r"""Return a text in which no character can move the cursor, break the line or hide: `\x1b`, `\u2028`, `\udcff`.

    Names of files and classes come from strangers. They are escaped wherever they are shown.

    Args:
        text: Any text, also one with the surrogates that Python uses for file names that are not UTF-8.

    Returns:
        The text with visible escapes. Letters of all scripts, spaces and emoji stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_visible(c) else c.encode("unicode_escape").decode() for c in text)


def escape_lines(text: str) -> str:
    """Return a text with `escape` applied to each line. The line breaks stay as they are."""
    return "\n".join(map(escape, text.split("\n")))


def shorten(text: str, most: int = 120) -> str:
    """Return a text with at most about `most` characters, for error messages. The middle of a longer one is left out.

    Args:
        text: Any text.
        most: Number of characters to keep, at least 2.
    """
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]}... ({len(text):,} characters) ...{text[-(most // 3) :]}"


def find_invisible(text: str) -> str | None:
    """Return the first character that `escape` would replace, or None."""
    return next((c for c in text if not _is_visible(c)), None)


def find_reason(error: BaseException) -> str:
    """Return the reason that an error of a library gives, in one line without TensorFlow's names of operations."""
    message = str(getattr(error, "message", None) or error)
    lines = message.partition("\n\t [[")[0].strip().splitlines() or [type(error).__name__]
    return shorten(re.sub(r"\{\{.*?\}\} ?| \[Op:\w+\]", "", lines[0]), 300)


def normalize_name(text: str) -> str:
    """Return a name in Unicode's composed form (NFC), without white space at its ends.

    Two names that look the same are then equal: editors and file systems write an accented letter as one character or
    as two.
    """
    return unicodedata.normalize("NFC", text).strip()


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raise UserError unless names can be class names: visible, on one line, not empty, and no two the same.

    Files such as `classes.txt` have one name per line, and a name that hides or repeats would mix up classes there.

    Args:
        names: The names, in the order of the labels.
        where: Where they come from, for the error message.
    """
    seen = {}
    for number, name in enumerate(names):
        if not name.strip():
            raise UserError(f"{where}: the name of class {number} is empty. Each class needs a name.")
        invisible = find_invisible(name)
        if invisible is not None:
            raise UserError(
                f"{where}: the class name '{escape(shorten(name))}' contains {escape(invisible)}, which is no visible "
                "character of one line. Rename the class."
            )
        if name in seen:
            raise UserError(f"{where}: the classes {seen[name]} and {number} are both named {shorten(name)!r}.")
        seen[name] = number


def _is_visible(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"

"""Text from outside is decoded strictly and shown without control characters."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import decode_text, escape, find_invisible, find_reason, normalize_name


def test_decoding_drops_the_mark_and_unifies_line_endings():
    assert decode_text(b"\xef\xbb\xbfa\r\nb\rc\n", "file") == "a\nb\nc\n"
    assert decode_text("x\u2028y\x0bz".encode(), "file") == "x\u2028y\x0bz"  # not line endings of a text file
    with pytest.raises(UserError, match="^file, line 3: the byte 0xff is not UTF-8"):
        decode_text(b"a\nb\n\xff", "file")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat", "cat"),
        ("Katze \u00fc \u732b \U0001f408", "Katze \u00fc \u732b \U0001f408"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\rc\td", "a\\nb\\rc\\td"),
        ("a\u2028b\x85c", "a\\u2028b\\x85c"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("b\udce4d", "b\\udce4d"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
    ],
)
def test_what_is_shown(text, shown):
    assert escape(text) == shown
    assert (find_invisible(text) is None) == (text == shown)


@given(st.text(st.characters(max_codepoint=sys.maxunicode)))
def test_what_is_shown_is_always_one_visible_line(text):
    shown = escape(text)
    assert escape(shown) == shown and len(shown.splitlines()) <= 1
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp", "Co", "Cn"}
    shown.encode()


def test_names_that_look_the_same_are_the_same():
    assert normalize_name(" cafe\u0301\u00a0") == normalize_name("caf\u00e9")


def test_a_reason_has_no_names_of_operations():
    message = "{{function_node __wrapped__SaveV2}} out/step-3; File too large [Op:SaveV2]\n\t [[node]]"
    assert find_reason(ValueError(message)) == "out/step-3; File too large"
    assert find_reason(OSError(28, "No space left on device")) == "[Errno 28] No space left on device"
    assert find_reason(MemoryError()) == "MemoryError"

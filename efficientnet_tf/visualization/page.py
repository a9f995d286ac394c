"""Makes interactive pages: one HTML file each, in one style, that opens without a network and fetches nothing.

A page consists of `page.html`, `page.css` and `page.js`, which all pages share, the content and the script of its own,
its data, and plotly.
"""

import json
import math
from pathlib import Path
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape

SHELL = Path(__file__).with_suffix(".html")
PLOTLY = "plotly.min.js"  # the file that pages can share
# In the order of SYMBOLS in page.js. Readers with any kind of color vision can tell them apart, and they stand out from
# white and from near-black. tests/visualization/test_page.py computes both.
COLORS = ["#2a6aa7", "#d04000", "#0c9d80", "#f16ec2", "#b89c00", "#26a3ff", "#8a5edf", "#845e5e"]


def require_plotly(who: str) -> None:
    """Check that plotly is installed.

    Args:
        who: The command that draws, for the message.

    Raises:
        UserError: If plotly is not installed.
    """
    try:
        import plotly  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(
            f"{who} draws with plotly, which is not installed. Run pip install 'efficientnet_tf[picture]'."
        ) from None


def make_page(content: Path, data: dict[str, Any], shared_plotly: str | None = None) -> str:
    """Return a page as one HTML text that fetches nothing from the network.

    Args:
        content: HTML file with the content of the body. The script of the page is next to it, with the ending .js.
        data: What the script finds as `data`, as values for JSON. The colors of lines are added.
        shared_plotly: Address of plotly relative to the page, or None for a page that contains it.
    """
    data = {"colors": COLORS} | data
    # Without "<", no text can end the script element.
    values = json.dumps(_clean(data), allow_nan=False).replace("<", "\\u003c")
    plotly = f'<script src="{shared_plotly}"></script>' if shared_plotly else f"<script>{read_plotly()}</script>"
    script = _read(SHELL.with_suffix(".js")) + _read(content.with_suffix(".js"))
    parts = {
        "/*STYLE*/": _read(SHELL.with_suffix(".css")),
        "<!--CONTENT-->": _read(content),
        "/*SCRIPT*/": script,
        "<!--PLOTLY-->": plotly,
        "/*DATA*/null": values,  # last, so that no text of the data is replaced
    }
    page = _read(SHELL)
    for placeholder, text in parts.items():
        page = page.replace(placeholder, text, 1)
    return page


def read_plotly() -> str:
    """Return the script of the installed version of plotly."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _clean(value: Any) -> Any:
    """Return the value with visible texts, and with None in place of every float that JSON cannot represent."""
    if isinstance(value, dict):
        return {_clean(key): _clean(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(part) for part in value]
    if isinstance(value, str):
        return escape(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value

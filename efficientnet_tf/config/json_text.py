"""JSON from files that may come from strangers."""

import json
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, shorten


def parse_json(text: str | bytes, where: object) -> Any:
    """Return the content of a JSON text.

    Args:
        text: The JSON text.
        where: Name of the source of the text, for error messages.

    Raises:
        UserError: If the text is not valid JSON, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except ValueError as error:
        reason = shorten(escape(str(error)), 200)
    raise UserError(f"{shorten(escape(str(where)))}: not valid JSON: {reason}.")


def parse_json_object(text: str | bytes, where: object) -> dict[str, Any]:
    """Return the content of a JSON text that must be an object, which Python reads as a dict.

    Raises:
        UserError: As `parse_json`, or if the content is no object.
    """
    content = parse_json(text, where)
    if not isinstance(content, dict):
        raise UserError(f"{shorten(escape(str(where)))}: expected a JSON object, received {type(content).__name__}.")
    return content

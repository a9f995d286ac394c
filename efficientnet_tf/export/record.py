"""What an export records about itself, so that a later change of its network, its config or its classes is noticed.

This finds damage and edits. It is no signature: whoever can write the file can write the record, too.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape
from efficientnet_tf.weights.loaded import needs_of

_UNCHANGED = "Undo the change, or export the model again."


def make_record(config: Config, class_names: Sequence[str], digest: str) -> str:
    """Return the record of an export.

    Args:
        config: Config of the run.
        class_names: The class names, in the order of the logits.
        digest: SHA-256 of the network.

    Returns:
        JSON, in ASCII.
    """
    return json.dumps({"network": digest, "classes": _hash(class_names), "config": needs_of(config)})


def check_record(path: str, record: str | None, config: Config, class_names: Sequence[str], digest: str) -> None:
    """Raise UserError if an export is not what was written.

    Args:
        path: Path of the export, for the error message.
        record: Its record. None is accepted, because exports of earlier versions have none.
        config: The config that is in it now.
        class_names: The class names that are in it now.
        digest: SHA-256 of the network that is in it now.
    """
    if record is None:
        return
    shown = escape(path)
    try:
        expected = json.loads(record)
        network, classes, needs = (expected[key] for key in ("network", "classes", "config"))
        needs = dict(needs)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{shown} is damaged: its record is not readable. Export the model again.") from None
    if network != digest:
        raise UserError(f"{shown} is damaged: its network is not the one that was exported. Export the model again.")
    now = _as_json(needs_of(config))
    # A version may know other keys than the one that wrote the record.
    changed = [key for key in now if key in needs and needs[key] != now[key]]
    if changed:
        lines = "".join(f"\n  {key}: {needs[key]!r} -> {now[key]!r}" for key in changed)
        raise UserError(
            f"{shown}: its config.yaml was changed after the export, in keys that decide what the network sees "
            f"(exported -> now). {_UNCHANGED}{lines}"
        )
    if classes != _hash(class_names):
        raise UserError(
            f"{shown}: its classes.txt was changed after the export, so names may stand for other classes. {_UNCHANGED}"
        )


def _hash(class_names):
    return hashlib.sha256("\n".join(class_names).encode(errors="surrogatepass")).hexdigest()


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))

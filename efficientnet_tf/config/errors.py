"""TODO docstring (from config)."""

import difflib


class UserError(ValueError):
    """Something a user can mend: the message says what was wrong, what was received and what is allowed."""


def suggest(name, allowed):
    """Return ' Did you mean X?' for the name in `allowed` closest to `name`, or '' where none is close."""
    close = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def closest_names(name, allowed, count=5):
    """Return the at most `count` names in `allowed` closest to `name`, or its last ones where none is close."""
    return difflib.get_close_matches(name, allowed, n=count, cutoff=0.5) or list(allowed)[-count:]

"""The exception for mistakes that a user can fix, and hints at the name that was probably meant."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake that the user can fix.

    The message says what was received, what is allowed and, where there is one, the nearest valid name. Commands print
    it without a traceback and exit with status 1.

    Example:
        >>> from efficientnet_tf import UserError, load_config
        >>> try:
        ...     load_config("b0", "digits", ["train.epoch=5"])
        ... except UserError as error:
        ...     print(str(error).partition("Did you mean ")[2])
        'epochs'?
    """


def suggest(name: object, allowed: Iterable[object]) -> str:
    """Return " Did you mean 'x'?" for the allowed name that is closest, or "" if none is close.

    Args:
        name: The unknown name.
        allowed: The valid names.
    """
    # The time grows with the square of the length, and no valid name is long.
    close = difflib.get_close_matches(str(name)[:100], [str(a) for a in allowed], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def closest_names(name: str, allowed: Sequence[str], count: int = 5) -> list[str]:
    """Return the allowed names that are closest to a name, or the last ones if none is close.

    Args:
        name: The unknown name.
        allowed: The valid names.
        count: Maximum number of names to return, at least 1.
    """
    return difflib.get_close_matches(name, allowed, n=count, cutoff=0.5) or list(allowed)[-count:]

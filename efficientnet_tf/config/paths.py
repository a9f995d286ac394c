"""What can be a path of this package: a local path, or one on gs://. Nothing here looks at a disk."""

import re

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, shorten

_DATASETS = "datasets/"  # before the name of a data set on the Hub
LONGEST_PATH = 4096  # bytes, PATH_MAX of Linux


def is_remote(path: str) -> bool:
    """Return whether a path is on gs://, or in ram://, a file system of TensorFlow for tests."""
    return path.startswith(("gs://", "ram://"))


def is_hub(path: str) -> bool:
    """Return whether a path is on the Hugging Face Hub: hf://user/name, or hf://datasets/user/name for a data set.

    Both may end in @revision.
    """
    return path.startswith("hf://")


def split_hub(path: str) -> tuple[str, str | None]:
    """Return the repository, as "user/name", and the revision or None, of a path for which `is_hub` is true."""
    repository, _, revision = path.removeprefix("hf://").removeprefix(_DATASETS).partition("@")
    return repository.rstrip("/"), revision or None


def check_path(argument: str, path: str, hub: bool = False) -> None:
    """Raise UserError unless a text can be a path of this package: a local path, or one on gs://.

    Args:
        argument: Name of the argument that holds the path, for the error message.
        path: The path. It does not have to exist.
        hub: Whether the argument takes models on the Hugging Face Hub, too.
    """
    problem = find_problem(path, hub)
    if problem is not None:
        raise UserError(f"{argument}={shorten(escape(path.strip()))} {problem}")


def check_model_name(name: str) -> None:
    """Raise UserError unless a text can be the name of a model on a server, in its folders and its addresses."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"name={shorten(escape(name))}: a name starts with a letter or a digit, and consists of up to 100 letters, "
            "digits and the characters '._-'."
        )


def find_problem(path: str, hub: bool = False, datasets: bool = False) -> str | None:
    """Return why a text cannot be a path of this package, as the rest of a sentence that begins with it, or None.

    Args:
        path: The text.
        hub: Whether it may name a model on the Hugging Face Hub.
        datasets: Whether it may name a data set there.
    """
    if not path.strip():
        return "is empty. Give a path."
    if "\0" in path:
        return "contains a null character, which no path can have."
    if len(path.encode(errors="surrogatepass")) > LONGEST_PATH:
        return f"is longer than the {LONGEST_PATH} bytes that a path can have."
    if (hub or datasets) and is_hub(path):
        kind, prefix = ("data set", _DATASETS) if datasets else ("model", "")
        has_form = re.fullmatch(rf"hf://{prefix}[\w.-]+/[\w.-]+/?(@[\w./-]+)?", path, re.ASCII)
        return None if has_form else f"does not name a {kind} on the Hugging Face Hub. Use hf://{prefix}user/name."
    scheme = re.match(r"([A-Za-z][\w+.-]*):/", path)
    if not scheme or is_remote(path) or len(scheme[1]) == 1:  # A single letter is a drive of Windows.
        return None
    if scheme[1].lower() == "file":
        return f"is a URL. Write the path itself: {shorten(escape(re.sub('^[^/]*/+', '/', path)))}"
    if path[scheme.end() :].startswith("/"):
        return (
            f"is on {scheme[1]}://, which is not supported. Use a local path or gs://. Copy or mount other storage "
            "first."
        )
    if scheme[1] in ("gs", "ram", "s3", "hf", "http", "https"):
        return f"has one slash too few: {scheme[1]}:// has two."
    return None

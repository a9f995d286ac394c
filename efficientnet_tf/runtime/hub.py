"""Downloads models and data sets from the Hugging Face Hub. Imports no TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.paths import is_hub, split_hub
from efficientnet_tf.config.text import escape

INSTALL = "Run pip install 'efficientnet_tf[hub]'."
# What this package reads of a repository. Others also have weights for other libraries, which are as large again.
FILES = ["config.yaml", "classes.txt", "config.json", "metrics.jsonl", "checkpoints/*", "*.keras", "model.safetensors"]


def fetch(path: str) -> str:
    """Return the local folder of a model on the Hub, or the path itself if it is not on the Hub.

    A model that was downloaded before is not downloaded again, unless it has changed. Without a network, the last copy
    is used.

    Args:
        path: A path, or hf://user/name, or hf://user/name@revision.

    Raises:
        UserError: If the model cannot be downloaded.
    """
    return _download(path, "model", tuple(FILES)) if is_hub(path) else path


def fetch_data(path: str, patterns: Sequence[str]) -> str:
    """Return the local folder of a data set on the Hub, or the path itself if it is not on the Hub.

    Args:
        path: A path, or hf://datasets/user/name, or hf://datasets/user/name@revision.
        patterns: Patterns of the files that are needed, such as "*.parquet".

    Raises:
        UserError: If the data set cannot be downloaded.
    """
    return _download(path, "dataset", tuple(patterns)) if is_hub(path) else path


@functools.lru_cache(maxsize=64)  # One process always sees the same revision.
def _download(path, kind, patterns):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{escape(path)} needs huggingface_hub ({error}). {INSTALL}") from None
    repository, revision = split_hub(path)
    try:
        return huggingface_hub.snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=list(patterns)
        )
    except Exception as error:  # of the library, of its HTTP client, and of the disk
        what = "model" if kind == "model" else "data set"
        raise UserError(f"{escape(path)} cannot be downloaded: {explain_hub_error(error, what)}") from None


def explain_hub_error(error: Exception, what: str = "model") -> str:
    """Return what went wrong on the Hub, as sentences."""
    from huggingface_hub import errors

    reasons = {
        errors.GatedRepoError: "access to it must be requested on its page. Then run `hf auth login`.",
        errors.RepositoryNotFoundError: f"there is no such {what}, or it is private. Check the name, or run "
        "`hf auth login`.",
        errors.RevisionNotFoundError: "it has no such revision.",
        errors.LocalTokenNotFoundError: "you are not logged in. Run `hf auth login`, or set HF_TOKEN.",
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, and this machine has no copy of it.",
        errors.LocalEntryNotFoundError: "the Hub cannot be reached, and this machine has no copy of it.",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the Hub refuses it with the status {status}. Run `hf auth login` with a token that may do this."
    text = " ".join(escape(str(error)).split())[:300] or type(error).__name__
    return f"{text.rstrip('.')}."

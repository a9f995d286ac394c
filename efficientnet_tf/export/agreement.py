"""Compares an exported file with the Keras model on images, and refuses one that computes something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.export.formats import open_export

if TYPE_CHECKING:
    from efficientnet_tf.config.schema import Config

TOLERANCE = 1e-4  # largest difference of a logit in float32, as a share of the largest logit
AGREEMENT = 0.98  # smallest agreement in every precision
_BATCH_SIZE = 32


def compare_file(reference: Callable[[Any], Any], path: str, images: np.ndarray, config: Config) -> dict[str, Any]:
    """Run a function and a file on the same images.

    Args:
        reference: Function from images, float32 [N, H, W, C], to what the file should return. It is traced.
        path: Path of the file.
        images: float32 [N, H, W, C], pixels in [0, 255].
        config: Config of the network.

    Returns:
        {"images": int, "difference": float, "greatest": float, "agreement": float}, as `export_model` returns them.
    """
    import tensorflow as tf

    from efficientnet_tf.runtime.terminal import track

    run = open_export(path).compute_logits
    forward = tf.function(reference, autograph=False)
    batches = [images[i : i + _BATCH_SIZE] for i in range(0, len(images), _BATCH_SIZE)]  # the last one may be smaller
    pairs = [(forward(b).numpy(), run(b)) for b in track(batches, len(batches), "Comparing logits", "batches")]
    expected, exported = (np.concatenate(logits) for logits in zip(*pairs, strict=True))
    return {
        "images": len(images),
        "difference": float(np.abs(exported - expected).max()),
        "greatest": float(np.abs(expected).max()),
        "agreement": _measure_agreement(exported, expected, config),
    }


def _measure_agreement(exported, expected, config):
    """Return how far outputs [N, outputs] mean the same, from 0 to 1."""
    if config.data.task == "classification":
        return float(np.mean(exported.argmax(axis=1) == expected.argmax(axis=1)))
    if config.data.task == "multilabel":
        return float(np.mean((exported > 0) == (expected > 0)))
    errors = (exported - expected) / np.array(config.data.target_std or 1.0)
    return float(max(0.0, 1 - np.mean(errors**2)))


def describe_agreement(agreement: float, task: str) -> str:
    """Return an agreement as a part of a sentence about a network: "its top-1 class agrees on 99.00%"."""
    if task == "classification":
        return f"its top-1 class agrees on {agreement:.2%}"
    if task == "multilabel":
        return f"{agreement:.2%} of its labels agree"
    return f"it reproduces {agreement:.2%} of the variance of the numbers"


def check_agreement(
    runtime: str, output: str, precision: str, result: dict[str, Any], task: str, advise: Callable[[], str]
) -> None:
    """Raise a UserError if a file computes something else than the Keras model.

    Args:
        runtime: Name of the runtime.
        output: Where the file would be written.
        precision: Precision of the file.
        result: Result of `compare_file`.
        task: What the outputs mean, `data.task`.
        advise: Returns what to do if int8 loses too much.
    """
    if precision == "float32" and not result["difference"] <= TOLERANCE * max(1.0, result["greatest"]):
        raise UserError(
            f"In {runtime}, the network differs from the Keras model by {result['difference']:.2g} in a logit, more "
            f"than {TOLERANCE:g} of the largest logit, {result['greatest']:.3g}. {output} was not written."
        )
    if not result["agreement"] >= AGREEMENT:
        advice = advise() if precision == "int8" else ""
        share, images = f"{result['agreement']:.1%}", f"{result['images']} images"
        agrees = {
            "classification": f"agrees with the Keras model's top-1 class on only {share} of {images}",
            "multilabel": f"agrees with the Keras model on only {share} of the labels of {images}",
            "regression": f"reproduces only {share} of the variance of the Keras model's numbers on {images}",
        }[task]
        raise UserError(
            f"In {runtime} with {precision}, the network {agrees}. At least {AGREEMENT:.0%} is required. {output} was "
            f"not written.{advice}"
        )

"""Measure how well a network's features separate classes: `python -m efficientnet_tf.probe --model_dir=DIR ...`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf import cli

if TYPE_CHECKING:
    import numpy as np

_NEIGHBORS = 20
_MOST_ITERATIONS = 2000


def probe_model(
    model_dir: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    neighbors: int = _NEIGHBORS,
    checkpoint: str | int | None = None,
) -> dict[str, Any]:
    """Classify the evaluation images by the features of a network, which is not trained.

    The features are those of `LoadedModel.embed`. The classes can be others than those of the network. Two simple
    classifiers learn from the training images: the nearest neighbors by the cosine, and a logistic regression. If they
    do well, training only the classifier (`train.freeze=body`) will, too.

    Args:
        model_dir: Model directory of a run, or its model.keras.
        overrides: Changes of the config as `section.key=value`, in the sections data and eval.
        neighbors: Number of training images that vote on the class of an image, at least 1.
        checkpoint: As for `load_model`.

    Returns:
        A dict with "train_images", "examples" (of the evaluation), "classes", "neighbors" and "linear", the shares of
        evaluation images whose class is right, and "chance", that of always naming the most frequent class.

    Raises:
        UserError: If the model is an exported file, or the data is missing or has no classes.

    Example:
        >>> from efficientnet_tf import probe_model
        >>> result = probe_model("runs/digits", overrides=["data.source=digits", "data.eval_split=test"])
        >>> result["linear"] > 0.5
        True
    """
    import numpy as np

    from efficientnet_tf.data.open import open_splits
    from efficientnet_tf.evaluation.loop import collect_outputs
    from efficientnet_tf.export.load import load_model
    from efficientnet_tf.export.overrides import override_data
    from efficientnet_tf.runtime.terminal import RateBar

    loaded = load_model(model_dir, checkpoint=checkpoint)
    config = override_data(loaded.config, [*overrides, "data.cache=none"])
    _check_task(config.data.task)
    vectors, labels = [], []
    for what, source in zip(("training", "evaluation"), open_splits(config.data), strict=True):
        with RateBar(source.size, f"Embedding the {what} images", "images") as bar:
            found, classes, _ = collect_outputs(loaded.embed, source, config, bar.advance)
        vectors.append(found)
        labels.append(classes)
    counts = np.bincount(labels[1])
    result = {"train_images": len(labels[0]), "examples": len(labels[1]), "classes": len(source.class_names)}
    right = {
        "neighbors": find_neighbor_classes(vectors[0], labels[0], vectors[1], neighbors),
        "linear": find_linear_classes(vectors[0], labels[0], vectors[1]),
    }
    shares = {name: float(np.mean(found == labels[1])) for name, found in right.items()}
    return result | shares | {"chance": float(counts.max() / counts.sum())}


def find_neighbor_classes(
    vectors: np.ndarray, labels: np.ndarray, others: np.ndarray, neighbors: int = _NEIGHBORS
) -> np.ndarray:
    """Return the class of each of the other vectors: that of most of the closest vectors, the closest one in a tie.

    Args:
        vectors: Vectors with a class, float [N, features].
        labels: Their classes, int [N].
        others: Vectors without a class, float [M, features].
        neighbors: Number of vectors that vote, at least 1.

    Returns:
        Classes, int [M].
    """
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(min(neighbors, len(vectors)), metric="cosine", weights="distance")
    return classifier.fit(vectors, labels).predict(others)


def find_linear_classes(vectors: np.ndarray, labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the class of each of the other vectors by a logistic regression on standardized features, int [M]."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # What it has found by then is good enough.
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MOST_ITERATIONS))
        return classifier.fit(vectors, labels).predict(others)


def _check_task(task):
    from efficientnet_tf.config.errors import UserError

    if task != "classification":
        raise UserError(f"probe is for classes, received data.task={task}.")


def main(args: argparse.Namespace) -> None:
    """Probe a model and print the result."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.data.listing import check_data
    from efficientnet_tf.export.check import check_model, read_model
    from efficientnet_tf.export.evaluation_data import locate_data
    from efficientnet_tf.export.overrides import override_data
    from efficientnet_tf.runtime.files import is_remote

    overrides = [*locate_data(args.data_dir, None), *args.overrides]
    if check_model(args.model_dir, checkpoint=args.checkpoint) not in ("model_dir", "keras"):
        raise UserError(f"model_dir={escape(args.model_dir)} is an exported file. Pass the model directory.")
    if not is_remote(args.model_dir):
        data = override_data(read_model(args.model_dir)[0], overrides).data
        _check_task(data.task)
        check_data(data)
    result = probe_model(args.model_dir, overrides=overrides, neighbors=args.neighbors, checkpoint=args.checkpoint)
    print("{train_images:,} training and {examples:,} evaluation images of {classes} classes".format(**result))
    print("nearest neighbors {neighbors:.2%}, linear {linear:.2%}, most frequent class {chance:.2%}".format(**result))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser(
        "probe",
        "Measure how well the features of a network that is not trained further separate classes, also other ones than "
        "its own: by nearest neighbors and by a linear classifier.",
    )
    parser.add_argument("--model_dir", type=cli.model_path, required=True, help="Model directory, or its model.keras.")
    cli.add_checkpoint_argument(parser)
    parser.add_argument(
        "--neighbors", type=cli.positive_int, default=_NEIGHBORS, help="Number of training images that vote."
    )
    cli.add_override_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

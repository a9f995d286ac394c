"""Make probabilities right: `python -m efficientnet_tf.calibrate --model_dir=DIR --output=CALIBRATED`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from efficientnet_tf import cli


def calibrate_model(
    model_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    checkpoint: str | int | None = None,
) -> dict[str, Any]:
    """Write a copy of a trained model whose probabilities fit the evaluation split.

    With classes, the logits are divided by the temperature for which the cross-entropy is lowest. The predicted classes
    stay the same. With several labels, each logit is shifted so that a probability of 1/2 is the threshold with the
    highest F1 score. Both are part of the classifier's weights, so every export has them.

    Args:
        model_dir: Model directory of a run.
        output: Folder to write, a model directory that does not exist yet.
        overrides: Changes of the config as `section.key=value`, in the sections data and eval.
        checkpoint: As for `load_model`.

    Returns:
        A dict with "temperature", or "thresholds" by label, and "before" and "after", the metrics on the evaluation
        split, on which they were chosen.

    Raises:
        UserError: If the model predicts numbers, is an exported file, or the data does not have all of its classes.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2, for the temperature.

    Example:
        >>> from efficientnet_tf import calibrate_model
        >>> result = calibrate_model("runs/digits", "runs/calibrated")
        >>> result["after"]["loss"] <= result["before"]["loss"]
        True
    """
    import numpy as np

    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.load import override_config
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.evaluation.loop import collect_outputs
    from efficientnet_tf.export.evaluation_data import EvaluationData
    from efficientnet_tf.export.load import load_model
    from efficientnet_tf.models.model_dir import write_model_dir
    from efficientnet_tf.runtime.terminal import RateBar

    loaded = load_model(model_dir, checkpoint=checkpoint)
    if loaded.keras_model is None:
        raise UserError(f"model_dir={escape(os.fspath(model_dir))} is an exported file. Pass the model directory.")
    if loaded.task == "regression":
        raise UserError("This model predicts numbers, which have no probabilities.")
    data = EvaluationData(loaded, overrides, None, lambda classes: None)
    if data.class_names != loaded.class_names:
        raise UserError(
            f"The data has {len(data.class_names)} of the model's {len(loaded.class_names)} classes. All are needed."
        )
    with RateBar(data.source.size, "Evaluating", "images") as bar:
        logits, labels, _ = collect_outputs(loaded, data.source, data.config, bar.advance)
    if not np.isfinite(logits).all():
        raise UserError("Some outputs of the model are not finite, so they cannot be calibrated.")
    classifier: Any = loaded.keras_model.get_layer("predictions")
    scale, shift, result = _fit(loaded.task, logits, labels, loaded.class_names)
    classifier.kernel.assign(classifier.kernel * scale)
    classifier.bias.assign(classifier.bias * scale + shift)
    config = override_config(loaded.config, ["train.ema_decay=0"])
    write_model_dir(os.fspath(output), loaded.keras_model, config, loaded.class_names)
    return result


def _fit(task, logits, labels, names):
    """Return the factor of the logits, what is added to them, and the result of `calibrate_model`."""
    import numpy as np

    from efficientnet_tf.evaluation.calibration import find_thresholds, fit_temperature

    if task == "classification":
        temperature = fit_temperature(logits, labels)
        found, scale, shift = {"temperature": temperature}, 1 / temperature, 0.0
    else:
        from efficientnet_tf.export.loaded import sigmoid

        thresholds = find_thresholds(sigmoid(logits), labels, names)
        clipped = np.clip(thresholds, 1e-6, 1 - 1e-6)
        found, scale = {"thresholds": dict(zip(names, thresholds, strict=True))}, 1.0
        shift = (np.log1p(-clipped) - np.log(clipped)).astype(np.float32)
    before, after = (_measure(task, outputs, labels, names) for outputs in (logits, logits * scale + shift))
    return scale, shift, found | {"before": before, "after": after}


def _measure(task, logits, labels, names):
    from efficientnet_tf.evaluation.calibration import describe_calibration, measure_cross_entropy
    from efficientnet_tf.export.loaded import sigmoid, softmax

    if task == "classification":
        return {"loss": measure_cross_entropy(logits, labels)} | describe_calibration(softmax(logits), labels, names)
    return describe_calibration(sigmoid(logits), labels, names)


def main(args: argparse.Namespace) -> None:
    """Calibrate a model, and print what has changed."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.export.check import check_model
    from efficientnet_tf.export.evaluation_data import check_evaluation_data, locate_data
    from efficientnet_tf.runtime.files import exists, is_remote

    overrides = [*locate_data(args.data_dir, None), *args.overrides]
    if check_model(args.model_dir, checkpoint=args.checkpoint) not in ("model_dir", "keras"):
        raise UserError(f"model_dir={escape(args.model_dir)} is an exported file. Pass the model directory.")
    if exists(args.output):
        raise UserError(f"output={escape(args.output)} exists already. Use a new folder.")
    if not is_remote(args.model_dir):
        check_evaluation_data(args.model_dir, overrides, None, lambda classes: None)
    result = calibrate_model(args.model_dir, args.output, overrides=overrides, checkpoint=args.checkpoint)
    if "temperature" in result:
        print(f"temperature {result['temperature']:.3f}")
    for name, threshold in result.get("thresholds", {}).items():
        print(f"{escape(name)}: threshold {threshold:.3f}")
    for key, before in result["before"].items():
        print(f"{key.replace('_', ' ')}: {before:.4f}, then {result['after'][key]:.4f}")
    print(f"{escape(args.output)}: the calibrated model")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser(
        "calibrate",
        "Write a copy of a trained model whose probabilities fit the evaluation split: of classes by a temperature, of "
        "several labels by the threshold of each.",
    )
    parser.add_argument("--model_dir", type=cli.model_path, required=True, help="Model directory of a run.")
    cli.add_checkpoint_argument(parser)
    parser.add_argument(
        "--output", type=cli.path, required=True, help="Folder to write, a model directory that does not exist yet."
    )
    cli.add_override_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

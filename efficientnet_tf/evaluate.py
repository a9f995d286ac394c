"""Evaluate a trained model: `python -m efficientnet_tf.evaluate --model_dir=DIR`."""

import json
import os

from efficientnet_tf import cli


def evaluate_dir(model_dir, strategy, overrides=(), raw=False):
    """Evaluate a model directory or an exported SavedModel on the evaluation split that its config names.

    Args:
        model_dir: str, a model directory, or a SavedModel written by `efficientnet_tf.export`.
        strategy: tf.distribute.Strategy.
        overrides: sequence of `section.key=value` for the sections data and eval.
        raw: bool; evaluate the weights instead of their average.

    Returns:
        The dict of `loops.make_evaluator`.

    Raises:
        UserError: for a directory that is neither, or data whose classes are not the model's.
    """
    import tensorflow as tf

    from efficientnet_tf import checkpoint, loops, sources
    from efficientnet_tf.config import UserError, override_config

    exported = tf.io.gfile.exists(os.path.join(model_dir, "saved_model.pb"))
    with strategy.scope():
        if exported:
            if raw:
                raise UserError("--raw: an exported model holds the average only")
            assets = os.path.join(model_dir, "assets")
            config, class_names = checkpoint.read_config(assets), checkpoint.read_classes(assets)
            loaded = tf.saved_model.load(model_dir)

            def logits_of(images):
                return loaded.signatures["serving_default"](image=images)["logits"]
        else:
            model, config, class_names = checkpoint.load_model(model_dir, raw)

            def logits_of(images):
                return model(images, training=False)

    config = override_config(config, overrides)
    source = sources.open_source(config.data, config.data.eval_split, training=False)
    if list(source.class_names) != class_names:
        raise UserError(
            f"the data has the {len(source.class_names)} classes {', '.join(source.class_names[:5])}, ..., the model "
            f"{len(class_names)}: {', '.join(class_names[:5])}, ..."
        )
    return loops.make_evaluator(logits_of, source, config, strategy)()


def main(args):
    """Evaluate and print."""
    from efficientnet_tf.distribute import create_strategy

    strategy = create_strategy(args.device, args.tpu, args.replicas)
    overrides = cli.overrides(args)
    result = evaluate_dir(args.model_dir, strategy, overrides, args.raw)
    if args.json:
        print(json.dumps(result))
    else:
        from efficientnet_tf.report import summary

        print(summary("raw" if args.raw else "ema", result))


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser("evaluate", "Evaluate a trained or exported model: top-1, top-5, loss.")
    parser.add_argument("--model_dir", required=True, help="a model directory, or a SavedModel written by export")
    parser.add_argument("--raw", action="store_true", help="evaluate the weights, not their moving average")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli.add_override_arguments(parser)
    cli.add_device_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

"""Evaluate a trained model: `python -m efficientnet_tf.evaluate --model_dir=DIR`."""

import json
import os

from efficientnet_tf import cli


def evaluate_dir(model_dir, strategy, overrides=(), raw=False, real_labels=None, per_class=None, confusion=None):
    """Evaluate a model directory or an exported model on the evaluation split that its config names.

    Where the data has some of the model's classes only, their logits alone compete, as is usual for ImageNet-A and -R.

    Args:
        model_dir: str, a model directory, or what `efficientnet_tf.export` has written: a SavedModel, or a file for
            another runtime, which then runs it on the CPU.
        strategy: tf.distribute.Strategy.
        overrides: sequence of `section.key=value` for the sections data and eval.
        raw: bool; evaluate the weights instead of their average.
        real_labels: None, or str, the file of ImageNet-ReaL's labels.
        per_class: None, or str, a .csv or .json file to write each class's accuracy to.
        confusion: None, or str, a .png file to draw the confusion matrix to.

    Returns:
        The dict of `loops.make_evaluator`. Where the data has fewer classes than the model also "classes" and
        "model_classes", how many; with `per_class` what `confusion.per_class` returns, with `confusion` the matrix as
        lists, true classes down.

    Raises:
        UserError: for a directory that is neither, data with classes that the model does not know, labels that do not
            fit the data, files that cannot be written, or more classes than a picture can show.

    Source: Hendrycks et al. 2021, https://arxiv.org/abs/1907.07174 (ImageNet-A), for the logits that compete.
    """
    import tensorflow as tf

    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.load import override_config
    from efficientnet_tf.data.open import open_source
    from efficientnet_tf.evaluation import per_class as per_class_lib
    from efficientnet_tf.evaluation.imagenet_labels import match_classes, read_real_labels, with_real_labels
    from efficientnet_tf.evaluation.loop import make_evaluator
    from efficientnet_tf.evaluation.per_class import write_per_class
    from efficientnet_tf.runtime.files import check_output
    from efficientnet_tf.runtime.workers import is_chief, report_lost_workers
    from efficientnet_tf.visualization.confusion_matrix import MOST_CLASSES, draw_confusion
    from efficientnet_tf.visualization.grids import require_pillow, save_picture

    check_output("--per_class", per_class, (".csv", ".json"))
    check_output("--confusion", confusion, (".png",))
    if confusion:
        require_pillow("--confusion")
    with strategy.scope():
        logits_of, config, class_names = _load(model_dir, raw)
    # A cache's copies have lost their files' names.
    config = override_config(config, [*overrides, *(["data.cache=none"] if real_labels else [])])
    source = open_source(config.data, config.data.eval_split, training=False)
    columns = match_classes(source.class_names, class_names)
    names = [class_names[column] for column in columns]
    if confusion and len(names) > MOST_CLASSES:
        raise UserError(
            f"--confusion={confusion}: the data has {len(names)} classes, a picture shows at most "
            f"{MOST_CLASSES}; --per_class=FILE.csv takes any number"
        )
    if real_labels:
        rows = read_real_labels(real_labels, class_names, columns)
        source, check_numbers = with_real_labels(source, rows)

    def logits_of_data(images):
        return tf.gather(logits_of(images), columns, axis=1)

    logits = logits_of if names == class_names else logits_of_data
    evaluator = make_evaluator(logits, source, config, strategy, confusion=bool(per_class or confusion))
    with report_lost_workers(strategy):
        result = evaluator()
    if real_labels:
        check_numbers()
    if len(names) < len(class_names):
        result |= {"classes": len(names), "model_classes": len(class_names)}
    counts = result.pop("confusion", None)
    if per_class:
        result["per_class"] = per_class_lib.per_class(counts, names)
        if is_chief(strategy):
            write_per_class(per_class, result["per_class"])
    if confusion:
        result["confusion"] = counts.tolist()
        run = os.path.basename(model_dir.rstrip("/"))
        title = f"{run}: top-1 {result['top1']:.2%} on {result['examples']} examples"
        if is_chief(strategy):
            save_picture(draw_confusion(counts, names, title), confusion, "--confusion")
    return result


def _is_exported(path):
    """Tell a SavedModel, or a file for another runtime, from a model directory."""
    import tensorflow as tf

    from efficientnet_tf.export.formats import find_format

    return find_format(path) is not None or tf.io.gfile.exists(os.path.join(path, "saved_model.pb"))


def _load(model_dir, raw):
    """Return (function from images to logits, config, class names) of a model directory or an exported model."""
    import tensorflow as tf

    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.load import parse_config
    from efficientnet_tf.export.formats import find_format, open_export
    from efficientnet_tf.models.model_dir import read_class_names, read_config, restore_model

    if not _is_exported(model_dir):
        model, config, class_names = restore_model(model_dir, raw)
        return lambda images: model(images, training=False), config, class_names
    if raw:
        raise UserError("--raw: an exported model holds the average only")
    if find_format(model_dir):
        run, texts = open_export(model_dir)
        class_names = texts["classes.txt"].splitlines()

        def logits_of_file(images):
            logits = tf.numpy_function(run, [images], tf.float32)
            return tf.ensure_shape(logits, [None, len(class_names)])

        return logits_of_file, parse_config(texts["config.yaml"], model_dir), class_names
    loaded, assets = tf.saved_model.load(model_dir), os.path.join(model_dir, "assets")

    def logits_of(images):
        return loaded.signatures["serving_default"](image=images)["logits"]

    return logits_of, read_config(assets), read_class_names(assets)


def _folder_overrides(folder):
    """Return the overrides that make the class folders in `folder` the evaluation split, whatever lies beside it."""
    if "://" not in folder:
        folder = os.path.abspath(folder)
    parent, name = (json.dumps(part) for part in os.path.split(folder.rstrip("/")))
    splits = [f"data.train_split={name}", f"data.eval_split={name}"]
    return ["data.source=folder", f"data.dir={parent}", *splits, "data.val_fraction=null"]


def _lines(result, args):
    """Yield what is to be said beside the summary."""
    if "real" in result:
        yield "real labels: {real:.2%} of the {real_examples} examples that have any".format(**result)
    if "classes" in result:
        yield "only the data's {classes} of the model's {model_classes} classes compete".format(**result)
    if args.per_class:
        known = [row for row in result["per_class"] if row["examples"]]
        worst = min(known, key=lambda row: row["accuracy"])
        yield f"{args.per_class}: {len(result['per_class'])} classes, the worst {worst['class']}, " + (
            "{correct} of {examples}".format(**worst)
        )
    if args.confusion:
        yield f"{args.confusion}: {len(result['confusion'])} classes, true ones down, predicted ones across"


def main(args):
    """Evaluate and print."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.runtime.strategy import create_strategy
    from efficientnet_tf.runtime.workers import is_chief

    if args.folder and args.data_dir:
        raise UserError(
            f"--folder={args.folder} and --data_dir={args.data_dir} both say where the images are: give one"
        )
    overrides = [*(_folder_overrides(args.folder) if args.folder else []), *cli.overrides(args)]
    strategy = create_strategy(args.device, args.tpu, args.replicas, cluster=True)
    result = evaluate_dir(
        args.model_dir, strategy, overrides, args.raw, args.real_labels, args.per_class, args.confusion
    )
    if not is_chief(strategy):
        return
    if args.json:
        print(json.dumps(result))
        return
    from efficientnet_tf.models.model_dir import read_config
    from efficientnet_tf.training.metrics import format_metrics

    if _is_exported(args.model_dir):
        kind = "exported"
    else:
        averaged = read_config(args.model_dir).train.ema_decay and not args.raw
        kind = "ema" if averaged else "raw"
    print(format_metrics(kind, result))
    for line in _lines(result, args):
        print(line)


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser("evaluate", "Evaluate a trained or exported model: top-1, top-5, loss.")
    parser.add_argument("--model_dir", required=True, help="a model directory, or what export has written")
    parser.add_argument("--raw", action="store_true", help="evaluate the weights, not their moving average")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--folder",
        help="evaluate on these images, a folder a class, named as the model's classes or as their numbers; with fewer "
        "classes than the model's, these alone compete",
    )
    parser.add_argument(
        "--real_labels", metavar="real.json", help="ImageNet-ReaL's labels, for images named ILSVRC2012_val_<number>"
    )
    parser.add_argument("--per_class", metavar="FILE.csv", help="write each class's accuracy; .csv or .json")
    parser.add_argument("--confusion", metavar="FILE.png", help="draw the confusion matrix of up to 100 classes")
    cli.add_override_arguments(parser)
    cli.add_device_arguments(parser)
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

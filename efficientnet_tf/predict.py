"""Predict classes, labels or numbers: `python -m efficientnet_tf.predict --model_dir=DIR photo.jpg folder/ ...`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from efficientnet_tf import cli

if TYPE_CHECKING:
    from efficientnet_tf.export.load import LoadedModel
    from efficientnet_tf.runtime.terminal import RateBar

DEFAULT_TOP = 5
LABEL_THRESHOLD = 0.5  # probability from which a label is printed
LONG_LIST = 32  # images, above which a progress bar is shown


def predict_images(
    model: str | os.PathLike[str] | LoadedModel, images: Any, top: int = 5, batch_size: int = 32, tta: str = "none"
) -> list[list[tuple[str, float]]]:
    """Classify images.

    Given a path, the model is loaded and traced at the first call and kept in memory, so that you can call this in a
    loop. It is loaded again if its files change.

    Args:
        model: A model of `load_model`, or a path that `load_model` takes.
        images: A sequence of images. Each is the path of an image file, the content of an image file as bytes, or
            pixels of the model's size, uint8 or float [H, W, C] in [0, 255]. A single path or an array [N, H, W, C]
            works, too.
        top: Number of classes to return per image, at least 1.
        batch_size: Number of images to compute together, at least 1.
        tta: Views of each image whose probabilities are averaged: "none" for the image itself, "flip" for the image and
            its mirror image, or "crops" for ten crops of an image file. The time grows with the number of views.

    Returns:
        For each image, a list of (class name, probability), the most likely class first. For a network with
        data.task=multilabel, each label has a probability of its own. With data.task=regression, a list of (name,
        number) of all numbers.

    Raises:
        UserError: If there is no model at the path, or an image cannot be read or has another shape.

    Example:
        >>> from efficientnet_tf import predict_images
        >>> predictions = predict_images("runs/digits", ["seven.png"], top=3)
        >>> [(class_name, probability), *others] = predictions[0]
        >>> class_name, len(others)
        ('7', 2)
    """
    from efficientnet_tf.export.load import LoadedModel, load_cached

    loaded = model if isinstance(model, LoadedModel) else load_cached(model)
    return loaded.predict(images, top, batch_size, tta)


def main(args: argparse.Namespace) -> int:
    """Classify images, and print or write the results. The status is 1 if a file could not be read."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.runtime.backend import choose_backend
    from efficientnet_tf.runtime.terminal import RateBar

    choose_backend(args.backend)
    # Everything that can be refused is refused before TensorFlow is imported, which takes seconds.
    paths = _check(args)
    if _report_unreadable(paths):
        return cli.EXIT_ERROR
    from efficientnet_tf.export.load import load_model

    model = load_model(args.model_dir, checkpoint=args.checkpoint)
    top = _choose_top(args, model)
    failed, is_long, bar = 0, len(paths) > LONG_LIST, RateBar(len(paths), "Predicting", "images")
    with _open_output(args, model, top, bar) as write, bar if is_long else contextlib.nullcontext():
        for path, answer in zip(paths, model.iterate_predictions(paths, top, tta=args.tta), strict=True):
            bar.advance()
            if isinstance(answer, UserError):
                failed += 1
                bar.print(escape(str(answer)), sys.stderr)
            else:
                write(path, answer)
    if args.output is not None:
        print(f"{escape(args.output)}: {bar.summarize()}")
    elif is_long:
        print(bar.summarize(), file=sys.stderr)
    if failed:
        _print_failures(failed)
    return cli.EXIT_ERROR if failed else 0


def _check(args):
    """Refuse what can be refused without TensorFlow, and return the paths of the images."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.config.text import escape
    from efficientnet_tf.data.scan import find_images
    from efficientnet_tf.export.check import check_model
    from efficientnet_tf.runtime.files import check_output
    from efficientnet_tf.runtime.parquet import check_paths, require_pyarrow

    if args.json and args.output is not None:
        raise UserError(
            f"--json and output={escape(args.output)} exclude each other. Use --output=FILE.jsonl to write the lines "
            "that --json prints to a file."
        )
    if args.threshold is not None and args.threshold > 1:
        raise UserError(f"threshold={args.threshold:g} is not possible. A probability is at most 1.")
    check_output("output", args.output, (".csv", ".jsonl", ".parquet"), [args.model_dir, *args.images])
    table = args.output if (args.output or "").endswith(".parquet") else None
    if args.soft and table is None:
        raise UserError("--soft writes a table of probabilities. Add --output=FILE.parquet.")
    if args.soft and (args.top is not None or args.threshold is not None):
        raise UserError("--soft writes the probabilities of all classes, so leave out --top and --threshold.")
    if table is not None:
        require_pyarrow(f"output={escape(table)}")
    check_model(args.model_dir, checkpoint=args.checkpoint)
    paths = find_images(args.images)
    if table is not None:
        check_paths(table, paths, "FILE.jsonl")
    return paths


def _report_unreadable(paths):
    """Return whether a short list has no image at all, which needs no model, and print why."""
    from efficientnet_tf.data.image_formats import find_unreadable

    sentences = find_unreadable(paths) if len(paths) <= LONG_LIST else {}
    if len(sentences) < len(set(paths)):
        return False
    for path in paths:
        print(sentences[path], file=sys.stderr)
    _print_failures(len(paths))
    return True


def _print_failures(count):
    print(f"{count} file(s) could not be read. All others are classified.", file=sys.stderr)


@contextlib.contextmanager
def _open_output(args: argparse.Namespace, model: Any, top: int, bar: RateBar) -> Iterator[Callable[[str, Any], Any]]:
    """Give the block a function that writes the answer for an image, given its path, or prints it."""
    from efficientnet_tf.runtime.files import atomic_writer

    choose = _choose_filter(args, model)
    if args.output is None:
        format_answer = _choose_format(args, model, top)
        yield lambda path, answer: bar.print(format_answer(path, choose(answer)))
        return
    with atomic_writer(args.output) as file:
        if args.output.endswith(".parquet"):
            with _open_table(args, model, top, file) as write:
                yield lambda path, answer: write(path, choose(answer))
            return
        format_answer = _choose_format(args, model, top)
        if args.output.endswith(".csv"):
            file.write(f"{_csv_header(model, top)}\n".encode())
        yield lambda path, answer: file.write(f"{format_answer(path, choose(answer))}\n".encode())


@contextlib.contextmanager
def _open_table(args, model, top, file):
    """Give the block a function that writes the answer for an image to a Parquet file, given its path."""
    from efficientnet_tf.data.pseudo_labels import CLASS_NAMES, COLUMNS
    from efficientnet_tf.runtime.parquet import ParquetWriter

    names, notes = _list_columns(model, top), None
    columns = {name: "text" if name.startswith("label_") and model.task != "regression" else "number" for name in names}
    columns = {"path": "text"} | columns
    if args.soft:
        columns, notes = COLUMNS, {CLASS_NAMES: json.dumps(list(model.class_names))}
    with ParquetWriter(file, columns, notes) as writer:

        def write(path, answer):
            if args.soft:
                probability = dict(answer)
                writer.write([os.path.abspath(path), [probability[name] for name in model.class_names]])
                return
            values = [value for _, value in answer] if model.task == "regression" else itertools.chain(*answer)
            cells = [path, *values]
            writer.write([*cells, *[None] * (len(columns) - len(cells))])

        yield write


def _choose_top(args, model):
    """Return how many classes or labels to ask the model for."""
    from efficientnet_tf.config.errors import UserError

    if args.soft:
        if model.task != "classification":
            raise UserError(f"--soft is for classes, and this model has data.task={model.task}.")
        return len(model.class_names)
    if args.top is not None:
        return args.top
    is_shown = args.output is None and not args.json  # All labels over the threshold are printed.
    return len(model.class_names) if is_shown and model.task == "multilabel" else DEFAULT_TOP


def _choose_filter(args, model):
    """Return the function of the answer for an image that leaves out what is under the threshold."""
    from efficientnet_tf.config.errors import UserError

    threshold = args.threshold
    if threshold is not None and model.task == "regression":
        raise UserError(f"threshold={threshold:g} is for classes and labels, and this model predicts numbers.")
    if threshold is None and model.task == "multilabel" and args.output is None and not args.json:
        threshold = LABEL_THRESHOLD
    if threshold is None:
        return lambda answer: answer
    return lambda answer: [pair for pair in answer if pair[1] >= threshold]


def _choose_format(args, model, top):
    """Return the function of a path and its answer that formats the predictions of an image as a line."""
    if model.task == "regression":
        formats = _format_numbers_json, _format_numbers_csv, _format_numbers
    else:
        columns = len(_list_columns(model, top))
        formats = _format_json, functools.partial(_format_csv, columns=columns), _format_text
    is_json = args.json or (args.output or "").endswith(".jsonl")
    return formats[0] if is_json else formats[1] if args.output is not None else formats[2]


def _list_columns(model, top):
    """Return the names of the columns after the path, in a table of predictions."""
    if model.task == "regression":
        return list(model.class_names)
    ranks = range(1, min(top, len(model.class_names)) + 1)
    return [name for rank in ranks for name in (f"label_{rank}", f"probability_{rank}")]


def _format_text(path, answer):
    from efficientnet_tf.config.text import escape

    found = ", ".join(f"{escape(name)} {probability:.1%}" for name, probability in answer)
    return f"{escape(path)}: {found or 'nothing over the threshold'}"


def _format_numbers(path, answer):
    from efficientnet_tf.config.text import escape

    return f"{escape(path)}: " + ", ".join(f"{escape(name)} {number:.5g}" for name, number in answer)


def _format_json(path, answer):
    # A path that is not UTF-8 is written with escapes such as \udcff, from which Python reads the same path.
    return json.dumps({"path": path, "labels": [{"label": name, "probability": value} for name, value in answer]})


def _format_numbers_json(path, answer):
    return json.dumps({"path": path, "numbers": dict(answer)})


def _format_csv(path, answer, columns):
    from efficientnet_tf.runtime.tables import format_csv_row

    cells = list(itertools.chain.from_iterable(answer))
    return format_csv_row([path, *cells, *[None] * (columns - len(cells))]).removesuffix("\n")


def _format_numbers_csv(path, answer):
    from efficientnet_tf.runtime.tables import format_csv_row

    return format_csv_row([path, *(number for _, number in answer)]).removesuffix("\n")


def _csv_header(model, top):
    from efficientnet_tf.runtime.tables import format_csv_row

    return format_csv_row(["path", *_list_columns(model, top)]).removesuffix("\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser("predict", "Classify images with a trained or exported model.")
    parser.add_argument("images", type=cli.path, nargs="+", metavar="IMAGE", help="Image files, or folders of them.")
    parser.add_argument("--model_dir", type=cli.model_path, required=True, help=cli.MODEL_HELP)
    cli.add_checkpoint_argument(parser)
    cli.add_backend_argument(parser)
    parser.add_argument(
        "--top",
        type=cli.positive_int,
        help=f"Number of classes or labels per image. {DEFAULT_TOP} unless this is given, but labels are printed all.",
    )
    parser.add_argument(
        "--threshold",
        type=cli.positive_number,
        help="Leave out classes or labels with a lower probability. Labels are printed from "
        f"{LABEL_THRESHOLD:g} on unless this is given.",
    )
    parser.add_argument(
        "--tta",
        choices=["none", "flip", "crops"],
        default="none",
        help="Average the predictions for several views of each image (test-time augmentation): the image and its "
        "mirror image, or ten crops.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object per image and line.")
    parser.add_argument(
        "--output",
        type=cli.path,
        metavar="FILE.csv|FILE.jsonl|FILE.parquet",
        help="Write the results to this file instead: a table with one row per image, or one JSON object per line.",
    )
    parser.add_argument(
        "--soft",
        action="store_true",
        help="Write the probabilities of all classes, for data.pseudo_labels. Needs --output=FILE.parquet.",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

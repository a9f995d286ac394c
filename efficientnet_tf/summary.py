"""Show the size, cost and memory of a network: `python -m efficientnet_tf.summary --variant=b4`.

Everything is counted without building the network. `--picture` draws its stages. `--measure` also runs it and shows the
measurements next to the prediction.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from efficientnet_tf import cli
from efficientnet_tf.config.image_size import as_shape, as_size, format_size
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.terminal import make_table, show

if TYPE_CHECKING:
    from rich.table import Table

    from efficientnet_tf.scaling.layers import Layer
    from efficientnet_tf.scaling.memory import Memory

MIB, GIB = 2**20, 2**30
PICTURE_DPI = 144  # Two pixels for each one of the layout, so that text is sharp on any screen.


def summarize(config: Config, classes: int = 1000, available_bytes: float = 16 * GIB) -> dict[str, Any]:
    """Return the size, cost and memory of the network of a config.

    Args:
        config: The model, image size, channels, batch size, precision, optimizer and EMA are used.
        classes: Number of classes, at least 1.
        available_bytes: Memory of the device, greater than 0.

    Returns:
        A dict that can be written as JSON. "parts" is a list with one dict per stage, "kinds" has the cost by kind of
        layer, and "total" that of the network. "memory" has the bytes of a training step and of inference by purpose.
        "largest_batch" has the largest training batch that fits in the available memory.
    """
    from efficientnet_tf.scaling.complexity import sum_by
    from efficientnet_tf.scaling.layers import list_layers
    from efficientnet_tf.scaling.memory import count_inference_memory, count_training_memory, find_largest_batch

    spec, batch = config.model, config.train.batch_size
    precision = "float32" if config.train.precision == "auto" else config.train.precision
    settings = precision, config.optimizer.name, bool(config.train.ema_decay), config.train.remat
    layers = list_layers(spec, config.image_size, classes, config.data.channels)
    costs = sum_by(layers, "part")
    return {
        "variant": spec.name,
        "depth": spec.depth,
        "width": spec.width,
        "resolution": config.image_size,
        "classes": classes,
        "parts": _summarize_parts(config, layers, precision),
        "kinds": {kind: asdict(cost) for kind, cost in sum_by(layers, "kind").items() if kind != "total"},
        "total": asdict(costs["total"]) | {"total_params": costs["total"].total_params},
        "memory": {
            "batch": batch,
            "precision": precision,
            "optimizer": config.optimizer.name,
            "average": bool(config.train.ema_decay),
            "remat": config.train.remat,
            "training": _memory_by_purpose(count_training_memory(layers, batch, *settings)),
            "inference": _memory_by_purpose(count_inference_memory(layers, batch, precision)),
        },
        "largest_batch": {
            "available_bytes": int(available_bytes),
            "batch": find_largest_batch(layers, available_bytes, *settings),
        },
    }


def _summarize_parts(config: Config, layers: "Sequence[Layer]", precision: str) -> list[dict[str, Any]]:
    """Return one dict for the stem, for each stage and for the head."""
    from efficientnet_tf.scaling.complexity import compute_receptive_fields, sum_by
    from efficientnet_tf.scaling.compound import scale_network
    from efficientnet_tf.scaling.memory import count_kept_bytes

    spec = config.model
    costs, fields = sum_by(layers, "part"), compute_receptive_fields(spec)
    stages = {f"stage{number}": stage for number, stage in enumerate(scale_network(spec).stages, 1)}
    parts = []
    for name, group in itertools.groupby(layers, key=lambda layer: layer.part):
        part_layers = list(group)
        field, stride = fields.get(name, (None, None))
        stage = stages.get(name)
        parts.append(
            {
                "part": name,
                "blocks": f"{len(stage)} x {stage[-1].kind}, {stage[-1].kernel}x{stage[-1].kernel}" if stage else "",
                "side": as_size((part_layers[-1].height, part_layers[-1].width)),
                "channels": part_layers[-1].channels,
                "stride": stride,
                "receptive_field": field,
                "params": costs[name].trainable_params,
                "macs": costs[name].macs,
                "kept_bytes": count_kept_bytes(part_layers, precision),
            }
        )
    return parts


def _memory_by_purpose(memory: "Memory") -> dict[str, int]:
    # The EMA keeps its first name in the JSON output, so that programs that read it keep working.
    names = {"ema": "average"}
    return {names.get(name, name): count for name, count in asdict(memory).items()} | {"total": memory.total}


def measure(config: Config, classes: int) -> dict[str, Any]:
    """Return measurements of what `summarize` predicts, taken on this machine.

    Returns:
        A dict. "device" names the device. "inference_seconds" is the time of a forward pass for one image, and
        "inference_batch_seconds" for a batch of the config's size, both in float32. "train_seconds" is the time of a
        training step and "train_peak_bytes" its peak memory, or None if the system does not report it.
    """
    import keras
    import tensorflow as tf

    from efficientnet_tf.benchmark.measure import inference_seconds, training_step
    from efficientnet_tf.runtime.strategy import create_strategy

    gpus = tf.config.list_physical_devices("GPU")
    # Train first: the peak memory of the process must be that of training.
    step = training_step(config, create_strategy("cpu" if not gpus else "gpu"), classes)
    keras.backend.clear_session()
    options = {"size": config.image_size, "classes": classes, "channels": config.data.channels}
    return {
        "device": gpus[0].name if gpus else "CPU",
        "inference_seconds": inference_seconds(config.model, **options),
        "inference_batch_seconds": inference_seconds(config.model, batch=config.train.batch_size, **options),
        "train_seconds": step["seconds"],
        "train_peak_bytes": step["peak_bytes"],
    }


def format_summary(summary: dict[str, Any]) -> "list[str | Table]":
    """Return a summary as texts and tables for `runtime.terminal.show`."""
    memory = summary["memory"]
    ema = "with" if memory["average"] else "without"
    heading = f"Memory at batch size {memory['batch']}, {memory['precision']}, {memory['optimizer']}, {ema} EMA"
    largest = summary["largest_batch"]
    parts = [
        "{variant}: depth {depth:g}, width {width:g}, {size} pixels, {classes:,} classes".format(
            **summary, size=format_size(summary["resolution"])
        ),
        _parts_table(summary),
        "receptive field: side in pixels of the input, ignoring squeeze-and-excitation. "
        "kept/image: activations kept for the backward pass.\n",
        "Multiply-adds by kind of layer",
        _kinds_table(summary),
        heading,
        _memory_table(memory),
        f"Largest training batch in {largest['available_bytes'] / GIB:g} GiB: {largest['batch']:,}",
    ]
    return [*parts, _format_measurements(summary)] if "measured" in summary else parts


def _parts_table(summary: dict[str, Any]) -> "Table":
    total, rows = summary["total"], []
    for part in summary["parts"]:
        height, width = as_shape(part["side"])
        channels = part["channels"]
        rows.append(
            [
                part["part"],
                part["blocks"],
                f"{height}x{width}x{channels}" if height * width > 1 else f"{channels}",
                str(part["stride"] or ""),
                str(part["receptive_field"] or "all"),
                f"{part['params']:,}",
                f"{part['macs']:,}",
                f"{part['macs'] / total['macs']:.1%}",
                f"{part['kept_bytes'] / MIB:.1f} MiB",
            ]
        )
    kept = f"{sum(part['kept_bytes'] for part in summary['parts']) / MIB:.1f} MiB"
    rows += [None, ["total", "", "", "", "", f"{total['trainable_params']:,}", f"{total['macs']:,}", "", kept]]
    rows.append(["", "with batch-norm statistics", "", "", "", f"{total['total_params']:,}", "", "", ""])
    header = ["part", "blocks", "output", "stride", "receptive field", "params", "multiply-adds", "share", "kept/image"]
    return make_table(header, rows, left=(0, 1))


def _kinds_table(summary: dict[str, Any]) -> "Table":
    rows = [
        [kind.replace("_", " "), f"{cost['macs']:,}", f"{cost['macs'] / summary['total']['macs']:.1%}"]
        for kind, cost in summary["kinds"].items()
        if cost["macs"]
    ]
    return make_table(["kind", "multiply-adds", "share"], rows)


def _memory_table(memory: dict[str, Any]) -> "Table":
    names = {"average": "EMA", "program": "program and kernels"}
    training, inference = memory["training"], memory["inference"]

    def row(name: str, purpose: str) -> list[str]:
        counts = (training[purpose], inference[purpose])
        return [name, *(f"{count / MIB:,.0f} MiB" if count else "" for count in counts)]

    rows = [row(names.get(purpose) or purpose, purpose) for purpose in training if purpose != "total"]
    total = ["total", *(f"{counts['total'] / GIB:.2f} GiB" for counts in (training, inference))]
    return make_table(["purpose", "training", "inference"], [*rows, None, total])


def _format_measurements(summary: dict[str, Any]) -> str:
    measured, batch = summary["measured"], summary["memory"]["batch"]
    peak, predicted = measured["train_peak_bytes"], summary["memory"]["training"]["total"]
    memory = (
        f"peak memory {peak / GIB:.2f} GiB (the prediction is off by {predicted / peak - 1:+.1%})"
        if peak
        else "peak memory not reported by this system"
    )
    return (
        f"\nMeasured on {measured['device']}\n"
        f"  inference: {measured['inference_seconds'] * 1e3:.1f} ms per image, "
        f"{batch / measured['inference_batch_seconds']:.1f} images/s at batch size {batch}\n"
        f"  training: {batch / measured['train_seconds']:.1f} images/s, {memory}"
    )


def main(args: argparse.Namespace) -> None:
    """Count, measure and draw if asked to, and print."""
    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.visualization.figures import check_picture, require_matplotlib

    check_picture("picture", args.picture)
    if args.picture:
        require_matplotlib("summary --picture")
    config = load_config(args.variant, args.recipe, [f"train.batch_size={args.batch}", *cli.overrides(args)])
    summary = summarize(config, args.classes, args.memory * GIB)
    if args.measure:
        summary["measured"] = measure(config, args.classes)
    if args.json:
        print(json.dumps(summary, indent=1))
    else:
        show(*format_summary(summary))
    if args.picture:
        draw_summary(config, summary, args.picture)
        if not args.json:  # whose output is one JSON object
            print(f"\nThe stages are drawn in {escape(args.picture)}.")


def draw_summary(config: Config, summary: dict[str, Any], path: str) -> None:
    """Draw the stages of a network to a picture.

    Args:
        config: The config of the network.
        summary: What `summarize` returned for it.
        path: Picture to write. Its ending chooses the format.

    Raises:
        UserError: If the file cannot be written, or the picture would be too large.
    """
    from efficientnet_tf.visualization.figures import save_figure
    from efficientnet_tf.visualization.stages import draw_stages

    save_figure(draw_stages(config, summary), path, "picture", dpi=PICTURE_DPI)


def make_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = cli.make_parser(
        "summary",
        "Show what a network is and what it costs, stage by stage: output sizes, receptive fields, parameters, "
        "multiply-adds, and the memory of training and inference.",
    )
    cli.add_config_arguments(parser, recipe="imagenet")
    parser.add_argument("--classes", type=cli.positive_int, default=1000, help="Number of classes.")
    parser.add_argument("--batch", type=cli.positive_int, default=32, help="Images per training step.")
    parser.add_argument("--memory", type=cli.positive_number, default=16.0, help="Memory of the device, in GiB.")
    parser.add_argument(
        "--measure", action="store_true", help="Also run the network here, and show its speed and peak memory."
    )
    parser.add_argument(
        "--picture",
        type=cli.path,
        help="Also draw the stages, their shapes and their costs to this file, for example .png or .svg.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

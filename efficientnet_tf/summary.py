"""What a network is and costs, stage by stage: `python -m efficientnet_tf.summary --variant=b4`.

Counted from its numbers, nothing is built; with --measure, beside what this machine says.
"""

import itertools
import json
from dataclasses import asdict

from efficientnet_tf import cli

MIB, GIB = 2**20, 2**30


def summarise(config, classes=1000, available=16 * GIB):
    """Count everything about the network of a config.

    Args:
        config: config.Config; model, image size, channels, batch, precision, optimiser and average count.
        classes: int >= 1.
        available: number > 0, bytes of a device's memory.

    Returns:
        dict: "parts", a list of dict, stage by stage; "kinds", costs by kind of layer; "total"; "memory", bytes by
        purpose of a training step, and of inference; "largest_batch" of training in the bytes available.
    """
    from efficientnet_tf.scaling.complexity import list_layers, receptive_fields, sum_by
    from efficientnet_tf.scaling.compound import scale_network
    from efficientnet_tf.scaling.memory import inference_memory, kept_bytes, largest_batch, training_memory

    spec, batch = config.model, config.train.batch_size
    precision = "float32" if config.train.precision == "auto" else config.train.precision
    options = {"precision": precision, "optimizer": config.optimizer.name, "average": bool(config.train.ema_decay)}
    layers = list_layers(spec, config.image_size, classes, config.data.channels)
    costs, fields = sum_by(layers, "part"), receptive_fields(spec)
    blocks = {f"stage{number}": stage for number, stage in enumerate(scale_network(spec).stages, 1)}
    parts = []
    for name, group in itertools.groupby(layers, key=lambda layer: layer.part):
        group = list(group)
        field, apart = fields.get(name, (None, None))
        stage = blocks.get(name)
        parts.append(
            {
                "part": name,
                "blocks": f"{len(stage)} x {stage[-1].kind}, {stage[-1].kernel}x{stage[-1].kernel}" if stage else "",
                "side": group[-1].side,
                "channels": group[-1].channels,
                "stride": apart,
                "receptive_field": field,
                "params": costs[name].trainable_params,
                "macs": costs[name].macs,
                "kept_bytes": kept_bytes(group, precision),
            }
        )
    training, inference = training_memory(layers, batch, **options), inference_memory(layers, batch, precision)
    return {
        "variant": spec.name,
        "depth": spec.depth,
        "width": spec.width,
        "resolution": config.image_size,
        "classes": classes,
        "parts": parts,
        "kinds": {kind: asdict(cost) for kind, cost in sum_by(layers, "kind").items() if kind != "total"},
        "total": asdict(costs["total"]) | {"total_params": costs["total"].total_params},
        "memory": {
            "batch": batch,
            **options,
            "training": asdict(training) | {"total": training.total},
            "inference": asdict(inference) | {"total": inference.total},
        },
        "largest_batch": {"available_bytes": int(available), "batch": largest_batch(layers, available, **options)},
    }


def measure(config, classes):
    """Measure what `summarise` counts, on this machine.

    Returns:
        dict: "device"; "inference_seconds" of one image and "inference_batch_seconds" of the config's batch, in
        float32; "train_seconds" of a step; "train_peak_bytes", None where the system does not say.
    """
    import keras
    import tensorflow as tf

    from efficientnet_tf.benchmark.measure import inference_seconds, training_step
    from efficientnet_tf.runtime.strategy import create_strategy

    gpus = tf.config.list_physical_devices("GPU")
    step = training_step(config, create_strategy("cpu" if not gpus else "gpu"), classes)  # first: it watches memory
    keras.backend.clear_session()
    options = {"size": config.image_size, "classes": classes, "channels": config.data.channels}
    return {
        "device": gpus[0].name if gpus else "CPU",
        "inference_seconds": inference_seconds(config.model, **options),
        "inference_batch_seconds": inference_seconds(config.model, batch=config.train.batch_size, **options),
        "train_seconds": step["seconds"],
        "train_peak_bytes": step["peak_bytes"],
    }


def format_summary(summary):
    """Return a summary as a table and sentences for people."""
    total, memory = summary["total"], summary["memory"]
    lines = [
        "{variant}: depth {depth:g}, width {width:g}, {resolution} pixels, {classes:,} classes".format(**summary),
        "",
        f"{'part':8}{'blocks':24}{'output':>14}{'stride':>8}{'sees':>7}{'params':>14}{'multiply-adds':>18}{'':>7}"
        f"{'kept/image':>12}",
    ]
    for part in summary["parts"]:
        output = f"{part['side']}x{part['side']}x{part['channels']}" if part["side"] > 1 else f"{part['channels']}"
        stride, field = part["stride"] or "", part["receptive_field"] or "all"
        lines.append(
            f"{part['part']:8}{part['blocks']:24}{output:>14}{stride:>8}{field:>7}{part['params']:14,}"
            f"{part['macs']:18,}{part['macs'] / total['macs']:7.1%}{part['kept_bytes'] / MIB:8.1f} MiB"
        )
    kept = sum(part["kept_bytes"] for part in summary["parts"])
    lines.append(
        f"{'total':61}{total['trainable_params']:14,}{total['macs']:18,}{'':7}{kept / MIB:8.1f} MiB\n"
        f"{'with batch norm’s statistics':61}{total['total_params']:14,}\n"
    )
    kinds = [f"{kind.replace('_', ' ')} {c['macs']:,}" for kind, c in summary["kinds"].items() if c["macs"]]
    lines.append("Multiply-adds by kind: " + ", ".join(kinds) + ".")
    train, infer = memory["training"], memory["inference"]
    purposes = ", ".join(f"{name} {n / MIB:,.0f}" for name, n in train.items() if name != "total" and n)
    average = "with" if memory["average"] else "without"
    lines += [
        f"Training at batch {memory['batch']}, {memory['precision']}, {memory['optimizer']}, {average} moving average: "
        f"{train['total'] / GIB:.2f} GiB (in MiB: {purposes}).",
        f"Inference at batch {memory['batch']}: {infer['total'] / GIB:.2f} GiB.",
        f"Largest training batch in {summary['largest_batch']['available_bytes'] / GIB:g} GiB: "
        f"{summary['largest_batch']['batch']:,}.",
    ]
    if "measured" in summary:
        m, batch = summary["measured"], memory["batch"]
        peak = m["train_peak_bytes"]
        beside = f", {train['total'] / peak - 1:+.1%} predicted" if peak else ""
        lines.append(
            f"Measured on {m['device']}: inference {m['inference_seconds'] * 1e3:.1f} ms an image, "
            f"{batch / m['inference_batch_seconds']:.1f} images/s at batch {batch}; training "
            f"{batch / m['train_seconds']:.1f} images/s, peak "
            + (f"{peak / GIB:.2f} GiB{beside}." if peak else "memory not told by this system.")
        )
    return "\n".join(lines)


def main(args):
    """Count, measure where asked, print."""
    from efficientnet_tf.config.load import load_config

    config = load_config(args.variant, args.recipe, [f"train.batch_size={args.batch}", *cli.overrides(args)])
    summary = summarise(config, args.classes, args.memory * GIB)
    if args.measure:
        summary["measured"] = measure(config, args.classes)
    print(json.dumps(summary, indent=1) if args.json else format_summary(summary))


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "summary",
        "What a network is and costs, stage by stage: sizes, receptive field, parameters, multiply-adds, and the "
        "memory that training takes. 'sees' is the side of the receptive field in pixels, squeeze-excite left aside; "
        "'kept' is what waits for the backward pass.",
    )
    cli.add_config_arguments(parser, recipe="imagenet")
    parser.add_argument("--classes", type=cli.positive_int, default=1000, help="width of the classifier")
    parser.add_argument("--batch", type=cli.positive_int, default=32, help="images a training step")
    parser.add_argument("--memory", type=cli.positive_number, default=16.0, help="a device's memory, GiB")
    parser.add_argument("--measure", action="store_true", help="also run it here: times, and the peak memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

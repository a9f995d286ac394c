"""Measure what int8 costs and gains, and write docs/int8.md: `python scripts/int8_table.py --help`.

    python scripts/int8_table.py --name="Lite0, CIFAR-10" --float=runs/photos --trained=runs/int8 --data_dir=photos

--float is the model directory of a run, and --trained that of a run that trained on from it with the recipe `int8`. The
network is exported in float32, in int8 with limits from calibration images, and in int8 with the limits that were
trained. Every file is evaluated on the evaluation split, and all files of a runtime are timed in rounds. Rows of the
same name are replaced. Without --float, only the page is written.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "docs" / "speed" / "int8.json"
SUFFIXES = {".tflite": "LiteRT", ".onnx": "ONNX Runtime", ".xml": "OpenVINO"}
ROUNDS, SECONDS = 5, 1.0

ABOUT = """# int8 on photographs

What int8 costs in accuracy and gains in speed. "Calibrated" are the limits that [`export`](guides/export.md#int8) finds
on training images, and "trained" those of [training for int8](guides/export.md#train-for-int8). The trained network was
trained on for a few epochs, so it can be more accurate than the one in float, which was not. "Agrees" is the share of
images with the same top-1 class as the network in float or, if it was trained, as the rounded network that was
trained. `export` refuses files below 98 %. A network that is unsure is refused sooner, because the logits of its
likeliest classes are closer together than a few steps of int8. The B0 below cannot be calibrated: two of its last
layers lose almost everything in int8. Training for int8 repairs this. Rates are medians of alternating rounds on all
cores. Every figure comes from [a file](speed/int8.json) that `python scripts/int8_table.py` writes."""


class Timed:
    """A file that is open in its runtime, timed on a batch of noise."""

    def __init__(self, path, batch):
        from efficientnet_tf.export.formats import open_export

        export = open_export(str(path))
        self._run = export.compute_logits
        shape = (batch, *export.config.input_shape)
        self._images = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)

    def run(self, seconds):
        """Return the seconds of one batch."""
        started, count = time.perf_counter(), 0
        while not count or time.perf_counter() - started < seconds:
            self._run(self._images)
            count += 1
        return (time.perf_counter() - started) / count


def measure(args, folder):
    """Return a row for each file that can be written."""
    from efficientnet_tf.benchmark.rounds import run_rounds
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.evaluate import evaluate_model
    from efficientnet_tf.export.export import export_model

    overrides = [f"data.dir={args.data_dir}", f"data.eval_split={args.eval_split}"]
    files = {"float32": (args.float, "float32"), "calibrated": (args.float, "int8"), "trained": (args.trained, "int8")}
    rows = []
    for model_dir in (args.float, args.trained):
        result = evaluate_model(model_dir, overrides=overrides)
        rows.append({"runtime": "Keras", "file": "float32" if model_dir == args.float else "trained, in float"})
        rows[-1] |= {"top1": result["top1"], "images": result["examples"]}
    for suffix, runtime in SUFFIXES.items():
        written = {}
        for name, (model_dir, precision) in files.items():
            path = folder / f"{name}{suffix}"
            row = {"runtime": runtime, "file": name}
            try:
                result = export_model(model_dir, path, precision, images=args.images, overrides=overrides)
            except UserError as error:
                rows.append(row | {"refused": str(error).split(". ")[0]})
                continue
            written[name] = row | {"agreement": result["agreement"], "bytes": result["bytes"]}
            written[name]["top1"] = evaluate_model(str(path), overrides=overrides)["top1"]
        for batch in (1, 32):
            seconds = run_rounds({name: Timed(folder / f"{name}{suffix}", batch) for name in written}, ROUNDS, SECONDS)
            for name, each in seconds.items():
                written[name][f"rate_{batch}"] = batch / float(np.median(each))
        rows += written.values()
    return rows


def write_page(report):
    """Write the page from the rows."""
    parts = [ABOUT]
    for name, part in report.items():
        lines = ["| runtime | file | top-1 | agrees | size | images/s at batch 1 | at batch 32 |"]
        lines.append("|---|---|--:|--:|--:|--:|--:|")
        for row in part["rows"]:
            if "refused" in row:
                lines.append(f"| {row['runtime']} | {row['file']} | refused | | | | |")
                continue
            cells = [row["runtime"], row["file"], f"{row['top1']:.2%}"]
            cells.append(f"{row['agreement']:.2%}" if "agreement" in row else "")
            cells.append(f"{row['bytes'] / 1e6:.1f} MB" if "bytes" in row else "")
            cells += [f"{row[key]:,.0f}" if key in row else "" for key in ("rate_1", "rate_32")]
            lines.append(f"| {' | '.join(cells)} |")
        machine = part["environment"]
        about = f"{part['rows'][0]['images']:,} images, on {machine['cores']} cores ({machine['cpu']})."
        parts += [f"## {name}", about, "\n".join(lines)]
        parts += [f"{row['refused']}." for row in part["rows"] if "refused" in row]
    (ROOT / "docs" / "int8.md").write_text("\n\n".join(parts) + "\n")


def main(args):
    """Measure, and write the file and the page."""
    from efficientnet_tf.config.load import describe_environment
    from efficientnet_tf.runtime.hardware import describe_hardware

    report = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    if args.float:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(args, Path(folder))
        environment = describe_environment("ai-edge-litert", "onnxruntime", "openvino") | describe_hardware()
        report[args.name] = {"environment": environment, "rows": rows}
        REPORT.write_text(json.dumps(report, indent=1) + "\n")
    write_page(report)


def make_parser():
    """Return the flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", help="Heading of the table: the network and the images.")
    parser.add_argument("--float", help="Model directory of a run.")
    parser.add_argument("--trained", help="Model directory of a run that trained on with the recipe `int8`.")
    parser.add_argument("--data_dir", help="Folder of the images.")
    parser.add_argument("--eval_split", default="val", help="Split to evaluate on.")
    parser.add_argument("--images", type=int, default=1000, help="Largest number of images on which files must agree.")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())

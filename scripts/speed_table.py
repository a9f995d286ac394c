"""Measure all speeds on this machine and write docs/speed.md: `python scripts/speed_table.py [docs/speed]`.

Each part is one run of the benchmark command, which writes a JSON file into the folder. Parts that have a file are not
measured again. The export command reports how well the exported files agree with the Keras model, for a B0 that was
trained on digits. The page docs/speed.md and its plots are written from these files alone.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from efficientnet_tf.benchmark.plot import draw_speed
from efficientnet_tf.benchmark.report import format_markdown
from efficientnet_tf.benchmark.worker import EXPORTS, PACKAGES, RUNTIMES
from efficientnet_tf.config.load import describe_environment

FAMILY = ",".join(f"b{i}" for i in range(8))
QUICK = ["--rounds=2", "--seconds=0.5"]  # for parts with many cases
PARTS = {
    "train_b0": ["--mode=train", "--variant=b0", "--batch=32", "--compare=keras,timm", "--rounds=9"],
    "train_b4": ["--mode=train", "--variant=b4", "--batch=8", "--compare=keras,timm", "--rounds=9"],
    "train_v2_b0": ["--mode=train", "--variant=b0,v2-b0", "--batch=32", "--compare=keras,timm", "--rounds=7"],
    "train_v2_s": ["--mode=train", "--variant=v2-s", "--batch=8", "--compare=keras,timm", "--rounds=7"],
    "train_jax": [
        "--mode=train",
        "--variant=b0",
        "--batch=32",
        "--compare=jax,keras_fit_jax,keras",
        "--rounds=2",
        "--seconds=1",
    ],
    "infer_batch": ["--mode=infer", "--variant=b0,v2-b0", "--batch=32", "--compare=keras", "--rounds=7"],
    "infer_v2": ["--mode=infer", "--variant=b0,v2-b0,v2-s", "--batch=8", "--compare=keras,timm", "--rounds=7"],
    "deploy": ["--mode=export", "--variant=b0", "--batch=1,32", "--compare=keras,timm", "--rounds=5", "--seconds=1"],
    "deploy_bfloat16": [
        *("--mode=infer", "--variant=b0", "--batch=1,32", "--compare=keras,timm", "--precision=mixed_bfloat16"),
        *("--rounds=5", "--seconds=1"),
    ],
    "family": [
        *("--mode=infer", f"--variant={FAMILY}", "--batch=8", "--compare=keras,timm", "--seconds=1"),
        "--longest_step=2",
    ],
    "scale_infer": [
        *("--mode=infer", f"--variant={FAMILY}", "--batch=1,8,64", "--threads=1,2,4", *QUICK, "--longest_step=2")
    ],
    # Most of the time goes into tracing the training graph, so there are fewer cases.
    "scale_train": ["--mode=train", f"--variant={FAMILY}", "--batch=1,8,64", "--threads=4", *QUICK, "--longest_step=2"],
    "scale_train_threads": [
        *("--mode=train", "--variant=b0,b4", "--batch=1,8,64", "--threads=1,2", *QUICK, "--longest_step=2")
    ],
    # One small image, so that the first step is almost only tracing.
    "start": [
        *("--mode=train", "--variant=b0,b4,b7", "--sizes=32", "--batch=1", "--compare=keras", "--rounds=1"),
        "--seconds=0.1",
    ],
    "startup": ["--mode=startup", "--compare=keras,timm"],
}
DIGITS = ["efficientnet_tf.train", "--variant=b0", "--recipe=digits"]


def run(words, **options):
    """Run a command of this package. Raise an error if it fails, unless `check` is False."""
    settings: dict[str, Any] = {"check": True, "text": True} | options
    return subprocess.run([sys.executable, "-m", *words], **settings)


def measure(name, folder, flags=()):
    """Run the benchmark command of a part, which writes its file."""
    run(["efficientnet_tf.benchmark", *PARTS[name], *flags, f"--output={folder / name}.json"])


def compare_exports(folder, digits=None, flags=()):
    """Export a network trained on digits in every format, and write how well each file agrees with the Keras model.

    Args:
        folder: The folder for agreement.json, a Path.
        digits: Model directory of the trained network. None trains one.
        flags: More flags of the export command.
    """
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        if digits is None:
            digits = f"{scratch}/digits"
            run([*DIGITS, f"--model_dir={digits}"], stdout=sys.stderr)
        for name in EXPORTS:
            runtime, precision = name.split(":")
            output = f"{scratch}/{precision}{RUNTIMES[runtime]}"
            words = [
                "efficientnet_tf.export",
                f"--model_dir={digits}",
                f"--output={output}",
                f"--precision={precision}",
            ]
            done = run([*words, "--json", *flags], check=False, capture_output=True)
            if done.returncode:  # A file that does not agree well enough is also a result.
                error = done.stderr.strip().rpartition("error: ")[2].replace(f"{scratch}/", "")
                rows.append({"implementation": name, "error": error})
            else:
                result = json.loads(done.stdout.splitlines()[-1])
                rows.append(
                    {"implementation": name} | {key: result[key] for key in ("images", "difference", "agreement")}
                )
    commands = [
        f"python -m {shlex.join(DIGITS)} --model_dir=runs/digits",
        "python -m efficientnet_tf.export --model_dir=runs/digits --output=FILE --precision=PRECISION --json",
    ]
    report = {"commands": commands, "environment": describe_environment(*PACKAGES), "rows": rows}
    (folder / "agreement.json").write_text(json.dumps(report, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------- the page

ABOUT = """All rows of one table were measured in the same run, in rounds: each implementation for a few seconds, one
after the other, again and again. The table has the median of the rounds, the lowest (`low`) and the highest (`high`).
`of keras` is the rate as a share of that of keras.applications in a plain graph, and `of timm` as a share of that of
timm with torch.compile. `of product` is the arithmetic per second as a share of that of a product of large matrices in
the same run. Cases are left out if `--longest_step` is given and one step would take longer than that even at the rate
of the matrix product, or if the memory predicted for them was not free."""
TEXTS = {
    "train_b0": "## Training, B0",
    "train_b4": "## Training, B4",
    "train_v2_b0": """## Training, EfficientNetV2-B0

B0 is measured in the same run. The package is less far ahead of Keras with V2-B0, because the work that it speeds up is
a smaller part there. Full 3x3 convolutions, which all three leave to oneDNN, are 43 % of the multiply-adds of V2-B0 and
3 % of those of B0. Its feature maps have 22 values per 1,000 multiply-adds, those of B0 have 59, so that batch norm,
activations and their gradients take a smaller share of the time, too.""",
    "train_v2_s": "## Training, EfficientNetV2-S",
    "train_jax": """## Training with JAX, B0

`jax` is this package with `--backend=jax`, and `keras_fit_jax` is keras.applications, trained by Keras's own `fit` with
JAX. XLA compiles for both. On a CPU, TensorFlow has faster kernels for these networks, and so has this package.""",
    "infer_batch": """## Inference of model directories

`evaluate` and `predict` fold batch norm into the convolutions when they compute on a CPU. The tables below were
measured before they did so, when the package was about as fast as Keras.""",
    "infer_v2": "## Inference, EfficientNetV2",
    "deploy": """## Deployment, B0

The files that `export` writes, each run by its own runtime, next to the networks they are compared with. The top-1
agreement is the share of images for which the file and the Keras model predict the same class. The export command
reports it for a B0 trained on digits, on the evaluation split of digits (`docs/speed/agreement.json`).

The rows of int8 were measured before version 0.3, with files that each runtime's own quantizer wrote. Today's files
come from one calibration for all runtimes: see [int8 on photographs](int8.md).""",
    "deploy_bfloat16": "The networks themselves in bfloat16:",
    "family": "## Do fewer multiply-adds mean less time?",
    "scale_infer": "## Inference across the family\n\nMilliseconds per batch, each network at its own resolution.",
    "scale_train": "## Training across the family\n\nMilliseconds per step, each network at its own resolution.",
    "scale_train_threads": "On fewer cores:",
    "start": """## Start-up

Seconds from the start of the process to the end of its first training step, and the seconds of the first step alone.
With one image of 32 pixels, almost all of the first step is tracing.""",
    "startup": """## Waiting

Seconds from the start of a process to its answer, the median of the rounds. `predict` and the first step of `train` are
compared with short scripts as users of Keras and timm write them. Keras trains without XLA and timm without
torch.compile, which would take longer. Predictions of exported files and errors need no TensorFlow.

`before` is the median on the same machine with an earlier version, in which TensorFlow and Keras imported what was
installed of scikit-learn, SciPy, matplotlib and JAX. Commands now hide these from TensorFlow and Keras. The import of
TensorFlow still takes 2.2 seconds, so `predict` of a model directory stays behind timm. Predict with an exported file
if this matters.

The first training step takes longer than in Keras, because the command also traces AutoAugment, the averaged weights,
and the gradients of the faster operations. Each further step takes about half as long as in Keras, so the command is
ahead after about ten steps.""",
}
SHOWN = (
    "variant",
    "size",
    "batch",
    "implementation",
    "images_per_second",
    "low",
    "high",
    "of_keras",
    "of_timm",
    "of_jax",
    "of_keras_fit_jax",
    "of_product",
)
SHOWN += ("peak_mib",)


def select_columns(rows, *keys):
    """Return rows that have only these keys."""
    return [{key: row[key] for key in keys if key in row} for row in rows]


def make_deployment_table(rows, folder):
    """Return a row for each format, with its size, its rates at each batch and its agreement."""
    path = folder / "agreement.json"
    agreements = {row["implementation"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    table = {}
    for row in rows:
        name = row["implementation"]
        found = table.setdefault(name, {"format": name} | select_columns([row], "file_mib")[0])
        found[f"images/s at batch {row['batch']}"] = row["images_per_second"]
        found[f"lowest to highest at {row['batch']}"] = f"{row['low']:,.1f} to {row['high']:,.1f}"
    if any("file_mib" in row for row in table.values()):
        for name, row in table.items():
            share = agreements.get(name, {}).get("agreement")
            failed = "below 98 %: not written" if "error" in agreements.get(name, {}) else ""
            row["top-1 agreement"] = failed if share is None else f"{share:.2%}"
    return list(table.values())


def make_grid(rows, key):
    """Return a row for each network and a column for each batch and number of threads."""
    cells = {
        (row["batch"], row["threads"]): None for row in sorted(rows, key=lambda row: (row["threads"], row["batch"]))
    }
    table = {}
    for row in rows:
        names = select_columns([row], "variant", "size", "gmacs")[0]
        found = table.setdefault(row["variant"], names | {f"batch {b}, threads {t}": None for b, t in cells})
        found[f"batch {row['batch']}, threads {row['threads']}"] = row[key]
    return sorted(table.values(), key=lambda row: row["gmacs"])


def format_tables(name, rows, folder):
    """Return the tables of a part, as Markdown."""
    if name.startswith("deploy"):
        return [format_markdown(make_deployment_table(rows, folder))]
    if name.startswith("scale"):
        parts = [format_markdown(make_grid(rows, "milliseconds"))]
        parts += ["Peak memory of the process in MiB:", format_markdown(make_grid(rows, "peak_mib"))]
        return [
            *parts,
            "Seconds from the start of the process to the end of the first step:",
            format_markdown(make_grid(rows, "start_seconds")),
        ]
    if name == "start":
        shown = ("variant", "size", "batch", "implementation", "start_seconds", "first_step_seconds", "peak_mib")
        return [format_markdown(select_columns(rows, *shown))]
    if name == "startup":
        path = folder / "startup_before.json"
        earlier = json.loads(path.read_text())["rows"] if path.exists() else []
        before = {(row["task"], row["implementation"]): row["seconds"] for row in earlier}
        rows = [row | {"before": before.get((row["task"], row["implementation"]))} for row in rows]
        return [format_markdown(select_columns(rows, "task", "implementation", "seconds", "low", "high", "before"))]
    return [format_markdown(select_columns(rows, *SHOWN))]


def format_section(name, folder):
    """Return the section of a part, and write its plot."""
    report = json.loads((folder / f"{name}.json").read_text())
    lines = [TEXTS[name], f"    {report['command']}", *format_tables(name, report["rows"], folder)]
    if len({row["variant"] for row in report["rows"]}) > 2 and name != "start":
        draw_speed(report["rows"], report["mode"]).savefig(folder / f"{name}.png", dpi=150)
        lines.append(f"![Time per image over multiply-adds per image]({folder.name}/{name}.png)")
    reasons = [
        "{variant} at {size} pixels, batch {batch}, threads {threads}: {reason}".format(**case)
        for case in report["skipped"]
    ]
    if reasons:
        lines += ["Left out:", "\n".join(f"- {reason}" for reason in reasons)]
    versions = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    return "\n\n".join([*lines, f"Measured with {versions}."])


def write_page(folder):
    """Write the page of all parts that are measured, next to the folder."""
    measured = [name for name in PARTS if (folder / f"{name}.json").exists()]
    missing = [name for name in PARTS if name not in measured]
    parts = ["# Speed", f"Written by `python scripts/speed_table.py` from the files in `{folder.name}/`."]
    parts.append(ABOUT)
    parts += [format_section(name, folder) for name in measured]
    agreement = folder / "agreement.json"
    if agreement.exists():
        report = json.loads(agreement.read_text())
        parts += ["## Agreement", "\n".join(f"    {command}" for command in report["commands"])]
        rows = [
            {key: row.get(key) for key in ("implementation", "images", "difference", "agreement")}
            for row in report["rows"]
        ]
        parts.append(format_markdown(rows))
        parts += [f"- {row['implementation']}: {row['error']}" for row in report["rows"] if "error" in row]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    folder.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def main(args):
    """Measure the missing parts, then write the page."""
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in [] if args.page else [args.only] if args.only else [*PARTS, "agreement"]:
        if (folder / f"{name}.json").exists():
            continue
        if name == "agreement":
            compare_exports(folder, args.digits, shlex.split(args.export_flags))
        else:
            measure(name, folder, shlex.split(args.flags))
    write_page(folder)


def make_parser():
    """Return the flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="docs/speed", help="Folder of the JSON files.")
    parser.add_argument("--only", choices=[*PARTS, "agreement"], help="Measure only this part.")
    parser.add_argument("--page", action="store_true", help="Measure nothing. Write the page from the existing files.")
    parser.add_argument("--digits", metavar="MODEL_DIR", help="A B0 trained on digits. By default one is trained.")
    parser.add_argument(
        "--flags", default="", help="More flags of the benchmark, which take precedence: '--rounds=1 --sizes=32'."
    )
    parser.add_argument("--export_flags", default="", help="More flags of export: '--calibration_images=8'.")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())

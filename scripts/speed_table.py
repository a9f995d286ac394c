"""Measure how fast everything is on this machine: `python scripts/speed_table.py [docs/speed]`.

Each part is one run of the benchmark command, which writes a JSON into the folder; what is there already is not
measured again. How far the exported files agree with the Keras model, the export command tells, for a B0 that has
learnt digits. The page beside the folder, docs/speed.md, and the pictures in it are drawn from these files alone.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from efficientnet_tf.benchmark.__main__ import format_table
from efficientnet_tf.benchmark.plot import draw_speed
from efficientnet_tf.benchmark.worker import EXPORTS, PACKAGES, RUNTIMES
from efficientnet_tf.config.load import describe_environment

FAMILY = ",".join(f"b{i}" for i in range(8))
QUICK = ["--rounds=2", "--seconds=0.5"]  # where there are many cases
PARTS = {
    "train_b0": ["--mode=train", "--variant=b0", "--batch=32", "--compare=keras,timm", "--rounds=9"],
    "train_b4": ["--mode=train", "--variant=b4", "--batch=8", "--compare=keras,timm", "--rounds=9"],
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
    # Tracing the graph of training takes most of the time: fewer cases.
    "scale_train": ["--mode=train", f"--variant={FAMILY}", "--batch=1,8,64", "--threads=4", *QUICK, "--longest_step=2"],
    "scale_train_threads": [
        *("--mode=train", "--variant=b0,b4", "--batch=1,8,64", "--threads=1,2", *QUICK, "--longest_step=2")
    ],
    # One small image, so that the first step is tracing.
    "start": [
        *("--mode=train", "--variant=b0,b4,b7", "--sizes=32", "--batch=1", "--compare=keras", "--rounds=1"),
        "--seconds=0.1",
    ],
}
DIGITS = ["efficientnet_tf.train", "--variant=b0", "--recipe=digits"]


def run(words, **options):
    """Run a command of this package; end where it fails, unless `check` is False."""
    return subprocess.run([sys.executable, "-m", *words], **{"check": True, "text": True} | options)


def measure(name, folder, flags=()):
    """Let the benchmark command write a part's file."""
    run(["efficientnet_tf.benchmark", *PARTS[name], *flags, f"--output={folder / name}.json"])


def compare_exports(folder, digits=None, flags=()):
    """Export a network that knows digits in every format, and write how far each agrees.

    Args:
        folder: Path, where agreement.json comes to lie.
        digits: str, a model directory; None to train one.
        flags: sequence of str, of the export command.
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
            if done.returncode:  # too little agreement is a result, too
                error = done.stderr.strip().rpartition("error: ")[2].replace(f"{scratch}/", "")
                rows.append({"contestant": name, "error": error})
            else:
                told = json.loads(done.stdout.splitlines()[-1])
                rows.append({"contestant": name} | {key: told[key] for key in ("images", "difference", "agreement")})
    commands = [
        f"python -m {shlex.join(DIGITS)} --model_dir=runs/digits",
        "python -m efficientnet_tf.export --model_dir=runs/digits --output=FILE --precision=PRECISION --json",
    ]
    report = {"commands": commands, "environment": describe_environment(*PACKAGES), "rows": rows}
    (folder / "agreement.json").write_text(json.dumps(report, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------- the page

ABOUT = """What stands in one table was measured in turns, in one run: medians, and the lowest and highest. `of
keras` is the share of the rate of keras.applications in a plain graph, `of timm` of timm's with
torch.compile, `of product` the share of the arithmetic of a product of large matrices in the same run.
With `--longest_step` cases are left out whose step would take longer even at that product's rate;
others, where the memory predicted for them was not there."""
TEXTS = {
    "train_b0": "## Training, B0",
    "train_b4": "## Training, B4",
    "deploy": """## Deployment, B0

The files that `export` writes, each run by its own runtime, beside the networks that they are compared with. Top-1
agrees with the Keras model's on the share that `docs/speed/agreement.json` has: of B0 trained on digits, on their
evaluation split, told by the export command.""",
    "deploy_bfloat16": "The networks themselves in bfloat16:",
    "family": "## Do fewer multiply-adds mean less time?",
    "scale_infer": "## How inference grows\n\nMilliseconds of a batch, each network at its own resolution.",
    "scale_train": "## How training grows\n\nMilliseconds of a step, each network at its own resolution.",
    "scale_train_threads": "On fewer cores:",
    "start": """## Start-up

From the beginning of the process to the end of its first training step, and of that the first step alone, which is
tracing: one image of 32 pixels.""",
}
SHOWN = (
    "variant",
    "size",
    "batch",
    "contestant",
    "images_per_second",
    "low",
    "high",
    "of_keras",
    "of_timm",
    "of_product",
)
SHOWN += ("peak_mib",)


def columns(rows, *keys):
    """Return rows with these of their keys alone."""
    return [{key: row[key] for key in keys if key in row} for row in rows]


def deployment(rows, folder):
    """Return a row for each format: size, rates at each batch, agreement."""
    path = folder / "agreement.json"
    told = {row["contestant"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    table = {}
    for row in rows:
        found = table.setdefault(row["contestant"], {"format": row["contestant"]} | columns([row], "file_mib")[0])
        found[f"images/s at batch {row['batch']}"] = row["images_per_second"]
        found[f"lowest to highest at {row['batch']}"] = f"{row['low']:,.1f} to {row['high']:,.1f}"
    if any("file_mib" in row for row in table.values()):
        for name, row in table.items():
            share = told.get(name, {}).get("agreement")
            failed = "below 98 %: not written" if "error" in told.get(name, {}) else ""
            row["top-1 agreement"] = failed if share is None else f"{share:.2%}"
    return list(table.values())


def grid(rows, key):
    """Return a row for each network and a column for each batch and number of threads."""
    cells = {
        (row["batch"], row["threads"]): None for row in sorted(rows, key=lambda row: (row["threads"], row["batch"]))
    }
    table = {}
    for row in rows:
        names = columns([row], "variant", "size", "gmacs")[0]
        found = table.setdefault(row["variant"], names | {f"batch {b}, threads {t}": None for b, t in cells})
        found[f"batch {row['batch']}, threads {row['threads']}"] = row[key]
    return sorted(table.values(), key=lambda row: row["gmacs"])


def tables(name, rows, folder):
    """Return what a part shows, as Markdown."""
    if name.startswith("deploy"):
        return [format_table(deployment(rows, folder))]
    if name.startswith("scale"):
        parts = [format_table(grid(rows, "milliseconds"))]
        parts += ["Peak memory of the process, MiB:", format_table(grid(rows, "peak_mib"))]
        return [*parts, "Start, seconds to the end of the first step:", format_table(grid(rows, "start_seconds"))]
    if name == "start":
        shown = ("variant", "size", "batch", "contestant", "start_seconds", "first_step_seconds", "peak_mib")
        return [format_table(columns(rows, *shown))]
    return [format_table(columns(rows, *SHOWN))]


def section(name, folder):
    """Return a part of the page; draw its picture."""
    report = json.loads((folder / f"{name}.json").read_text())
    lines = [TEXTS[name], f"    {report['command']}", *tables(name, report["rows"], folder)]
    if len({row["variant"] for row in report["rows"]}) > 2 and name != "start":
        draw_speed(report["rows"], report["mode"]).savefig(folder / f"{name}.png", dpi=150)
        lines.append(f"![Time over multiply-adds]({folder.name}/{name}.png)")
    reasons = [
        "{variant} at {size} pixels, batch {batch}, threads {threads}: {reason}".format(**case)
        for case in report["skipped"]
    ]
    if reasons:
        lines += ["Left out:", "\n".join(f"- {reason}" for reason in reasons)]
    versions = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    return "\n\n".join([*lines, f"Measured with {versions}."])


def write_page(folder):
    """Write the page beside the folder, of those parts that are measured."""
    here = [name for name in PARTS if (folder / f"{name}.json").exists()]
    missing = [name for name in PARTS if name not in here]
    parts = ["# Speed", f"Written by `python scripts/speed_table.py` from the files in `{folder.name}/`."]
    parts.append(ABOUT)
    parts += [section(name, folder) for name in here]
    agreement = folder / "agreement.json"
    if agreement.exists():
        report = json.loads(agreement.read_text())
        parts += ["## Agreement", "\n".join(f"    {command}" for command in report["commands"])]
        rows = [
            {key: row.get(key) for key in ("contestant", "images", "difference", "agreement")} for row in report["rows"]
        ]
        parts.append(format_table(rows))
        parts += [f"- {row['contestant']}: {row['error']}" for row in report["rows"] if "error" in row]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    folder.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def main(args):
    """Measure what is missing, then write the page."""
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
    """Return the script's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="docs/speed", help="where the files lie")
    parser.add_argument("--only", choices=[*PARTS, "agreement"], help="measure this part alone")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from what is there")
    parser.add_argument("--digits", metavar="MODEL_DIR", help="of a B0 that knows digits; else one is trained")
    parser.add_argument("--flags", default="", help="more flags of the benchmark, which win: '--rounds=1 --sizes=32'")
    parser.add_argument("--export_flags", default="", help="more flags of export: '--calibration_images=8'")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())

"""Compile the family for TPU slices: `python scripts/preflight_table.py docs`.

Each variant is compiled for the smallest slice of a generation on which it fits, which is found by trying larger and
larger slices. This takes hours on a few cores. When you start the script again, it continues after the reports that the
files of the tables already have. The page preflight.md is written from these files. `--page` only writes this page.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from efficientnet_tf.runtime.terminal import ProgressBar


class Table(NamedTuple):
    """A table of the page. Its rows have the same batch, because others could not be compared."""

    title: str
    file: str
    variants: tuple[str, ...]
    slices: dict[str, tuple[str, ...]]
    flags: tuple[str, ...]


TABLES = (
    Table(
        "B0 to B7 at the official batch",
        "preflight.json",
        tuple(f"b{i}" for i in range(8)),
        {chip: ("4x4", "8x8", "16x16") for chip in ("v3", "v5e", "v6e")},
        ("--batch=2048", "--set", "eval.batch_size=1024"),
    ),
    Table(
        "Lite and EfficientNetV2 on four chips",
        "preflight_v2.json",
        ("lite0", "v2-b0", "v2-s"),
        {"v5e": ("2x2", "4x4")},
        ("--batch=256",),
    ),
    Table(
        "B0 and B4 with JAX at the official batch",
        "preflight_jax.json",
        ("b0", "b4"),
        {"v5e": ("4x4", "8x8"), "v6e": ("4x4", "8x8"), "tpu7x": ("2x2x2", "2x2x4")},
        ("--backend=jax", "--batch=2048", "--set", "eval.batch_size=1024"),
    ),
    Table(
        "EfficientNetV2 with JAX on a few chips",
        "preflight_jax_v2.json",
        ("v2-s",),
        {"v5e": ("2x2", "4x4"), "v6e": ("2x2", "4x4"), "tpu7x": ("2x2x1", "2x2x2")},
        ("--backend=jax", "--batch=256"),
    ),
)
MIB, GIB = 2**20, 2**30


def make_command(table, variant, topology):
    """Return the words of the command that measures a row."""
    return ["efficientnet_tf.preflight", f"--variant={variant}", f"--topology={topology}", *table.flags, "--json"]


def load_reports(path):
    """Return the reports of a file, or [] if there is no file."""
    return json.loads(path.read_text())["reports"] if path.exists() else []


def complete(table, path):
    """Compile what the file of a table lacks, write the file after each report, and return all reports."""
    known = {(report["variant"], report["topology"]): report for report in load_reports(path)}
    cells = [(variant, chip) for chip in table.slices for variant in table.variants]
    with ProgressBar(len(cells), "preflight", "variants and chips") as bar:
        for variant, chip in cells:
            for layout in table.slices[chip]:
                topology = f"{chip}:{layout}"
                bar.describe(f"{variant} on {topology}")
                if (variant, topology) not in known:
                    known[variant, topology] = run_preflight(table, variant, topology)
                    write_reports(path, known.values())
                if known[variant, topology]["programs"]["train"]["fits"]:
                    break
            bar.advance()
    return list(known.values())


def run_preflight(table, variant, topology):
    """Run the command of a row and return its report."""
    command = [sys.executable, "-m", *make_command(table, variant, topology)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        sys.exit(f"{' '.join(command)} failed with exit status {done.returncode}.")
    return shorten(json.loads(done.stdout))


def write_reports(path, reports):
    """Write the reports to a file, which is complete at any time."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"reports": list(reports)}, indent=1) + "\n")
    unfinished.replace(path)


def shorten(report):
    """Return a report without the shapes of the sums over replicas."""
    for step in report["steps"].values():
        sums = step["all_reduces"]
        step["all_reduces"] = {"count": len(sums), "bytes": sum(each["bytes"] for each in sums)}
    return report


def make_row(report):
    """Return the cells of a report's row."""
    train, evaluation = report["programs"]["train"], report["programs"]["raw"]
    start = [report["variant"], str(report["image_size"]), report["topology"], str(report["replicas"])]
    start.append(str(report["replica_batch"]["train"]))
    if not train["fits"]:
        need = f"{train['used_bytes'] / GIB:.1f}" if train["used_bytes"] else "more"
        return [*start, f"**does not fit: {need} of {train['available_bytes'] / GIB:.2f}**", *[""] * 7]
    sums = report["steps"]["train"]["all_reduces"]
    parts = (f"{train[f'{part}_bytes'] / MIB:,.0f}" for part in ("argument", "temporary", "code"))
    return [
        *start,
        f"{train['used_bytes'] / GIB:.2f} of {train['available_bytes'] / GIB:.2f}",
        ", ".join(parts),
        "unknown" if train["convolutions"] is None else f"{train['bfloat16_convolutions']} of {train['convolutions']}",
        f"{sums['count']} in {'unknown' if train['all_reduces'] is None else train['all_reduces']}, "
        f"{sums['bytes'] / MIB:.1f}",
        f"{train['flops'] / 1e12:.2f}",
        f"{1e3 * train['arithmetic_seconds']:.1f}, {1e3 * train['memory_seconds']:.1f}",
        f"{train['images_per_second_and_host']:,.0f}",
        f"{evaluation['used_bytes'] / GIB:.2f}",
    ]


TITLES = (
    "",
    "pixels",
    "slice",
    "replicas",
    "images per replica",
    "GiB of a replica's memory",
    "MiB of arguments, temporary, code",
    "convolutions in bfloat16",
    "sums over replicas, MiB",
    "TFLOPs per step",
    "ms at the peak of arithmetic, of memory",
    "images/s per host at that bound",
    "evaluation, GiB",
)


def format_page(tables):
    """Return the Markdown page of pairs of a table and its reports."""
    reports = [report for _, each in tables for report in each]
    versions = sorted({", ".join(f"{k} {v}" for k, v in r["environment"].items()) for r in reports})
    problems = sorted({f"{r['variant']} on {r['topology']}: {f['text']}" for r in reports for f in r["findings"]})
    sections = "\n\n".join(format_section(*each) for each in tables)
    return f"""# The family on TPUs, without a TPU

`python scripts/preflight_table.py docs` writes this page.

Nothing was run on a TPU. The numbers are what the TPU compiler reports for one step of one replica, a training step
unless the title says otherwise. The times are lower bounds at the published peaks of the chip, not predictions. The
time at the peak of memory is too long, because the compiler also counts bytes that stay on the chip.

{describe_traces(reports)}

{sections}

## Problems

{chr(10).join(f"- {text}" for text in problems) or "None."}

## Versions

{chr(10).join(f"- {text}" for text in versions)}
"""


def format_section(table, reports):
    """Return the section of a table."""
    order = {key: i for i, key in enumerate((v, chip) for v in table.variants for chip in table.slices)}
    reports = sorted(reports, key=lambda r: (order[r["variant"], r["topology"].partition(":")[0]], r["replicas"]))
    rows = [TITLES, ["--:"] * len(TITLES), *map(make_row, reports)]
    return f"""## {table.title}

Each row comes from

    python -m {" ".join(make_command(table, "VARIANT", "SLICE"))}

{chr(10).join(f"| {' | '.join(cells)} |" for cells in rows)}

{describe_compilation(table, reports)}"""


def describe_traces(reports):
    """Say whether all traced steps can run on a TPU."""
    kinds = ("host_operations", "string_operations", "dynamic_shapes")
    clean = not any(step[kind] for report in reports for step in report["steps"].values() for kind in kinds)
    subject = f"In {'none' if clean else 'SOME'} of {len(reports)} runs do the traced steps"
    return f"{subject} have an operation on the host, a string or a dynamic shape."


def describe_compilation(table, reports):
    """Say how long compiling took and what has not been compiled yet."""
    fits = [report for report in reports if report["programs"]["train"]["fits"]]
    done = {(report["variant"], report["topology"].partition(":")[0]) for report in fits}
    missing = [f"{v} for {chip}" for chip in table.slices for v in table.variants if (v, chip) not in done]
    if not reports:
        return "Nothing is compiled yet."
    seconds = sorted(report["programs"]["train"]["seconds"] for report in fits)
    text = f"Compiling a training step took {seconds[0]:.0f} to {seconds[-1]:.0f} s." if seconds else "Nothing fits."
    return f"{text} Not compiled yet: {', '.join(missing)}." if missing else text


def main(args):
    """Complete the files of all tables, then write the page next to them."""
    tables = []
    for table in TABLES:
        path = args.folder / table.file
        tables.append((table, load_reports(path) if args.page else complete(table, path)))
    (args.folder / "preflight.md").write_text(format_page(tables))


def make_parser():
    """Return the arguments of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Folder of the files and of the page.")
    parser.add_argument("--page", action="store_true", help="Only write the page.")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())

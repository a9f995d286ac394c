"""Compile the family for TPUs that are not there: `python scripts/preflight_table.py [docs/preflight.json]`.

Each variant at the official batch on the smallest square slice of a generation that it fits on, found by compiling on
larger and larger ones. Hours on a few cores; started again, it goes on after what the file already has. The page beside
the file, docs/preflight.md, is written from it.
"""

import json
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

VARIANTS = tuple(f"b{i}" for i in range(8))
SLICES = {"v3": ("4x4", "8x8", "16x16"), "v5e": ("4x4", "8x8", "16x16"), "v6e": ("4x4", "8x8", "16x16")}
BATCH, EVAL_BATCH = 2048, 1024  # the recipe's, named here because rows at other batches cannot be compared
MIB, GIB = 2**20, 2**30


def command_of(variant, topology):
    """Return the words of the command that makes a row."""
    words = ["efficientnet_tf.preflight", f"--variant={variant}", f"--topology={topology}", f"--batch={BATCH}"]
    return [*words, "--set", f"eval.batch_size={EVAL_BATCH}", "--json"]


def load(path):
    """Return the reports of a file, [] where there is none."""
    return json.loads(path.read_text())["reports"] if path.exists() else []


def complete(path):
    """Compile what the file lacks; write it after each report."""
    reports = load(path)
    known = {(r["variant"], r["topology"]): r for r in reports}
    with tqdm([(v, chip) for chip in SLICES for v in VARIANTS]) as cells:
        for variant, chip in cells:
            for layout in SLICES[chip]:
                topology = f"{chip}:{layout}"
                cells.set_description(f"{variant} on {topology}")
                if (variant, topology) not in known:
                    command = [sys.executable, "-m", *command_of(variant, topology)]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                    if not done.stdout:
                        sys.exit(f"{' '.join(command)} failed, exit status {done.returncode}")
                    known[variant, topology] = brief(json.loads(done.stdout))
                    unfinished = path.with_suffix(".unfinished")
                    unfinished.write_text(json.dumps({"reports": list(known.values())}, indent=1) + "\n")
                    unfinished.replace(path)
                if known[variant, topology]["programs"]["train"]["fits"]:
                    break
    return list(known.values())


def brief(report):
    """Return a report without the shape of every sum over replicas."""
    for step in report["steps"].values():
        sums = step["all_reduces"]
        step["all_reduces"] = {"count": len(sums), "bytes": sum(each["bytes"] for each in sums)}
    return report


def row_of(report):
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
        f"{train['bfloat16_convolutions']} of {train['convolutions']}",
        f"{sums['count']} in {train['all_reduces']}, {sums['bytes'] / MIB:.1f}",
        f"{train['flops'] / 1e12:.2f}",
        f"{1e3 * train['arithmetic_seconds']:.1f}, {1e3 * train['memory_seconds']:.1f}",
        f"{train['images_per_second_and_host']:,.0f}",
        f"{evaluation['used_bytes'] / GIB:.2f}",
    ]


def page(reports):
    """Return the Markdown page."""
    titles = [
        "",
        "pixels",
        "slice",
        "replicas",
        "images a replica",
        "GiB of a replica's memory",
        "MiB of arguments, temporary, code",
        "convolutions in bfloat16",
        "sums over replicas, MiB",
        "TFLOPs a step",
        "ms at the peak of arithmetic, of memory",
        "images/s a host at that bound",
        "evaluation, GiB",
    ]
    order = {key: i for i, key in enumerate((v, chip) for v in VARIANTS for chip in SLICES)}
    reports = sorted(reports, key=lambda r: (order[r["variant"], r["topology"].partition(":")[0]], r["replicas"]))
    lines = [titles, ["--:"] * len(titles), *map(row_of, reports)]
    versions = sorted({", ".join(f"{k} {v}" for k, v in r["environment"].items()) for r in reports})
    findings = {f"{r['variant']} on {r['topology']}: {f['text']}" for r in reports for f in r["findings"]}
    fits = [r for r in reports if r["programs"]["train"]["fits"]]
    cannot = ("host_operations", "string_operations", "dynamic_shapes")
    clean = not any(step[kind] for report in reports for step in report["steps"].values() for kind in cannot)
    done = {(r["variant"], r["topology"].partition(":")[0]) for r in fits}
    missing = [f"{v} for {chip}" for chip in SLICES for v in VARIANTS if (v, chip) not in done]
    seconds = sorted(report["programs"]["train"]["seconds"] for report in fits)
    return f"""# The family on TPUs, without a TPU

Written by `python scripts/preflight_table.py`, each row by

    python -m {" ".join(command_of("VARIANT", "SLICE"))}

Nothing was run on a TPU: these are the counts of its compiler for one step of one replica, of training unless the title
says otherwise. The times are what the chip's published peaks allow, no promise; the compiler's count of bytes has those
in it that it keeps on the chip, so that the one by memory is too long.

{chr(10).join(f"| {' | '.join(cells)} |" for cells in lines)}

Of {len(reports)} traced runs {"none has" if clean else "SOME HAVE"} an operation for the host, a string or a dynamic \
shape in its steps. Compiling a training
step took {seconds[0]:.0f} to {seconds[-1]:.0f} s.{f" Not compiled yet: {', '.join(missing)}." if missing else ""}

Findings:

{chr(10).join(f"- {text}" for text in sorted(findings)) or "- none"}

Versions:

{chr(10).join(f"- {text}" for text in versions)}
"""


def main(path):
    """Complete the file, then write the page beside it."""
    path = Path(path)
    reports = complete(path)
    path.with_suffix(".md").write_text(page(reports))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/preflight.json")

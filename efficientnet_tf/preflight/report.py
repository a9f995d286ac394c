"""Write the report of a preflight for people."""

import contextlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from rich.table import Table

from efficientnet_tf.config.image_size import format_size
from efficientnet_tf.config.load import describe_environment
from efficientnet_tf.preflight.checks import STEP_NAMES
from efficientnet_tf.runtime.terminal import make_table, render

MIB, GIB = 2**20, 2**30

Report = Mapping[str, Any]


def describe_versions() -> dict[str, str]:
    """Return the versions that the numbers depend on, including those of the compiler."""
    found = describe_environment()
    for name in ("jax", "jaxlib", "libtpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def format_report(report: Report) -> str:
    """Return a report of `run.run_preflight` as text."""
    return render(*make_parts(report))


def format_markdown(report: Report) -> str:
    """Return a report as a Markdown page with its "command" and its "environment"."""
    versions = ", ".join(f"{name} {version}" for name, version in report["environment"].items())
    return (
        f"# {report['variant']} on {report['topology']}, without a TPU\n\n"
        f"Written by `{report['command']}`.\nNothing was run on a TPU. All numbers come from tracing and compiling.\n\n"
        f"{versions}\n\n```\n{format_report(report)}\n```"
    )


def make_parts(report: Report) -> list[str | Table]:
    """Return the texts and tables of a report, for `terminal.show` or `terminal.render`."""
    parts = [*_describe_run(report), *_describe_traces(report)]
    if report.get("programs"):
        parts += _describe_programs(report)
    if report["input"]:
        parts.append(
            "Input, as measured in docs/input_benchmark.json: {images_per_second:,.0f} images/s at {size} pixels with "
            "policy {policy} on {cores} cores ({cpu}).\n".format(**report["input"])
        )
    if "largest_batch" in report:
        found = report["largest_batch"]
        tried = ", ".join(f"{size} {'fits' if fits else 'does not fit'}" for size, fits in found["compiled"].items())
        parts.append(f"Largest batch: {found['replica_batch']:,} per replica, {found['batch']:,} in total ({tried}).\n")
    return [*parts, *_describe_problems(report)]


def _describe_run(report):
    """Describe the run, the slice and the batches."""
    hosts = f"{report['hosts']} host{'s' * (report['hosts'] > 1)}"
    batches = [
        (STEP_NAMES[name], f"{report['batch'][name]:,}", f"{report['replica_batch'][name]:,}")
        for name in ("train", "raw")
    ]
    return [
        f"{report['variant']} at {format_size(report['image_size'])} pixels, {report['classes']:,} classes, "
        f"{report['precision']}\n"
        f"{report['topology']}: {report['chips']} chips, {report['replicas']} replicas, {hosts}\n",
        make_table(("batch", "images per step", "images per replica"), batches),
    ]


def _describe_traces(report):
    """Describe the operations of the traced steps, and what they sum over replicas."""
    rows = []
    for name, step in report["steps"].items():
        reduced = sum(each["bytes"] for each in step["all_reduces"])
        unsupported = (len(step[kind]) for kind in ("host_operations", "string_operations", "dynamic_shapes"))
        counts = (step["operations"], *unsupported, len(step["all_reduces"]))
        rows.append((STEP_NAMES[name], *(f"{count:,}" for count in counts), f"{reduced / MIB:.2f}"))
    header = ("traced step", "operations", "on the host", "with strings", "dynamic shapes", "sums over replicas", "MiB")
    gradients, group = report["gradients"], report["batch_norm_group"]
    engine = report.get("engine", "TPUStrategy")  # Reports of the first version do not say it.
    one_tensor = " as one tensor" if engine == "TPUStrategy" else ""
    sums = (
        f"The training step sums {gradients['count']} gradients ({gradients['bytes'] / MIB:.2f} MiB) over the "
        f"replicas, and the statistics of batch norm{one_tensor} ({report['statistics_bytes'] / MIB:.2f} MiB)."
    )
    if group > 1:
        sums += f" Each batch norm sums two more tensors over groups of {group} replicas."
    traced = f"{engine} traced {report['traced_replicas']} of {report['replicas']} equal replicas."
    return [make_table(header, rows), f"{traced}\n{sums}\n"]


def _describe_programs(report):
    """Describe the memory and the speed of the compiled steps, with a column for each step."""
    programs = report["programs"]
    titles = [f"{STEP_NAMES[name]} step" for name in programs]

    def make_row(label, text):
        return (label, *(text(program) for program in programs.values()))

    def make_rows(cells):
        """Return rows of numbers that only exist for programs that fit."""
        return [make_row(label, lambda p, text=text: text(p) if p["fits"] else "") for label, text in cells.items()]

    memory = make_rows(
        {
            f"{kind}, MiB": lambda p, kind=kind: f"{p[f'{kind}_bytes'] / MIB:,.1f}"
            for kind in ("argument", "temporary", "output", "code")
        }
    )
    memory += [
        make_row("used, GiB", lambda p: f"{p['used_bytes'] / GIB:.2f}" if p["used_bytes"] else "more than available"),
        make_row("available, GiB", lambda p: f"{p['available_bytes'] / GIB:.2f}"),
        make_row("result", lambda p: "fits" if p["fits"] else "DOES NOT FIT"),
        make_row("compiled by libtpu in, s", lambda p: f"{p['seconds']:.0f}"),
    ]
    speed = make_rows(
        {
            "convolutions in bfloat16": lambda p: (
                "unknown" if p["convolutions"] is None else f"{p['bfloat16_convolutions']} of {p['convolutions']}"
            ),
            "sums over replicas, after joining": lambda p: (
                "unknown" if p["all_reduces"] is None else f"{p['all_reduces']}"
            ),
            "FLOPs": lambda p: f"{p['flops']:.4g}",
            "bytes accessed": lambda p: f"{p['accessed_bytes']:.4g}",
            "time of the arithmetic, ms": lambda p: f"{1e3 * p['arithmetic_seconds']:.2f}",
            "time of the memory accesses, ms": lambda p: f"{1e3 * p['memory_seconds']:.2f}",
            "images/s at most": lambda p: f"{p['images_per_second']:,.0f}",
            "images/s that a host must read": lambda p: f"{p['images_per_second_and_host']:,.0f}",
        }
    )
    return [
        make_table(("memory of a replica", *titles), memory),
        make_table(("work of a replica", *titles), speed),
        "The times are lower bounds at the chip's published peaks. The time of the memory accesses is an overestimate, "
        "because the compiler also counts bytes that stay on the chip.\n",
    ]


def _describe_problems(report):
    """List the problems and say whether the run is ready."""
    lines = [f"{'ERROR' if each['stops'] else 'warning'}: {each['text']}" for each in report["findings"]]
    if lines:
        lines.append("")
    done = "compiled" if "programs" in report else "traced but not compiled (--fast)"
    lines.append(f"{'Ready' if report['ready'] else 'NOT ready'}. The steps were {done}. Nothing was run on a TPU.")
    return lines

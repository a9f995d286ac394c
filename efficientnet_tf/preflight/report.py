"""TODO docstring (from preflight)."""

import contextlib
import json
import os
import sys
from dataclasses import asdict

from efficientnet_tf.config.load import PACKAGE_DIR, describe_environment
from efficientnet_tf.preflight.checks import SUBLANES, Finding, check_batch, check_program, check_step
from efficientnet_tf.preflight.compile import compile_hlo, require_compiler

MIB, GIB = 2**20, 2**30


# ------------------------------------------------------------------------------------------------------ numbers


def bound_times(program, topology, batch):
    """Return how fast a compiled step can be at best, by what is published of the chip.

    Args:
        program: dict of a tpu_compile.Program that fits.
        topology: tpu_compile.Topology.
        batch: int, images of all replicas.

    Returns:
        dict: "arithmetic_seconds", "memory_seconds" and the larger, "bound_seconds"; "images_per_second" at that, and
        "images_per_second_and_host".
    """
    arithmetic = program["flops"] / topology.flops
    memory = program["accessed_bytes"] / topology.bytes_per_second
    bound = max(arithmetic, memory)
    return {
        "arithmetic_seconds": arithmetic,
        "memory_seconds": memory,
        "bound_seconds": bound,
        "images_per_second": batch / bound,
        "images_per_second_and_host": batch / bound / topology.hosts,
    }


def measured_input(size, policy, path=PACKAGE_DIR.parent / "docs" / "input_benchmark.json"):
    """Return what `benchmark` measured for the nearest image size, at most threads, as dict; None without its file."""
    if not os.path.exists(path):
        return None
    with open(path) as file:
        content = json.load(file)
    rows = [row for row in content["rows"] if row["policy"] == policy]
    row = min(rows, key=lambda row: (abs(row["size"] - size), -row["threads"]))
    return row | {"cpu": content["environment"]["cpu"], "cores": content["environment"]["cores"]}


def search_batch(compile_at, start, replicas=1):
    """Find the largest batch of a replica that fits, a multiple of 8, by compiling.

    Args:
        compile_at: from a batch to the dict of a tpu_compile.Program.
        start: int >= 1, where to begin.
        replicas: int >= 1.

    Returns:
        dict: "replica_batch" and "batch", 0 where not even 8 fit; "compiled", {batch of a replica: whether it fits}.
    """
    fits, fails, guess, compiled = 0, None, max(1, start // SUBLANES), {}
    while fails is None or fails - fits > 1:
        program = compile_at(guess * SUBLANES)
        compiled[guess * SUBLANES] = program["fits"]
        if not program["fits"]:
            fails = guess
            guess = (fits + fails) // 2
            continue
        fits = guess
        if fails is None:  # what is temporary grows with the batch, about; near the limit the compiler saves on it
            each = max(1, program["temporary_bytes"] / guess)
            more = (program["available_bytes"] - program["used_bytes"]) / each
            guess += max(1, guess // 4, min(int(more), 3 * guess))
        else:
            guess = (fits + fails) // 2
    return {"replica_batch": fits * SUBLANES, "batch": fits * SUBLANES * replicas, "compiled": compiled}


# ------------------------------------------------------------------------------------------------------- report


def run_preflight(config, topology, classes=1000, images=1_281_167, fast=False, largest_batch=False, findings=()):
    """Trace the steps of a training run for a TPU, and compile them.

    Args:
        config: config.Config.
        topology: tpu_compile.Topology.
        classes: int >= 2.
        images: int >= 1, size of the training set.
        fast: bool; end after tracing.
        largest_batch: bool; also find the largest batch that fits, by compiling.
        findings: sequence of Finding, to go on from.

    Returns:
        dict, of which the JSON is made: the run, "gradients", "steps" as of `tpu_trace.inspect`, "programs" as
        tpu_compile.Program and `times`, "largest_batch", "input", "findings"; "ready" where none of these stops.

    Raises:
        UserError: when the compiler is not installed, or fails for another reason than the step.
    """
    from tqdm import tqdm

    if not fast:
        require_compiler()  # said now, not after a minute of tracing
    from efficientnet_tf.models.variables import batch_norm_statistics
    from efficientnet_tf.preflight.lower import UnsupportedOperation
    from efficientnet_tf.preflight.trace import inspect_trace, make_tracing_strategy, trace_eval, trace_train
    from efficientnet_tf.runtime.strategy import dtype_policy
    from efficientnet_tf.training.checkpoint import create_state
    from efficientnet_tf.training.graph import batch_norm_group_size

    # Of phases the one whose step is largest; the weights are the same for all.
    config = max((part for _, part in config.phases), key=lambda part: part.train.batch_size * part.image_size**2)
    train, replicas = config.train, topology.replicas
    findings = [*findings, *check_batch("train.batch_size", train.batch_size, replicas)]
    findings += check_batch("eval.batch_size", config.eval.batch_size, replicas)
    if train.freeze != "none":
        findings.append(Finding("train.freeze is left aside: here all layers train, which takes more", False))
    # What cannot be divided is found above; the steps are looked at all the same.
    batch, eval_batch = (max(1, size // replicas) for size in (train.batch_size, config.eval.batch_size))
    with tqdm(total=2 if fast else 4, unit="stage", file=sys.stderr) as bar:

        def say(what):
            bar.set_description(what)

        say("building the state")
        strategy = make_tracing_strategy(replicas)
        precision = dtype_policy(train.precision, strategy)
        state = create_state(config, classes, images, strategy)
        gradients = [v.shape for v in state.model.trainable_variables]
        statistics = batch_norm_statistics(state.model)
        # A sum for each gradient, one for all statistics; and of a batch norm over a group two, there and back.
        group = batch_norm_group_size(config, strategy)
        sums = len(gradients) + (replicas > 1 and bool(statistics)) + (group > 1) * len(statistics)
        say("tracing the training step")
        traces = {"train": trace_train(config, state, classes, strategy, batch)}
        bar.update()
        say("tracing the evaluation step")
        traces |= trace_eval(config, state, classes, strategy, eval_batch)
        bar.update()
        steps = {name: inspect_trace(trace) for name, trace in traces.items()}
        for name, step in steps.items():
            expected = sums if name == "train" else 0
            findings += check_step(name, step, expected)
        report = {
            "variant": config.model.name,
            "image_size": config.image_size,
            "classes": classes,
            "precision": precision,
            "topology": topology.name,
            "chips": topology.chips,
            "replicas": replicas,
            "hosts": topology.hosts,
            "traced_replicas": strategy.num_replicas_in_sync,
            "batch": {"train": train.batch_size, "raw": config.eval.batch_size},
            "replica_batch": {"train": batch, "raw": eval_batch},
            "batch_norm_group": group,
            "gradients": {"count": len(gradients), "bytes": _float32_bytes(gradients)},
            "statistics_bytes": _float32_bytes(v.shape for v in statistics),
            "steps": steps,
            "input": measured_input(config.image_size, config.augment.policy),
        }
        if not fast:
            report["programs"] = {}
            for name in ("train", "raw"):
                say(f"compiling the {'training' if name == 'train' else 'evaluation'} step for {topology.name}")
                try:
                    program = _compile(traces[name], topology)
                except UnsupportedOperation as error:
                    text = f"the {name} step has an operation that XLA, and a TPU with it, does not: take it out:"
                    findings.append(Finding(f"{text} {error}"))
                    continue
                if program["fits"]:
                    program |= bound_times(program, topology, report["replica_batch"][name] * replicas)
                findings += check_program(name, program, precision)
                report["programs"][name] = program
                bar.update()
        if largest_batch and "train" in report.get("programs", {}):

            def compile_at(size):
                say(f"compiling the training step with {size} images a replica")
                return _compile(trace_train(config, state, classes, strategy, size), topology)

            report["largest_batch"] = search_batch(compile_at, batch, replicas)
    report["findings"] = [asdict(finding) for finding in findings]
    report["ready"] = not any(finding.stops for finding in findings)
    return report


def _versions():
    """Return what the numbers depend on, the compiler's version among it, as dict."""
    from importlib import metadata

    found = describe_environment()
    for name in ("jaxlib", "libtpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _float32_bytes(shapes):
    from math import prod

    return sum(4 * prod(shape) for shape in shapes)


def _compile(trace, topology):
    from efficientnet_tf.preflight.lower import lower

    return asdict(compile_hlo(lower(trace, topology.replicas), topology))


def format_report(report):
    """Return a report as sentences for people."""
    train, gradients, group, r = report["steps"]["train"], report["gradients"], report["batch_norm_group"], report
    reduced = sum(each["bytes"] for each in train["all_reduces"])
    host, strings, dynamic = (len(train[key]) for key in ("host_operations", "string_operations", "dynamic_shapes"))
    lines = [
        f"{r['variant']}, {r['image_size']} pixels, {r['classes']:,} classes, {r['precision']}, on {r['topology']}: "
        f"{r['chips']} chips, {r['replicas']} replicas, {r['hosts']} host{'s' * (r['hosts'] > 1)}.",
        f"Training: {r['batch']['train']:,} images a step, {r['replica_batch']['train']:,} a replica; evaluation: "
        f"{r['batch']['raw']:,} and {r['replica_batch']['raw']:,}.",
        "",
        f"Traced by TPUStrategy, {r['traced_replicas']} of {r['replicas']} equal replicas: "
        + ", ".join(f"{name} {step['operations']:,} operations" for name, step in r["steps"].items())
        + ".",
        f"In the training step {host} operations for the host, {strings} of strings, {dynamic} of dynamic shape.",
        f"It sums {len(train['all_reduces'])} tensors over replicas, {reduced / MIB:.2f} MiB: {gradients['count']} "
        f"gradients of {gradients['bytes'] / MIB:.2f} MiB, and {r['statistics_bytes'] / MIB:.2f} MiB of batch norm's "
        "statistics in one"
        + (f"; two more for each batch norm, over groups of {group} replicas." if group > 1 else "."),
    ]
    for name, p in r.get("programs", {}).items():
        title = {"train": "Training step", "raw": "Evaluation step"}[name]
        used = f"{p['used_bytes'] / GIB:.2f}" if p["used_bytes"] else "more"
        lines += [
            "",
            f"{title}, compiled by libtpu in {p['seconds']:.0f} s: {'fits' if p['fits'] else 'DOES NOT FIT'}; "
            f"{used} of {p['available_bytes'] / GIB:.2f} GiB of a replica's memory.",
        ]
        if not p["fits"]:
            continue  # why stands among the findings
        kinds = ("argument", "temporary", "output", "code")
        parts = ", ".join(f"{kind} {p[f'{kind}_bytes'] / MIB:,.1f}" for kind in kinds)
        lines += [
            f"In MiB: {parts}.",
            f"{p['bfloat16_convolutions']} of {p['convolutions']} convolutions in bfloat16; sums over replicas "
            f"joined into {p['all_reduces']}; {p['flops']:.4g} FLOPs, {p['accessed_bytes']:.4g} bytes accessed.",
            f"At the chip's published peaks {1e3 * p['arithmetic_seconds']:.2f} ms of arithmetic, "
            f"{1e3 * p['memory_seconds']:.2f} ms of memory (the compiler counts what it keeps on the chip, too): "
            f"about {p['images_per_second']:,.0f} images/s, {p['images_per_second_and_host']:,.0f} for a host to read.",
        ]
    if r["input"]:
        i = r["input"]
        lines += [
            "",
            f"Input as measured (docs/input_benchmark.json): {i['images_per_second']:,.0f} images/s at {i['size']} "
            f"pixels, policy {i['policy']}, on {i['cores']} cores ({i['cpu']}).",
        ]
    if "largest_batch" in r:
        found = r["largest_batch"]
        tried = ", ".join(f"{size} {'fits' if fits else 'does not'}" for size, fits in found["compiled"].items())
        lines += ["", f"Largest batch: {found['replica_batch']:,} a replica, {found['batch']:,} in all ({tried})."]
    lines += ["", *(f"{'STOPS' if f['stops'] else 'note'}: {f['text']}." for f in r["findings"])]
    compiled = "compiled" if "programs" in r else "traced, not compiled (--fast)"
    lines.append(f"{'Ready' if r['ready'] else 'NOT ready'}: {compiled} without a TPU; nothing was run.")
    return "\n".join(lines)


def format_markdown(report):
    """Return a report as a Markdown page that says where it comes from."""
    versions = ", ".join(f"{name} {version}" for name, version in report["environment"].items())
    return (
        f"# {report['variant']} on {report['topology']}, without a TPU\n\n"
        f"Written by `{report['command']}`.\nNothing was run on a TPU: these are the counts of its compiler.\n\n"
        f"{versions}\n\n```\n{format_report(report)}\n```"
    )

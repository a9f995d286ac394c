"""What would stop a run on a TPU, or hold it up, and what mends it: of its places, files, batches, steps, programs."""

import os
from dataclasses import dataclass

SUBLANES = 8  # a TPU's registers have eight rows


@dataclass(frozen=True)
class Finding:
    """What is not as it should be, and what mends it; `stops` where a run would not come to its end."""

    text: str
    stops: bool = True


def check_places(tpu, model_dir, data_dir, hosts):
    """Return findings about where a run's files lie.

    Args:
        tpu: str or None, as `train --tpu`.
        model_dir: str or None.
        data_dir: str or None.
        hosts: int, those of the TPU.
    """
    findings = []
    remote = tpu not in (None, "local")
    for flag, path in (("--model_dir", model_dir), ("--data_dir", data_dir)):
        if path is None or path.startswith("gs://"):
            continue
        if remote:
            findings.append(Finding(f"{flag}={path} lies on this machine, which --tpu={tpu} cannot see: give gs://..."))
        elif hosts > 1:
            findings.append(
                Finding(
                    f"{flag}={path}: {hosts} hosts share it only if it is a mounted disk; else give gs://...", False
                )
            )
    return findings


def check_files(folder, split, hosts):
    """Return findings about the record files of a split: each host trains on files of its own."""
    count = sum(f"{split}-" in name or f"-{split}." in name for _, _, names in os.walk(folder) for name in names)
    if 0 < count < hosts:
        text = f"{folder} has {count} record files of {split!r} for {hosts} hosts, each of which reads its own"
        return [Finding(f"{text}: write more, prepare --shards={8 * hosts}")]
    return []


def check_batch(name, batch, replicas):
    """Return findings about a batch of all replicas."""
    if batch % replicas:
        near = max(1, round(batch / replicas / SUBLANES)) * SUBLANES * replicas
        return [Finding(f"{name}={batch} cannot be divided among {replicas} replicas: take {near}")]
    if batch // replicas % SUBLANES:
        near = -(-batch // replicas // SUBLANES) * SUBLANES * replicas
        text = f"{name}={batch} gives a replica {batch // replicas} images, no multiple of {SUBLANES}"
        return [Finding(f"{text}, so that a part of each register is idle: take {near}", False)]
    return []


def check_step(name, step, expected):
    """Return findings about what `tpu_trace.inspect` told of a step, and the number of sums expected in it."""
    wrong = {
        "host_operations": "would have to be left to the host: take them out of the step",
        "string_operations": "handle strings, which a TPU does not have: take them out of the step",
        "dynamic_shapes": "have a shape that depends on values, which a TPU cannot compile: pad, and mask",
    }
    findings = [
        Finding(f"{len(step[key])} operations of the {name} step {what} ({', '.join(step[key][:5])})")
        for key, what in wrong.items()
        if step[key]
    ]
    if len(step["all_reduces"]) != expected:
        found = len(step["all_reduces"])
        findings.append(Finding(f"the {name} step sums {found} tensors over replicas, where {expected} are expected"))
    return findings


def check_program(name, program, precision):
    """Return findings about a compiled step, as dict."""
    if not program["fits"]:
        text = f"the {name} step does not fit: {program['message']}"
        return [Finding(f"{text} Take a smaller --batch, or a slice with more chips; --largest_batch finds what fits")]
    other = program["convolutions"] - program["bfloat16_convolutions"]
    if other and precision != "float32":
        return [
            Finding(f"{other} of {program['convolutions']} convolutions of the {name} step are not in bfloat16", False)
        ]
    return []

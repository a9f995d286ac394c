"""Checks of a TPU run before it starts: its paths, files, batches, steps and programs."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from efficientnet_tf.config.text import escape

SUBLANES = 8  # rows of a vector register of a TPU
STEP_NAMES = {"train": "training", "raw": "evaluation", "ema": "EMA evaluation"}


@dataclass(frozen=True)
class Problem:
    """A problem of a run and how to fix it.

    Attributes:
        text: What is wrong, and what to do about it.
        stops: Whether the run would fail. Otherwise it would only be slower or less exact.
    """

    text: str
    stops: bool = True


def check_places(tpu: str | None, model_dir: str | None, data_dir: str | None, hosts: int) -> list[Problem]:
    """Check that the hosts of the TPU can reach the files of the run.

    Args:
        tpu: The TPU, as `train --tpu` takes it.
        model_dir: The model directory, or None.
        data_dir: The data directory, or None.
        hosts: Number of hosts of the TPU.
    """
    problems = []
    remote = tpu not in (None, "local")
    for name, path in (("model_dir", model_dir), ("data_dir", data_dir)):
        if path is None or path.startswith("gs://"):
            continue
        if remote:
            problems.append(
                Problem(
                    f"{name}={escape(path)} is on this machine, where the TPU of tpu={escape(str(tpu))} cannot read "
                    "it. Use gs://..."
                )
            )
        elif hosts > 1:
            text = f"{name}={escape(path)} works for {hosts} hosts only if it is on a disk that all of them mount."
            problems.append(Problem(f"{text} Otherwise use gs://...", stops=False))
    return problems


def check_files(folder: str | os.PathLike, split: str, hosts: int) -> list[Problem]:
    """Check that a split has enough record files, because each host reads its own files.

    Args:
        folder: The data directory, which is searched recursively.
        split: Name of the training split.
        hosts: Number of hosts of the TPU.
    """
    count = sum(f"{split}-" in name or f"-{split}." in name for _, _, names in os.walk(folder) for name in names)
    if 0 < count < hosts:
        text = f"{escape(os.fspath(folder))} has {count} record files of split {split!r}, too few for {hosts} hosts"
        return [Problem(f"{text} that read different ones. Write more with prepare --shards={8 * hosts}.")]
    return []


def check_batch(name: str, batch: int, replicas: int) -> list[Problem]:
    """Check that a batch suits the slice.

    Args:
        name: Config key of the batch.
        batch: Images of all replicas together.
        replicas: Number of replicas.
    """
    if batch % replicas:
        near = max(1, round(batch / replicas / SUBLANES)) * SUBLANES * replicas
        return [Problem(f"{name}={batch} is not divisible by {replicas} replicas. Use {near}.")]
    per_replica = batch // replicas
    if per_replica % SUBLANES:
        near = -(-per_replica // SUBLANES) * SUBLANES * replicas
        text = f"{name}={batch} gives each replica {per_replica} images, which is not a multiple of {SUBLANES}"
        return [Problem(f"{text}, so part of each register is unused. Use {near}.", stops=False)]
    return []


def check_step(name: str, step: Mapping[str, Any], expected: int) -> list[Problem]:
    """Check that a TPU can run a traced step, and that the replicas exchange what they should.

    Args:
        name: "train", "raw" or "ema".
        step: The result of `trace.inspect_trace`.
        expected: Number of tensors that should be summed over the replicas.
    """
    title = STEP_NAMES[name]
    kinds = {
        "host_operations": "would run on the host. Remove them from the step.",
        "string_operations": "use strings, which a TPU does not have. Remove them from the step.",
        "dynamic_shapes": "have a shape that depends on values, which a TPU cannot compile. Use padding and a mask.",
    }
    problems = [
        Problem(f"{len(step[kind])} operations of the {title} step ({', '.join(step[kind][:5])}) {text}")
        for kind, text in kinds.items()
        if step[kind]
    ]
    found = len(step["all_reduces"])
    if found != expected:
        problems.append(Problem(f"The {title} step sums {found} tensors over the replicas instead of {expected}."))
    return problems


def check_program(name: str, program: Mapping[str, Any], precision: str) -> list[Problem]:
    """Check that a compiled step fits into memory and computes in bfloat16.

    Args:
        name: "train" or "raw".
        program: The fields of a `compile.Program`.
        precision: The dtype policy of the network.
    """
    title = STEP_NAMES[name]
    if not program["fits"]:
        text = f"The {title} step does not fit into memory: {program['message'].rstrip('.')}."
        advice = "Use a smaller batch or a slice with more chips. largest_batch finds the largest batch that fits."
        return [Problem(f"{text} {advice}")]
    if program["convolutions"] is None:
        text = f"The compiled {title} step cannot be read, so it is unknown whether its convolutions are in bfloat16."
        return [Problem(text, stops=False)]
    other = program["convolutions"] - program["bfloat16_convolutions"]
    if other and precision != "float32":
        text = f"{other} of {program['convolutions']} convolutions of the {title} step are not in bfloat16."
        return [Problem(text, stops=False)]
    return []

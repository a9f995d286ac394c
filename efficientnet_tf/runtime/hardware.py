"""Describes this machine, checks which devices were asked for, and measures the memory of processes.

Imports no TensorFlow.
"""

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.text import escape, shorten

DEVICES = ("auto", "cpu", "gpu", "tpu")
MOST_REPLICAS = 256  # that the CPU is split into


def check_devices(device: str, tpu: str | None, replicas: int, backends: Sequence[str] = ("tensorflow",)) -> None:
    """Raise UserError if the arguments of `runtime.strategy.create_strategy` contradict each other.

    Args:
        device: One of `DEVICES`.
        tpu: "local", or the name or the address of a TPU. None is no TPU.
        replicas: Number of logical devices to split the CPU into.
        backends: The backends of Keras that can be used.
    """
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend not in backends:
        raise UserError(
            f"Keras uses the backend '{escape(backend)}', but this needs TensorFlow. Set the environment variable "
            "KERAS_BACKEND=tensorflow."
        )
    if device not in DEVICES:
        raise UserError(
            f"device={escape(device)} is unknown. Use one of {', '.join(DEVICES)}.{suggest(device, DEVICES)}"
        )
    if tpu is not None and device not in ("auto", "tpu"):
        raise UserError(f"device={device} and tpu={shorten(escape(tpu))} contradict each other. Use only one of them.")
    if not 1 <= replicas <= MOST_REPLICAS:
        raise UserError(f"replicas={replicas} is out of range. The CPU is split into 1 to {MOST_REPLICAS} devices.")
    if backend == "jax" and tpu not in (None, "local"):
        raise UserError(
            f"tpu={shorten(escape(tpu))} is reached through TensorFlow. With backend=jax, start the command on the TPU "
            "VM itself, with tpu=local."
        )
    if replicas > 1 and (tpu is not None or device == "tpu"):
        raise UserError(
            f"replicas={replicas} splits the CPU, but this run uses a TPU or GPUs. Use device=cpu, or replicas=1."
        )


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_hardware() -> dict[str, str | int]:
    """Return the hardware that measurements depend on.

    Returns:
        `{"cpu": name of the processor, "cores": number of cores that this process may use}`.
    """
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # Linux only
        name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    return {"cpu": name, "cores": available_cores()}


def available_memory_bytes() -> int | None:
    """Return the memory in bytes that is left on this machine, or None if the system does not report it."""
    return _read_bytes("/proc/meminfo", "MemAvailable:")


def resident_bytes() -> int | None:
    """Return the memory in bytes that this process holds now, or None if the system does not report it."""
    return _read_bytes("/proc/self/status", "VmRSS:")


def peak_bytes(pid: int | None = None) -> int | None:
    """Return the peak memory of a process.

    Args:
        pid: ID of a running process. None is this process.

    Returns:
        The peak resident memory in bytes, or None if the process has ended or the system does not report it.
    """
    return _read_bytes(f"/proc/{pid or 'self'}/status", "VmHWM:")


@contextlib.contextmanager
def track_peak_bytes() -> Iterator[list[int | None]]:
    """Measure the peak memory of this process within a block.

    Yields:
        An empty list. At the end of the block, the peak resident memory in bytes is appended to it, or None if the
        system does not report it.
    """
    try:
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
            file.write("5")  # resets VmHWM to the memory that is held now
        is_reset = True
    except OSError:
        is_reset = False
    peak: list[int | None] = []
    yield peak
    peak.append(peak_bytes() if is_reset else None)


def _read_bytes(path: str, key: str) -> int | None:
    """Return a value in bytes from a file of /proc that lists kibibytes, or None if it is not there."""
    with contextlib.suppress(OSError, StopIteration), open(path, encoding="utf-8") as file:
        return int(next(line for line in file if line.startswith(key)).split()[1]) * 1024
    return None

"""What this machine is, and what this process takes of its memory."""

import contextlib
import os
import platform


def available_cores():
    """Return how many cores this process may use, int."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def describe_hardware():
    """Return what the numbers depend on: the processor's name, and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:  # not Linux
        pass
    return {"cpu": name, "cores": available_cores()}


def _figure(key, path="/proc/self/status"):
    """Return a figure of a file of the system in bytes, None where there is none (not Linux)."""
    with contextlib.suppress(OSError, StopIteration), open(path) as file:
        return int(next(line for line in file if line.startswith(key)).split()[1]) * 1024
    return None


def available_memory_bytes():
    """Return how much memory is left before the system swaps or kills, in bytes; None where it does not say."""
    return _figure("MemAvailable:", "/proc/meminfo")


def resident_bytes():
    """Return how much memory this process holds now, in bytes; None where the system does not say."""
    return _figure("VmRSS:")


def peak_bytes():
    """Return the most memory that this process has held, in bytes; None where the system does not say."""
    return _figure("VmHWM:")


@contextlib.contextmanager
def track_peak_bytes():
    """Give a list that will hold this process's peak memory within the block, in bytes, or None."""
    peak = []
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts again from what is held now
        yield peak
        peak.append(peak_bytes())
    except OSError:
        yield peak
        peak.append(None)

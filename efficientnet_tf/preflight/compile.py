"""Compile the program of a step for a TPU slice, without a TPU.

The compiler is in libtpu, and JAX has a client for it that compiles and cannot run. The environment must be set before
libtpu is loaded, and libtpu conflicts with TensorFlow's TPU wheel. The compiler therefore runs in a process of its own,
the module `libtpu`.
"""

import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import shorten
from efficientnet_tf.preflight.topology import Topology
from efficientnet_tf.runtime.children import describe_end, last_lines, module_command, run_child

COMPILE_SECONDS = 3600.0  # the longest time for one program
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Program:
    """What the compiler reports about one step of one replica.

    If the program does not fit into memory, only the first four fields and `seconds` are known.

    Attributes:
        fits: Whether the program fits into the memory of a replica.
        available_bytes: HBM of one replica.
        used_bytes: HBM at the peak. None or too small if the program does not fit.
        message: The compiler's message if the program does not fit.
        argument_bytes: The batch, weights, optimizer slots and EMA.
        temporary_bytes: Activations and gradients.
        output_bytes: Results that are not written over an argument.
        code_bytes: The program itself.
        flops: Floating-point operations.
        accessed_bytes: Bytes read and written, including those that stay on the chip.
        convolutions: Number of convolutions, gradients included. None, like the next two, if the compiled program
            cannot be read.
        bfloat16_convolutions: Number of convolutions in bfloat16.
        all_reduces: Number of sums over replicas after the compiler has joined them.
        seconds: Time to compile.
    """

    fits: bool
    available_bytes: int
    used_bytes: int | None
    message: str = ""
    argument_bytes: int = 0
    temporary_bytes: int = 0
    output_bytes: int = 0
    code_bytes: int = 0
    flops: float = 0.0
    accessed_bytes: float = 0.0
    convolutions: int | None = None
    bfloat16_convolutions: int | None = None
    all_reduces: int | None = None
    seconds: float = 0.0


_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"\(?([\d.]+)([KMGT]?)i?B?\)?"


class OutOfMemory(Exception):
    """The program does not fit into memory. The message is the compiler's."""

    @staticmethod
    def describes(error: Exception) -> bool:
        """Return whether an error of the compiler says this."""
        return "RESOURCE_EXHAUSTED" in str(error) or "Ran out of memory" in str(error)

    def read_available_bytes(self) -> int:
        """Return the HBM that the compiler allows a program."""
        available = self._find_bytes("exceeds available HBM")
        if available is None:
            raise RuntimeError(f"The compiler does not say how much memory a chip has: {self}") from None
        return available

    def make_program(self, available: int, seconds: float) -> Program:
        """Return what is known about the program. `seconds` is how long the compiler has worked on it."""
        used = self._find_bytes("Used") or self._find_bytes("required for HLO temporaries")
        return Program(False, available, used, str(self).strip().splitlines()[0][:500], seconds=seconds)

    def _find_bytes(self, pattern):
        """Return the size behind the first match of a regular expression, in bytes, or None."""
        match = re.search(pattern + r"\D{0,20}?" + _SIZE, str(self))
        return match and round(float(match[1]) * _UNIT[match[2]])


def describe_program(
    memory: Any, cost: Mapping[str, float], text: str | None, available: int, seconds: float
) -> Program:
    """Return what is known about a program that fits.

    Args:
        memory: Its sizes, as XLA reports them for a compiled program.
        cost: Its "flops" and its "bytes accessed".
        text: Its modules as HLO, or None if they cannot be read.
        available: HBM of one replica, bytes.
        seconds: Time to compile.
    """
    counts: dict[str, Any] = {}
    if text is not None:
        # The compiler writes matrix products as convolutions with two dimensions. They do not count.
        kinds = re.findall(r"= (\w+)\[\d+,\d+,\d+,\d+\]\S* convolution\(", text)
        sums = re.findall(r" all-reduce(?:-start)?\(", text)
        counts = {
            "convolutions": len(kinds),
            "bfloat16_convolutions": kinds.count("bf16"),
            "all_reduces": len(sums),
        }
    parts = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
    }
    return Program(
        fits=True,
        available_bytes=available,
        used_bytes=sum(parts.values()),
        flops=cost["flops"],
        accessed_bytes=cost["bytes accessed"],
        seconds=seconds,
        **parts,
        **counts,
    )


def require_compiler() -> None:
    """Check that the compiler is installed.

    Raises:
        UserError: If it is not.
    """
    missing = [name for name in ("jax", "jaxlib", "libtpu") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"The TPU compiler is not installed ({', '.join(missing)} missing). Install it in an environment without "
            "tensorflow-tpu: pip install 'efficientnet_tf[preflight]'. Tracing alone (fast) needs no compiler."
        )


def compile_hlo(hlo: bytes, topology: Topology, command: Sequence[str] | None = None) -> Program:
    """Compile the program of one replica for every replica of a slice.

    Args:
        hlo: A serialized HloModuleProto.
        topology: The slice.
        command: The command that compiles, to which the path of the program and the name of the slice are appended.
            Defaults to the module `libtpu`.

    Returns:
        What the compiler reports.

    Raises:
        UserError: If the compiler is not installed, takes more than `COMPILE_SECONDS`, or fails for another reason than
            memory.
    """
    if command is None:
        require_compiler()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "step.hlo")
        with open(path, "wb") as file:
            file.write(hlo)
        command = [*(command or module_command("efficientnet_tf.preflight.libtpu")), path, topology.name]
        ended = run_child(command, COMPILE_SECONDS, ENVIRONMENT)
    answer = last_lines(ended.output)  # libtpu prints lines, too; the last one is the answer
    try:
        if ended.status == 0:
            return Program(**json.loads(answer))
        reason = f"{describe_end(ended.status)}: {last_lines(ended.errors) or 'no message'}"
    except (ValueError, TypeError, RecursionError):
        reason = f"an answer that is damaged: {answer or 'nothing'}"
    raise UserError(f"The TPU compiler failed for {topology.name} with {shorten(reason, 600)}")

"""Compile the program of a step for a TPU slice, without a TPU.

The compiler is in libtpu, and JAX has a client for it that compiles and cannot run. The environment must be set before
libtpu is loaded, and libtpu conflicts with TensorFlow's TPU wheel. The compiler therefore runs in a process of its own,
the module `libtpu`.
"""

import importlib.util
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

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
        convolutions: Number of convolutions, gradients included.
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
    convolutions: int = 0
    bfloat16_convolutions: int = 0
    all_reduces: int = 0
    seconds: float = 0.0


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

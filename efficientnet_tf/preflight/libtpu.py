"""The process that holds the TPU compiler: `python -m efficientnet_tf.preflight.libtpu FILE SLICE`.

It compiles the HLO module in FILE for a slice and prints a `compile.Program` as JSON in the last line.

There is no public interface for this. The module uses private parts of jax and jaxlib: `jax._src.interpreters.mlir`,
`jaxlib._jax`, `jaxlib.mlir` and `jaxlib.xla_client`. It works with the versions in `KNOWN_VERSIONS`, which the extra
`preflight` installs. With other versions it may fail with a message that names them.
"""

import json
import re
import sys
import time
from dataclasses import asdict
from typing import Any

from efficientnet_tf.preflight.compile import Program

KNOWN_VERSIONS = "jax 0.10.2, jaxlib 0.10.2 and libtpu 0.0.52"

_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"\(?([\d.]+)([KMGT]?)i?B?\)?"
_TOO_LARGE = """func.func @main(%arg: tensor<68719476736xf32>) -> tensor<68719476736xf32> {
  %sum = stablehlo.add %arg, %arg : tensor<68719476736xf32>
  return %sum : tensor<68719476736xf32>
}"""


class _OutOfMemory(Exception):
    """The program does not fit into memory. The message is the compiler's."""

    def find_bytes(self, pattern):
        """Return the size behind the first match of a regular expression, in bytes, or None."""
        match = re.search(pattern + r"\D{0,20}?" + _SIZE, str(self))
        return match and round(float(match[1]) * _UNIT[match[2]])


# -------------------------------------------------------------------------- private parts of jax and jaxlib


def _parse(read):
    """Return the MLIR module that `read` creates, in a context with the dialects it needs."""
    from jax._src.interpreters import mlir

    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    with context:
        return read()


def _read_hlo(hlo):
    """Return a serialized HLO module as StableHLO."""
    from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]
    from jaxlib.mlir import ir

    module: Any = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
    # TensorFlow's bridge inserts copies, which StableHLO does not have. The compiler inserts its own where needed.
    copies, regions = [], list(module.operation.regions)
    while regions:
        for op in (op.operation for block in regions.pop().blocks for op in block.operations):
            regions += op.regions
            if op.name == "mhlo.copy":
                copies.append(op)
    for op in copies:
        op.results[0].replace_all_uses_with(op.operands[0])
        op.erase()
    # Note at each argument which output is written over it. The note stays valid when the arguments become one tuple.
    main = next(op for op in module.body.operations if op.operation.attributes["sym_name"].value == "main")
    notes = [{} for _ in main.arguments]
    for entry in module.operation.attributes["mhlo.input_output_alias"]:
        (output,) = entry["output_index"]
        notes[entry["alias"]["parameter_number"].value]["tf.aliasing_output"] = ir.IntegerAttr.get(
            ir.IntegerType.get_signless(32), output
        )
    del module.operation.attributes["mhlo.input_output_alias"]
    main.operation.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(note) for note in notes])
    return module


def _compile(module, devices):
    """Compile a StableHLO module for devices that do not exist here."""
    import numpy as np
    from jax.errors import JaxRuntimeError
    from jaxlib import _jax, xla_client  # pyright: ignore[reportAttributeAccessIssue]

    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = len(devices), 1
    # A chip takes at most about three thousand single arguments. TensorFlow passes one tuple instead.
    options.parameter_is_tupled_arguments = True
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id] for device in devices]))
    try:
        return devices[0].client.compile(module, _jax.DeviceList(tuple(devices)), options)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        raise _OutOfMemory(str(error)) from None


def _find_available_bytes(devices):
    """Return the HBM that the compiler allows a program, from its message about a program that is far too large."""
    from jaxlib.mlir import ir

    try:
        _compile(_parse(lambda: ir.Module.parse(_TOO_LARGE)), devices[:1])
    except _OutOfMemory as error:
        available = error.find_bytes("exceeds available HBM")
        if available is None:
            raise RuntimeError(f"The compiler does not say how much memory a chip has: {error}") from None
        return available
    raise RuntimeError("The compiler accepted a program of 512 GiB for one chip.")


# --------------------------------------------------------------------------------------------- the process


def compile_file(path, topology):
    """Compile the HLO module in a file for a slice and return the `Program`."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    available = _find_available_bytes(devices)
    with open(path, "rb") as file:
        module = _parse(lambda: _read_hlo(file.read()))
    start = time.perf_counter()
    try:
        program = _compile(module, devices)
    except _OutOfMemory as error:
        used = error.find_bytes(r"Used") or error.find_bytes(r"required for HLO temporaries")
        first = str(error).strip().splitlines()[0]
        return Program(False, available, used, first[:500], seconds=time.perf_counter() - start)
    return _describe(program, available, time.perf_counter() - start)


def _describe(program, available, seconds):
    """Return what is known about a compiled program."""
    memory, cost = program.get_compiled_memory_stats(), program.cost_analysis()
    cost = cost if isinstance(cost, dict) else cost[0]
    text = "\n".join(module.to_string() for module in program.hlo_modules())
    # The compiler writes matrix products as convolutions with two dimensions. They do not count.
    kinds = re.findall(r"= (\w+)\[\d+,\d+,\d+,\d+\]\S* convolution\(", text)
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
        convolutions=len(kinds),
        bfloat16_convolutions=kinds.count("bf16"),
        all_reduces=len(re.findall(r" all-reduce(?:-start)?\(", text)),
        seconds=seconds,
        **parts,
    )


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(compile_file(*sys.argv[1:]))))
    except (ImportError, AttributeError) as error:
        sys.exit(f"{error}. This module uses private parts of jax and jaxlib and works with {KNOWN_VERSIONS}.")

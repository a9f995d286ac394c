"""The process that holds the TPU compiler: `python -m efficientnet_tf.preflight.libtpu FILE SLICE`.

It compiles the HLO module in FILE for a slice and prints a `compile.Program` as JSON in the last line.

There is no public interface for this. The module uses private parts of jax and jaxlib: `jax._src.interpreters.mlir`,
`jaxlib._jax`, `jaxlib.mlir` and `jaxlib.xla_client`. It works with the versions in `KNOWN_VERSIONS`, which the extra
`preflight` installs. With other versions it may fail with a message that names them.
"""

import json
import sys
import time
from dataclasses import asdict
from typing import Any

from efficientnet_tf.preflight.compile import OutOfMemory, describe_program

KNOWN_VERSIONS = "jax 0.10.2, jaxlib 0.10.2 and libtpu 0.0.52"

_TOO_LARGE = """func.func @main(%arg: tensor<68719476736xf32>) -> tensor<68719476736xf32> {
  %sum = stablehlo.add %arg, %arg : tensor<68719476736xf32>
  return %sum : tensor<68719476736xf32>
}"""


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
        if not OutOfMemory.describes(error):
            raise
        raise OutOfMemory(str(error)) from None


def _find_available_bytes(devices):
    """Return the HBM that the compiler allows a program, from its message about a program that is far too large."""
    from jaxlib.mlir import ir

    try:
        _compile(_parse(lambda: ir.Module.parse(_TOO_LARGE)), devices[:1])
    except OutOfMemory as error:
        return error.read_available_bytes()
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
    except OutOfMemory as error:
        return error.make_program(available, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    cost = program.cost_analysis()
    text = "\n".join(module.to_string() for module in program.hlo_modules())
    memory, cost = program.get_compiled_memory_stats(), cost if isinstance(cost, dict) else cost[0]
    return describe_program(memory, cost, text, available, seconds)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(compile_file(*sys.argv[1:]))))
    except (ImportError, AttributeError) as error:
        sys.exit(f"{error}. This module uses private parts of jax and jaxlib and works with {KNOWN_VERSIONS}.")

"""The TPU's own compiler, without a TPU: what a program takes of a chip, or that it does not fit.

libtpu holds the compiler; JAX has a client for it that compiles and cannot run. It must find its environment set before
it is imported, and it and TensorFlow's TPU wheel do not suit each other: so it has a process of its own, this module's.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

from efficientnet_tf.config.errors import UserError, suggest

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Chip:
    """What is published of a chip.

    Source: docs.cloud.google.com/tpu/docs, a page a generation (v3, v4, v5e, v5p, v6e: peak in bfloat16, bandwidth of
    HBM); v2: Jouppi et al., "A Domain-Specific Supercomputer for Training Deep Neural Networks", CACM 63(7), 2020.
    """

    flops: float  # a second, in bfloat16
    bytes_per_second: float  # of HBM
    replicas: int  # tf.distribute's; two where a chip's two cores have programs of their own
    chips_per_host: int
    layouts: tuple[str, ...]


_SQUARES = ("2x2", "4x4", "4x8", "8x8", "8x16", "16x16")
_LITE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")
CHIPS = {
    "v2": Chip(46e12, 700e9, 2, 4, _SQUARES),
    "v3": Chip(123e12, 900e9, 2, 4, _SQUARES),
    "v4": Chip(275e12, 1228e9, 2, 4, _CUBES),
    "v5e": Chip(197e12, 819e9, 1, 8, _LITE),
    "v5p": Chip(459e12, 2765e9, 1, 4, _CUBES),
    "v6e": Chip(918e12, 1638e9, 1, 8, _LITE),
}


@dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod: `name` is "v5e:2x4"."""

    name: str
    chip: Chip
    chips: int

    @property
    def replicas(self):
        """Number of replicas, int."""
        return self.chips * self.chip.replicas

    @property
    def hosts(self):
        """Number of hosts, int; the chips of a slice of several v5e or v6e hosts stand four to a host."""
        if self.chips <= self.chip.chips_per_host:
            return 1
        return self.chips // 4

    @property
    def flops(self):
        """Peak of a replica, a second."""
        return self.chip.flops / self.chip.replicas

    @property
    def bytes_per_second(self):
        """Share of a replica in its chip's bandwidth to HBM."""
        return self.chip.bytes_per_second / self.chip.replicas


def parse_topology(name):
    """Return the Topology of a name like "v5e:2x4".

    Raises:
        UserError: when the compiler knows no such slice.
    """
    generation, _, layout = name.partition(":")
    known = [f"{chip}:{layout}" for chip, facts in CHIPS.items() for layout in facts.layouts]
    if name not in known:
        allowed = [n for n in known if n.startswith(f"{generation}:")] or known
        raise UserError(f"--topology={name}: known are {', '.join(allowed)}.{suggest(name, known)}")
    chips = 1
    for side in layout.split("x"):
        chips *= int(side)
    return Topology(name, CHIPS[generation], chips)


@dataclass(frozen=True)
class Program:
    """What the compiler says of one replica's program; of one that does not fit, only what it lacks.

    Bytes and operations are those of a step of one replica, as the compiler counts them.
    """

    fits: bool
    available_bytes: int  # of HBM, for one replica
    used_bytes: int | None  # at the peak; of what does not fit the compiler may say less than all
    message: str = ""  # of the compiler
    argument_bytes: int = 0  # batch, weights, slots, averages
    temporary_bytes: int = 0  # activations, gradients
    output_bytes: int = 0  # what is not written over an argument
    code_bytes: int = 0
    flops: float = 0.0
    accessed_bytes: float = 0.0
    convolutions: int = 0
    bfloat16_convolutions: int = 0
    all_reduces: int = 0
    seconds: float = 0.0  # that compiling took


def require_compiler():
    """Check that the compiler is installed.

    Raises:
        UserError: when it is not.
    """
    import importlib.util

    missing = [name for name in ("jax", "jaxlib", "libtpu") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the TPU's compiler is not installed ({', '.join(missing)} missing): pip install "
            "'efficientnet_tf[preflight]', in an environment without tensorflow-tpu; --fast needs no compiler"
        )


def compile_hlo(hlo, topology):
    """Compile the program of a replica for every replica of a TPU, in a process of its own.

    Args:
        hlo: bytes, a serialised HloModuleProto.
        topology: Topology.

    Returns:
        Program.

    Raises:
        UserError: when the compiler is not installed, or fails for another reason than memory.
    """
    require_compiler()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "step.hlo")
        with open(path, "wb") as file:
            file.write(hlo)
        command = [sys.executable, "-m", "efficientnet_tf.preflight.compile", path, topology.name]
        # Where its output goes is its own affair: libtpu writes lines, too.
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the TPU's compiler failed for {topology.name} (exit status {done.returncode}): {last[:500]}")
    return Program(**json.loads(lines[-1]))


# ------------------------------------------------------------------------------------- in the process of its own

_UNIT = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"\(?([\d.]+)([KMGT]?)i?B?\)?"
_TOO_LARGE = """func.func @main(%arg: tensor<68719476736xf32>) -> tensor<68719476736xf32> {
  %sum = stablehlo.add %arg, %arg : tensor<68719476736xf32>
  return %sum : tensor<68719476736xf32>
}"""


class _OutOfMemory(Exception):
    """The compiler found no room; the message is its own."""

    def bytes_after(self, pattern):
        """Return the size behind the first match of a regular expression, in bytes, or None."""
        match = re.search(pattern + r"\D{0,20}?" + _SIZE, str(self))
        return match and round(float(match[1]) * _UNIT[match[2]])


def _parse(read):
    """Return an MLIR module that `read` makes in a context which knows what it needs."""
    from jax._src.interpreters import mlir

    context = mlir.make_ir_context()
    context.allow_unregistered_dialects = True
    with context:
        return read()


def _read_hlo(hlo):
    """Return a serialised HLO module as StableHLO."""
    from jaxlib import _jax
    from jaxlib.mlir import ir

    module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
    # TensorFlow's bridge asks for copies; StableHLO has none, and the compiler places its own.
    copies, regions = [], list(module.operation.regions)
    while regions:
        for op in (op.operation for block in regions.pop().blocks for op in block.operations):
            regions += op.regions
            if op.name == "mhlo.copy":
                copies.append(op)
    for op in copies:
        op.results[0].replace_all_uses_with(op.operands[0])
        op.erase()
    # That an argument is written over is said of the argument itself: so it stays true when all are one tuple.
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
    import numpy as np
    from jax.errors import JaxRuntimeError
    from jaxlib import _jax, xla_client

    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = len(devices), 1
    # A chip takes some three thousand arguments one by one; TensorFlow gives it a tuple of them.
    options.parameter_is_tupled_arguments = True
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id] for device in devices]))
    try:
        return devices[0].client.compile(module, _jax.DeviceList(tuple(devices)), options)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        raise _OutOfMemory(str(error)) from None


def _available_bytes(devices):
    """Return the HBM that the compiler lets a program have, from what it says of one that is far too large."""
    from jaxlib.mlir import ir

    try:
        _compile(_parse(lambda: ir.Module.parse(_TOO_LARGE)), devices[:1])
    except _OutOfMemory as error:
        return error.bytes_after("exceeds available HBM")
    raise RuntimeError("a program of 512 GiB has been compiled for one chip")


def _describe(path, topology):
    """Compile the file's HLO and return the Program."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    available = _available_bytes(devices)
    with open(path, "rb") as file:
        module = _parse(lambda: _read_hlo(file.read()))
    start = time.perf_counter()
    try:
        program = _compile(module, devices)
    except _OutOfMemory as error:
        used = error.bytes_after(r"Used") or error.bytes_after(r"required for HLO temporaries")
        first = str(error).strip().splitlines()[0]
        return Program(False, available, used, first[:500], seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory, cost = program.get_compiled_memory_stats(), program.cost_analysis()
    cost = cost if isinstance(cost, dict) else cost[0]
    text = "\n".join(module.to_string() for module in program.hlo_modules())
    # To this compiler a matrix product is a convolution, too, with two dimensions.
    kinds = re.findall(r"= (\w+)\[\d+,\d+,\d+,\d+\]\S* convolution\(", text)
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    parts = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": new,
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
    print(json.dumps(asdict(_describe(*sys.argv[1:]))))

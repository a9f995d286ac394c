"""The steps of a run with JAX, lowered and compiled for a slice that is not here.

They are the very programs that a run on this slice compiles. JAX has a public interface for this: a mesh of devices
that libtpu only describes.
"""

import math
import os
import re
import time
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import find_reason
from efficientnet_tf.data.pipeline import Failures, eval_dataset, train_dataset
from efficientnet_tf.evaluation.jax_loop import make_eval_step
from efficientnet_tf.evaluation.metrics import choose_metrics
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.preflight.compile import ENVIRONMENT, OutOfMemory, Program, describe_program
from efficientnet_tf.preflight.topology import Topology
from efficientnet_tf.preflight.trace import make_empty_source
from efficientnet_tf.runtime.jax_strategy import AXIS, JaxStrategy
from efficientnet_tf.training.graph import batch_norm_group_size
from efficientnet_tf.training.jax_loop import make_train_step
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.tensorflow_loop import evaluated_variables, make_classifiers

# Operations that make a step wait for the host.
_HOST = re.compile("callback|infeed|outfeed|send|recv|host", re.IGNORECASE)
_SUM = re.compile(r'"stablehlo\.all_reduce"\(.*?\}\) : \(([^)]*)\) ->', re.DOTALL)
_TENSOR = re.compile(r"tensor<((?:\d+x)*)[a-z]+(\d+)>")  # sides and bits
_TOO_LARGE = 2**36  # float32 values, 256 GiB


class JaxSteps:
    """The steps of a run for a slice.

    Attributes:
        engine: Who traces.
        strategy: The devices of the slice.
        state: What training changes. Its values are on the CPU.
        traced_replicas: Number of replicas that are traced: all.
    """

    engine = "JAX"

    def __init__(self, config: Config, topology: Topology, classes: int, images: int):
        self._config, self._classes = config, classes
        self.strategy = JaxStrategy(_describe_devices(topology))
        self.state = create_state(config, classes, images, self.strategy)
        self.traced_replicas: int = self.strategy.num_replicas_in_sync
        self._available = None

    def trace_train(self, batch: int) -> Any:
        """Lower the training step for a batch per replica."""
        source, config = make_empty_source(self._config, self._classes, batch, self.strategy)
        step, variables = make_train_step(self.state, config, self.strategy)
        batches = train_dataset(source, config, Failures(source), 0, tf.distribute.InputContext())
        return self._lower(step, variables, (2,), batches)

    def trace_eval(self, batch: int) -> dict[str, Any]:
        """Lower the evaluation step, which evaluates the weights and their EMA, for a batch per replica."""
        source, config = make_empty_source(self._config, self._classes, batch, self.strategy)
        classifiers = list(make_classifiers(self.state, self.strategy).values())
        variables = evaluated_variables(self.state)
        metrics = choose_metrics(config, source)
        step = make_eval_step(classifiers, metrics, self.strategy, variables)
        sums = len(classifiers), metrics.size
        batches = eval_dataset(source, config, Failures(source), tf.distribute.InputContext())
        return {"raw": self._lower(step, variables, sums, batches)}

    def inspect(self, lowered: Any) -> dict[str, Any]:
        """Return what a step consists of: a dict as that of `trace.inspect_trace`."""
        text = lowered.as_text()
        sums = [tensor for types in _SUM.findall(text) for tensor in _TENSOR.findall(types)]
        calls = [*re.findall(r"custom_call @(\S+?)\(", text), *re.findall(r"stablehlo\.(\w+)", text)]
        shapes = [[int(side) for side in sides.split("x") if side] for sides, _ in sums]
        return {
            "operations": len(re.findall(r"^\s*%\S+ = ", text, re.MULTILINE)),
            "all_reduces": [
                {"shape": shape, "bytes": math.prod(shape) * int(bits) // 8}
                for shape, (_, bits) in zip(shapes, sums, strict=True)
            ],
            "host_operations": sorted({call for call in calls if _HOST.search(call)}),
            "string_operations": [],
            "dynamic_shapes": sorted(set(re.findall(r"tensor<[^>]*\?[^>]*>", text))),
        }

    def count_sums(self) -> int:
        """Return how many tensors the training step should sum over the replicas."""
        gradients, statistics = len(self.state.model.trainable_variables), len(batch_norm_statistics(self.state.model))
        # The metrics are one more. Batch norm over a group sums one tensor in each direction.
        grouped = batch_norm_group_size(self._config, self.strategy) > 1
        return gradients + statistics + 1 + grouped * statistics

    def compile(self, lowered: Any) -> Program:
        """Compile a step."""
        if self._available is None:
            self._available = self._find_available_bytes()
        start = time.perf_counter()
        try:
            program = _compile(lowered)
        except OutOfMemory as error:
            return error.make_program(self._available, time.perf_counter() - start)
        seconds = time.perf_counter() - start
        return describe_program(
            program.memory_analysis(), program.cost_analysis(), _read_text(program), self._available, seconds
        )

    def _lower(self, step, variables, sums, batches):
        """Lower a step for the shapes of some variables, of its sums, and of a batch of all replicas."""
        everywhere, divided = (NamedSharding(self.strategy.mesh, spec) for spec in (P(), P(AXIS)))

        def describe(shape, dtype, sharding=everywhere):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

        values = [describe(variable.value.shape, variable.value.dtype) for variable in variables]
        batch = [describe(tuple(spec.shape), spec.dtype.as_numpy_dtype, divided) for spec in batches.element_spec]
        return step.lower(values, describe(sums, np.float32), *batch)

    def _find_available_bytes(self):
        """Return the HBM that the compiler allows a program, from its message about a program that is far too large."""
        large = jax.ShapeDtypeStruct((_TOO_LARGE,), np.float32, sharding=NamedSharding(self.strategy.mesh, P()))
        try:
            _compile(jax.jit(lambda x: x + x).lower(large))
        except OutOfMemory as error:
            return error.read_available_bytes()
        raise RuntimeError("The compiler accepted a program of 512 GiB for one chip.")


def _describe_devices(topology):
    """Return the devices of a slice as libtpu describes them."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # before libtpu is loaded
    jax.config.update("jax_platforms", "cpu")  # Values are on the CPU, also where there is a GPU.
    try:
        return topologies.get_topology_desc(topology.name, platform="tpu").devices
    except Exception as error:  # JAX raises several types.
        raise UserError(
            f"topology={topology.name} is a slice that the installed libtpu does not know ({find_reason(error)}). "
            "Install a newer libtpu, or use another slice."
        ) from None


def _compile(lowered):
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not OutOfMemory.describes(error):
            raise
        raise OutOfMemory(str(error)) from None


def _read_text(program):
    """Return a compiled program as HLO, or None for a chip whose instructions jaxlib cannot read, such as tpu7x."""
    try:
        return program.as_text()
    except jax.errors.JaxRuntimeError:
        return None

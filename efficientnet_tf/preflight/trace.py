"""Trace the training and evaluation steps for a TPU on a machine without a TPU.

TPUStrategy does its work in Python and asks a resolver which chips there are. Here the resolver simulates them, and the
variables are on logical CPUs. The result is the graph that a run on a TPU sends to its compiler. It cannot run.

There is no public interface for this. The three functions under "private parts of TensorFlow" use parts that a new
version may rename. They work with the TensorFlow in `KNOWN_VERSION`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.data.pipeline import Failures, eval_dataset, train_dataset
from efficientnet_tf.data.source import Source, source_from_bytes
from efficientnet_tf.evaluation.loop import make_eval_loop
from efficientnet_tf.evaluation.metrics import choose_metrics
from efficientnet_tf.training.state import State
from efficientnet_tf.training.tensorflow_loop import make_classifiers, make_train_loop

# All replicas run the same program. Two are enough to see what they exchange, and need less memory than all.
TRACED_REPLICAS = 2
# Operations that a TPU leaves to its host, for which the step would have to stop.
HOST = re.compile("PyFunc|Print|Summary|Assert|Host|Outfeed|Infeed|File|Save|Restore|Lookup|Decode|OutsideCompilation")
KNOWN_VERSION = "2.21"


# ------------------------------------------------------------------------------- private parts of TensorFlow


def _make_metadata(replicas: int) -> Any:
    """Return what TensorFlow records about a TPU, for a host with `replicas` simulated cores."""
    try:
        from tensorflow.python.tpu.tpu_system_metadata import TPUSystemMetadata
    except ImportError:
        raise _missing("TPUSystemMetadata") from None
    place = "/job:localhost/replica:0/task:0/device:TPU:"
    devices = [tf.config.LogicalDevice(f"{place}{i}", "TPU") for i in range(replicas)]
    return TPUSystemMetadata(
        num_cores=replicas, num_hosts=1, num_of_cores_per_host=replicas, topology=None, devices=devices
    )


def _place_on_cpus(strategy: Any, replicas: int) -> None:
    """Let a TPUStrategy put its variables on logical CPUs."""
    if not hasattr(strategy.extended, "_tpu_devices"):
        raise _missing("TPUExtended._tpu_devices")
    if not hasattr(strategy, "_enable_packed_variable_in_eager_mode"):
        raise _missing("TPUStrategy._enable_packed_variable_in_eager_mode")
    places = [[f"/job:localhost/replica:0/task:0/device:CPU:{i}"] for i in range(replicas)]
    strategy.extended._tpu_devices = np.array(places, dtype=object)
    strategy._enable_packed_variable_in_eager_mode = False  # packed variables would be placed on the simulated cores


def _find_function(graph: Any, name: str) -> tf.Graph:
    """Return the graph of a function that a graph calls."""
    if not hasattr(graph, "_get_function"):
        raise _missing("Graph._get_function")
    return graph._get_function(name).graph


def _missing(name):
    return UserError(
        f"preflight uses {name}, a private part of TensorFlow that TensorFlow {tf.__version__} does not have. "
        f"Use TensorFlow {KNOWN_VERSION}, with which it works."
    )


# ----------------------------------------------------------------------------------------------------- tracing


class _SimulatedResolver(tf.distribute.cluster_resolver.TPUClusterResolver):
    """Reports cores that do not exist."""

    def __init__(self, replicas):
        super().__init__("local")
        self._replicas = replicas

    def get_tpu_system_metadata(self):
        return _make_metadata(self._replicas)


def make_tracing_strategy(replicas: int) -> tf.distribute.TPUStrategy:
    """Create a TPUStrategy that can trace but not run.

    Args:
        replicas: Number of replicas of the slice, at least 1. At most `TRACED_REPLICAS` of them are simulated. Their
            variables are on as many logical CPUs.

    Raises:
        UserError: If TensorFlow has already used the CPU and has not split it into that many logical CPUs, or if this
            version of TensorFlow does not have the private parts that are needed.
    """
    traced = min(replicas, TRACED_REPLICAS)
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < traced:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * traced)
        except RuntimeError:
            raise UserError("A TPU step must be traced before TensorFlow uses the CPU. Use a new process.") from None
    strategy: Any = tf.distribute.TPUStrategy(_SimulatedResolver(traced))
    _place_on_cpus(strategy, traced)
    strategy.stands_for = replicas  # `replica_count` reads it, and the groups of batch norm depend on that
    return strategy


@dataclass(frozen=True)
class Trace:
    """The graph of a loop, and the graph of one step in it.

    Attributes:
        loop: The concrete function of the whole loop.
        step: The graph of the loop's body: one step of all traced replicas.
        inputs: For each placeholder of `step`, by name, the tensor it stands for. The tensor belongs to `loop` or is
            eager.
        owners: The objects that own the variables of the graph. The graph is valid as long as they exist.
    """

    loop: Any
    step: tf.Graph
    inputs: dict[str, tf.Tensor]
    owners: tuple[Any, ...]

    @property
    def batch(self) -> list[tf.Tensor]:
        """The tensors of one replica's batch, in the order of its iterator."""
        return next(op for op in self.step.get_operations() if op.type == "IteratorGetNext").outputs


def trace_loop(
    loop: Any,
    make_dataset: Callable[[tf.distribute.InputContext], tf.data.Dataset],
    strategy: tf.distribute.Strategy,
    *owners: Any,
) -> Trace:
    """Trace a loop.

    Args:
        loop: A tf.function of an iterator and a number of steps, with one while loop around the step.
        make_dataset: Makes the batches of a host. Only their shapes are used.
        strategy: A strategy of `make_tracing_strategy`.
        *owners: The objects that own the variables of the loop.
    """
    batches = strategy.distribute_datasets_from_function(lambda context: make_dataset(context).take(0))
    function = loop.get_concrete_function(iter(batches), tf.constant(1))
    graph = function.graph
    (whiles,) = (op for op in graph.get_operations() if op.type in ("While", "StatelessWhile"))
    step: Any = _find_function(graph, whiles.get_attr("body").name)
    outside = {id(inner): outer for outer, inner in graph.captures}
    inputs = {
        inner.op.name: outside.get(id(outer), outer) for inner, outer in zip(step.inputs, whiles.inputs, strict=True)
    }
    return Trace(function, step, inputs, (loop, batches, *owners))


def trace_train(config: Config, state: State, classes: int, strategy: tf.distribute.Strategy, batch: int) -> Trace:
    """Trace the training loop.

    Args:
        config: The config of the run.
        state: The state of the run, created in the scope of the strategy.
        classes: Number of classes, at least 2.
        strategy: A strategy of `make_tracing_strategy`.
        batch: Images per replica, at least 1.
    """
    source, config = make_empty_source(config, classes, batch, strategy)
    failures = Failures(source)
    loop = make_train_loop(state, config, strategy)
    return trace_loop(loop, lambda context: train_dataset(source, config, failures, 0, context), strategy, state)


def trace_eval(
    config: Config, state: State, classes: int, strategy: tf.distribute.Strategy, batch: int
) -> dict[str, Trace]:
    """Trace the evaluation loops.

    Args:
        config: The config of the run.
        state: The state of the run, created in the scope of the strategy.
        classes: Number of classes, at least 2.
        strategy: A strategy of `make_tracing_strategy`.
        batch: Images per replica, at least 1.

    Returns:
        {"raw": Trace}, and with an EMA also "ema".
    """
    source, config = make_empty_source(config, classes, batch, strategy)
    failures, metrics = Failures(source), choose_metrics(config, source)

    def make_dataset(context):
        return eval_dataset(source, config, failures, context)

    return {
        kind: trace_loop(make_eval_loop([logits_of], metrics, strategy), make_dataset, strategy, state)
        for kind, logits_of in make_classifiers(state, strategy).items()
    }


def make_empty_source(
    config: Config, classes: int, batch: int, strategy: tf.distribute.Strategy
) -> tuple[Source, Config]:
    """Return a source without images, and the config with the batch of the replicas that are traced.

    Args:
        config: The config of the run.
        classes: Number of classes, at least 2.
        batch: Images per replica, at least 1.
        strategy: The replicas.
    """
    total = batch * strategy.num_replicas_in_sync
    sizes = [f"train.batch_size={total}", f"eval.batch_size={total}", "data.service=", "data.weight_column="]
    class_names = [str(index) for index in range(classes)]
    label = {"classification": np.zeros(1, np.int32), "multilabel": np.zeros([1, classes], np.uint8)}
    labels = label.get(config.data.task, np.zeros([1, classes], np.float32))
    return source_from_bytes([b""], labels, class_names, "image"), override_config(config, sizes)


# -------------------------------------------------------------------------------------------------- inspecting


def inspect_trace(trace: Trace) -> dict[str, Any]:
    """Return what a traced step consists of.

    Args:
        trace: A trace.

    Returns:
        A dict with "operations", the number of operations, and "all_reduces", the sums over replicas in the order of
        the graph, each {"shape": list of int, "bytes": int}. "host_operations", "string_operations" and
        "dynamic_shapes" are lists of names with types. They are empty if a TPU can run the step.
    """
    operations = _list_operations(trace.step)
    host = [op for op in operations if HOST.search(op.type)]
    # The only string in a valid graph is TPUCompilationResult, which reports how the compilation went.
    strings = [op for op in operations if op.type != "TPUCompilationResult" and _has_string(op)]
    sums = [op.outputs[0] for op in operations if op.type == "CrossReplicaSum"]
    return {
        "operations": len(operations),
        "all_reduces": [
            {"shape": t.shape.as_list(), "bytes": math.prod(t.shape.as_list()) * t.dtype.size} for t in sums
        ],
        "host_operations": [_describe_operation(op) for op in host],
        "string_operations": [_describe_operation(op) for op in strings],
        "dynamic_shapes": [_describe_operation(op) for op in operations if not _is_static(op)],
    }


def _list_operations(graph):
    """Return the operations of a graph and of all functions that it calls."""
    operations, seen, graphs = [], set(), [graph]
    while graphs:
        graph = graphs.pop()
        operations += graph.get_operations()
        for op in graph.get_operations():
            names = [attr.func.name for attr in op.node_def.attr.values() if attr.HasField("func")]
            names += [func.name for attr in op.node_def.attr.values() for func in attr.list.func]
            for name in set(names) - seen:
                seen.add(name)
                graphs.append(_find_function(graph, name))
    return operations


def _describe_operation(op):
    return f"{op.name} ({op.type})"


def _has_string(op):
    return any(t.dtype == tf.string for t in (*op.inputs, *op.outputs))


def _is_static(op):
    return all(t.shape.is_fully_defined() for t in op.outputs if t.dtype not in (tf.resource, tf.variant))

"""The training and evaluation steps as a TPU would get them: traced by TPUStrategy on a machine without a TPU.

TPUStrategy does its work in Python and asks its resolver what chips there are. Here a resolver makes them up, and the
variables lie on logical CPUs: what comes out is the graph that a run with a TPU sends to its compiler. None of it runs.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.python.tpu.tpu_system_metadata import TPUSystemMetadata

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import override_config
from efficientnet_tf.data.pipeline import Failures, eval_dataset, train_dataset
from efficientnet_tf.data.source import source_from_bytes
from efficientnet_tf.evaluation.loop import make_eval_loop
from efficientnet_tf.training.tensorflow_loop import make_classifiers, make_train_loop

# All replicas run one program. Two show what it exchanges, and a run's variables need not lie here eight times.
TRACED_REPLICAS = 2
# What a TPU would have to leave to its host, and stop for.
HOST = re.compile("PyFunc|Print|Summary|Assert|Host|Outfeed|Infeed|File|Save|Restore|Lookup|Decode|OutsideCompilation")


class _MadeUpChips(tf.distribute.cluster_resolver.TPUClusterResolver):
    """Tells of chips that nobody has."""

    def __init__(self, replicas):
        super().__init__("local")
        self._replicas = replicas

    def get_tpu_system_metadata(self):
        place = "/job:localhost/replica:0/task:0/device:TPU:"
        devices = [tf.config.LogicalDevice(f"{place}{i}", "TPU") for i in range(self._replicas)]
        return TPUSystemMetadata(
            num_cores=self._replicas,
            num_hosts=1,
            num_of_cores_per_host=self._replicas,
            topology=None,
            devices=devices,
        )


def make_tracing_strategy(replicas):
    """Create a tf.distribute.TPUStrategy that traces and cannot run.

    Args:
        replicas: int >= 1, those of the TPU; at most TRACED_REPLICAS are made up, and as many logical CPUs hold their
            variables.

    Raises:
        UserError: when TensorFlow has used the CPU before, and it is not divided into as many.
    """
    traced = min(replicas, TRACED_REPLICAS)
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < traced:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * traced)
        except RuntimeError:
            raise UserError("a TPU's step must be traced before TensorFlow has used the CPU") from None
    strategy = tf.distribute.TPUStrategy(_MadeUpChips(traced))
    places = [[f"/job:localhost/replica:0/task:0/device:CPU:{i}"] for i in range(traced)]
    strategy.extended._tpu_devices = np.array(places, dtype=object)
    strategy._enable_packed_variable_in_eager_mode = False  # it would place them on the devices that are not there
    strategy.stands_for = replicas  # which decides about groups of batch norm
    return strategy


@dataclass(frozen=True)
class Trace:
    """A loop's graph, and in it one step.

    Attributes:
        loop: the concrete function of the whole loop.
        step: the graph of the loop's body, a step of all traced replicas.
        inputs: {name of a placeholder of `step`: what it stands for, a tensor of `loop` or an eager one}.
        owners: what the graph's variables belong to; it dies without them.
    """

    loop: tf.types.experimental.ConcreteFunction
    step: tf.Graph
    inputs: dict
    owners: tuple

    @property
    def batch(self):
        """The tensors of one replica's batch, as they come from its iterator."""
        return next(op for op in self.step.get_operations() if op.type == "IteratorGetNext").outputs


def _trace(loop, dataset_of, strategy, *owners):
    # None of it is taken: what matters is the shapes.
    batches = strategy.distribute_datasets_from_function(lambda context: dataset_of(context).take(0))
    function = loop.get_concrete_function(iter(batches), tf.constant(1))
    graph = function.graph
    (whiles,) = (op for op in graph.get_operations() if op.type in ("While", "StatelessWhile"))
    step = graph._get_function(whiles.get_attr("body").name).graph
    outside = {id(inner): outer for outer, inner in graph.captures}
    inputs = {
        inner.op.name: outside.get(id(outer), outer) for inner, outer in zip(step.inputs, whiles.inputs, strict=True)
    }
    return Trace(function, step, inputs, (loop, batches, *owners))


def _stand_in(config, classes, batch, strategy):
    """Return a source without images, and the config for the batch of the replicas that are traced."""
    total = batch * strategy.num_replicas_in_sync
    sizes = [f"train.batch_size={total}", f"eval.batch_size={total}", "data.service="]
    return source_from_bytes([b""], [0], map(str, range(classes)), "image"), override_config(config, sizes)


def trace_train(config, state, classes, strategy, batch):
    """Trace the loop with which `train` trains.

    Args:
        config: config.Config.
        state: checkpoint.State, created in the strategy's scope.
        classes: int >= 2.
        strategy: what `make_strategy` made.
        batch: int >= 1, images a replica.

    Returns:
        Trace.
    """
    source, config = _stand_in(config, classes, batch, strategy)
    failures = Failures(source)

    def dataset_of(context):
        return train_dataset(source, config, failures, 0, context)

    return _trace(make_train_loop(state, config, strategy), dataset_of, strategy, state)


def trace_eval(config, state, classes, strategy, batch):
    """Trace the loops with which `train` evaluates.

    Args:
        config: config.Config.
        state: checkpoint.State, created in the strategy's scope.
        classes: int >= 2.
        strategy: what `make_strategy` made.
        batch: int >= 1, images a replica.

    Returns:
        {"raw": Trace, and with a moving average "ema": Trace}.
    """
    source, config = _stand_in(config, classes, batch, strategy)
    failures = Failures(source)

    def dataset_of(context):
        return eval_dataset(source, config, failures, context)

    return {
        kind: _trace(make_eval_loop(logits_of, classes, strategy), dataset_of, strategy, state)
        for kind, logits_of in make_classifiers(state).items()
    }


def inspect_trace(trace):
    """Tell what a traced step is made of.

    Args:
        trace: Trace.

    Returns:
        dict: "operations", int; "all_reduces", list of {"shape": list of int, "bytes": int}, in the order of the graph;
        "host_operations", "string_operations" and "dynamic_shapes", lists of names with their types, empty where all is
        well.
    """
    operations = _all_operations(trace.step)
    host = [op for op in operations if HOST.search(op.type)]
    # The one string of a healthy graph: where TPUStrategy is told how the compilation went.
    strings = [op for op in operations if op.type != "TPUCompilationResult" and _has_string(op)]
    sums = [op.outputs[0] for op in operations if op.type == "CrossReplicaSum"]
    return {
        "operations": len(operations),
        "all_reduces": [
            {"shape": t.shape.as_list(), "bytes": math.prod(t.shape.as_list()) * t.dtype.size} for t in sums
        ],
        "host_operations": [_name(op) for op in host],
        "string_operations": [_name(op) for op in strings],
        "dynamic_shapes": [_name(op) for op in operations if not _is_static(op)],
    }


def _all_operations(graph):
    """Return a graph's operations and those of the functions that it calls."""
    operations, seen, graphs = [], set(), [graph]
    while graphs:
        graph = graphs.pop()
        operations += graph.get_operations()
        for op in graph.get_operations():
            names = [attr.func.name for attr in op.node_def.attr.values() if attr.HasField("func")]
            names += [func.name for attr in op.node_def.attr.values() for func in attr.list.func]
            for name in set(names) - seen:
                seen.add(name)
                graphs.append(graph._get_function(name).graph)
    return operations


def _name(op):
    return f"{op.name} ({op.type})"


def _has_string(op):
    return any(t.dtype == tf.string for t in (*op.inputs, *op.outputs))


def _is_static(op):
    return all(t.shape.is_fully_defined() for t in op.outputs if t.dtype not in (tf.resource, tf.variant))

"""From a traced step to the program of one replica, the HLO module that the TPU compiler reads.

On the host of a TPU, TensorFlow makes this program from the same graph. Here TensorFlow's bridge to XLA on the CPU
makes it. For that, the nodes that TPUStrategy adds are removed: what they replicate is kept as replica 0 has it, and
sums over replicas become those of XLA.
"""

from collections.abc import Collection, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.preflight.trace import Trace


class UnsupportedOperation(UserError):
    """XLA does not have an operation of the step."""


# Nodes with one input per replica, of which the first belongs to replica 0. AllToAll distributes the step counter of
# replica 0.
_PER_REPLICA = ("TPUReplicatedInput", "TPUReplicatedOutput", "AllToAll")
_ALL_REPLICAS = "all_replicas"  # name of the constant that lists the replicas


def lower(trace: Trace, replicas: int) -> bytes:
    """Lower the step of a trace to HLO.

    Args:
        trace: The trace.
        replicas: Number of replicas of the slice, at least 1.

    Returns:
        A serialized HloModuleProto of one replica. It takes the batch and the variables, and returns the sums and the
        new values of the variables, which are written over the old ones.

    Raises:
        UnsupportedOperation: If XLA does not have an operation of the step.
    """
    step: Any = make_step(trace, replicas)
    try:
        return step.experimental_get_compiler_ir(*step.input_signature)(stage="hlo_serialized")
    except (tf.errors.OpError, ValueError) as error:  # the bridge raises either
        raise UnsupportedOperation(str(error)[:500]) from None


def make_step(trace: Trace, replicas: int) -> Any:
    """Make the part of a traced step that replica 0 runs, as a function of its batch.

    Args:
        trace: The trace.
        replicas: Number of replicas of the slice, at least 1.

    Returns:
        A tf.function, compiled by XLA when it is called, from the batch to what the loop adds up. It assigns replica
        0's variables of the trace.
    """
    graph: Any = trace.step
    batch = list(trace.batch)
    given = {op.name for op in graph.get_operations() if op.type in ("Placeholder", "IteratorGetNext")}
    result = graph.outputs[3]  # the loop's sums; two counters and the number of steps come before them
    effects = [op.name for op in graph.control_outputs if op.type.startswith("Assign")]
    definition = _extract_replica(graph, [result.op.name, *effects], given, replicas)
    inputs = {tensor for node in definition.node for tensor in node.input if _operation_of(tensor) in given}
    inputs = sorted(inputs - {_input_name(t) for t in batch})

    def step(*arguments):
        names = dict(zip(map(_input_name, batch), arguments, strict=True))
        for name in inputs:
            value = trace.inputs[name]
            if value.dtype == tf.resource:
                names[name] = tf.compat.v1.get_default_graph().capture(value)
            else:  # the counters and sums of the loop
                names[name] = tf.zeros(value.shape, value.dtype)
        outputs = [result.name, *effects]
        total, *done = tf.import_graph_def(definition, input_map=names, return_elements=outputs, name="")
        with tf.control_dependencies(done):
            return tf.identity(total)

    specs = [tf.TensorSpec(t.shape, t.dtype) for t in batch]
    return tf.function(step, jit_compile=True, autograph=False, input_signature=specs)


def _extract_replica(graph: Any, roots: Sequence[str], given: Collection[str], replicas: int) -> Any:
    """Return the GraphDef of what replica 0 computes for some operations.

    Args:
        graph: The graph of a step of all traced replicas.
        roots: Names of the operations to compute.
        given: Names of the operations whose results replica 0 is given.
        replicas: Number of replicas of the slice.
    """
    definition = graph.as_graph_def()
    nodes = {node.name: node for node in definition.node}
    sources = _find_sources(nodes)
    result = graph_pb2.GraphDef()  # pyright: ignore[reportAttributeAccessIssue]
    todo, seen = list(roots), {*given, _ALL_REPLICAS}
    result.library.CopyFrom(definition.library)
    result.versions.CopyFrom(definition.versions)
    _add_replica_group(result, replicas)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        new = result.node.add()
        new.CopyFrom(nodes[name])
        inputs = [_follow(tensor, sources) for tensor in new.input if not tensor.startswith("^")]
        before = {_operation_of(tensor) for tensor in new.input if tensor.startswith("^")}
        before -= {name for name in before if name in given or nodes[name].op == "TPUCompilationResult"}
        inputs = _rewrite_node(new, inputs)
        new.ClearField("input")
        new.input.extend([*inputs, *(f"^{name}" for name in sorted(before))])
        todo += [_operation_of(tensor) for tensor in new.input]
    return result


def _find_sources(nodes):
    """Return {tensor: the tensor it is a copy of, on replica 0} for the nodes that only pass tensors on."""
    sources = {}
    for name, node in nodes.items():
        if node.op == "TPUReplicatedOutput":
            sources |= {f"{name}:{i}" if i else name: node.input[0] for i in range(node.attr["num_replicas"].i)}
        elif node.op in _PER_REPLICA:
            sources[name] = node.input[0]
    return sources


def _follow(tensor, sources):
    while tensor in sources:
        tensor = sources[tensor]
    return tensor


def _add_replica_group(definition, replicas):
    """Add a constant with the group of all replicas of the slice, which are more than are traced."""
    group = tf.make_tensor_proto([list(range(replicas))], tf.int32)
    node = definition.node.add(name=_ALL_REPLICAS, op="Const")
    node.attr["dtype"].type = group.dtype
    node.attr["value"].tensor.CopyFrom(group)


def _rewrite_node(node, inputs):
    """Replace a node of TPUStrategy by what XLA on the CPU understands, and return its new inputs."""
    node.device = ""
    for key in [key for key in node.attr if key.startswith("_")]:
        del node.attr[key]
    if node.op == "CrossReplicaSum":
        kind = node.attr["T"].type
        node.ClearField("attr")
        node.op, node.attr["T"].type = "XlaAllReduce", kind
        node.attr["reduce_op"].s, node.attr["mode"].s = b"Add", b"CrossReplica"
        return [inputs[0], _ALL_REPLICAS]
    if node.op in ("TPUReplicateMetadata", *_PER_REPLICA):  # only its place in the order remains
        node.op = "NoOp"
        node.ClearField("attr")
        return []
    return inputs


def _operation_of(tensor):
    """Return the name of the operation in the name of an input: "a" for "^a" and "a:1"."""
    return tensor.removeprefix("^").partition(":")[0]


def _input_name(tensor):
    """Return the name of a tensor as nodes refer to it: without a number for the first output."""
    return f"{tensor.op.name}:{tensor.value_index}" if tensor.value_index else tensor.op.name

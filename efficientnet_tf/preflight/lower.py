"""From a traced step to the program of one replica, as the TPU's compiler reads it: an HLO module.

On a TPU's host TensorFlow does this itself, from the same graph. Here its bridge for XLA on the CPU does, once the
graph has no more of TPUStrategy's own nodes: what they mark for replication stays as replica 0 has it, and the sums
over replicas become XLA's.
"""

import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from efficientnet_tf.config.errors import UserError


class UnsupportedOperation(UserError):
    """XLA has no such operation."""


# What takes one value for each replica: the first is replica 0's. AllToAll hands out replica 0's step counter.
_FIRST_INPUT = ("TPUReplicatedInput", "TPUReplicatedOutput", "AllToAll")


def _operation_of(tensor):
    """Return the name of the operation in the name of an input: "^a" and "a:1" are of "a"."""
    return tensor.removeprefix("^").partition(":")[0]


def _input_name(tensor):
    """Return the name of a tensor as a node's input has it, where the first output goes without its number."""
    return f"{tensor.op.name}:{tensor.value_index}" if tensor.value_index else tensor.op.name


def _of_one_replica(graph, roots, given, replicas):
    """Return the GraphDef of what replica 0 of `replicas` does, down from `roots`; `given` are operations it gets."""
    nodes = {node.name: node for node in graph.as_graph_def().node}
    sources = {}  # output of an operation that only passes on: what it passes on
    for name, node in nodes.items():
        if node.op == "TPUReplicatedOutput":
            sources |= {f"{name}:{i}" if i else name: node.input[0] for i in range(node.attr["num_replicas"].i)}
        elif node.op in _FIRST_INPUT:
            sources[name] = node.input[0]

    def follow(tensor):
        while tensor in sources:
            tensor = sources[tensor]
        return tensor

    result, todo, seen = graph_pb2.GraphDef(), list(roots), {*given, "all_replicas"}
    result.library.CopyFrom(graph.as_graph_def().library)
    result.versions.CopyFrom(graph.as_graph_def().versions)
    everyone = tf.make_tensor_proto([list(range(replicas))], tf.int32)
    group = result.node.add(name="all_replicas", op="Const")
    group.attr["dtype"].type = everyone.dtype
    group.attr["value"].tensor.CopyFrom(everyone)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        new = result.node.add()
        new.CopyFrom(nodes[name])
        new.device = ""
        for key in [key for key in new.attr if key.startswith("_")]:
            del new.attr[key]
        inputs = [follow(tensor) for tensor in new.input if not tensor.startswith("^")]
        before = {_operation_of(tensor) for tensor in new.input if tensor.startswith("^")}
        if new.op == "CrossReplicaSum":
            kind = new.attr["T"].type
            new.ClearField("attr")
            new.op, new.attr["T"].type = "XlaAllReduce", kind
            new.attr["reduce_op"].s, new.attr["mode"].s = b"Add", b"CrossReplica"
            inputs[1] = group.name  # fewer are traced than there are
        elif new.op in ("TPUReplicateMetadata", *_FIRST_INPUT):  # of which only the order remains
            inputs, new.op = [], "NoOp"
            new.ClearField("attr")
        before -= {name for name in before if name in given or nodes[name].op == "TPUCompilationResult"}
        new.ClearField("input")
        new.input.extend([*inputs, *(f"^{name}" for name in sorted(before))])
        todo += [_operation_of(tensor) for tensor in new.input]
    return result


def make_step(trace, replicas):
    """Make replica 0's part of a traced step, as a function of its batch.

    Args:
        trace: tpu_trace.Trace.
        replicas: int >= 1, those of the TPU.

    Returns:
        A tf.function, compiled by XLA where it is called, from the batch to what the loop adds up. It assigns the
        variables of the trace that lie with replica 0.
    """
    graph = trace.step
    batch = list(trace.batch)
    given = {op.name for op in graph.get_operations() if op.type in ("Placeholder", "IteratorGetNext")}
    result = graph.outputs[3]  # behind two counters and the range's: what the loop sums up
    effects = [op.name for op in graph.control_outputs if op.type.startswith("Assign")]
    definition = _of_one_replica(graph, [result.op.name, *effects], given, replicas)
    inputs = {tensor for node in definition.node for tensor in node.input if _operation_of(tensor) in given}
    inputs = sorted(inputs - {_input_name(t) for t in batch})

    def step(*arguments):
        names = dict(zip(map(_input_name, batch), arguments, strict=True))
        for name in inputs:
            value = trace.inputs[name]
            if value.dtype == tf.resource:
                names[name] = tf.compat.v1.get_default_graph().capture(value)
            else:  # the loop's counters and sums
                names[name] = tf.zeros(value.shape, value.dtype)
        outputs = [result.name, *effects]
        total, *done = tf.import_graph_def(definition, input_map=names, return_elements=outputs, name="")
        with tf.control_dependencies(done):
            return tf.identity(total)

    specs = [tf.TensorSpec(t.shape, t.dtype) for t in batch]
    return tf.function(step, jit_compile=True, autograph=False, input_signature=specs)


def lower(trace, replicas):
    """Lower the step of a trace to HLO.

    Args:
        trace: tpu_trace.Trace.
        replicas: int >= 1, those of the TPU.

    Returns:
        bytes, a serialised HloModuleProto of one replica: from batch and variables to sums and new values, each written
        over the old one.

    Raises:
        Unsupported: for an operation that XLA does not have.
    """
    step = make_step(trace, replicas)
    try:
        return step.experimental_get_compiler_ir(*step.input_signature)(stage="hlo_serialized")
    except (tf.errors.OpError, ValueError) as error:  # the bridge says it with a ValueError
        raise UnsupportedOperation(str(error)[:500]) from None

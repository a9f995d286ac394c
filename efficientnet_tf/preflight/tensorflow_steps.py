"""The steps of a run with TensorFlow: traced by TPUStrategy, lowered to XLA, and compiled in another process."""

from typing import Any

from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.preflight.compile import Program, compile_hlo
from efficientnet_tf.preflight.lower import lower
from efficientnet_tf.preflight.topology import Topology
from efficientnet_tf.preflight.trace import Trace, inspect_trace, make_tracing_strategy, trace_eval, trace_train
from efficientnet_tf.training.graph import batch_norm_group_size
from efficientnet_tf.training.state import create_state


class TensorFlowSteps:
    """The steps of a run for a slice.

    Attributes:
        engine: Who traces.
        strategy: A TPUStrategy that can trace but not run.
        state: What training changes.
        traced_replicas: Number of replicas that are traced.
    """

    engine = "TPUStrategy"

    def __init__(self, config: Config, topology: Topology, classes: int, images: int):
        self._config, self._topology, self._classes = config, topology, classes
        self.strategy = make_tracing_strategy(topology.replicas)
        self.state = create_state(config, classes, images, self.strategy)
        self.traced_replicas: int = self.strategy.num_replicas_in_sync

    def trace_train(self, batch: int) -> Trace:
        """Trace the training step for a batch per replica."""
        return trace_train(self._config, self.state, self._classes, self.strategy, batch)

    def trace_eval(self, batch: int) -> dict[str, Trace]:
        """Trace the evaluation steps for a batch per replica: "raw" and, with an EMA, "ema"."""
        return trace_eval(self._config, self.state, self._classes, self.strategy, batch)

    def inspect(self, trace: Trace) -> dict[str, Any]:
        """Return what a step consists of: see `trace.inspect_trace`."""
        return inspect_trace(trace)

    def count_sums(self) -> int:
        """Return how many tensors the training step should sum over the replicas."""
        gradients, statistics = len(self.state.model.trainable_variables), len(batch_norm_statistics(self.state.model))
        # All statistics are summed as one tensor. Batch norm over a group sums one tensor in each direction.
        grouped = batch_norm_group_size(self._config, self.strategy) > 1
        return gradients + (self._topology.replicas > 1 and statistics > 0) + grouped * statistics

    def compile(self, trace: Trace) -> Program:
        """Compile a step.

        Raises:
            UnsupportedOperation: If XLA does not have an operation of the step.
        """
        return compile_hlo(lower(trace, self._topology.replicas), self._topology)

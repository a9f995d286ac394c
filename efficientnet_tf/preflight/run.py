"""Trace and compile the steps of a training run for a TPU slice, and collect what is found in a report."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from math import prod
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import PACKAGE_DIR
from efficientnet_tf.config.schema import Config
from efficientnet_tf.preflight.checks import (
    STEP_NAMES,
    SUBLANES,
    Problem,
    check_batch,
    check_program,
    check_step,
)
from efficientnet_tf.preflight.compile import require_compiler
from efficientnet_tf.preflight.topology import Topology
from efficientnet_tf.runtime.files import read_text
from efficientnet_tf.runtime.terminal import ProgressBar


def run_preflight(
    config: Config,
    topology: Topology,
    classes: int = 1000,
    images: int = 1_281_167,
    fast: bool = False,
    largest_batch: bool = False,
    problems: Iterable[Problem] = (),
) -> dict[str, Any]:
    """Check a training run for a TPU slice.

    Args:
        config: The config of the run.
        topology: The slice.
        classes: Number of classes, at least 2.
        images: Size of the training set, at least 1.
        fast: Stop after tracing. No compiler is needed.
        largest_batch: Also find the largest batch that fits, by compiling.
        problems: Problems that are already known.

    Returns:
        The report, a dict that JSON can hold: the run, "gradients", "steps" as of `trace.inspect_trace`, "programs"
        with the fields of `compile.Program` and of `bound_times`, "largest_batch", "input", "findings" (the problems),
        and "ready", whether no problem stops the run.

    Raises:
        UserError: If the compiler is not installed, does not know the slice, or fails for another reason than the step,
            or if TensorFlow does not run on the slice.
    """
    from efficientnet_tf.runtime.backend import uses_jax

    if not topology.chip.has_tensorflow and not uses_jax():
        raise UserError(f"topology={topology.name} is a slice for which there is no TensorFlow. Use backend=jax.")
    if uses_jax() or not fast:  # JAX describes a slice with libtpu.
        require_compiler()  # before a minute of tracing
    with ProgressBar(2 if fast else 4, "preflight", "stages") as bar:
        preflight = Preflight(config, topology, classes, images, bar, problems)
        preflight.check_config()
        preflight.trace()
        if not fast:
            preflight.compile()
        if largest_batch:
            preflight.find_largest_batch()
    return preflight.make_report()


class Preflight:
    """The stages of a preflight, in order: `check_config`, `trace`, `compile`, `find_largest_batch`, `make_report`.

    Args:
        config: The config of the run. Of its phases, the one with the largest step is checked.
        topology: The slice.
        classes: Number of classes, at least 2.
        images: Size of the training set, at least 1.
        bar: Shows the stages.
        problems: Problems that are already known.

    Attributes:
        problems: All problems so far.
        steps: The engine's steps, a `TensorFlowSteps` or `JaxSteps`. Set by `trace`.
        traces: The traced steps: "train", "raw" and, with an EMA, "ema". Set by `trace`.
    """

    def __init__(
        self,
        config: Config,
        topology: Topology,
        classes: int,
        images: int,
        bar: ProgressBar,
        problems: Iterable[Problem] = (),
    ):
        # The weights are the same in all phases.
        parts = [part for _, part in config.phases]
        self.config = max(parts, key=lambda part: part.train.batch_size * prod(part.image_shape))
        self.topology, self.classes, self.images = topology, classes, images
        self.problems = list(problems)
        self.traces: dict[str, Any] = {}
        self._bar = bar
        # A batch that is not divisible is a problem already. Its steps are checked all the same.
        sizes = {"train": self.config.train.batch_size, "raw": self.config.eval.batch_size}
        self._batch = {name: max(1, size // topology.replicas) for name, size in sizes.items()}
        self._report: dict[str, Any] = {"batch": sizes, "replica_batch": self._batch}

    def check_config(self):
        """Check the batches, and note what is not checked."""
        replicas = self.topology.replicas
        self.problems += check_batch("train.batch_size", self.config.train.batch_size, replicas)
        self.problems += check_batch("eval.batch_size", self.config.eval.batch_size, replicas)
        parts = self.config.train.accumulate
        if parts > 1:
            text = f"The compiler counts the work of one of the {parts} parts of train.accumulate={parts} only."
            text += f" A step has about {parts} times the FLOPs and takes {parts} times as long."
            self.problems.append(Problem(text, stops=False))
        if self.config.train.freeze != "none":
            text = "train.freeze is ignored here. All layers are trained, which takes more time and memory."
            self.problems.append(Problem(text, stops=False))

    def trace(self):
        """Trace the steps and check their operations."""
        from efficientnet_tf.runtime.backend import uses_jax
        from efficientnet_tf.runtime.strategy import dtype_policy

        if uses_jax():
            from efficientnet_tf.preflight.jax_steps import JaxSteps as Steps
        else:
            from efficientnet_tf.preflight.tensorflow_steps import TensorFlowSteps as Steps

        self._bar.describe("building the state")
        self.steps = Steps(self.config, self.topology, self.classes, self.images)
        self._precision = dtype_policy(self.config.train.precision, self.steps.strategy)
        self._bar.describe("tracing the training step")
        self.traces = {"train": self.steps.trace_train(self._batch["train"])}
        self._bar.advance()
        self._bar.describe("tracing the evaluation step")
        self.traces |= self.steps.trace_eval(self._batch["raw"])
        self._bar.advance()
        steps = {name: self.steps.inspect(trace) for name, trace in self.traces.items()}
        for name, step in steps.items():
            # The evaluation adds up its results outside of TensorFlow's step, and in one sum with JAX.
            evaluation = int(uses_jax())
            self.problems += check_step(name, step, self.steps.count_sums() if name == "train" else evaluation)
        self._report = self._describe_run() | {
            "steps": steps,
            "input": measured_input(prod(self.config.image_shape) ** 0.5, self.config.augment.policy),
        }

    def compile(self):
        """Compile the training step and the evaluation step."""
        from efficientnet_tf.preflight.lower import UnsupportedOperation

        programs = self._report["programs"] = {}
        for name in ("train", "raw"):
            self._bar.describe(f"compiling the {STEP_NAMES[name]} step for {self.topology.name}")
            try:
                program = asdict(self.steps.compile(self.traces[name]))
            except UnsupportedOperation as error:
                text = f"XLA, and therefore a TPU, does not support an operation of the {STEP_NAMES[name]} step."
                self.problems.append(Problem(f"{text} Remove it: {error}"))
                continue
            if program["fits"]:
                batch = self._report["replica_batch"][name] * self.topology.replicas
                program |= bound_times(program, self.topology, batch)
            self.problems += check_program(name, program, self._precision)
            programs[name] = program
            self._bar.advance()

    def find_largest_batch(self):
        """Find the largest batch of the training step that fits. Does nothing if the step could not be compiled."""
        if "train" not in self._report.get("programs", {}):
            return

        def compile_at(size):
            self._bar.describe(f"compiling the training step with {size} images per replica")
            return asdict(self.steps.compile(self.steps.trace_train(size)))

        self._report["largest_batch"] = search_batch(compile_at, self._batch["train"], self.topology.replicas)

    def make_report(self) -> dict[str, Any]:
        """Return the report of `run_preflight`."""
        return self._report | {
            "findings": [asdict(problem) for problem in self.problems],
            "ready": not any(problem.stops for problem in self.problems),
        }

    def _describe_run(self):
        """Return the part of the report that describes the run."""
        from efficientnet_tf.models.variables import batch_norm_statistics
        from efficientnet_tf.training.graph import batch_norm_group_size

        gradients = [v.shape for v in self.steps.state.model.trainable_variables]
        statistics = [v.shape for v in batch_norm_statistics(self.steps.state.model)]
        return {
            "variant": self.config.model.name,
            "image_size": self.config.image_size,
            "classes": self.classes,
            "precision": self._precision,
            "topology": self.topology.name,
            "chips": self.topology.chips,
            "replicas": self.topology.replicas,
            "hosts": self.topology.hosts,
            "engine": self.steps.engine,
            "traced_replicas": self.steps.traced_replicas,
            **self._report,
            "batch_norm_group": batch_norm_group_size(self.config, self.steps.strategy),
            "gradients": {"count": len(gradients), "bytes": _float32_bytes(gradients)},
            "statistics_bytes": _float32_bytes(statistics),
        }


def _float32_bytes(shapes):
    return sum(4 * prod(shape) for shape in shapes)


# ------------------------------------------------------------------------------------------------------ numbers


def bound_times(program: Mapping[str, Any], topology: Topology, batch: int) -> dict[str, float]:
    """Return lower bounds of the time of a compiled step, from the published figures of the chip.

    Args:
        program: The fields of a `compile.Program` that fits.
        topology: The slice.
        batch: Images of all replicas.

    Returns:
        A dict with "arithmetic_seconds", "memory_seconds" and the larger of both, "bound_seconds". At that time per
        step, "images_per_second" is the rate of the slice and "images_per_second_and_host" that of one host.
    """
    arithmetic = program["flops"] / topology.flops
    memory = program["accessed_bytes"] / topology.bytes_per_second
    bound = max(arithmetic, memory)
    return {
        "arithmetic_seconds": arithmetic,
        "memory_seconds": memory,
        "bound_seconds": bound,
        "images_per_second": batch / bound,
        "images_per_second_and_host": batch / bound / topology.hosts,
    }


def measured_input(
    size: float, policy: str, path: str | os.PathLike = PACKAGE_DIR.parent / "docs" / "input_benchmark.json"
) -> dict[str, Any] | None:
    """Return the measured rate of the input pipeline at the nearest image size and the most threads.

    Args:
        size: Side in pixels of squares with as many pixels as the images.
        policy: The augmentation policy.
        path: The JSON file of the benchmark command.

    Returns:
        The row of the file with the "cpu" and its "cores", or None if there is no such file or row.
    """
    if not os.path.exists(path):
        return None
    try:
        content = json.loads(read_text(os.fspath(path)))
        rows = [row for row in content["rows"] if row["policy"] == policy]
        row = min(rows, key=lambda row: (abs(row["size"] - size), -row["threads"]))
        return row | {"cpu": content["environment"]["cpu"], "cores": content["environment"]["cores"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        return None  # It only adds a line to the report.


def search_batch(compile_at: Callable[[int], Mapping[str, Any]], start: int, replicas: int = 1) -> dict[str, Any]:
    """Find the largest batch of a replica that fits, a multiple of 8, by compiling.

    Args:
        compile_at: Compiles the step at a batch per replica, and returns the fields of a `compile.Program`.
        start: The batch to begin with, at least 1.
        replicas: Number of replicas, at least 1.

    Returns:
        A dict with "replica_batch" and "batch", for one replica and for all replicas, 0 if not even 8 images fit, and
        "compiled", whether each batch per replica that was tried fits.
    """
    fits, fails, guess, compiled = 0, None, max(1, start // SUBLANES), {}
    while fails is None or fails - fits > 1:
        program = compile_at(guess * SUBLANES)
        compiled[guess * SUBLANES] = program["fits"]
        if not program["fits"]:
            fails = guess
            guess = (fits + fails) // 2
            continue
        fits = guess
        if fails is None:
            # Temporary memory grows roughly with the batch, and more slowly near the limit, where the compiler saves.
            each = max(1, program["temporary_bytes"] / guess)
            more = (program["available_bytes"] - program["used_bytes"]) / each
            guess += max(1, guess // 4, min(int(more), 3 * guess))
        else:
            guess = (fits + fails) // 2
    return {"replica_batch": fits * SUBLANES, "batch": fits * SUBLANES * replicas, "compiled": compiled}

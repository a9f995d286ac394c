"""Measure networks next to other implementations of the same networks and next to the limits of the machine."""

import contextlib
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from efficientnet_tf.benchmark.rounds import (
    PROCESS_BYTES,
    Worker,
    WorkerKilled,
    count_operations_per_mac,
    run_rounds,
)
from efficientnet_tf.benchmark.setting import CLASSES, Setting
from efficientnet_tf.benchmark.worker import COPIED_BYTES, EXPORTS, MATRIX_SIZE
from efficientnet_tf.config.load import load_variant
from efficientnet_tf.runtime.hardware import available_cores, available_memory_bytes
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.scaling.layers import list_layers
from efficientnet_tf.scaling.memory import count_inference_memory, count_training_memory

LIMITS = ("product", "copy")  # workers that measure the machine itself
# Other implementations of the same networks: keras.applications, timm, this package with JAX, and keras.applications
# trained by Keras's `fit` with JAX.
OTHERS = ("keras", "timm", "jax", "keras_fit_jax")
_ONLY_TRAIN = ("keras_fit_jax",)


def list_others(mode: str) -> list[str]:
    """Return the implementations that can be compared with in a mode of the benchmark."""
    if mode == "startup":
        return ["keras", "timm"]
    return [name for name in OTHERS if mode == "train" or name not in _ONLY_TRAIN]


@dataclass(frozen=True)
class Plan:
    """What to measure: every combination of threads, variants, sizes and batches.

    Attributes:
        mode: "train", "infer" or "export": steps of the training loop, forward passes, or forward passes of exported
            files as well.
        variants: Names of networks, for example "b0".
        batches: Images per step, each at least 1.
        compare: Names in `OTHERS` to compare with.
        exports: Names in `EXPORTS` of the files to measure in the mode "export".
        rounds: Number of rounds that count, at least 1.
        seconds: Length of one measurement, above 0. A measurement has at least one step.
        sizes: Image sides in pixels, None for the variant's own.
        threads: Numbers of cores to run on, None for all.
        precision: "float32" or "mixed_bfloat16".
        longest_step_seconds: Skip a case if the arithmetic of one step would take longer at the rate of a product of
            large matrices. None skips nothing.
    """

    mode: str
    variants: Sequence[str]
    batches: Sequence[int]
    compare: Sequence[str] = ()
    rounds: int = 3
    seconds: float = 3.0
    sizes: Sequence[int | None] = (None,)
    threads: Sequence[int | None] = (None,)
    precision: str = "float32"
    longest_step_seconds: float | None = None
    exports: Sequence[str] = EXPORTS

    @property
    def implementations(self) -> list[str]:
        """Names of the workers that run a network. This package comes first."""
        return ["efficientnet_tf", *self.compare, *(self.exports if self.mode == "export" else ())]

    def list_cases(self) -> list[Setting]:
        """Return the settings to measure, grouped by threads and without an implementation."""
        mode = "train" if self.mode == "train" else "infer"
        return [
            Setting("", mode, variant, size or load_variant(variant).resolution, batch, self.precision, threads)
            for threads, variant, size, batch in itertools.product(
                self.threads, self.variants, self.sizes, self.batches
            )
        ]


class NetworkBenchmark:
    """Measures the cases of a plan and remembers which of them were skipped.

    Args:
        plan: What to measure.
        worker: Makes the worker of a setting.
        available_bytes: Returns the memory that is free now, None if the system does not say.

    Attributes:
        plan: What to measure.
        skipped: The cases that were not measured because they need more memory than is free, would take too long, or
            were killed: dicts with variant, size, batch, threads and reason.
    """

    def __init__(
        self,
        plan: Plan,
        worker: Callable[[Setting], Any] = Worker,
        available_bytes: Callable[[], int | None] = available_memory_bytes,
    ):
        self.plan = plan
        self.skipped: list[dict[str, Any]] = []
        self._worker, self._available_bytes = worker, available_bytes
        self._cases = plan.list_cases()
        self._measurements_per_case = (plan.rounds + 1) * len([*LIMITS, *plan.implementations])

    @property
    def total(self) -> int:
        """Number of measurements, the first round and skipped cases included."""
        return len(self._cases) * self._measurements_per_case

    def measure(self, bar: ProgressBar) -> Iterator[dict[str, Any]]:
        """Measure all cases.

        Args:
            bar: A progress bar of `total` measurements.

        Yields:
            A dict for each case and implementation:

            - variant, size, batch, threads, implementation: What ran.
            - gmacs: Billions of multiply-adds per image.
            - images_per_second, low, high: The median, the lowest and the highest rate of the rounds.
            - of_NAME: The rate as a share of that of each implementation in `plan.compare`.
            - of_product: Arithmetic per second as a share of that of a product of large matrices.
            - milliseconds: Time per batch, the median of the rounds.
            - file_mib: Size of the exported file, in mode "export" only, None if there is no file.
            - peak_mib: Peak memory of the whole process.
            - start_seconds: Time from the start of the process to the end of its first step.
            - first_step_seconds: Time of the first step, which includes tracing.
            - product_gflops, copy_gb_per_second: The limits of the machine, measured in the same rounds.

        Raises:
            UserError: If an implementation cannot run.
        """
        for _, group in itertools.groupby(self._cases, lambda case: case.threads):
            group = list(group)
            with self._start(group[0], LIMITS) as limits:
                for case in group:
                    yield from self._measure_case(case, limits, bar)

    def _measure_case(self, case, limits, bar):
        """Yield the rows of a case, or note why it is skipped."""
        bar.describe(f"{case.variant}, {case.size} pixels, batch {case.batch}")
        end = bar.completed + self._measurements_per_case
        reason = self._exceeds_memory(case) or self._exceeds_time(case, limits["product"])
        try:
            if not reason:
                with self._start(case, self.plan.implementations) as workers:
                    workers = limits | workers
                    step_seconds = run_rounds(workers, self.plan.rounds, self.plan.seconds, bar.advance)
                    yield from self._make_rows(case, workers, step_seconds)
        except WorkerKilled as error:
            reason = str(error)
        if reason:
            self._skip(case, reason, bar)
            bar.advance(end - bar.completed)

    @contextlib.contextmanager
    def _start(self, case, names):
        """Start a worker for each name; they end with the block."""
        with contextlib.ExitStack() as stack:
            yield {name: stack.enter_context(self._worker(replace(case, implementation=name))) for name in names}

    def _exceeds_memory(self, case):
        """Return why all processes of a case together do not fit into memory, or None."""
        predict = count_training_memory if case.mode == "train" else count_inference_memory
        processes = len(self.plan.implementations)
        needed = processes * (predict(_list_layers(case), case.batch, case.precision).total + PROCESS_BYTES)
        available = self._available_bytes()
        if available is None or needed <= available:
            return None
        count = f"{processes} processes" if processes > 1 else "one process"
        return f"{count} would take {needed / 2**30:.1f} GiB, but only {available / 2**30:.1f} GiB are available"

    def _exceeds_time(self, case, product):
        """Return why a step of a case takes longer than the plan allows, or None."""
        longest = self.plan.longest_step_seconds
        if longest is None:
            return None
        rate = 2 * MATRIX_SIZE**3 / product.run(0)
        seconds = _count_operations(case) / rate
        if seconds <= longest:
            return None
        return f"a step would take {seconds:.2g} s at the rate of a matrix product, longer than {longest:g} s"

    def _skip(self, case, reason, bar):
        """Note and print that a case is not measured."""
        skipped = {key: getattr(case, key) for key in ("variant", "size", "batch")}
        skipped |= {"threads": case.threads or available_cores(), "reason": reason}
        self.skipped.append(skipped)
        line = "skipped: {variant}, {size} pixels, batch {batch}, {threads} thread{s}: {reason}"
        bar.print(line.format(**skipped, s="s" * (skipped["threads"] > 1)), sys.stderr)

    def _make_rows(self, case, workers, step_seconds):
        """Yield a row for each implementation from the step times of the rounds."""
        names = self.plan.implementations
        median = {name: statistics.median(seconds) for name, seconds in step_seconds.items()}
        product = 2 * MATRIX_SIZE**3 / median["product"]
        for name in names:
            facts = workers[name].facts
            yield {
                "variant": case.variant,
                "size": case.size,
                "batch": case.batch,
                "threads": case.threads or available_cores(),
                "implementation": name,
                "gmacs": round(sum(layer.macs for layer in _list_layers(case)) / 1e9, 4),
                "images_per_second": round(case.batch / median[name], 2),
                "low": round(case.batch / max(step_seconds[name]), 2),
                "high": round(case.batch / min(step_seconds[name]), 2),
                **{f"of_{other}": round(median[other] / median[name], 3) for other in names[1:] if other in OTHERS},
                "of_product": round(_count_operations(case) / median[name] / product, 3),
                "milliseconds": round(1e3 * median[name], 2),
                **({"file_mib": _to_mib(facts.get("file_bytes"), 1)} if self.plan.mode == "export" else {}),
                "peak_mib": _to_mib(facts["peak_bytes"]),
                "start_seconds": round(workers[name].start_seconds, 1),
                "first_step_seconds": round(facts["first_step_seconds"], 1),
                "product_gflops": round(product / 1e9),
                "copy_gb_per_second": round(2 * COPIED_BYTES / median["copy"] / 1e9, 1),
            }


def _list_layers(case):
    return list_layers(load_variant(case.variant), case.size, CLASSES)


def _count_operations(case):
    """Return the arithmetic operations of one step."""
    return count_operations_per_mac(case.mode) * case.batch * sum(layer.macs for layer in _list_layers(case))


def _to_mib(count_bytes, digits=None):
    """Return bytes in MiB, None if they are not known."""
    return None if count_bytes is None else round(count_bytes / 2**20, digits)

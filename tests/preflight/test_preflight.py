"""Tests of the traced and compiled steps of a TPU run, and of the command."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import tensorflow as tf
import tiny

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.preflight import tensorflow_steps
from efficientnet_tf.preflight.checks import check_program, check_step
from efficientnet_tf.preflight.compile import Program, compile_hlo
from efficientnet_tf.preflight.lower import UnsupportedOperation, lower, make_step
from efficientnet_tf.preflight.report import format_report
from efficientnet_tf.preflight.run import Preflight, run_preflight, search_batch
from efficientnet_tf.preflight.topology import parse_topology
from efficientnet_tf.preflight.trace import (
    TRACED_REPLICAS,
    Trace,
    inspect_trace,
    make_tracing_strategy,
    trace_eval,
    trace_loop,
    trace_train,
)
from efficientnet_tf.runtime.strategy import device_type, replica_count
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.training.state import create_state
from efficientnet_tf.training.tensorflow_loop import make_train_loop

CLASSES = 10
ONE_BLOCK = "model.stages=[{kernel: 3, stride: 1, expand: 4, channels: 8, repeats: 1}]"
BATCH, EVAL_BATCH = 8, 16  # per replica
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="The TPU compiler is not installed: pip install 'efficientnet_tf[preflight]'.",
)

# ----------------------------------------------------------------------------------------------------- tracing


class Traced:
    """The steps of the tiny network, traced for a slice with eight replicas."""

    def __init__(self):
        self.config = tiny.load_config("train.ema_decay=0.99")
        self.strategy = make_tracing_strategy(8)
        self.state = create_state(self.config, CLASSES, 1000, self.strategy)
        self.train = self.trace_train(BATCH)
        self.evaluations = trace_eval(self.config, self.state, CLASSES, self.strategy, EVAL_BATCH)
        self.all = {"train": self.train, **self.evaluations}

    def trace_train(self, batch):
        return trace_train(self.config, self.state, CLASSES, self.strategy, batch)


@pytest.fixture(scope="module")
def traced():
    return Traced()


def test_the_strategy_is_a_tpu_strategy(traced):
    assert isinstance(traced.strategy, tf.distribute.TPUStrategy)
    assert traced.strategy.num_replicas_in_sync == TRACED_REPLICAS == 2
    assert device_type(traced.strategy) == "TPU"
    assert traced.state.model.get_layer("stem_conv").dtype_policy.name == "mixed_bfloat16"
    for trace in traced.all.values():
        (replicate,) = (op for op in trace.step.get_operations() if op.type == "TPUReplicateMetadata")
        assert replicate.get_attr("num_replicas") == 2


def test_the_loop_is_one_while_loop_around_the_step(traced):
    for trace in traced.all.values():
        kinds = [op.type for op in trace.loop.graph.get_operations()]
        assert sum(kind in ("While", "StatelessWhile") for kind in kinds) == 1
        assert not {"Conv2D", "IteratorGetNext"} & set(kinds)
        assert "Conv2D" in [op.type for op in trace.step.get_operations()]


def test_both_evaluations_are_traced(traced):
    assert list(traced.evaluations) == ["raw", "ema"]


def test_shapes_are_static(traced):
    assert [t.shape.as_list() for t in traced.train.batch] == [[BATCH, 32, 32, 3], [BATCH]]
    for trace in traced.evaluations.values():
        assert [t.shape.as_list() for t in trace.batch] == [[EVAL_BATCH, 32, 32, 3], [EVAL_BATCH], [EVAL_BATCH]]
    for trace in traced.all.values():
        assert inspect_trace(trace)["dynamic_shapes"] == []


def test_no_host_operation_and_no_string(traced):
    for trace in traced.all.values():
        found = inspect_trace(trace)
        assert found["host_operations"] == found["string_operations"] == []


def test_each_gradient_is_summed_once_and_the_statistics_as_one_tensor(traced):
    model = traced.state.model
    sums = inspect_trace(traced.train)["all_reduces"]
    statistics = sum(v.shape[0] for v in batch_norm_statistics(model))
    expected = [list(v.shape) for v in model.trainable_variables] + [[statistics]]
    assert len(sums) == 71
    assert sorted(map(str, (each["shape"] for each in sums))) == sorted(map(str, expected))
    assert sum(each["bytes"] for each in sums) == 4 * model.count_params()
    for trace in traced.evaluations.values():
        assert inspect_trace(trace)["all_reduces"] == []


def test_with_more_than_eight_replicas_batch_norm_uses_groups():
    """Each batch norm sums its moments and their gradients over a group."""
    config = tiny.load_config(tiny.SHORT)
    strategy = make_tracing_strategy(32)
    assert strategy.num_replicas_in_sync == 2 and replica_count(strategy) == 32
    state = create_state(config, CLASSES, 1000, strategy)
    sums = inspect_trace(trace_train(config, state, CLASSES, strategy, BATCH))["all_reduces"]
    norms = len(batch_norm_statistics(state.model)) // 2
    assert len(sums) == len(state.model.trainable_variables) + 1 + 2 * norms
    # The mean and the mean square of eight channels in each of the four groups.
    assert [4, 2, 8] in [each["shape"] for each in sums]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["optimizer.clip_norm=1.0", "optimizer.clip_value=0.1", "optimizer.agc=0.01"])
def test_clipping_adds_no_sum_over_replicas(setting):
    """Each replica clips the summed gradients. The step has nothing that a TPU cannot run, and lowers to XLA."""
    config, strategy = tiny.load_config(ONE_BLOCK, "train.loss=bce", setting), make_tracing_strategy(8)
    state = create_state(config, CLASSES, 1000, strategy)
    trace = trace_train(config, state, CLASSES, strategy, BATCH)
    found = inspect_trace(trace)
    assert len(found["all_reduces"]) == len(state.model.trainable_variables) + 1
    assert found["host_operations"] == found["string_operations"] == found["dynamic_shapes"] == []
    assert lower(trace, 8)


@pytest.fixture
def unsupported(traced):
    """The trace of a loop with an operation that XLA does not have."""
    strategy = traced.strategy

    @tf.function(autograph=True)
    def loop(iterator, steps):
        sums = tf.zeros([4])
        for _ in tf.range(steps):
            sums += strategy.reduce("SUM", strategy.run(replica_step, args=next(iterator)), axis=None)
        return sums

    def replica_step(images, labels):
        eigenvalues, _ = tf.linalg.eig(images[0, :4, :4, 0])
        return tf.math.real(eigenvalues) + tf.reduce_sum(tf.cast(labels, tf.float32))

    batch = tf.zeros([EVAL_BATCH, 32, 32, 3]), tf.zeros([EVAL_BATCH], tf.int32)
    return trace_loop(loop, lambda context: tf.data.Dataset.from_tensors(batch), strategy)


def test_an_operation_that_xla_does_not_have_is_an_error(unsupported):
    with pytest.raises(UnsupportedOperation, match="Eig"):
        lower(unsupported, 8)


@pytest.mark.slow
def test_an_operation_that_xla_does_not_have_is_reported(unsupported, monkeypatch):
    def compile_program(hlo, topology):
        return Program(True, 2**34, 2**30, flops=1.0, accessed_bytes=1.0)

    monkeypatch.setattr(tensorflow_steps, "compile_hlo", compile_program)
    with ProgressBar(4, "preflight") as bar:
        preflight = Preflight(tiny.load_config(ONE_BLOCK), parse_topology("v5e:2x4"), CLASSES, 1000, bar)
        preflight.trace()
        preflight.traces["raw"] = unsupported
        preflight.compile()
    report = preflight.make_report()
    (problem,) = (each for each in report["findings"] if each["stops"])
    assert "XLA, and therefore a TPU, does not support" in problem["text"] and "Eig" in problem["text"]
    assert list(report["programs"]) == ["train"] and not report["ready"]
    assert "NOT ready" in format_report(report)


@pytest.mark.parametrize(
    ("kind", "operation", "bad"),
    [
        ("host_operations", "PrintV2", lambda x: tf.print(x)),
        ("host_operations", "EagerPyFunc", lambda x: tf.py_function(lambda v: v, [x], tf.float32)),
        ("host_operations", "Assert", lambda x: tf.debugging.assert_positive(x)),
        ("string_operations", "AsString", lambda x: tf.strings.as_string(x)),
        ("dynamic_shapes", "Where", lambda x: tf.where(x > 0)),
        (
            "dynamic_shapes",
            "Where",
            lambda x: tf.cond(x[0] > 0, lambda: tf.where(x > 0)[0], lambda: tf.zeros([1], tf.int64)),
        ),
    ],
)
def test_operations_that_a_tpu_cannot_run_are_found(kind, operation, bad):
    graph = tf.function(lambda x: [bad(x)] and x, autograph=False).get_concrete_function(tf.TensorSpec([8])).graph
    found = inspect_trace(Trace(None, graph, {}, ()))
    assert any(name.endswith(f"({operation})") for name in found[kind]), found
    assert any(problem.stops for problem in check_step("train", found, 0))


# --------------------------------------------------------------------------------------------------- compiling


def test_the_step_lowers_to_xla(traced):
    """Weights, slots, statistics and EMA are arguments, and their new values are written over them."""
    from jaxlib import xla_client

    text = xla_client.XlaComputation(lower(traced.train, 8)).get_hlo_module().to_string()
    assert text.count(" all-reduce(") == 71
    assert text.count("replica_groups={{0,1,2,3,4,5,6,7}}") == 71
    variables = [v for v in tiny.variables_of(traced.state).values() if "learning_rate" not in v.name]
    assert text.partition("entry_computation_layout")[0].count("-alias)") == len(variables)
    assert f"u8[{BATCH},32,32,3]" in text.partition("->")[0]


@pytest.mark.slow
def test_the_program_of_one_replica_equals_the_step_of_the_loop():
    """XLA runs the program on this CPU. Sums and all variables equal those of a loop whose strategy can run."""
    no_masks = ("model.dropout=0.0", "model.drop_connect=0.0")  # XLA generates other random numbers
    options = (
        "train.precision=float32",
        "train.batch_size=16",
        "optimizer.learning_rate=0.5",
        "schedule.warmup_epochs=0",
    )
    config = tiny.load_config(tiny.SHORT, *no_masks, *options)
    batch = (
        np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype("uint8"),
        np.arange(16, dtype="int32") % 10,
    )
    strategy = make_tracing_strategy(1)
    state = create_state(config, CLASSES, 1000, strategy)
    step = make_step(trace_train(config, state, CLASSES, strategy, 16), 1)

    runnable = tiny.make_strategy(1)
    expected = create_state(config, CLASSES, 1000, runnable)
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    iterator, loop = tiny.distribute(runnable, lambda _: batches), make_train_loop(expected, config, runnable)
    for _ in range(3):
        np.testing.assert_allclose(step(*batch), loop(iterator, tf.constant(1)), rtol=1e-4)
    expected_values = tiny.variables_of(expected)
    for name, variable in tiny.variables_of(state).items():
        value = tiny.replica_values(variable)[0]
        np.testing.assert_allclose(value, expected_values[name].numpy(), rtol=1e-3, atol=1e-4, err_msg=name)
    assert state.step == 3


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v3:2x2", pytest.param("v5e:2x4", marks=pytest.mark.nightly), "v6e:2x4"])
def test_the_tiny_network_compiles(traced, topology):
    topology = parse_topology(topology)
    assert topology.replicas == 8
    program = compile_hlo(lower(traced.train, 8), topology)
    assert program.fits
    assert program.convolutions == program.bfloat16_convolutions >= 3 * 26 - 1  # the images have no gradient
    assert program.all_reduces == 1
    state_bytes = sum(4 * v.shape.num_elements() for v in tiny.variables_of(traced.state).values())
    assert state_bytes < program.argument_bytes < 4 * state_bytes  # a TPU pads its layouts
    assert program.output_bytes < program.argument_bytes / 10  # new values are written over the old ones
    assert program.temporary_bytes > 1e6 and program.code_bytes > 1e6 and program.flops > 4e7
    assert program.used_bytes < program.available_bytes < 40 * 2**30


@needs_compiler
@pytest.mark.slow
def test_the_evaluation_step_compiles(traced):
    topology = parse_topology("v5e:2x4")
    program = compile_hlo(lower(traced.evaluations["ema"], 8), topology)
    assert program.fits and program.all_reduces == 0
    assert program.convolutions == program.bfloat16_convolutions == 26


@needs_compiler
@pytest.mark.slow
def test_the_compiler_finds_that_a_batch_is_too_large(traced):
    topology = parse_topology("v2:2x2")
    program = compile_hlo(lower(traced.trace_train(2**23), 8), topology)
    assert not program.fits and "Ran out of memory" in program.message
    assert 7 * 2**30 < program.available_bytes < 8 * 2**30 < program.used_bytes
    (problem,) = check_program("train", asdict(program), "mixed_bfloat16")
    assert problem.stops


@needs_compiler
@pytest.mark.slow
def test_the_compiler_finds_the_largest_batch():
    """Eight more images do not fit."""
    config = tiny.load_config(ONE_BLOCK, "data.image_size=2048")
    topology, strategy = parse_topology("v5e:1x1"), make_tracing_strategy(1)
    state = create_state(config, CLASSES, 1000, strategy)

    def compile_at(batch):
        trace = trace_train(config, state, CLASSES, strategy, batch)
        return asdict(compile_hlo(lower(trace, 1), topology))

    found = search_batch(compile_at, 32)
    largest, compiled = found["replica_batch"], found["compiled"]
    assert largest == found["batch"] >= 8
    assert compiled[largest] and not compiled[largest + 8]
    assert all(fits == (batch <= largest) for batch, fits in compiled.items())


def test_without_the_compiler_the_error_names_the_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    topology = parse_topology("v5e:2x2")
    with pytest.raises(UserError, match=r"libtpu missing.*pip install 'efficientnet_tf\[preflight\]'"):
        run_preflight(tiny.load_config(), topology)


@needs_compiler
@pytest.mark.slow
def test_a_broken_program_is_a_plain_error():
    with pytest.raises(UserError, match="The TPU compiler failed for v5e:1x1"):
        compile_hlo(b"no program", parse_topology("v5e:1x1"))


# ------------------------------------------------------------------------------------------------- the command


def run(*flags):
    command = [sys.executable, "-m", "efficientnet_tf.preflight", f"--variant={tiny.VARIANT}", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_fast_stops_after_tracing():
    done = run("--topology=v5e:2x4", "--recipe=digits", "--classes=10", "--fast", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ready"] and "programs" not in report
    # A warning: each replica evaluates 15 images, which is not a multiple of 8.
    assert [problem["stops"] for problem in report["findings"]] == [False]
    assert report["batch"] == {"train": 64, "raw": 120} and report["precision"] == "mixed_bfloat16"
    assert len(report["steps"]["train"]["all_reduces"]) == report["gradients"]["count"] + 1 == 71


@needs_compiler
@pytest.mark.slow
def test_the_whole_command():
    done = run(
        "--topology=v5e:1x1", "--recipe=digits", "--batch=8", "--set=eval.batch_size=8", "--largest_batch", "--fast"
    )
    assert done.returncode == 1 and "--fast stops before --largest_batch begins" in done.stderr
    done = run("--topology=v5e:2x2", "--recipe=digits", "--batch=32", "--set=eval.batch_size=32", "--markdown")
    assert done.returncode == 0, done.stderr
    assert "--variant=" in done.stdout and "libtpu 0." in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert "convolutions in bfloat16 77 of 77 26 of 26".split() in lines
    assert "sums over replicas, after joining 1 0".split() in lines
    assert "result fits fits".split() in lines
    assert "Ready. The steps were compiled. Nothing was run on a TPU." in done.stdout


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "convolutions", "sums"),
    [
        (("--topology=v5e:2x4",), "77 of 77", 70 + 32 + 1),  # the gradients, the statistics and the metrics
        # Each of 16 batch norms sums its mean and its variance, in both directions. jaxlib cannot read this program.
        pytest.param(
            *(("--topology=tpu7x:2x2x1", "--set=train.batch_norm_group=2"), "unknown", 70 + 32 + 1 + 2 * 16),
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_the_steps_of_jax_compile(flags, convolutions, sums):
    """The evaluation step has the convolutions twice, for the weights and for their EMA."""
    done = run("--backend=jax", *flags, "--recipe=digits", "--batch=64", "--set=eval.batch_size=64", "--markdown")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert f"convolutions in bfloat16 {convolutions} 52 of 52".split() in lines
    (training,) = (line for line in lines if line[:1] == ["training"] and len(line) == 7)
    assert training[2:6] == ["0", "0", "0", str(sums)]
    assert "JAX traced 8 of 8 equal replicas." in done.stdout
    assert "ERROR" not in done.stdout and ("warning" in done.stdout) == (convolutions == "unknown")


def test_tensorflow_does_not_run_on_the_newest_chips():
    done = run("--topology=tpu7x:2x2x1", "--fast")
    assert done.returncode == 1
    assert "--topology=tpu7x:2x2x1 is a slice for which there is no TensorFlow. Use --backend=jax." in done.stderr


@pytest.mark.slow
def test_a_problem_that_stops_the_run_is_in_the_exit_status():
    done = run("--topology=v5e:2x4", "--batch=60", "--tpu=my-tpu", "--model_dir=runs/a", "--fast")
    assert done.returncode == 1, done.stderr
    assert "ERROR: --model_dir=runs/a is on this machine, where the TPU of --tpu=my-tpu cannot read it." in done.stdout
    assert "ERROR: train.batch_size=60 is not divisible by 8 replicas. Use 64." in done.stdout
    assert "NOT ready. The steps were traced but not compiled" in done.stdout

"""A training run for a TPU, looked at without one: the traced steps, what their compiler says, and the findings."""

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
from efficientnet_tf.preflight import compile as compile_lib
from efficientnet_tf.preflight import lower as lower_lib
from efficientnet_tf.preflight import trace as trace_lib
from efficientnet_tf.preflight.checks import check_program, check_step
from efficientnet_tf.preflight.lower import UnsupportedOperation, make_step
from efficientnet_tf.preflight.report import bound_times, format_report, measured_input, run_preflight, search_batch
from efficientnet_tf.runtime.strategy import device_type, replica_count
from efficientnet_tf.training import tensorflow_loop as step_lib
from efficientnet_tf.training.checkpoint import create_state

CLASSES = 10
ONE_BLOCK = "model.stages=[{kernel: 3, stride: 1, expand: 4, channels: 8, repeats: 1}]"
BATCH, EVAL_BATCH = 8, 16  # of a replica
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install 'efficientnet_tf[preflight]'",
)

# ------------------------------------------------------------------------------------------------------ traced


class Traced:
    """The steps of the tiny network, traced for a TPU of eight replicas."""

    def __init__(self):
        self.config = tiny.load_config("train.ema_decay=0.99")
        self.strategy = trace_lib.make_tracing_strategy(8)
        self.state = create_state(self.config, CLASSES, 1000, self.strategy)
        self.train = self.trace_train(BATCH)
        self.evaluations = trace_lib.trace_eval(self.config, self.state, CLASSES, self.strategy, EVAL_BATCH)
        self.all = {"train": self.train, **self.evaluations}

    def trace_train(self, batch):
        return trace_lib.trace_train(self.config, self.state, CLASSES, self.strategy, batch)


@pytest.fixture(scope="module")
def traced():
    return Traced()


def test_it_is_tensorflows_own_tpu_strategy(traced):
    assert isinstance(traced.strategy, tf.distribute.TPUStrategy)
    assert traced.strategy.num_replicas_in_sync == trace_lib.TRACED_REPLICAS == 2
    assert device_type(traced.strategy) == "TPU"
    assert traced.state.model.get_layer("stem_conv").dtype_policy.name == "mixed_bfloat16"
    for trace in traced.all.values():
        (replicate,) = (op for op in trace.step.get_operations() if op.type == "TPUReplicateMetadata")
        assert replicate.get_attr("num_replicas") == 2


def test_the_loop_is_one_while_around_the_step(traced):
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
        assert trace_lib.inspect_trace(trace)["dynamic_shapes"] == []


def test_no_host_operation_and_no_string(traced):
    for trace in traced.all.values():
        found = trace_lib.inspect_trace(trace)
        assert found["host_operations"] == found["string_operations"] == []


def test_each_gradient_is_summed_once_and_all_statistics_in_one(traced):
    model = traced.state.model
    sums = trace_lib.inspect_trace(traced.train)["all_reduces"]
    statistics = sum(v.shape[0] for v in batch_norm_statistics(model))
    expected = [list(v.shape) for v in model.trainable_variables] + [[statistics]]
    assert len(sums) == 71
    assert sorted(map(str, (each["shape"] for each in sums))) == sorted(map(str, expected))
    assert sum(each["bytes"] for each in sums) == 4 * model.count_params()
    for trace in traced.evaluations.values():
        assert trace_lib.inspect_trace(trace)["all_reduces"] == []


def test_above_eight_replicas_batch_norm_is_over_groups():
    """As `train` would do it there: a sum of moments for each of them, and one of their gradients."""
    config = tiny.load_config(tiny.SHORT)
    strategy = trace_lib.make_tracing_strategy(32)
    assert strategy.num_replicas_in_sync == 2 and replica_count(strategy) == 32
    state = create_state(config, CLASSES, 1000, strategy)
    sums = trace_lib.inspect_trace(trace_lib.trace_train(config, state, CLASSES, strategy, BATCH))["all_reduces"]
    norms = len(batch_norm_statistics(state.model)) // 2
    assert len(sums) == len(state.model.trainable_variables) + 1 + 2 * norms
    # Mean and mean square of each of four groups of eight.
    assert [4, 2, 8] in [each["shape"] for each in sums]


def test_what_xla_does_not_have_is_found(traced, monkeypatch):
    strategy = traced.strategy

    @tf.function(autograph=True)
    def loop(iterator, steps):
        sums = tf.zeros([4])
        for _ in tf.range(steps):
            sums += strategy.reduce("SUM", strategy.run(replica_step, args=next(iterator)), axis=None)
        return sums

    def replica_step(images, labels, weights):
        eigenvalues, _ = tf.linalg.eig(images[0, :4, :4, 0])
        return tf.math.real(eigenvalues) + tf.reduce_sum(weights + tf.cast(labels, tf.float32))

    monkeypatch.setattr(trace_lib, "make_eval_loop", lambda *_: loop)
    trace = trace_lib.trace_eval(traced.config, traced.state, CLASSES, strategy, EVAL_BATCH)["raw"]
    with pytest.raises(UnsupportedOperation, match="Eig"):
        lower_lib.lower(trace, 8)
    # The command goes on: it is a finding.
    monkeypatch.setattr(trace_lib, "trace_eval", lambda *_: {"raw": trace})
    monkeypatch.setattr(trace_lib, "make_tracing_strategy", lambda replicas: strategy)
    monkeypatch.setattr(compile_lib, "require_compiler", lambda: None)
    compiled = asdict(compile_lib.Program(True, 2**34, 2**30, flops=1.0, accessed_bytes=1.0))
    monkeypatch.setattr(compile_lib, "compile_hlo", lambda *_: compile_lib.Program(**compiled))
    report = run_preflight(traced.config, compile_lib.parse_topology("v5e:2x4"), CLASSES, 1000)
    (finding,) = (f for f in report["findings"] if f["stops"])
    assert "XLA, and a TPU with it, does not" in finding["text"] and "Eig" in finding["text"]
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
def test_what_a_tpu_cannot_do_is_found(kind, operation, bad):
    graph = tf.function(lambda x: [bad(x)] and x, autograph=False).get_concrete_function(tf.TensorSpec([8])).graph
    found = trace_lib.inspect_trace(trace_lib.Trace(None, graph, {}, ()))
    assert any(name.endswith(f"({operation})") for name in found[kind]), found
    assert [finding.stops for finding in check_step("training", found, 0)].count(True) >= 1


# ---------------------------------------------------------------------------------------------------- compiled


def lower(traced, trace=None, replicas=8):
    return lower_lib.lower(trace or traced.train, replicas)


def test_the_step_lowers_to_xla(traced):
    """Weights, slots, statistics and averages go in, and new ones come out in their places."""
    from jaxlib import xla_client

    text = xla_client.XlaComputation(lower(traced)).get_hlo_module().to_string()
    assert text.count(" all-reduce(") == 71
    assert text.count("replica_groups={{0,1,2,3,4,5,6,7}}") == 71
    variables = [v for v in tiny.variables_of(traced.state).values() if "learning_rate" not in v.name]
    assert text.partition("entry_computation_layout")[0].count("-alias)") == len(variables)
    assert f"u8[{BATCH},32,32,3]" in text.partition("->")[0]


@pytest.mark.slow
def test_one_replicas_program_is_the_step_of_the_loop():
    """The program, run by XLA on this CPU, against the loop of a strategy that can run: sums and all variables."""
    no_masks = ("model.dropout=0.0", "model.drop_connect=0.0")  # XLA draws others
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
    strategy = trace_lib.make_tracing_strategy(1)
    state = create_state(config, CLASSES, 1000, strategy)
    step = make_step(trace_lib.trace_train(config, state, CLASSES, strategy, 16), 1)

    other = tiny.make_strategy(1)
    expected = create_state(config, CLASSES, 1000, other)
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    iterator, loop = tiny.distribute(other, lambda _: batches), step_lib.make_train_loop(expected, config, other)
    for _ in range(3):
        np.testing.assert_allclose(step(*batch), loop(iterator, tf.constant(1)), rtol=1e-4)
    wanted = tiny.variables_of(expected)
    for name, variable in tiny.variables_of(state).items():
        got = tiny.replica_values(variable)[0]
        np.testing.assert_allclose(got, wanted[name].numpy(), rtol=1e-3, atol=1e-4, err_msg=name)
    assert state.step == 3


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v3:2x2", "v5e:2x4", "v6e:2x4"])
def test_the_tiny_network_compiles(traced, topology):
    topology = compile_lib.parse_topology(topology)
    assert topology.replicas == 8
    program = compile_lib.compile_hlo(lower(traced), topology)
    assert program.fits
    assert program.convolutions == program.bfloat16_convolutions >= 3 * 26 - 1  # of images there are no gradients
    assert program.all_reduces == 1
    state_bytes = sum(4 * v.shape.num_elements() for v in tiny.variables_of(traced.state).values())
    assert state_bytes < program.argument_bytes < 4 * state_bytes  # a TPU's layouts have gaps
    assert program.output_bytes < program.argument_bytes / 10  # new values take the place of old ones
    assert program.temporary_bytes > 1e6 and program.code_bytes > 1e6 and program.flops > 4e7
    assert program.used_bytes < program.available_bytes < 40 * 2**30


@needs_compiler
@pytest.mark.slow
def test_evaluation_compiles(traced):
    topology = compile_lib.parse_topology("v5e:2x4")
    program = compile_lib.compile_hlo(lower(traced, traced.evaluations["ema"]), topology)
    assert program.fits and program.all_reduces == 0
    assert program.convolutions == program.bfloat16_convolutions == 26


@needs_compiler
@pytest.mark.slow
def test_a_batch_that_is_too_large_is_found_so_by_the_compiler(traced):
    topology = compile_lib.parse_topology("v2:2x2")
    program = compile_lib.compile_hlo(lower(traced, traced.trace_train(2**23)), topology)
    assert not program.fits and "Ran out of memory" in program.message
    assert 7 * 2**30 < program.available_bytes < 8 * 2**30 < program.used_bytes
    (finding,) = check_program("train", asdict(program), "mixed_bfloat16")
    assert finding.stops


@needs_compiler
@pytest.mark.slow
def test_the_largest_batch_is_found_by_the_compiler():
    """Eight images more do not fit."""
    config = tiny.load_config(ONE_BLOCK, "data.image_size=2048")
    topology, strategy = compile_lib.parse_topology("v5e:1x1"), trace_lib.make_tracing_strategy(1)
    state = create_state(config, CLASSES, 1000, strategy)

    def compile_at(batch):
        trace = trace_lib.trace_train(config, state, CLASSES, strategy, batch)
        return asdict(compile_lib.compile_hlo(lower(None, trace, 1), topology))

    found = search_batch(compile_at, 32)
    largest, compiled = found["replica_batch"], found["compiled"]
    assert largest == found["batch"] >= 8
    assert compiled[largest] and not compiled[largest + 8]
    assert all(fits == (batch <= largest) for batch, fits in compiled.items())


def test_without_the_compiler_an_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    topology = compile_lib.parse_topology("v5e:2x2")
    with pytest.raises(UserError, match=r"libtpu missing.*pip install 'efficientnet_tf\[preflight\]'"):
        run_preflight(tiny.load_config(), topology)


@needs_compiler
@pytest.mark.slow
def test_a_broken_program_is_one_plain_error():
    with pytest.raises(UserError, match="TPU's compiler failed for v5e:1x1"):
        compile_lib.compile_hlo(b"no program", compile_lib.parse_topology("v5e:1x1"))


# ---------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("name", "numbers"),
    {
        "v3:2x2": (4, 8, 1),
        "v4:2x2x2": (8, 16, 2),
        "v5e:2x4": (8, 8, 1),
        "v5e:4x4": (16, 16, 4),
        "v5p:2x2x1": (4, 4, 1),
        "v6e:1x1": (1, 1, 1),
    }.items(),
)
def test_topology(name, numbers):
    topology = compile_lib.parse_topology(name)
    assert (topology.chips, topology.replicas, topology.hosts) == numbers


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e", "v7:2x2", "", "v5e:2X4"])
def test_unknown_topology(name):
    with pytest.raises(UserError, match=f"--topology={name}: known are .*v5e:2x4.*16x16"):
        compile_lib.parse_topology(name)


def test_the_larger_of_two_times_counts():
    topology = compile_lib.parse_topology("v3:2x2")
    program = {"flops": 61.5e12, "accessed_bytes": 900e9}  # a second of a core, two seconds of half a chip's memory
    assert bound_times(program, topology, 100) == {
        "arithmetic_seconds": pytest.approx(1),
        "memory_seconds": pytest.approx(2),
        "bound_seconds": pytest.approx(2),
        "images_per_second": pytest.approx(50),
        "images_per_second_and_host": pytest.approx(50),
    }
    slice_of_pod = compile_lib.parse_topology("v5e:4x4")
    told = bound_times({"flops": 197e12, "accessed_bytes": 1.0}, slice_of_pod, 100)
    assert (told["images_per_second"], told["images_per_second_and_host"]) == pytest.approx((100, 25))


@pytest.mark.parametrize("start", [1, 8, 64, 1000])
@pytest.mark.parametrize("largest", [0, 7, 8, 15, 100, 512, 5000])
def test_largest_batch(start, largest):
    def compile_at(batch):
        assert batch % 8 == 0
        temporary = 50 + batch  # and 20 whatever the batch
        used = 20 + temporary
        return {
            "fits": batch <= largest,
            "used_bytes": used,
            "temporary_bytes": temporary,
            "available_bytes": 70 + largest,
        }

    found = search_batch(compile_at, start, replicas=4)
    assert (found["replica_batch"], found["batch"]) == (largest // 8 * 8, largest // 8 * 32)
    assert len(found["compiled"]) < 16


def test_measured_input(tmp_path):
    assert measured_input(224, "none", tmp_path / "missing.json") is None
    nearest = measured_input(400, "autoaugment")
    assert (nearest["size"], nearest["threads"], nearest["policy"]) == (380, 4, "autoaugment")


# ------------------------------------------------------------------------------------------------- the command


def run(*flags):
    command = [sys.executable, "-m", "efficientnet_tf.preflight", f"--variant={tiny.VARIANT}", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_fast_ends_after_tracing():
    done = run("--topology=v5e:2x4", "--recipe=digits", "--classes=10", "--fast", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ready"] and report["findings"] and "programs" not in report  # 15 evaluation images a replica: a note
    assert report["batch"] == {"train": 64, "raw": 120} and report["precision"] == "mixed_bfloat16"
    assert len(report["steps"]["train"]["all_reduces"]) == report["gradients"]["count"] + 1 == 71


@needs_compiler
@pytest.mark.slow
def test_all_of_it():
    done = run(
        "--topology=v5e:1x1", "--recipe=digits", "--batch=8", "--set=eval.batch_size=8", "--largest_batch", "--fast"
    )
    assert done.returncode == 1 and "--fast ends before --largest_batch begins" in done.stderr
    done = run("--topology=v5e:2x2", "--recipe=digits", "--batch=32", "--set=eval.batch_size=32", "--markdown")
    assert done.returncode == 0, done.stderr
    assert "--variant=" in done.stdout and "libtpu 0." in done.stdout
    assert "77 of 77 convolutions in bfloat16; sums over replicas joined into 1;" in done.stdout
    assert "26 of 26 convolutions in bfloat16" in done.stdout
    assert "Ready: compiled without a TPU; nothing was run." in done.stdout


@pytest.mark.slow
def test_a_finding_that_stops_is_in_the_exit_status():
    done = run("--topology=v5e:2x4", "--batch=60", "--tpu=my-tpu", "--model_dir=runs/a", "--fast")
    assert done.returncode == 1, done.stderr
    assert "STOPS: --model_dir=runs/a lies on this machine, which --tpu=my-tpu cannot see" in done.stdout
    assert "STOPS: train.batch_size=60 cannot be divided among 8 replicas: take 64." in done.stdout
    assert "NOT ready: traced, not compiled" in done.stdout

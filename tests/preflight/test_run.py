"""Tests of slices, of bounds on time, and of the search for the largest batch, without tracing or compiling."""

import sys

import pytest

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.preflight import compile
from efficientnet_tf.preflight.__main__ import make_parser
from efficientnet_tf.preflight.run import bound_times, measured_input, search_batch
from efficientnet_tf.preflight.topology import parse_topology


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
    topology = parse_topology(name)
    assert (topology.chips, topology.replicas, topology.hosts) == numbers


@pytest.mark.parametrize(
    "name", ["v5e:3x3", "v5e", "v7:2x2", "", "v5e:2X4", "v5e:0x0", "v5e:1000000x1000000", "v5e:axb", "v5e:-2x-2", ":"]
)
def test_unknown_topology(name):
    with pytest.raises(UserError, match=f"topology={name} is not a known slice. Use one of .*v5e:2x4.*16x16"):
        parse_topology(name)


def test_the_message_about_an_unknown_topology_is_short_and_visible():
    for name in ("x" * 10**6, "v5e:2x4\n\x1b[31m"):
        with pytest.raises(UserError, match="is not a known slice") as raised:
            parse_topology(name)
        assert str(raised.value).isprintable() and len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("os.abort()", "killed by SIGABRT: no message"),
        ("sys.exit('no\\x1b[31m such slice')", r"exit status 1: no\\x1b\[31m such slice"),
        ("print('{')", "an answer that is damaged: {"),
        ("print('{\"fits\": true}')", "an answer that is damaged"),
        ("print('[' * 9**6)", "an answer that is damaged"),
        ("pass", "an answer that is damaged: nothing"),
        ("os.write(1, bytes(range(256)))", "an answer that is damaged"),
        ("time.sleep(60)", "killed at its time limit"),
    ],
)
def test_a_compiler_that_dies_or_hangs_or_prints_anything_is_a_sentence(monkeypatch, program, reason):
    monkeypatch.setattr(compile, "COMPILE_SECONDS", 0.5 if "sleep" in program else 60.0)
    command = (sys.executable, "-c", f"import os, sys, time\n{program}\n")
    with pytest.raises(UserError, match=f"^The TPU compiler failed for v5e:1x1 with {reason}") as raised:
        compile.compile_hlo(b"program", parse_topology("v5e:1x1"), command)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 2000


def test_what_the_compiler_answers_last_is_the_program():
    answer = '{"fits": false, "available_bytes": 3, "used_bytes": 4}'
    command = (sys.executable, "-c", f"print('noise'); print({answer!r})")
    assert compile.compile_hlo(b"", parse_topology("v5e:1x1"), command) == compile.Program(False, 3, 4)


@pytest.mark.parametrize("value", ["0", "1", "1000001", "100000000000000000000", "nan"])
def test_numbers_of_classes_out_of_range_are_refused(value, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--topology=v5e:1x1", f"--classes={value}"])
    assert "--classes: invalid integer from 2 to 1000000" in capsys.readouterr().err


def test_the_bound_is_the_larger_of_two_times():
    topology = parse_topology("v3:2x2")
    # One second of a core, and two seconds of half a chip's bandwidth.
    program = {"flops": 61.5e12, "accessed_bytes": 900e9}
    assert bound_times(program, topology, 100) == {
        "arithmetic_seconds": pytest.approx(1),
        "memory_seconds": pytest.approx(2),
        "bound_seconds": pytest.approx(2),
        "images_per_second": pytest.approx(50),
        "images_per_second_and_host": pytest.approx(50),
    }
    slice_of_pod = parse_topology("v5e:4x4")
    bounds = bound_times({"flops": 197e12, "accessed_bytes": 1.0}, slice_of_pod, 100)
    assert (bounds["images_per_second"], bounds["images_per_second_and_host"]) == pytest.approx((100, 25))


@pytest.mark.parametrize("start", [1, 8, 64, 1000])
@pytest.mark.parametrize("largest", [0, 7, 8, 15, 100, 512, 5000])
def test_largest_batch(start, largest):
    def compile_at(batch):
        assert batch % 8 == 0
        temporary = 50 + batch  # in addition to 20 at any batch
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
    for content in (b"", b"\xff", b"[]", b'{"rows": []}', b'{"rows": [{"policy": "none"}]}'):
        (tmp_path / "damaged.json").write_bytes(content)
        assert measured_input(224, "none", tmp_path / "damaged.json") is None
    nearest = measured_input(400, "autoaugment")
    assert (nearest["size"], nearest["threads"], nearest["policy"]) == (380, 4, "autoaugment")

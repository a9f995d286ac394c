"""Tests of slices, of bounds on time, and of the search for the largest batch, without tracing or compiling."""

import pytest

from efficientnet_tf.config.errors import UserError
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


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e", "v7:2x2", "", "v5e:2X4"])
def test_unknown_topology(name):
    with pytest.raises(UserError, match=f"topology={name} is not a known slice. Use one of .*v5e:2x4.*16x16"):
        parse_topology(name)


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
    nearest = measured_input(400, "autoaugment")
    assert (nearest["size"], nearest["threads"], nearest["policy"]) == (380, 4, "autoaugment")

"""Memory of this process and of others, as the system reports it."""

import subprocess
import sys

import numpy as np
import pytest

from efficientnet_tf.runtime.hardware import (
    available_cores,
    available_memory_bytes,
    describe_hardware,
    peak_bytes,
    resident_bytes,
    track_peak_bytes,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports these values")
MIB = 2**20


def test_peak_within_a_block():
    with track_peak_bytes() as peak:
        start = resident_bytes()
        np.ones(64 * MIB, np.uint8)
    assert len(peak) == 1 and 60 * MIB < peak[0] - start < 200 * MIB
    assert peak[0] <= peak_bytes() < available_memory_bytes() + 2**40


def test_errors_within_a_block_pass():
    with pytest.raises(FileNotFoundError), track_peak_bytes():
        raise FileNotFoundError


def test_peak_of_another_process():
    program = "data = bytearray(64 * 2**20); del data; print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        assert 64 * MIB < peak_bytes(process.pid) < 128 * MIB
        process.communicate("\n")
    assert peak_bytes(process.pid) is None


def test_description_of_the_hardware():
    described = describe_hardware()
    assert described["cores"] == available_cores() >= 1 and described["cpu"]

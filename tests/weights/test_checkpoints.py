"""TensorFlow checkpoints whose index lies, and weight files that need much memory."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import hostile_weights as hostile
import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.weights.checkpoints import list_checkpoint
from efficientnet_tf.weights.formats import read_weights

SHAPES = {"x/kernel": (1,), "y/kernel": (2, 3)}


@pytest.mark.parametrize("name", hostile.CHECKPOINTS)
def test_hostile_index(name, tmp_path):
    entries, options, message = hostile.CHECKPOINTS[name]
    prefix = hostile.write_checkpoint(tmp_path, entries, **options)
    with pytest.raises(UserError, match=message) as raised:
        read_weights(prefix, SHAPES)
    assert "\n" not in str(raised.value)


def test_valid_index_is_read_as_tensorflow_reads_it(tmp_path):
    prefix = hostile.write_checkpoint(tmp_path, {"x/kernel": ((1,), 0, 4)})
    assert tf.train.load_checkpoint(prefix).get_variable_to_shape_map() == {"x/kernel": [1]}
    assert list_checkpoint(prefix)["x/kernel"].shape == (1,)
    values = {f"layer{i}/kernel": np.random.default_rng(i).normal(size=(i, 2)).astype("f") for i in range(1, 300)}
    saved = tf.train.Checkpoint(values={name.replace("/", "_"): tf.Variable(v) for name, v in values.items()})
    prefix = saved.write(str(tmp_path / "many"))
    listed = list_checkpoint(prefix)
    shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    assert {name: list(tensor.shape) for name, tensor in listed.items()} == shapes
    name = "values/layer7_kernel/.ATTRIBUTES/VARIABLE_VALUE"
    np.testing.assert_array_equal(listed[name].read(), values["layer7/kernel"])


def test_damage_in_every_part_of_a_checkpoint_is_an_error_or_changes_nothing(tmp_path):
    prefix = tf.train.Checkpoint(x=tf.Variable([1.5]), y=tf.Variable(np.ones([2, 3], "f"))).write(str(tmp_path / "c"))
    name = "x/.ATTRIBUTES/VARIABLE_VALUE"
    for file in (f"{prefix}.index", f"{prefix}.data-00000-of-00001"):
        content = Path(file).read_bytes()
        for at in {*range(0, len(content), 7), *range(len(content) - 50, len(content))}:
            if 0 <= at < len(content):
                Path(file).write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
                try:
                    loaded = read_weights(prefix, {name: (1,)}, average=False)
                except UserError:
                    continue
                assert not isinstance(loaded.values.get(name), np.ndarray) or loaded.values[name].tolist() == [1.5]
        for size in range(0, len(content), 29):
            Path(file).write_bytes(content[:size])
            with pytest.raises(UserError):
                read_weights(prefix, {name: (1,)}, average=False)
        Path(file).write_bytes(content)


_MEASURE = """
import json, sys
import tensorflow, keras
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.models.builder import build_model
from efficientnet_tf.weights.load import load_weights
model = build_model(sys.argv[1], 3, (32, 32, 3))
def peak():  # ru_maxrss would begin with the peak of the process that started this one
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
before = peak()
results = {}
for name, path in json.load(sys.stdin).items():
    try:
        load_weights(model, path)
        message = "loaded"
    except UserError as error:
        message = str(error)
    results[name] = peak(), message
print(json.dumps([before, results]))
"""


@pytest.mark.slow
def test_bombs_stay_below_the_memory_limit(tmp_path):
    """All in one process, so that the peak of each counts for those after it."""
    paths = hostile.bombs(tmp_path)
    command = [sys.executable, "-c", _MEASURE, str(Path(__file__).parents[1] / "tiny.yaml")]
    done = subprocess.run(command, input=json.dumps(paths), capture_output=True, text=True, check=True, timeout=900)
    before, results = json.loads(done.stdout.splitlines()[-1])
    assert results.keys() == paths.keys()
    for name, (peak, message) in results.items():
        print(f"{name:26} {peak:7.0f} MiB (before: {before:.0f})  {message[:150]!r}")
        assert message != "loaded" and peak < 1500, name


@pytest.mark.parametrize("name", ["out.weights.h5", "out.keras"])
def test_full_disk_leaves_nothing_behind(name, tmp_path, capfd):
    from efficientnet_tf import build_model
    from efficientnet_tf.weights.convert import convert_weights

    tiny = str(Path(__file__).parents[1] / "tiny.yaml")
    build_model(tiny, 3, (32, 32, 3)).save_weights(tmp_path / "source.weights.h5")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(UserError, match=f"^output=.*{name} cannot be written: File too large\\.$"):
            convert_weights(tiny, str(tmp_path / "source.weights.h5"), str(tmp_path / name))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ["source.weights.h5"]
    assert "Traceback" not in capfd.readouterr().err

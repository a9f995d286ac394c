"""TensorFlow and Keras are imported without optional libraries, which stay available to everything else."""

import os
import subprocess
import sys

import pytest

from efficientnet_tf.runtime.backend import BACKENDS
from efficientnet_tf.runtime.imports import faster_imports

# Names of hidden libraries that are loaded after TensorFlow, and whether the rest of the process can use them.
SCRIPT = """
import sys
from efficientnet_tf.runtime.imports import OPTIONAL, faster_imports
with faster_imports():
    import keras
    print(*(name for name in OPTIONAL if name in sys.modules))
    import matplotlib, scipy.stats, sklearn.datasets
    print(float(keras.ops.sum(keras.layers.Dense(2)(keras.ops.zeros([1, 3])))))
import jax
"""


@pytest.mark.tensorflow
@pytest.mark.parametrize("backend", [BACKENDS[0], pytest.param(BACKENDS[1], marks=pytest.mark.slow)])
def test_optional_libraries_are_hidden_only_from_tensorflow_and_keras(backend):
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded, result = done.stdout.splitlines()
    assert loaded.split() == (["jax", "scipy"] if backend == "jax" else [])
    assert float(result) == 0


def test_nothing_stays_behind():
    before = list(sys.meta_path)
    with pytest.raises(KeyError), faster_imports():
        assert sys.meta_path[1:] == before
        raise KeyError
    assert sys.meta_path == before

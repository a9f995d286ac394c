"""Packaging. `configs/` stands at the top of the tree and is shipped inside the package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "efficientnet_tf/__init__.py").read_text()).group(1)

EXTRAS = {
    # TensorFlow is an extra: each of its wheels fills the same folder, so a machine has exactly one of them.
    "cpu": ["tensorflow-cpu>=2.19,<2.22"],
    "gpu": ["tensorflow[and-cuda]>=2.19,<2.22"],
    # Later tensorflow-tpu wheels pull a libtpu that they cannot load.
    "tpu": ["tensorflow-tpu==2.19.1", "cloud-tpu-client==0.10"],
    "weights": ["safetensors>=0.4,<1"],
    "beam": ["apache-beam>=2.60,<3"],
    "study": ["optuna>=4.5,<6", "plotly>=6,<8", "matplotlib>=3.9,<4"],
    "picture": ["matplotlib>=3.9,<4"],
    # The TPU's compiler, for machines without a TPU: with tensorflow-tpu it does not go together.
    "preflight": ["jax==0.10.2", "jaxlib==0.10.2", "libtpu==0.0.52"],
    "litert": ["ai-edge-litert>=2.1,<3"],
    "onnx": ["onnx>=1.18,<2", "tf2onnx>=1.17,<2", "onnxruntime>=1.22,<2"],
    "openvino": ["openvino>=2025.4", "nncf>=3.0,<4"],
    "wandb": ["wandb>=0.20,<1"],
    "test": [
        "pytest>=8,<10",
        "pytest-xdist>=3.7,<4",
        "hypothesis>=6.100,<7",
        "pillow>=10,<14",
        "safetensors>=0.4,<1",
        "jax>=0.4.30,<1",
        "optuna>=4.5,<6",
        "plotly>=6,<8",
        "matplotlib>=3.9,<4",
        "wandb>=0.20,<1",
        "ai-edge-litert>=2.1,<3",
        "onnx>=1.18,<2",
        "tf2onnx>=1.17,<2",
        "onnxruntime>=1.22,<2",
        "openvino>=2025.4",
        "nncf>=3.0,<4",
        "playwright>=1.50,<2",
        "ruff==0.17.6",
        "import-linter>=2.3,<3",
        "setuptools>=64",
        "wheel",
    ],
}

setup(
    name="efficientnet_tf",
    version=VERSION,
    description="EfficientNet and compound scaling on TensorFlow and Keras 3: TPU, GPU and CPU by the same code",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["efficientnet_tf*"]),
        "efficientnet_tf.configs",
        "efficientnet_tf.configs.recipes",
    ],
    package_dir={"efficientnet_tf.configs": "configs"},
    package_data={
        "efficientnet_tf.study": ["page.html"],
        "efficientnet_tf.configs": ["*.yaml"],
        "efficientnet_tf.configs.recipes": ["*.yaml"],
    },
    install_requires=[
        "keras>=3.15,<3.16",
        "tensorflow-datasets>=4.9.7,<5",
        "importlib_resources>=6,<8",  # tensorflow-datasets imports it and does not ask for it
        "absl-py>=2.1,<3",
        "pydantic>=2.9,<3",
        "PyYAML>=6.0.1,<7",
        "numpy>=1.26,<3",
        "h5py>=3.11,<4",
        "scikit-learn>=1.5,<2",
        "tqdm>=4.66,<5",
        "tensorboard>=2.19,<2.22",
    ],
    extras_require=EXTRAS,
)

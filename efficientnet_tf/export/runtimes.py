"""Opens exported files in their own runtimes: LiteRT, ONNX Runtime and OpenVINO. Imports no TensorFlow.

Each opener takes the path and the precision of a file. It returns a function from pixels, float32 [N, H, W, C], to
logits, float32 [N, classes], and the shape [H, W, C] of an image.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from efficientnet_tf.runtime.hardware import available_cores

Runner = tuple[Callable[[Any], Any], list[int]]

# The text of an ONNX file whose input and output are integers, as {tensor: {"type", "scale", "zero_point"}}.
INTEGERS = "io.json"

# What OpenVINO computes in. Without a hint, it computes float32 networks in bfloat16 where the processor can.
_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def open_litert(path: str, precision: str) -> Runner:
    """Open a `.tflite` file."""
    from ai_edge_litert.interpreter import Interpreter

    # The signature runner takes batches of any size. The interpreter would keep a path open, so it gets the content.
    with open(path, "rb") as file:
        runner = Interpreter(model_content=file.read(), num_threads=available_cores()).get_signature_runner()
    image, logits = runner.get_input_details()["image"], runner.get_output_details()["logits"]
    shape = list(map(int, image["shape"][1:]))
    if image["dtype"] == np.float32:
        return lambda images: runner(image=images)["logits"], shape

    def compute_logits(images):
        integers = to_integers(images, image["dtype"], *image["quantization"])
        return to_floats(runner(image=integers)["logits"], *logits["quantization"])

    return compute_logits, shape


def open_onnx(path: str, precision: str) -> Runner:
    """Open an `.onnx` file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 4  # its errors are raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape[1:]
    text = session.get_modelmeta().custom_metadata_map.get(INTEGERS)
    if not text:
        return lambda images: session.run(["logits"], {"image": images})[0], shape
    image, logits = (json.loads(text)[name] for name in ("image", "logits"))

    def compute_logits(images):
        integers = to_integers(images, image["type"], image["scale"], image["zero_point"])
        return to_floats(session.run(["logits"], {"image": integers})[0], logits["scale"], logits["zero_point"])

    return compute_logits, shape


def open_openvino(path: str, precision: str) -> Runner:
    """Open an `.xml` file, which has its weights in a `.bin` file."""
    import openvino

    hint = _HINTS.get(precision)
    network = openvino.Core().read_model(path)
    compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": hint} if hint else {})
    shape = [side.get_length() for side in list(network.input(0).partial_shape)[1:]]
    return lambda images: compiled(images)[0], shape


def to_integers(values: Any, dtype: Any, scale: float, zero_point: int) -> np.ndarray:
    """Return float values as the integers that stand for them."""
    limits = np.iinfo(dtype)
    return np.clip(np.round(values / scale) + zero_point, limits.min, limits.max).astype(dtype)


def to_floats(integers: Any, scale: float, zero_point: int) -> np.ndarray:
    """Return the values that integers stand for, float32."""
    return (integers.astype(np.float32) - zero_point) * np.float32(scale)


@contextlib.contextmanager
def disable_telemetry() -> Iterator[None]:
    """Keep OpenVINO's converter and NNCF from reporting their use to Intel within the block.

    Without a network, each report takes seconds. Neither library has an option for this, but both send nothing in a CI
    job, which they recognize by these variables.
    """
    variables = {"CI": "true", "NNCF_CI": "1"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

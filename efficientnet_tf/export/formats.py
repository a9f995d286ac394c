"""The file formats of LiteRT, ONNX Runtime and OpenVINO: what each can hold, and how it is written and opened.

Every exported network takes `image`, float32 [N, S, S, C] with pixels in [0, 255] and any N, and returns `logits`,
float32 [N, classes]. Each file also holds the texts config.yaml, classes.txt and precision, from which `load_model` and
`evaluate` know how to use it. They are stored as follows:

    .tflite      a zip archive after the network, where LiteRT keeps its label files: `unzip -p FILE classes.txt`
    .onnx        metadata_props
    .xml, .bin   rt_info, section efficientnet_tf
"""

import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.export import litert, onnx, openvino

TEXTS = ("config.yaml", "classes.txt", "precision")


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: Name of the runtime.
        extra: Extra of this package that installs the runtime.
        precisions: Precisions in which the format can be written.
        write_modules: Modules that writing needs.
        quantize_modules: Modules that writing in int8 needs in addition.
        run_module: Module of the runtime.
        write: Writes a file, given (model, path, precision, calibration images, names of layers to keep in float,
            texts by name).
        open: Opens a file, given its path. Returns a function from pixels to logits, and the texts by name.
    """

    name: str
    extra: str
    precisions: tuple[str, ...]
    write_modules: tuple[str, ...]
    quantize_modules: tuple[str, ...]
    run_module: str
    write: Callable
    open: Callable


def find_format(path: str) -> Format | None:
    """Return the format that a file name's suffix means, or None."""
    return FORMATS.get(os.path.splitext(path)[1])


def require_packages(kind: Format, precision: str) -> None:
    """Raise a UserError if a package that writing in this precision needs is not installed."""
    _import(kind, *kind.write_modules, *(kind.quantize_modules if precision == "int8" else ()))


def open_export(path: str) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]:
    """Open an exported file in its own runtime.

    Args:
        path: Path of a local file.

    Returns:
        A function from pixels, float32 [N, S, S, C] in [0, 255], to logits, float32 [N, classes], and the texts of the
        file by name.

    Raises:
        UserError: If the runtime is not installed or cannot read the file, or if the file lacks texts.
    """
    kind = find_format(path)
    if kind is None:
        raise UserError(f"{path} is not an exported file. Its name must end in {', '.join(FORMATS)}.")
    _import(kind, kind.run_module)
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file.")
    try:
        compute_logits, texts = kind.open(path)
    except Exception as error:  # each runtime raises types of its own
        raise UserError(f"{path} cannot be opened by {kind.name}: {str(error)[:300]}") from None
    missing = [name for name in TEXTS if name not in texts]
    if missing:
        raise UserError(
            f"{path} was not written by efficientnet_tf.export because it does not contain {', '.join(missing)}."
        )
    lock = threading.Lock()

    def compute_one_by_one(images):  # the replicas of an evaluation call concurrently, which not every runtime allows
        with lock:
            return compute_logits(images)

    return compute_one_by_one, texts


def _import(kind, *modules):
    for name in modules:
        try:
            with openvino.disable_telemetry():
                importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"{kind.name} needs the module {name} ({error}). Run pip install 'efficientnet_tf[{kind.extra}]'."
            ) from None


FORMATS = {
    ".tflite": Format(
        name="LiteRT",
        extra="litert",
        precisions=("float32", "float16", "dynamic", "int8"),
        write_modules=("ai_edge_litert.interpreter",),
        quantize_modules=(),
        run_module="ai_edge_litert.interpreter",
        write=litert.write,
        open=litert.open_file,
    ),
    ".onnx": Format(
        name="ONNX Runtime",
        extra="onnx",
        precisions=("float32", "float16", "int8"),
        write_modules=("onnx", "tf2onnx", "onnxruntime"),
        quantize_modules=(),
        run_module="onnxruntime",
        write=onnx.write,
        open=onnx.open_file,
    ),
    ".xml": Format(
        name="OpenVINO",
        extra="openvino",
        precisions=("float32", "float16", "bfloat16", "int8"),
        write_modules=("openvino",),
        quantize_modules=("nncf",),
        run_module="openvino",
        write=openvino.write,
        open=openvino.open_file,
    ),
}

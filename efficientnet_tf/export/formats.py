"""Files for the runtimes that deploy a network, LiteRT, ONNX Runtime and OpenVINO: written, and opened again.

Each takes `image`, float32 [N, S, S, C], pixels in [0, 255], N of any size, and gives `logits`, float32 [N, classes].
Beside the network it holds three texts, by which `evaluate` knows it: config.yaml, classes.txt and precision.

    .tflite      a zip archive behind the network, where LiteRT keeps its label files: `unzip -p FILE classes.txt`
    .onnx        metadata_props
    .xml, .bin   rt_info, section efficientnet_tf
"""

import importlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.export import litert, onnx, openvino

TEXTS = ("config.yaml", "classes.txt", "precision")


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: of the runtime.
        extra: of this package, which installs it.
        precisions: what it can be written in.
        writes: modules that writing takes; int8 takes `quantises` as well.
        runs: the runtime's module.
        write: from (model, path, precision, calibration, keep_float, texts) to nothing.
        open: from a path to (function from pixels to logits, {name: text}).
    """

    name: str
    extra: str
    precisions: tuple[str, ...]
    writes: tuple[str, ...]
    quantises: tuple[str, ...]
    runs: str
    write: Callable
    open: Callable


def find_format(path):
    """Return the Format that a file's name ends in, or None."""
    return FORMATS.get(os.path.splitext(path)[1])


def require_packages(kind, precision):
    """Raise UserError where something is not installed that writing in this precision takes."""
    _import(kind, *kind.writes, *(kind.quantises if precision == "int8" else ()))


def open_export(path):
    """Open a file that this module has written, in its own runtime.

    Args:
        path: str, local.

    Returns:
        (function from pixels, float32 [N, S, S, C] in [0, 255], to logits, float32 [N, classes]; {name: text}).

    Raises:
        UserError: when the runtime is not installed, or it cannot read the file, or the texts are not in it.
    """
    kind = find_format(path)
    _import(kind, kind.runs)
    if not os.path.isfile(path):
        raise UserError(f"{path} is not a file")
    try:
        logits_of, texts = kind.open(path)
    except Exception as error:  # each runtime has types of its own
        raise UserError(f"{path} cannot be opened by {kind.name}: {str(error)[:300]}") from None
    missing = [name for name in TEXTS if name not in texts]
    if missing:
        raise UserError(f"{path} was not written by export: it holds no {', '.join(missing)}")
    lock = threading.Lock()

    def one_by_one(images):  # replicas of an evaluation ask at the same time, which not every runtime can
        with lock:
            return logits_of(images)

    return one_by_one, texts


def _import(kind, *modules):
    for name in modules:
        try:
            with openvino.no_telemetry():
                importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"{kind.name} needs {name} ({error}): pip install 'efficientnet_tf[{kind.extra}]'"
            ) from None


FORMATS = {
    ".tflite": Format(
        name="LiteRT",
        extra="litert",
        precisions=("float32", "float16", "dynamic", "int8"),
        writes=("ai_edge_litert.interpreter",),
        quantises=(),
        runs="ai_edge_litert.interpreter",
        write=litert.write,
        open=litert.open_file,
    ),
    ".onnx": Format(
        name="ONNX Runtime",
        extra="onnx",
        precisions=("float32", "float16", "int8"),
        writes=("onnx", "tf2onnx", "onnxruntime"),
        quantises=(),
        runs="onnxruntime",
        write=onnx.write,
        open=onnx.open_file,
    ),
    ".xml": Format(
        name="OpenVINO",
        extra="openvino",
        precisions=("float32", "float16", "bfloat16", "int8"),
        writes=("openvino",),
        quantises=("nncf",),
        runs="openvino",
        write=openvino.write,
        open=openvino.open_file,
    ),
}

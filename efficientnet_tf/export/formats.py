"""The file formats of LiteRT, ONNX Runtime and OpenVINO: what each can hold, and how it is written and opened.

Only writing files imports TensorFlow.

Every exported network takes `image`, float32 [N, H, W, C] with pixels in [0, 255] and any N, and returns `logits`,
float32 [N, classes]. In int8, both can be integers that stand for these values. Each file also holds the texts
config.yaml, classes.txt and precision, from which `load_model` and `evaluate` know how to use it, and record.json, by
which they notice changes (see `record`). They are stored as follows:

    .tflite      a zip archive after the network, where LiteRT keeps its label files: `unzip -p FILE classes.txt`
    .onnx        metadata_props
    .xml, .bin   rt_info, section efficientnet_tf
"""

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import parse_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import decode_text, escape
from efficientnet_tf.export import runtimes
from efficientnet_tf.export.metadata import RECORD, check_size, read_metadata
from efficientnet_tf.export.record import check_record
from efficientnet_tf.models.run_directory import parse_class_names
from efficientnet_tf.scaling.complexity import count_cost


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: Name of the runtime.
        extra: Extra of this package that installs the runtime.
        precisions: Precisions in which the format can be written.
        io: Types that the input and the output of a network in int8 can have.
        write_modules: Modules that writing needs.
        run_module: Module of the runtime.
        writer: Module of this package with the function `write`. It imports TensorFlow.
        open: Opens a file, see `runtimes`.
    """

    name: str
    extra: str
    precisions: tuple[str, ...]
    io: tuple[str, ...]
    write_modules: tuple[str, ...]
    run_module: str
    writer: str
    open: Callable[[str, str], runtimes.Runner]

    @property
    def write(self) -> Callable:
        """Writes a file, given (model, path, precision, texts, io). In int8, the model is one of `int8_network`."""
        return importlib.import_module(self.writer).write


def find_format(path: str) -> Format | None:
    """Return the format that a file name's suffix means, or None."""
    return FORMATS.get(os.path.splitext(path)[1])


def check_packages(kind: Format) -> None:
    """Raise a UserError if a package that writing needs is not installed. Nothing is imported."""
    for name in kind.write_modules:
        if importlib.util.find_spec(name.partition(".")[0]) is None:
            raise _explain_missing(kind, name, "it is not installed")


def require_packages(kind: Format) -> None:
    """Raise a UserError if a package that writing needs cannot be imported."""
    _import(kind, *kind.write_modules)


@dataclass(frozen=True)
class Export:
    """An exported file that is open in its own runtime.

    Attributes:
        compute_logits: Function from pixels, float32 [N, H, W, C] in [0, 255], to logits, float32 [N, classes].
        config: Config of the run that trained the network.
        class_names: The class names, in the order of the logits.
        texts: The texts of the file by name.
    """

    compute_logits: Callable[[np.ndarray], np.ndarray]
    config: Config
    class_names: list[str]
    texts: dict[str, str]


def open_export(path: str) -> Export:
    """Open an exported file in its own runtime, after checking that it is what was written.

    Args:
        path: Path of a local file.

    Raises:
        UserError: If the runtime is not installed or cannot read the file, if the file was not written by this package,
            or if its network, its config and its class names do not belong together.
    """
    kind = find_format(path)
    if kind is None:
        raise UserError(f"{escape(path)} is not an exported file. Its name must end in {', '.join(FORMATS)}.")
    _import(kind, kind.run_module)
    config, class_names, texts = read_exported(path)
    try:
        compute_logits, shape = kind.open(path, texts["precision"])
        if shape != list(config.input_shape):
            raise ValueError(f"its network takes images {shape}, but its config.yaml says {list(config.input_shape)}")
        logits = compute_logits(np.zeros([1, *config.input_shape], np.float32))
    except Exception as error:  # each runtime raises types of its own
        reason = " ".join(escape(str(error)).split())[:300]
        raise UserError(f"{escape(path)} cannot be opened by {kind.name}: {reason}") from None
    if logits.shape != (1, len(class_names)) or logits.dtype != np.float32:
        raise UserError(
            f"{escape(path)}: the network returns {logits.dtype} {list(logits.shape)} for one image, but classes.txt "
            f"has {len(class_names)} names. Export the model again."
        )
    lock = threading.Lock()

    def compute_one_by_one(images):  # the replicas of an evaluation call concurrently, which not every runtime allows
        if not len(images):  # which not every runtime accepts
            return np.zeros([0, len(class_names)], np.float32)
        with lock:
            return compute_logits(images)

    return Export(compute_one_by_one, config, class_names, texts)


def read_exported(path: str) -> tuple[Config, list[str], dict[str, str]]:
    """Return the config, the class names and all texts of an exported file, without its runtime.

    Raises:
        UserError: If the file was not written by this package, or if its network, its config and its class names do not
            belong together.
    """
    metadata = read_metadata(path)
    texts = {name: decode_text(text.encode(), f"{path}, {name}") for name, text in metadata.texts.items()}
    config = parse_config(texts["config.yaml"], f"{path}, config.yaml")
    class_names = parse_class_names(texts["classes.txt"], f"{path}, classes.txt")
    cost = count_cost(config.model, config.image_size, len(class_names), config.data.channels)
    check_size(path, metadata, cost["total"].total_params)
    check_record(path, texts.get(RECORD), config, class_names, metadata.compute_digest())
    return config, class_names, texts


def _import(kind, *modules):
    for name in modules:
        try:
            with runtimes.disable_telemetry():
                importlib.import_module(name)
        except ImportError as error:
            raise _explain_missing(kind, name, error) from None


def _explain_missing(kind, name, reason):
    return UserError(
        f"{kind.name} needs the module {name} ({reason}). Run pip install 'efficientnet_tf[{kind.extra}]'."
    )


FORMATS = {
    ".tflite": Format(
        name="LiteRT",
        extra="litert",
        precisions=("float32", "float16", "dynamic", "int8"),
        io=("float32", "int8", "uint8"),
        write_modules=("ai_edge_litert.interpreter",),
        run_module="ai_edge_litert.interpreter",
        writer="efficientnet_tf.export.litert",
        open=runtimes.open_litert,
    ),
    ".onnx": Format(
        name="ONNX Runtime",
        extra="onnx",
        precisions=("float32", "float16", "int8"),
        io=("float32", "int8", "uint8"),
        write_modules=("onnx", "tf2onnx", "onnxruntime"),
        run_module="onnxruntime",
        writer="efficientnet_tf.export.onnx",
        open=runtimes.open_onnx,
    ),
    ".xml": Format(
        name="OpenVINO",
        extra="openvino",
        precisions=("float32", "float16", "bfloat16", "int8"),
        io=("float32",),
        write_modules=("openvino",),
        run_module="openvino",
        writer="efficientnet_tf.export.openvino",
        open=runtimes.open_openvino,
    ),
}

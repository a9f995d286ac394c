"""Files for the runtimes that deploy a network, LiteRT, ONNX Runtime and OpenVINO: written, and opened again.

Each takes `image`, float32 [N, S, S, C], pixels in [0, 255], N of any size, and gives `logits`, float32 [N, classes].
Beside the network it holds three texts, by which `evaluate` knows it: config.yaml, classes.txt and precision.

    .tflite      a zip archive behind the network, where LiteRT keeps its label files: `unzip -p FILE classes.txt`
    .onnx        metadata_props
    .xml, .bin   rt_info, section efficientnet_tf
"""

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import numpy as np

from efficientnet_tf.config import UserError
from efficientnet_tf.int8 import fingerprint, float_region, kernels_of

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


def format_of(path):
    """Return the Format that a file's name ends in, or None."""
    return FORMATS.get(os.path.splitext(path)[1])


def require(kind, precision):
    """Raise UserError where something is not installed that writing in this precision takes."""
    _import(kind, *kind.writes, *(kind.quantises if precision == "int8" else ()))


def open_artefact(path):
    """Open a file that this module has written, in its own runtime.

    Args:
        path: str, local.

    Returns:
        (function from pixels, float32 [N, S, S, C] in [0, 255], to logits, float32 [N, classes]; {name: text}).

    Raises:
        UserError: when the runtime is not installed, or it cannot read the file, or the texts are not in it.
    """
    kind = format_of(path)
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
            with _no_telemetry():
                importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"{kind.name} needs {name} ({error}): pip install 'efficientnet_tf[{kind.extra}]'"
            ) from None


def _no_telemetry():
    """Keep OpenVINO's converter and NNCF from telling Intel of each use, which takes seconds where nobody answers."""
    return mock.patch.dict(os.environ, CI="true", NNCF_CI="1")


# ------------------------------------------------------------------------------------------------- LiteRT


def _write_litert(model, path, precision, calibration, keep_float, texts):
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: ([image] for image in calibration)
        content = _litert_partly_float(converter, model, keep_float) if keep_float else converter.convert()
    with open(path, "wb") as file:
        file.write(content)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)


def _litert_partly_float(converter, model, keep_float):
    """Return the network in int8 but for some layers: what TensorFlow's debugger of quantised networks is there for."""
    import tensorflow as tf

    with warnings.catch_warnings():  # it runs an interpreter of TensorFlow's, which has moved to another package
        warnings.simplefilter("ignore")
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=converter.representative_dataset
        )
        region = float_region(_litert_operations(debugger.calibrated_model, kernels_of(model)), keep_float)
        debugger.options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=sorted(region))
        return debugger.get_nondebug_quantized_model()


def _litert_operations(content, layer_of):
    """Return the `operations` of `int8.float_region`, each by the name of the tensor that it makes."""
    from ai_edge_litert import schema_py_generated as schema

    network = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = network.subgraphs
    maker = {tensor: operator for operator in graph.operators for tensor in operator.outputs}

    def name(operator):
        return graph.tensors[operator.outputs[0]].name.decode()

    def layer(operator):
        data = [network.buffers[graph.tensors[i].buffer].data for i in operator.inputs if i >= 0 and i not in maker]
        kernels = [np.asarray(d, np.uint8).view(np.float32) for d in data if d is not None and len(d) % 4 == 0]
        return next((layer_of[f] for f in map(fingerprint, kernels) if f in layer_of), None)

    return {name(o): ([name(maker[i]) for i in o.inputs if i in maker], layer(o)) for o in graph.operators}


def _open_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    # The runner takes batches of any size; a path would be read as long as the interpreter lives.
    with open(path, "rb") as file:
        runner = Interpreter(model_content=file.read(), num_threads=_threads()).get_signature_runner()
    texts = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            texts = {name: archive.read(name).decode() for name in archive.namelist()}
    return lambda images: runner(image=images)["logits"], texts


def _threads():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# ------------------------------------------------------------------------------------------------- ONNX


def _write_onnx(model, path, precision, calibration, keep_float, texts):
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Keras asks numpy for what it no longer has
        model.export(path, format="onnx", verbose=False, input_signature=model.inputs)
    network = onnx.load(path)
    for value in (*network.graph.input, *network.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    if precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        network = convert_float_to_float16(network, keep_io_types=True)
    if precision == "int8":
        operations = _onnx_operations(network.graph, kernels_of(model))
        network = _quantise_onnx(network, path, calibration, float_region(operations, keep_float))
    onnx.helper.set_model_props(network, texts)
    onnx.save(network, path)


def _quantise_onnx(network, path, calibration, float_operations):
    """Return a network whose weights (a channel each) and activations are int8, but for some operations.

    By ONNX Runtime's own quantiser: it has convolutions from int8 to int8 alone, so that it runs what NNCF makes of the
    network, swish and biases in float, slower than float32.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        images = iter(calibration)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {"image": image}

    logging.disable(logging.WARNING)  # it advises to fold what is folded
    try:
        quantization.quantize_static(
            network,
            path,
            Reader(),
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=sorted(float_operations),
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(path)


def _onnx_operations(graph, layer_of):
    """Return the `operations` of `int8.float_region`."""
    import onnx

    maker = {output: node.name for node in graph.node for output in node.output}
    kernels = {tensor.name: fingerprint(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}

    def layer(node):
        return next((layer_of[kernels[i]] for i in node.input if kernels.get(i) in layer_of), None)

    return {node.name: ([maker[i] for i in node.input if i in maker], layer(node)) for node in graph.node}


def _open_onnx(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(["logits"], {"image": images})[0], texts


# ------------------------------------------------------------------------------------------------- OpenVINO

# What the processor computes in; by itself OpenVINO takes bfloat16 wherever there is any, for a float32 network, too.
HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def _write_openvino(model, path, precision, calibration, keep_float, texts):
    import openvino

    with _no_telemetry():
        model.export(path, format="openvino", verbose=False)
    network = openvino.Core().read_model(path)
    if precision == "int8":
        operations = _openvino_operations(network, kernels_of(model))
        network = _quantise_openvino(network, calibration, float_region(operations, keep_float))
    for name, text in texts.items():
        network.set_rt_info(text, ["efficientnet_tf", name])
    # The file that was read lies under the same name, and its weights are in use.
    unfinished = path.removesuffix(".xml") + ".unfinished.xml"
    openvino.save_model(network, unfinished, compress_to_fp16=precision in ("float16", "bfloat16"))
    del network
    for suffix in (".bin", ".xml"):
        os.replace(unfinished.removesuffix(".xml") + suffix, path.removesuffix(".xml") + suffix)


def _openvino_operations(network, layer_of):
    """Return the `operations` of `int8.float_region`."""
    nodes = [node for node in network.get_ordered_ops() if node.get_type_name() not in ("Constant", "Result")]
    known = {node.get_friendly_name() for node in nodes}

    def constant(node):
        while node.get_input_size() == 1:  # a kernel is turned around at most
            node = node.input_value(0).get_node()
        return node.data if node.get_type_name() == "Constant" else np.zeros(0)

    def layer(node):
        inputs = [constant(value.get_node()) for value in node.input_values()]
        return next((layer_of[f] for f in map(fingerprint, inputs) if f in layer_of), None)

    def reads(node):
        names = [value.get_node().get_friendly_name() for value in node.input_values()]
        return [name for name in names if name in known]

    return {node.get_friendly_name(): (reads(node), layer(node)) for node in nodes}


def _open_openvino(path):
    import openvino

    network = openvino.Core().read_model(path)
    keys = {name: ["efficientnet_tf", name] for name in TEXTS}
    texts = {name: network.get_rt_info(key).astype(str) for name, key in keys.items() if network.has_rt_info(key)}
    hint = HINTS.get(texts.get("precision"))
    compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": hint} if hint else {})
    return lambda images: compiled(images)[0], texts


def _quantise_openvino(network, calibration, float_operations):
    """Return a network whose weights (a channel each) and activations are int8, but for some operations."""
    with _no_telemetry():
        import nncf

    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):  # its progress bars
        return nncf.quantize(
            network,
            nncf.Dataset(calibration),
            preset=nncf.QuantizationPreset.MIXED,  # for swish, whose range is not symmetric
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=sorted(float_operations)),
        )


FORMATS = {
    ".tflite": Format(
        name="LiteRT",
        extra="litert",
        precisions=("float32", "float16", "dynamic", "int8"),
        writes=("ai_edge_litert.interpreter",),
        quantises=(),
        runs="ai_edge_litert.interpreter",
        write=_write_litert,
        open=_open_litert,
    ),
    ".onnx": Format(
        name="ONNX Runtime",
        extra="onnx",
        precisions=("float32", "float16", "int8"),
        writes=("onnx", "tf2onnx", "onnxruntime"),
        quantises=(),
        runs="onnxruntime",
        write=_write_onnx,
        open=_open_onnx,
    ),
    ".xml": Format(
        name="OpenVINO",
        extra="openvino",
        precisions=("float32", "float16", "bfloat16", "int8"),
        writes=("openvino",),
        quantises=("nncf",),
        runs="openvino",
        write=_write_openvino,
        open=_open_openvino,
    ),
}

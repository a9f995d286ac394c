"""Writes and opens `.tflite`, for LiteRT; the arguments are those of `artefacts.Format`."""

import tempfile
import warnings
import zipfile

import numpy as np

from efficientnet_tf.export.quantization import fingerprint, float_region, kernels_of
from efficientnet_tf.runtime.hardware import available_cores


def write(model, path, precision, calibration, keep_float, texts):
    """Write a network and its texts to a file."""
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
        content = _partly_float(converter, model, keep_float) if keep_float else converter.convert()
    with open(path, "wb") as file:
        file.write(content)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)


def _partly_float(converter, model, keep_float):
    """Return the network in int8 but for some layers: what TensorFlow's debugger of quantised networks is there for."""
    import tensorflow as tf

    with warnings.catch_warnings():  # it runs an interpreter of TensorFlow's, which has moved to another package
        warnings.simplefilter("ignore")
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=converter.representative_dataset
        )
        region = float_region(_operations(debugger.calibrated_model, kernels_of(model)), keep_float)
        debugger.options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=sorted(region))
        return debugger.get_nondebug_quantized_model()


def _operations(content, layer_of):
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


def open_file(path):
    """Return (function from pixels to logits, {name: text})."""
    from ai_edge_litert.interpreter import Interpreter

    # The runner takes batches of any size; a path would be read as long as the interpreter lives.
    with open(path, "rb") as file:
        runner = Interpreter(model_content=file.read(), num_threads=available_cores()).get_signature_runner()
    texts = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            texts = {name: archive.read(name).decode() for name in archive.namelist()}
    return lambda images: runner(image=images)["logits"], texts

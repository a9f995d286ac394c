"""Writes `.tflite` files for LiteRT. The arguments are those of `formats.Format.write`."""

import tempfile
import warnings
import zipfile
from typing import Any

import numpy as np

from efficientnet_tf.export.quantization import find_float_region, fingerprint, map_kernels
from efficientnet_tf.runtime.terminal import quiet_logger


def write(model, path, precision, calibration, keep_float, texts, io="float32"):
    """Write a network and its texts to a file."""
    import tensorflow as tf

    if io != "float32" and len(calibration):
        # Two pixels show the range of all pixels, so that integers stand for pixels themselves.
        first = np.array(calibration[0])
        first[0, 0, 0], first[0, 0, 1] = 0.0, 255.0
        calibration = [first, *calibration[1:]]
    with tempfile.TemporaryDirectory() as folder, quiet_logger("tensorflow"):
        model.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8" and len(
            calibration
        ):  # Else the network rounds its tensors, from which the converter knows their limits.
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: ([image] for image in calibration)
        if precision == "int8":
            converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
        content = _convert_partly(converter, model, keep_float) if keep_float else converter.convert()
    with open(path, "wb") as file:
        file.write(content)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)


def _convert_partly(converter, model, keep_float):
    """Return the int8 network with some layers in float, made with TensorFlow's `QuantizationDebugger`."""
    import tensorflow as tf

    # The debugger runs an interpreter of TensorFlow that warns about its move to another package.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=converter.representative_dataset
        )
        region = find_float_region(list_operations(debugger.calibrated_model, map_kernels(model)), keep_float)
        debugger.options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=sorted(region))
        return debugger.get_nondebug_quantized_model()


def list_operations(content: bytes, layer_of: dict[bytes, str]) -> dict[str, tuple[list[str], str | None]]:
    """Return the operations of a network as `quantization.find_float_region` takes them.

    Args:
        content: The network, in LiteRT's format.
        layer_of: Layer names by kernel, from `quantization.map_kernels`.

    Returns:
        The operations, named by the tensor that each one computes.
    """
    from ai_edge_litert import schema_py_generated as schema

    network: Any = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = network.subgraphs
    maker = {tensor: operator for operator in graph.operators for tensor in operator.outputs}

    def name(operator):
        return graph.tensors[operator.outputs[0]].name.decode()

    def layer(operator):
        data = [network.buffers[graph.tensors[i].buffer].data for i in operator.inputs if i >= 0 and i not in maker]
        kernels = [np.asarray(d, np.uint8).view(np.float32) for d in data if d is not None and len(d) % 4 == 0]
        return next((layer_of[f] for f in map(fingerprint, kernels) if f in layer_of), None)

    return {name(o): ([name(maker[i]) for i in o.inputs if i in maker], layer(o)) for o in graph.operators}

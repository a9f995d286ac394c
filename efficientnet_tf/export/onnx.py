"""Writes and opens `.onnx`, for ONNX Runtime; the arguments are those of `artefacts.Format`."""

import logging
import warnings

from efficientnet_tf.export.quantization import fingerprint, float_region, kernels_of
from efficientnet_tf.runtime.hardware import available_cores


def write(model, path, precision, calibration, keep_float, texts):
    """Write a network and its texts to a file."""
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
        operations = _operations(network.graph, kernels_of(model))
        network = _quantise(network, path, calibration, float_region(operations, keep_float))
    onnx.helper.set_model_props(network, texts)
    onnx.save(network, path)


def _quantise(network, path, calibration, float_operations):
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


def _operations(graph, layer_of):
    """Return the `operations` of `int8.float_region`."""
    import onnx

    maker = {output: node.name for node in graph.node for output in node.output}
    kernels = {tensor.name: fingerprint(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}

    def layer(node):
        return next((layer_of[kernels[i]] for i in node.input if kernels.get(i) in layer_of), None)

    return {node.name: ([maker[i] for i in node.input if i in maker], layer(node)) for node in graph.node}


def open_file(path):
    """Return (function from pixels to logits, {name: text})."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(["logits"], {"image": images})[0], texts

"""Writes `.onnx` files for ONNX Runtime. The arguments are those of `formats.Format.write`."""

import json
import warnings

from efficientnet_tf.export.runtimes import INTEGERS


def write(model, path, precision, texts, io="float32"):
    """Write a network and its texts to a file."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Keras uses an alias that NumPy has deprecated
        model.export(path, format="onnx", verbose=False, input_signature=model.inputs)
    network = onnx.load(path)
    for value in (*network.graph.input, *network.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    if precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        network = convert_float_to_float16(network, keep_io_types=True)
    if precision == "int8":
        _store_kernels(network.graph)
    if io != "float32":
        texts = texts | {INTEGERS: json.dumps(_make_integer(network.graph, io))}
    onnx.helper.set_model_props(network, texts)
    onnx.save(network, path)


def _store_kernels(graph):
    """Store the kernels that are rounded in int8, with a scale per output channel. Others belong to layers in float."""
    import numpy as np
    import onnx

    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]:
        kernel = onnx.numpy_helper.to_array(initializers[node.input[1]])
        is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 0 if node.op_type == "Conv" or is_transposed else 1
        others = tuple(other for other in range(kernel.ndim) if other != axis)
        scale = np.maximum(np.abs(kernel).max(axis=others) / 127, 1e-12).astype(np.float32)
        levels = kernel / np.expand_dims(scale, others)
        steps = np.round(levels).astype(np.int8)
        if np.abs(levels - steps).max() > 0.01:
            continue
        name = f"{node.name}_kernel"
        for value, end in ((steps, "int8"), (scale, "scale"), (np.zeros(scale.shape, np.int8), "zero_point")):
            graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}_{end}"))
        names = [f"{name}_{end}" for end in ("int8", "scale", "zero_point")]
        dequantize = onnx.helper.make_node("DequantizeLinear", names, [name], name=name, axis=axis)
        graph.node.insert(list(graph.node).index(node), dequantize)
        node.input[1] = name
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _make_integer(graph, io):
    """Make the input and the output of a quantized network integers. Return what they stand for: see `INTEGERS`.

    The input stands for pixels, which are whole numbers. The output is what the network has before its last operation.
    """
    import onnx

    dtype = getattr(onnx.TensorProto, io.upper())
    zero_point = 0 if io == "uint8" else -128
    for node in graph.node:
        node.input[:] = ["pixels" if name == "image" else name for name in node.input]
    constants = ("pixel_scale", onnx.TensorProto.FLOAT, 1.0), ("pixel_zero_point", dtype, zero_point)
    graph.initializer.extend(onnx.helper.make_tensor(name, kind, (), [value]) for name, kind, value in constants)
    names = ["image", *(name for name, *_ in constants)]
    graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", names, ["pixels"], name="pixels"))

    last = next(node for node in graph.node if "logits" in node.output)
    if last.op_type != "DequantizeLinear":
        raise RuntimeError(f"the last operation of the quantized network is {last.op_type}")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    _, scale, shift = last.input
    maker = next(node for node in graph.node if last.input[0] in node.output)
    maker.output[:] = ["logits"]
    graph.node.remove(last)
    zero_points = {"image": zero_point, "logits": int(values[shift]) + zero_point}
    # The network rounds to uint8. In int8, everything is shifted by 128.
    graph.initializer.append(onnx.helper.make_tensor("logits_zero_point", dtype, (), [zero_points["logits"]]))
    maker.input[2] = "logits_zero_point"
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.elem_type = dtype
    return {
        "image": {"type": io, "scale": 1.0, "zero_point": zero_points["image"]},
        "logits": {"type": io, "scale": float(values[scale]), "zero_point": zero_points["logits"]},
    }

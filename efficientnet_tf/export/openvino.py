"""Writes `.xml` files, each with its `.bin`, for OpenVINO. The arguments are those of `formats.Format.write`."""

import contextlib
import io
import logging
import os
import warnings

import numpy as np

from efficientnet_tf.export.metadata import SECTION
from efficientnet_tf.export.quantization import find_float_region, fingerprint, map_kernels
from efficientnet_tf.export.runtimes import disable_telemetry


@contextlib.contextmanager
def preserve_root_logger():
    """Undo what happens to the root logger within the block. OpenVINO's converter hides warnings of all packages."""
    root = logging.getLogger()
    before = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        level, root.filters, root.handlers = before
        root.setLevel(level)


def write(model, path, precision, calibration, keep_float, texts, io="float32"):  # io is always float32
    """Write a network and its texts to a file."""
    import openvino

    with disable_telemetry(), preserve_root_logger():
        model.export(path, format="openvino", verbose=False)
    network = openvino.Core().read_model(path)
    if precision == "int8" and len(calibration):  # Else the network rounds its tensors and kernels.
        operations = _list_operations(network, map_kernels(model))
        network = _quantize(network, calibration, find_float_region(operations, keep_float))
    for name, text in texts.items():
        network.set_rt_info(text, [SECTION, name])
    # The network still reads its weights from the file under the final name.
    unfinished = path.removesuffix(".xml") + ".unfinished.xml"
    openvino.save_model(network, unfinished, compress_to_fp16=precision in ("float16", "bfloat16"))
    del network
    for suffix in (".bin", ".xml"):
        os.replace(unfinished.removesuffix(".xml") + suffix, path.removesuffix(".xml") + suffix)


def _list_operations(network, layer_of):
    """Return the operations of a network as `quantization.find_float_region` takes them."""
    nodes = [node for node in network.get_ordered_ops() if node.get_type_name() not in ("Constant", "Result")]
    known = {node.get_friendly_name() for node in nodes}

    def constant(node):
        while node.get_input_size() == 1:  # at most a transposition stands between a kernel and its layer
            node = node.input_value(0).get_node()
        return node.data if node.get_type_name() == "Constant" else np.zeros(0)

    def layer(node):
        inputs = [constant(value.get_node()) for value in node.input_values()]
        return next((layer_of[f] for f in map(fingerprint, inputs) if f in layer_of), None)

    def reads(node):
        names = [value.get_node().get_friendly_name() for value in node.input_values()]
        return [name for name in names if name in known]

    return {node.get_friendly_name(): (reads(node), layer(node)) for node in nodes}


def _quantize(network, calibration, float_operations):
    """Return a network with int8 weights, scaled per channel, and int8 activations, except for some operations."""
    with disable_telemetry():
        import nncf

    nncf.set_log_level(logging.ERROR)
    # Hides NNCF's progress bars, and the warning that it gives in Jupyter.
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        return nncf.quantize(
            network,
            nncf.Dataset(calibration),
            preset=nncf.QuantizationPreset.MIXED,  # for swish, whose range is not symmetric
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=sorted(float_operations)),
        )

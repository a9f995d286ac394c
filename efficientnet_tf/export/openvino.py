"""Writes and opens `.xml` with its `.bin`, for OpenVINO; the arguments are those of `artefacts.Format`."""

import contextlib
import logging
import os
import sys
from unittest import mock

import numpy as np

from efficientnet_tf.export.quantization import fingerprint, float_region, kernels_of

SECTION = "efficientnet_tf"  # of the file's rt_info


def no_telemetry():
    """Keep OpenVINO's converter and NNCF from telling Intel of each use, which takes seconds where nobody answers."""
    return mock.patch.dict(os.environ, CI="true", NNCF_CI="1")


# What the processor computes in; by itself OpenVINO takes bfloat16 wherever there is any, for a float32 network, too.
HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def write(model, path, precision, calibration, keep_float, texts):
    """Write a network and its texts to a file."""
    import openvino

    with no_telemetry():
        model.export(path, format="openvino", verbose=False)
    network = openvino.Core().read_model(path)
    if precision == "int8":
        operations = _operations(network, kernels_of(model))
        network = _quantise(network, calibration, float_region(operations, keep_float))
    for name, text in texts.items():
        network.set_rt_info(text, [SECTION, name])
    # The file that was read lies under the same name, and its weights are in use.
    unfinished = path.removesuffix(".xml") + ".unfinished.xml"
    openvino.save_model(network, unfinished, compress_to_fp16=precision in ("float16", "bfloat16"))
    del network
    for suffix in (".bin", ".xml"):
        os.replace(unfinished.removesuffix(".xml") + suffix, path.removesuffix(".xml") + suffix)


def _operations(network, layer_of):
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


def open_file(path):
    """Return (function from pixels to logits, {name: text})."""
    import openvino

    network = openvino.Core().read_model(path)
    texts = network.get_rt_info([SECTION]).value if network.has_rt_info([SECTION]) else {}
    hint = HINTS.get(texts.get("precision"))
    compiled = openvino.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": hint} if hint else {})
    return lambda images: compiled(images)[0], texts


def _quantise(network, calibration, float_operations):
    """Return a network whose weights (a channel each) and activations are int8, but for some operations."""
    with no_telemetry():
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

"""Writes `.xml` files, each with its `.bin`, for OpenVINO. The arguments are those of `formats.Format.write`."""

import contextlib
import logging
import os

from efficientnet_tf.export.metadata import SECTION
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


def write(model, path, precision, texts, io="float32"):  # io is always float32
    """Write a network and its texts to a file."""
    import openvino

    with disable_telemetry(), preserve_root_logger():
        model.export(path, format="openvino", verbose=False)
    network = openvino.Core().read_model(path)
    for name, text in texts.items():
        network.set_rt_info(text, [SECTION, name])
    # The network still reads its weights from the file under the final name.
    unfinished = path.removesuffix(".xml") + ".unfinished.xml"
    openvino.save_model(network, unfinished, compress_to_fp16=precision in ("float16", "bfloat16"))
    del network
    for suffix in (".bin", ".xml"):
        os.replace(unfinished.removesuffix(".xml") + suffix, path.removesuffix(".xml") + suffix)

"""Writes `.tflite` files for LiteRT. The arguments are those of `formats.Format.write`."""

import tempfile
import zipfile

from efficientnet_tf.runtime.terminal import quiet_logger


def write(model, path, precision, texts, io="float32"):
    """Write a network and its texts to a file."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder, quiet_logger("tensorflow"):
        model.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
        content = converter.convert()
    with open(path, "wb") as file:
        file.write(content)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in texts.items():
            archive.writestr(name, text)

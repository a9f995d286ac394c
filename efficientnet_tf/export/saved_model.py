"""Writes a SavedModel for servers, reloads it in a fresh process, and compares the results.

The signatures take batches of any size and return {"logits", "probabilities"}, both float32 [N, classes]:

    serving_default   image: float32 [N, S, S, C], pixels in [0, 255]
    serving_uint8     image: uint8 [N, S, S, C]
    serving_bytes     image: string [N], image files, which are decoded, cropped and resized as in evaluation

The assets are classes.txt, the class names, and config.yaml.
"""

import os
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.models.model_dir import restore_model

TOLERANCE = 1e-5

# Like a server, this uses TensorFlow alone, without this package.
_RELOAD = """
import sys
import numpy as np
import tensorflow as tf
folder, inputs, outputs = sys.argv[1:]
signatures = tf.saved_model.load(folder).signatures
given = np.load(inputs)
np.savez(outputs, **{name: signatures[name](image=tf.constant(given[name]))["logits"] for name in given.files})
assert "efficientnet_tf" not in sys.modules, "a server would need this package"
"""


def export_saved_model(model_dir: str, output: str) -> float:
    """Write the model of a model directory as a SavedModel, with EMA weights if the run has them.

    Before the folder gets its name, a process without this package loads it, and its logits are compared with those of
    the Keras model.

    Args:
        model_dir: A model directory.
        output: A folder that does not exist yet.

    Returns:
        The largest difference of a logit over all signatures.

    Raises:
        UserError: If `output` exists or cannot be written, or if logits differ by more than 1e-5.
    """
    output = output.rstrip("/")
    if tf.io.gfile.exists(output) and (not tf.io.gfile.isdir(output) or tf.io.gfile.listdir(output)):
        raise UserError(f"output={output} exists and is not an empty folder. Choose another name.")
    model, config, _ = restore_model(model_dir)
    unfinished = f"{output}.unfinished"
    try:
        if tf.io.gfile.exists(unfinished):
            tf.io.gfile.rmtree(unfinished)
        _write(model, config, model_dir, unfinished)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"output={output} cannot be written: {error}") from None
    difference = _compare(model, config, unfinished)
    if not difference <= TOLERANCE:
        raise UserError(
            f"The export in {unfinished} differs from the Keras model by {difference:.2g} in a logit, more than "
            f"{TOLERANCE:g}. It was not moved to {output}."
        )
    if tf.io.gfile.exists(output):
        tf.io.gfile.rmtree(output)
    tf.io.gfile.rename(unfinished, output)
    return difference


def _write(model, config, model_dir, folder):
    pixels = [None, *model.input_shape[1:]]

    def classify(images):
        logits = model(images, training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    def classify_bytes(image):
        shape = tf.TensorSpec(pixels[1:], tf.float32)
        return classify(tf.map_fn(lambda one: eval_image(one, config), image, fn_output_signature=shape))

    def signature(function, dtype, shape):
        return tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, name="image")])

    module: Any = tf.Module()
    module.weights = [v.value for v in model.variables]
    module.assets = [tf.saved_model.Asset(os.path.join(model_dir, n)) for n in ("classes.txt", "config.yaml")]
    signatures = {
        "serving_default": signature(lambda image: classify(image), tf.float32, pixels),
        "serving_uint8": signature(lambda image: classify(tf.cast(image, tf.float32)), tf.uint8, pixels),
        "serving_bytes": signature(classify_bytes, tf.string, [None]),
    }
    tf.saved_model.save(module, folder, signatures=signatures)


def _compare(model, config, folder):
    """Return the largest difference between the logits of the Keras model and of the export in another process."""
    rng = np.random.default_rng(0)
    height, width, channels = model.input_shape[1:]
    files = [
        encode(rng.integers(0, 256, (height + 24 * i, width + 40, channels), dtype=np.uint8)).numpy()
        for i, encode in enumerate((tf.io.encode_png, tf.io.encode_jpeg, tf.io.encode_png))
    ]
    uint8 = rng.integers(0, 256, (3, height, width, channels), dtype=np.uint8)
    inputs = {"serving_default": uint8 + np.float32(0.25), "serving_uint8": uint8, "serving_bytes": np.array(files)}
    pixels = inputs | {"serving_bytes": tf.stack([eval_image(file, config) for file in files])}
    with tempfile.TemporaryDirectory() as scratch:
        input_file, output_file = os.path.join(scratch, "inputs.npz"), os.path.join(scratch, "outputs.npz")
        np.savez(input_file, **inputs)
        command = [sys.executable, "-c", _RELOAD, folder, input_file, output_file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"The export in {folder} cannot be reloaded:\n{done.stderr[-2000:]}")
        logits = np.load(output_file)
        return max(float(np.abs(logits[n] - model(pixels[n], training=False)).max()) for n in inputs)

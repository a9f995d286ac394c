"""Writes a SavedModel for servers, reloads it in a fresh process, and compares the results.

The first three signatures take batches of any size and return {"logits", "probabilities"}, both float32 [N, classes]:

    serving_default   image: float32 [N, H, W, C], pixels in [0, 255]
    serving_uint8     image: uint8 [N, H, W, C]
    serving_bytes     image: string [N], image files, which are decoded, cropped and resized as in evaluation. What
                      only Pillow decodes, such as TIFF, is an error.
    classify_bytes    image: string [N], image files. It returns the most likely classes, at most five, as "classes",
                      string [N, K], with their "probabilities", float32 [N, K].

For several labels, each has a probability of its own. A network for regression returns its numbers as "logits" and as
"numbers", and has no classify_bytes. With more than 3 channels, it has neither serving_bytes nor classify_bytes.

An image that cannot be decoded fails its batch. Only a dataset in the graph could leave it out, and TensorFlow then
prepares the decoder anew for each call, which takes seconds.

assets.extra/tf_serving_warmup_requests has requests with which TensorFlow Serving warms up. The assets are classes.txt,
the class names, and config.yaml. assets.extra/record.json shows later changes.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape
from efficientnet_tf.data.pipeline import eval_image
from efficientnet_tf.export.output import unfinished_output
from efficientnet_tf.export.record import check_record, make_record
from efficientnet_tf.export.warmup import write_warmup_requests
from efficientnet_tf.models.model_dir import restore_model
from efficientnet_tf.models.run_directory import read_class_names, read_config
from efficientnet_tf.runtime.files import check_file, exists, is_folder, is_remote, list_folder, read_text, write_text
from efficientnet_tf.runtime.terminal import quiet_logger
from efficientnet_tf.scaling.complexity import count_cost

TOP = 5  # classes that classify_bytes returns
TOLERANCE = 1e-5  # largest difference of a logit, as a share of the largest logit
_RECORD = "assets.extra/record.json"  # see `record`. Servers ignore this folder.
_GRAPH_LIMIT_BYTES = 128 * 2**20

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


def export_saved_model(model_dir: str, output: str, checkpoint: str | int | None = None) -> float:
    """Write the model of a model directory as a SavedModel, with EMA weights if the run has them.

    Before the folder gets its name, a process without this package loads it, and its logits are compared with those of
    the Keras model.

    Args:
        model_dir: A model directory.
        output: A folder that does not exist yet, or is empty.
        checkpoint: The checkpoint, as for `restore_model`.

    Returns:
        The largest difference of a logit over all signatures.

    Raises:
        UserError: If `output` exists or cannot be written, or if logits differ by more than 1e-5 of the largest logit.
    """
    with unfinished_output(output) as unfinished:
        model, config, class_names = restore_model(model_dir, checkpoint=checkpoint)
        _write(model, config, class_names, model_dir, unfinished)
        record = make_record(config, class_names, _hash_graph(unfinished))
        write_text(os.path.join(unfinished, _RECORD), record)
        difference, greatest = _compare(model, config, unfinished)
        if not difference <= TOLERANCE * max(1.0, greatest):
            raise UserError(
                f"The SavedModel differs from the Keras model by {difference:.2g} in a logit, more than "
                f"{TOLERANCE:g} of the largest logit, {greatest:.3g}. {escape(output)} was not written."
            )
    return difference


def open_saved_model(path: str) -> tuple[Callable[[tf.Tensor], tf.Tensor], Config, list[str]]:
    """Open a SavedModel of this package, after checking that it is what was written.

    Args:
        path: Path of the folder, local or gs://.

    Returns:
        A function from pixels, float32 [N, H, W, C] in [0, 255], to logits, float32 [N, classes], the config, and the
        class names in the order of the logits.

    Raises:
        UserError: If a part is missing or damaged, or if the network, its config and its class names do not belong
            together.
    """
    assets = os.path.join(path, "assets")
    config, class_names = read_config(assets), read_class_names(assets)
    cost = count_cost(config.model, config.image_size, len(class_names), config.data.channels)
    _check_sizes(path, cost["total"].total_params)
    record = os.path.join(path, _RECORD)
    text = read_text(record, 2**20) if exists(record) else None
    check_record(path, text, config, class_names, _hash_graph(path) if text else "")
    try:
        loaded: Any = tf.saved_model.load(path)
        _check_signature(loaded)

        def compute_logits(images):  # holds `loaded`, which owns the variables
            return loaded.signatures["serving_default"](image=images)["logits"]

        logits = compute_logits(tf.zeros([1, *config.input_shape]))
    except Exception as error:  # TensorFlow raises many types for damaged files
        reason = " ".join(escape(str(error)).split())[:300]
        raise UserError(f"{escape(path)} cannot be opened by TensorFlow: {reason}") from None
    if tuple(logits.shape) != (1, len(class_names)):
        raise UserError(
            f"{escape(path)}: the network returns {list(logits.shape)} for one image, but classes.txt has "
            f"{len(class_names)} names."
        )
    return compute_logits, config, class_names


def _check_signature(loaded):
    signature = loaded.signatures.get("serving_default")
    inputs = {} if signature is None else signature.structured_input_signature[1]
    if signature is None or set(inputs) != {"image"} or "logits" not in signature.structured_outputs:
        raise ValueError("it has no signature serving_default that takes image and returns logits")


def _check_sizes(path, parameters):
    """Refuse a folder that is larger than its network can be, before TensorFlow reads it."""
    folder = os.path.join(path, "variables")
    if not is_folder(folder):
        raise UserError(f"{escape(path)} cannot be used, because there is no folder {escape(folder)}.")
    if is_remote(path):
        return
    limits = {"saved_model.pb": _GRAPH_LIMIT_BYTES}
    limits |= {f"variables/{name}": 2 * 4 * parameters + 64 * 2**20 for name in list_folder(folder)}
    for name, limit in limits.items():
        part = os.path.join(path, name)
        check_file(part)
        size = os.path.getsize(part)
        if size > limit:
            raise UserError(f"{escape(part)} is damaged: it has {size:,} bytes, and at most {limit:,} are possible.")


def _hash_graph(path):
    with tf.io.gfile.GFile(os.path.join(path, "saved_model.pb"), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _write(model, config, class_names, model_dir, folder):
    pixels, task = [None, *model.input_shape[1:]], config.data.task

    def classify(images):
        logits = model(images, training=False)
        if task == "regression":
            return {"logits": logits, "numbers": logits}
        return {"logits": logits, "probabilities": (tf.nn.softmax if task == "classification" else tf.sigmoid)(logits)}

    def classify_bytes(image):
        shape = tf.TensorSpec(pixels[1:], tf.float32)
        return classify(tf.map_fn(lambda one: eval_image(one, config, portable=True), image, fn_output_signature=shape))

    def name_classes(image):
        best = tf.math.top_k(classify_bytes(image)["probabilities"], min(TOP, len(class_names)))
        return {"classes": tf.gather(tf.constant(class_names), best.indices), "probabilities": best.values}

    def signature(function, dtype, shape):
        specification = tf.TensorSpec(shape, dtype, name="image")
        return tf.function(function, input_signature=[specification], autograph=False)

    module: Any = tf.Module()
    module.weights = [v.value for v in model.variables]
    module.assets = [tf.saved_model.Asset(os.path.join(model_dir, n)) for n in ("classes.txt", "config.yaml")]
    signatures = {
        "serving_default": signature(lambda image: classify(image), tf.float32, pixels),
        "serving_uint8": signature(lambda image: classify(tf.cast(image, tf.float32)), tf.uint8, pixels),
    }
    if config.data.channels <= 3:  # TensorFlow decodes no others.
        signatures["serving_bytes"] = signature(classify_bytes, tf.string, [None])
    if config.data.channels <= 3 and task != "regression":
        signatures["classify_bytes"] = signature(name_classes, tf.string, [None])
    with quiet_logger("tensorflow"):  # It would say that the assets are in this folder, which is renamed soon.
        tf.saved_model.save(module, folder, signatures=signatures)
    shape = [1, *pixels[1:]]
    file = tf.make_tensor_proto([tf.io.encode_png(tf.zeros([*shape[1:3], 3], tf.uint8)).numpy()])
    requests = {
        "serving_default": tf.make_tensor_proto(0, tf.float32, shape),  # one number, repeated
        "serving_uint8": tf.make_tensor_proto(0, tf.uint8, shape),
        "serving_bytes": file,
        "classify_bytes": file,
    }
    write_warmup_requests(folder, {name: request for name, request in requests.items() if name in signatures})


def _compare(model, config, folder):
    """Run the export in another process. Return the largest difference of its logits, and the largest logit."""
    rng = np.random.default_rng(0)
    height, width, channels = model.input_shape[1:]
    uint8 = rng.integers(0, 256, (3, height, width, channels), dtype=np.uint8)
    inputs = {"serving_default": uint8 + np.float32(0.25), "serving_uint8": uint8}
    pixels = dict(inputs)
    if channels <= 3:
        files = [
            encode(rng.integers(0, 256, (height + 24 * i, width + 40, channels), dtype=np.uint8)).numpy()
            for i, encode in enumerate((tf.io.encode_png, tf.io.encode_jpeg, tf.io.encode_png))
        ]
        inputs["serving_bytes"] = np.array(files)
        pixels["serving_bytes"] = tf.stack([eval_image(file, config) for file in files])
    with tempfile.TemporaryDirectory() as scratch:
        input_file, output_file = os.path.join(scratch, "inputs.npz"), os.path.join(scratch, "outputs.npz")
        np.savez(input_file, **inputs)
        command = [sys.executable, "-c", _RELOAD, folder, input_file, output_file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"The export in {folder} cannot be reloaded:\n{done.stderr[-2000:]}")
        logits = np.load(output_file)
        expected = {n: np.asarray(model(pixels[n], training=False)) for n in inputs}
        difference = max(float(np.abs(logits[n] - expected[n]).max()) for n in inputs)
        return difference, max(float(np.abs(values).max()) for values in expected.values())

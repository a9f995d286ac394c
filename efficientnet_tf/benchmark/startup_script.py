"""What `startup` measures of other libraries: short scripts as their users write them. Also prepares all files.

    python -m efficientnet_tf.benchmark.startup_script NAME FOLDER VARIANT

NAME is a function of `SCRIPTS`. Each prints a line that begins with `DONE` when it has its answer.
"""

import importlib
import os
import sys
from typing import Any

from efficientnet_tf.benchmark.setting import CLASSES, name_in_keras, name_in_timm

BATCH = 32  # images of a training step
DONE = "DONE"
FILES = {"tflite": "ai_edge_litert", "onnx": "onnxruntime", "xml": "openvino"}  # ending: module of its runtime


def prepare(folder: str, variant: str) -> None:
    """Write the picture and this package's models: a run with random weights, its exports, and a run on digits."""
    import importlib.util

    import keras
    import tensorflow as tf

    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.data.open import open_source
    from efficientnet_tf.export.export import export_model
    from efficientnet_tf.models.from_config import build_from_config
    from efficientnet_tf.models.model_dir import write_model_dir

    keras.utils.set_random_seed(0)
    pixels = tf.image.resize(tf.random.uniform([8, 10, 3], 0, 255), [375, 500], "bicubic")
    tf.io.write_file(os.path.join(folder, "picture.jpg"), tf.io.encode_jpeg(tf.saturate_cast(pixels, tf.uint8)))
    synthetic = ["data.source=synthetic", f"data.synthetic_classes={CLASSES}", "data.synthetic_examples=64"]
    synthetic += ["data.train_split=train", "data.eval_split=val"]
    for name, recipe, more in (("run", "imagenet", synthetic), ("digits", "digits", [])):
        config = load_config(variant, recipe, ["train.ema_decay=0", "train.phases=[]", *more])
        class_names = open_source(config.data, config.data.eval_split, training=False).class_names
        model = build_from_config(config, len(class_names))
        write_model_dir(os.path.join(folder, name), model, config, class_names)
    for ending, module in FILES.items():
        if importlib.util.find_spec(module):
            export_model(os.path.join(folder, "run"), os.path.join(folder, f"network.{ending}"), images=8)


def prepare_keras(folder: str, variant: str) -> None:
    """Write the network of `keras.applications` with random weights."""
    _keras_network(variant).save(os.path.join(folder, "network.keras"))


def prepare_timm(folder: str, variant: str) -> None:
    """Write the weights of timm's network, which are random."""
    import timm
    import torch

    torch.save(timm.create_model(name_in_timm(variant)).state_dict(), os.path.join(folder, "network.pth"))


def predict_keras(folder: str, variant: str) -> None:
    """Classify the picture with Keras."""
    import keras
    import numpy as np

    model: Any = keras.models.load_model(os.path.join(folder, "network.keras"))
    picture = keras.utils.load_img(os.path.join(folder, "picture.jpg"), target_size=model.input_shape[1:3])
    probabilities = model.predict(np.asarray(picture)[None], verbose=0)[0]
    print(DONE, probabilities.argsort()[::-1][:5])


def predict_timm(folder: str, variant: str) -> None:
    """Classify the picture with timm."""
    import timm
    import torch
    from PIL import Image

    model: Any = timm.create_model(name_in_timm(variant)).eval()
    model.load_state_dict(torch.load(os.path.join(folder, "network.pth")))
    transform: Any = _timm_data().create_transform(**_timm_data().resolve_model_data_config(model))
    picture = Image.open(os.path.join(folder, "picture.jpg")).convert("RGB")
    with torch.inference_mode():
        probabilities = model(transform(picture)[None]).softmax(1)
    print(DONE, probabilities.topk(5).indices)


def train_keras(folder: str, variant: str) -> None:
    """Train the network of `keras.applications` for one step, without XLA, which would take longer to compile."""
    import keras
    import numpy as np

    model, rng = _keras_network(variant), np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, *model.input_shape[1:]), np.uint8)
    model.compile(keras.optimizers.RMSprop(), "sparse_categorical_crossentropy", jit_compile=False)
    print(DONE, model.train_on_batch(images, rng.integers(0, CLASSES, BATCH)))


def train_timm(folder: str, variant: str) -> None:
    """Train timm's network for one step, without torch.compile, which would take minutes."""
    import timm
    import torch

    model: Any = timm.create_model(name_in_timm(variant))
    size = _timm_data().resolve_model_data_config(model)["input_size"]
    optimizer = torch.optim.RMSprop(model.parameters())
    loss = torch.nn.functional.cross_entropy(model(torch.rand(BATCH, *size)), torch.randint(CLASSES, (BATCH,)))
    loss.backward()
    optimizer.step()
    print(DONE, loss.item())


def _keras_network(variant: str) -> Any:
    import keras

    return getattr(keras.applications, name_in_keras(variant))(weights=None)


def _timm_data() -> Any:
    return importlib.import_module("timm.data")


SCRIPTS = {
    function.__name__: function
    for function in (prepare, prepare_keras, prepare_timm, predict_keras, predict_timm, train_keras, train_timm)
}

if __name__ == "__main__":
    SCRIPTS[sys.argv[1]](*sys.argv[2:])

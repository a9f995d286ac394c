"""The names of all commands, and where they are. A command is only imported when it is needed."""

import importlib
import types

COMMANDS = {
    "train": "Train a classifier, or continue a training run.",
    "evaluate": "Measure the accuracy of a trained or exported model.",
    "calibrate": "Make the probabilities of a trained model right.",
    "predict": "Classify images.",
    "embed": "Write the feature vectors of images, and find near duplicates.",
    "probe": "Measure how well the features of a network separate classes.",
    "report": "Show and compare training runs on a page.",
    "explain": "Draw where a model finds its classes.",
    "export": "Write a model as a SavedModel, or for LiteRT, ONNX Runtime or OpenVINO.",
    "serve": "Answer requests over HTTP with a trained or exported model.",
    "push": "Publish a trained model on the Hugging Face Hub.",
    "weights": "Convert weights of Keras, timm or the official checkpoints.",
    "summary": "Show the size, cost and memory of a network.",
    "scale": "Find the network that fits a budget.",
    "search": "Search for scaling coefficients or for a baseline network.",
    "study": "Run a scaling study.",
    "show": "Draw the images that a network is trained on.",
    "prepare": "Write images as TFRecord files.",
    "benchmark": "Measure the speed of input, training and inference.",
    "preflight": "Compile a training run for a TPU without having one.",
}


def load_command(name: str) -> types.ModuleType:
    """Return the module of a command, which has `main` and `make_parser`.

    Args:
        name: A key of `COMMANDS`.
    """
    module = importlib.import_module(f"efficientnet_tf.{name}")
    if hasattr(module, "__path__"):  # a package
        module = importlib.import_module(f"efficientnet_tf.{name}.__main__")
    return module

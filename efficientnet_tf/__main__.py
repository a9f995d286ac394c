"""One entry point for every command: `python -m efficientnet_tf COMMAND`, or `efficientnet-tf COMMAND`."""

import importlib
import sys
from collections.abc import Sequence

from efficientnet_tf import __version__
from efficientnet_tf.config.errors import suggest
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.failures import guard

COMMANDS = {
    "train": "Train a classifier, or continue a training run.",
    "evaluate": "Measure the accuracy of a trained or exported model.",
    "predict": "Classify images.",
    "explain": "Draw where a model finds its classes.",
    "export": "Write a model as a SavedModel, or for LiteRT, ONNX Runtime or OpenVINO.",
    "weights": "Convert weights of Keras, timm or the official checkpoints.",
    "summary": "Show the size, cost and memory of a network.",
    "scale": "Find the network that fits a budget.",
    "search": "Search the scaling coefficients on a grid.",
    "study": "Run a scaling study.",
    "show": "Draw the images that a network is trained on.",
    "prepare": "Write images as TFRecord files.",
    "benchmark": "Measure the speed of input, training and inference.",
    "preflight": "Compile a training run for a TPU without having one.",
}


def main(argv: Sequence[str] | None = None) -> int | str | None:
    """Run the command that the first argument names.

    Args:
        argv: The arguments after the program's name. Defaults to those of the process.

    Returns:
        The exit status. A command that is run ends the process with its own.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    return guard(lambda: _run(argv), ["efficientnet_tf", *argv])


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: efficientnet-tf COMMAND [--help] ...\n\nEfficientNet and compound scaling. The commands are:\n")
        print("\n".join(f"  {command:{width}}  {text}" for command, text in COMMANDS.items()))
        print("\n`efficientnet-tf COMMAND --help` shows the flags of a command.")
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command '{escape(name)}'.{suggest(name, COMMANDS)}", file=sys.stderr)
        print(f"The commands are {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    package = f"efficientnet_tf.{name}"
    module = importlib.import_module(package)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{package}.__main__")
    from efficientnet_tf import cli

    return cli.run(module.main, module.make_parser(), [f"{package}", *argv[1:]])


if __name__ == "__main__":
    sys.exit(main())

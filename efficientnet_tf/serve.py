"""Serve a model over HTTP: `python -m efficientnet_tf.serve --model_dir=runs/digits`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re

from efficientnet_tf import cli
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.paths import check_model_name
from efficientnet_tf.config.text import escape

_MODULES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "PIL")
# The largest value of each flag that holds a number. Images of more than 67 megapixels are not decoded at all.
_LARGEST = {
    "max_batch": 1024,
    "batch_delay_ms": 10_000,
    "max_request_mb": 1000,
    "max_megapixels": 67,
    "max_requests": 10_000,
    "read_timeout": 3600,
    "shutdown_timeout": 3600,
}


def main(args: argparse.Namespace) -> None:
    """Load the model, and answer requests until the process is told to stop."""
    from efficientnet_tf.export.check import check_model, read_model
    from efficientnet_tf.runtime.backend import choose_backend
    from efficientnet_tf.runtime.files import is_remote

    choose_backend("tensorflow")  # JAX would compile a program for each size of a batch.
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"serve needs {', '.join(missing)}, which is not installed. Run pip install 'efficientnet_tf[serve]'."
        )
    for flag, largest in _LARGEST.items():
        if (value := getattr(args, flag)) > largest:
            raise UserError(f"{flag}={value:g} is too large. Use at most {largest}.")
    check_model(args.model_dir, checkpoint=args.checkpoint)
    data = None if is_remote(args.model_dir) else read_model(args.model_dir)[0].data
    if data is not None and data.channels > 3:
        raise UserError(
            f"model_dir={escape(args.model_dir)} sees images of {data.channels} channels. The server reads photos, "
            "which have at most 3. Use predict, or serve an export with TensorFlow Serving or Triton."
        )
    if data is not None and data.task == "regression":
        raise UserError(
            f"model_dir={escape(args.model_dir)} predicts numbers (data.task=regression). The server answers with "
            "classes or labels only. Use predict, or serve an export with TensorFlow Serving or Triton."
        )
    name = args.name or _name_model(args.model_dir)
    check_model_name(name)
    from efficientnet_tf.serving.server import open_socket

    listening = open_socket(args.host, args.port)  # before the model is loaded, which takes seconds
    _serve(args, name, listening)


def _serve(args, name, listening):
    from efficientnet_tf.export.load import load_model
    from efficientnet_tf.serving.app import make_app
    from efficientnet_tf.serving.bodies import Limits
    from efficientnet_tf.serving.classifier import Classifier
    from efficientnet_tf.serving.server import serve
    from efficientnet_tf.serving.telemetry import Metrics

    metrics = Metrics()
    classifier = Classifier(
        load_model(args.model_dir, checkpoint=args.checkpoint),
        most_images=args.max_batch,
        delay_seconds=args.batch_delay_ms / 1000,
        most_pixels=round(args.max_megapixels * 1e6),
        observe=metrics.observe_batch,
    )
    limits = Limits(round(args.max_request_mb * 1e6), args.read_timeout, requests=args.max_requests)
    app = make_app(classifier, name, metrics, limits)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    shape = "x".join(map(str, classifier.input_shape))
    print(
        f"{name}: {classifier.model.config.model.name}, {len(classifier.class_names)} classes, images of "
        f"{shape}\nhttp://{shown}:{port} has a page to try it. Stop the server with Ctrl-C.",
        flush=True,
    )
    serve(app, listening, args.shutdown_timeout)


def _name_model(path: str) -> str:
    """Return a name for a model that URLs can contain."""
    stem = os.path.splitext(os.path.basename(path.rstrip("/")))[0]
    if stem == "model" and path.endswith(".keras"):
        stem = os.path.basename(os.path.dirname(os.path.abspath(path)))
    return re.sub("[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "model"


def _port(text: str) -> int:
    """Parse the value of --port."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError
    return value


_port.__name__ = "port from 0 to 65535"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = cli.make_parser(
        "serve",
        "Serve a model over HTTP. POST /classify takes image files, /v2 is the Open Inference Protocol, /metrics is "
        "for Prometheus, and / is a page to try the model in a browser.",
    )
    parser.add_argument("--model_dir", type=cli.model_path, required=True, help=cli.MODEL_HELP)
    cli.add_checkpoint_argument(parser)
    parser.add_argument("--name", help="Name of the model in URLs. The default is the last part of its path.")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="Address to listen on. 0.0.0.0 makes the server public. It has no passwords.",
    )
    parser.add_argument("--port", type=_port, default=8000, help="Port to listen on. 0 chooses a free one.")
    parser.add_argument(
        "--max_batch", type=cli.positive_int, default=32, help="Images that are computed together. 1 turns this off."
    )
    parser.add_argument(
        "--batch_delay_ms",
        type=cli.positive_number,
        default=2.0,
        help="How long an image waits for others to share its batch, in milliseconds. Images that arrive while a batch "
        "is computed do not wait any longer.",
    )
    parser.add_argument(
        "--max_request_mb", type=cli.positive_number, default=16.0, help="Largest request, in megabytes."
    )
    parser.add_argument(
        "--max_megapixels", type=cli.positive_number, default=32.0, help="Largest image, in millions of pixels."
    )
    parser.add_argument(
        "--max_requests",
        type=cli.positive_int,
        default=64,
        help="Requests in progress. Further ones are answered with the status 503.",
    )
    parser.add_argument(
        "--read_timeout", type=cli.positive_number, default=30.0, help="Seconds in which a request must arrive."
    )
    parser.add_argument(
        "--shutdown_timeout",
        type=cli.positive_number,
        default=30.0,
        help="Seconds that requests in progress get to finish after Ctrl-C or SIGTERM.",
    )
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

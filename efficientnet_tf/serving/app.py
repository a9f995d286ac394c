"""The HTTP interface: classification of image files, the Open Inference Protocol, health, metrics, and a page."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import JSONResponse, Response

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import describe_environment
from efficientnet_tf.export.pixels import check_pixels
from efficientnet_tf.serving.batching import QueueFullError
from efficientnet_tf.serving.bodies import Limits, read_body, read_images
from efficientnet_tf.serving.classifier import Classifier
from efficientnet_tf.serving.protocol import describe_model, format_response, parse_request
from efficientnet_tf.serving.telemetry import Metrics, Telemetry

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_QUEUE_FULL = "Too many images wait. Try again."
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'"


def make_app(classifier: Classifier, name: str, metrics: Metrics, limits: Limits = Limits()) -> FastAPI:  # noqa: B008
    """Return the application that serves a model. It closes the classifier when it ends.

    Args:
        classifier: The model.
        name: Name of the model in URLs.
        metrics: Where to count. The classifier's `observe` should count there, too.
        limits: What clients may ask for.
    """

    @contextlib.asynccontextmanager
    async def close_at_end(_):
        yield
        await asyncio.to_thread(classifier.close)

    app = FastAPI(title="efficientnet_tf", docs_url=None, redoc_url=None, lifespan=close_at_end)
    _add_errors(app)
    _add_classification(app, classifier, limits)
    _add_protocol(app, classifier, name, limits)
    _add_page(app, classifier, name)

    @app.get("/metrics", summary="Metrics for Prometheus")
    async def show_metrics() -> Response:
        metrics.images_waiting.set(classifier.waiting())
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(Telemetry, metrics=metrics, most_requests=limits.requests)
    return app


def _add_errors(app):
    """Answer every error with a JSON object that has one key, "error"."""

    def answer(status: int, message: str) -> JSONResponse:
        headers = {"Retry-After": "1"} if status == 503 else {}
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(UserError)
    async def explain_mistake(_, error):
        return answer(400, str(error))

    @app.exception_handler(AnyHTTPException)
    async def explain_refusal(_, error):
        return answer(error.status_code, str(error.detail))

    @app.exception_handler(QueueFullError)
    async def explain_queue(_, error):
        return answer(503, _QUEUE_FULL)

    @app.exception_handler(RequestValidationError)
    async def explain_argument(_, error):
        first = error.errors()[0]
        return answer(400, f"{first['loc'][-1]}: {first['msg']}.")


def _add_classification(app, classifier, limits):
    """Add the endpoints that take image files."""

    @app.post("/classify", summary="Classify one image file, or the image files of a form")
    async def classify(request: Request, top: Annotated[int, Query(ge=1)] = 5) -> Response:
        images, is_form = await read_images(request, limits)
        if not is_form:
            return JSONResponse(_format_predictions(await classifier.classify(images[0][1], top)))
        # One bad image does not fail the others.
        answers = await asyncio.gather(*(_classify_one(classifier, encoded, top) for _, encoded in images))
        results = [{"name": name} | answer for (name, _), (_, answer) in zip(images, answers, strict=True)]
        statuses = {status for status, _ in answers}
        return JSONResponse({"results": results}, 200 if 200 in statuses else max(statuses))

    @app.post("/explain", summary="Show where the model sees a class in an image file")
    async def explain(request: Request, label: str | None = None) -> Response:
        images, _ = await read_images(request, limits)
        if len(images) != 1:
            raise HTTPException(400, f"Send one image to explain, received {len(images)}.")
        explanation = await classifier.explain(images[0][1], label)
        return JSONResponse(
            {
                "label": explanation.label,
                "probability": explanation.probability,
                "method": explanation.method,
                "heat": explanation.heat.tolist(),
                "crop": f"data:image/png;base64,{base64.b64encode(explanation.crop).decode()}",
            }
        )


async def _classify_one(classifier, encoded, top):
    """Return the status and the answer for one image of a form."""
    try:
        return 200, _format_predictions(await classifier.classify(encoded, top))
    except UserError as error:
        return 400, {"error": str(error)}
    except QueueFullError:
        return 503, {"error": _QUEUE_FULL}


def _format_predictions(ranked):
    return {"predictions": [{"label": label, "probability": probability} for label, probability in ranked]}


def _add_protocol(app, classifier, name, limits):
    """Add the endpoints of the Open Inference Protocol, version 2."""
    server = {"name": "efficientnet_tf", "version": describe_environment()["efficientnet_tf"], "extensions": []}
    metadata = describe_model(name, classifier.input_shape, len(classifier.class_names))

    def check_name(model_name: str) -> None:
        if model_name != name:
            raise HTTPException(404, f"There is no model of this name. The model is {name}.")

    @app.get("/v2", summary="Metadata of the server")
    async def describe_server() -> dict[str, Any]:
        return server

    @app.get("/v2/health/live", summary="Whether the server runs")
    async def is_live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Whether the server answers")
    async def is_ready() -> dict[str, bool]:
        return {"ready": True}

    @app.get("/v2/models/{model_name}", summary="Metadata of the model")
    async def describe(model_name: str) -> dict[str, Any]:
        check_name(model_name)
        return metadata

    @app.get("/v2/models/{model_name}/ready", summary="Whether the model answers")
    async def is_model_ready(model_name: str) -> dict[str, Any]:
        check_name(model_name)
        return {"name": name, "ready": True}

    @app.post("/v2/models/{model_name}/infer", summary="Compute logits of pixels")
    async def infer(request: Request, model_name: str) -> Response:
        check_name(model_name)
        body = await read_body(request, limits)
        parse = (parse_request, body, classifier.input_shape, classifier.most_images)
        identifier, pixels = await asyncio.to_thread(*parse)
        images = check_pixels("data", pixels, (None, *classifier.input_shape))
        logits = await classifier.compute_logits(images)
        return JSONResponse(format_response(name, identifier, logits))


def _add_page(app, classifier, name):
    """Add the page, and what it shows about the model."""
    model = {
        "name": name,
        "network": classifier.model.config.model.name,
        "image_size": classifier.input_shape[:2],
        "classes": classifier.class_names,
    }

    @app.get("/model", summary="What the page shows about the model")
    async def describe_for_page() -> Response:
        return Response(json.dumps(model), media_type="application/json")

    def add_file(path: str, file: str, media_type: str) -> None:
        content = Path(__file__).with_name(file).read_text(encoding="utf-8")

        @app.get(path, include_in_schema=False)
        async def show_file() -> Response:
            return Response(content, media_type=media_type, headers={"Content-Security-Policy": _POLICY})

    for path, (file, media_type) in _FILES.items():
        add_file(path, file, media_type)

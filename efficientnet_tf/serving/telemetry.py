"""Counts and logs requests: metrics for Prometheus, and one line of JSON for each request."""

from __future__ import annotations

import datetime
import json
import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOGGER = logging.getLogger("efficientnet_tf.serve")
CLIENT_CLOSED = 499  # what logs say if the client has gone, as those of nginx do
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of a server, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "efficientnet_requests", "Requests that were answered.", ["path", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "efficientnet_request_seconds",
            "Time from the head of a request to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.requests_in_progress = Gauge(
            "efficientnet_requests_in_progress", "Requests that are worked on.", registry=self.registry
        )
        self.images_waiting = Gauge("efficientnet_images_waiting", "Images in the queue.", registry=self.registry)
        self.batch_images = Histogram(
            "efficientnet_batch_images",
            "Images that were computed together.",
            buckets=[2**power for power in range(11)],
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "efficientnet_batch_seconds", "Time to compute a batch.", buckets=_SECONDS, registry=self.registry
        )

    def observe_batch(self, images: int, seconds: float) -> None:
        """Count a batch that was computed."""
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)


class Telemetry:
    """ASGI middleware that counts and logs requests, limits their number, and answers failures in JSON.

    Args:
        app: The application.
        metrics: Where to count.
        most_requests: Number of POST requests that are worked on at the same time.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, most_requests: int):
        self._app = app
        self._metrics = metrics
        self._most_requests = most_requests
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), CLIENT_CLOSED

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        is_work = scope["method"] == "POST"
        try:
            if is_work and self._in_progress >= self._most_requests:
                await _refuse(503, "The server works on as many requests as it may. Try again.")(
                    scope, receive, send_and_note
                )
                return
            self._change_progress(is_work)
            try:
                await self._app(scope, receive, send_and_note)
            except ClientDisconnect:
                pass
            except Exception:
                LOGGER.exception("a request failed", extra={"fields": {"path": scope["path"]}})
                if status == CLIENT_CLOSED:
                    await _refuse(500, "The server failed. Its log says why.")(scope, receive, send_and_note)
            finally:
                self._change_progress(-is_work)
        finally:
            self._record(scope, status, time.monotonic() - started)

    def _change_progress(self, change):
        self._in_progress += change
        self._metrics.requests_in_progress.set(self._in_progress)

    def _record(self, scope, status, seconds):
        # The template of the path, because a metric with a label for any path would grow without end.
        path = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(path, status).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        fields = {
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "client": (scope.get("client") or ("",))[0],
        }
        LOGGER.info("request", extra={"fields": fields})


def _refuse(status, message):
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": message}, status, headers)


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)

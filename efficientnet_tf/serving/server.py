"""Runs the application on a socket until a signal ends it."""

from __future__ import annotations

import logging
import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.serving.telemetry import LOGGER, JsonFormatter

_MOST_CONNECTIONS = 1024


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: Address or name of the interface.
        port: Port, or 0 for any free one.

    Raises:
        UserError: If the port is in use or not allowed, or the host is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=_MOST_CONNECTIONS)
        # An answer is sent in two parts. Without this, the second waits 40 ms for the client to confirm the first.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"host={escape(host)}, port={port}: the server cannot listen there ({escape(str(reason))}). Choose another "
            "port. The host 127.0.0.1 is for this machine only, and 0.0.0.0 is for all its networks."
        ) from None


def serve(app: FastAPI, listening: socket.socket, shutdown_seconds: float) -> None:
    """Answer requests until SIGTERM or SIGINT comes. Then refuse new ones and finish those that are in progress.

    Args:
        app: The application.
        listening: A socket of `open_socket`.
        shutdown_seconds: How long requests in progress may take after the signal.
    """
    _log_as_json()
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=max(round(shutdown_seconds), 1),
    )
    # uvicorn raises the signal once more after it has finished. The process then ends as if nothing had happened.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listening])


def _log_as_json():
    """Write requests, and the warnings of all libraries, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("", "efficientnet_tf"):  # `cli.run` keeps the messages of this package from the root logger.
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)

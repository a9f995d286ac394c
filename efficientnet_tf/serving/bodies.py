"""Reads the bodies of requests within limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from efficientnet_tf.config.text import escape, shorten


@dataclass(frozen=True)
class Limits:
    """What a client may ask for.

    Attributes:
        body_bytes: Largest body of a request.
        read_seconds: How long a client may take to send it.
        files: Number of images in a form.
        requests: Number of requests that are worked on at the same time.
    """

    body_bytes: int = 2**24
    read_seconds: float = 30
    files: int = 64
    requests: int = 64


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: 413 if it is too large, 408 if it does not arrive in time, and 400 if it is empty.
    """
    too_large = HTTPException(413, f"The body of the request has more than {limits.body_bytes:,} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.read_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"The request did not arrive within {limits.read_seconds:g} seconds.") from None
    if not size:
        raise HTTPException(400, "The body of the request is empty. Send the content of an image file.")
    return b"".join(parts)


async def read_images(request: Request, limits: Limits) -> tuple[list[tuple[str, bytes]], bool]:
    """Return the image files of a request, each with its name, and whether they come from a form.

    Args:
        request: A request whose body is an image file, or a form with image files (multipart/form-data).
        limits: What the client may ask for.

    Raises:
        HTTPException: As `read_body`, or 400 if the form is damaged, has no file or has too many.
    """
    body = await read_body(request, limits)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        return [("", body)], False
    parser = MultiPartParser(request.headers, _yield_once(body), max_files=limits.files, max_fields=limits.files)
    parser.spool_max_size = limits.body_bytes + 1  # keeps files in memory
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"The form cannot be read: {shorten(escape(error.message))}.") from None
    except (KeyError, ValueError, AssertionError):  # of a header without a boundary
        raise HTTPException(400, "The form cannot be read: its header is damaged.") from None
    files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
    if not files:
        raise HTTPException(400, "The form has no file. Send image files, as `curl -F image=@photo.jpg` does.")
    return [(file.filename or "", await file.read()) for file in files], True


async def _yield_once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body

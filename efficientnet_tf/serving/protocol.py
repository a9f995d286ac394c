"""Reads and writes the tensors of the Open Inference Protocol, version 2, in JSON.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, shorten

INPUT, OUTPUT = "image", "logits"  # as in exported files
_TYPES = {"FP32": np.float32, "UINT8": np.uint8}


def describe_model(name: str, input_shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Return the metadata of a model.

    Args:
        name: Its name in URLs.
        input_shape: Height, width and channels of its images.
        classes: Its number of classes.
    """
    return {
        "name": name,
        "versions": [],
        "platform": "efficientnet_tf",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *input_shape]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, classes]}],
    }


def parse_request(body: bytes, input_shape: tuple[int, int, int], most_images: int) -> tuple[str | None, np.ndarray]:
    """Return the ID of an inference request, or None, and its images.

    Args:
        body: JSON text with one input tensor `image` of datatype FP32 or UINT8, whose `data` are flat or nested lists.
        input_shape: Height, width and channels of the model's images.
        most_images: Number of images that a request may have.

    Returns:
        The ID, and an array [N, H, W, C].

    Raises:
        UserError: If the request is not valid.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The request is not JSON: {escape(str(error))[:200]}.") from None
    tensors = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise UserError(f"The request must have a list `inputs` with one tensor named {INPUT!r}.")
    identifier = request.get("id")
    if not isinstance(identifier, str | None):
        raise UserError("The id of the request must be a string.")
    wanted = request.get("outputs", [{"name": OUTPUT}])
    if not isinstance(wanted, list) or any(not isinstance(o, dict) or o.get("name") != OUTPUT for o in wanted):
        raise UserError(f"The model has one output, {OUTPUT!r}.")
    return identifier, _parse_tensor(tensors[0], input_shape, most_images)


def _parse_tensor(tensor, input_shape, most_images):
    name, datatype, shape = (tensor.get(key) for key in ("name", "datatype", "shape"))
    if name != INPUT:
        raise UserError(f"The input must be named {INPUT!r}, received {shorten(repr(name))}.")
    if datatype not in list(_TYPES):  # a list also compares with what cannot be hashed
        raise UserError(f"The datatype must be one of {', '.join(_TYPES)}, received {shorten(repr(datatype))}.")
    expected = f"[N, {', '.join(map(str, input_shape))}]"
    is_shape = isinstance(shape, list) and all(type(side) is int for side in shape)
    if not is_shape or len(shape) != 4 or shape[1:] != list(input_shape):
        raise UserError(f"The shape must be {expected}, received {shorten(repr(shape))}.")
    if not 1 <= shape[0] <= most_images:
        raise UserError(f"A request may have from 1 to {most_images} images, received {shape[0]}.")
    try:
        values = np.asarray(tensor.get("data"))
    except ValueError:  # lists of different lengths
        raise UserError("The data must be a list of numbers, flat or nested as the shape says.") from None
    if (
        values.dtype.kind not in "iuf"
        or values.size != np.prod(shape)
        or values.shape not in ((values.size,), (*shape,))
    ):
        raise UserError(
            f"The data must be {np.prod(shape)} numbers, flat or nested as the shape says, received an array of shape "
            f"{list(values.shape)} and type {values.dtype}."
        )
    if datatype == "UINT8" and (values.dtype.kind == "f" or values.min() < 0 or values.max() > 255):
        raise UserError("Data of the type UINT8 must be whole numbers from 0 to 255.")
    return values.reshape(shape).astype(_TYPES[datatype])


def format_response(name: str, identifier: str | None, logits: np.ndarray) -> dict[str, Any]:
    """Return the response to an inference request.

    Args:
        name: Name of the model.
        identifier: ID of the request, or None.
        logits: float32 [N, classes].
    """
    output = {"name": OUTPUT, "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
    return ({"id": identifier} if identifier is not None else {}) | {"model_name": name, "outputs": [output]}

"""Tensors of the Open Inference Protocol: what is accepted, and why everything else is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.serving.protocol import describe_model, format_response, parse_request

SHAPE = (2, 2, 3)


def encode(**changes):
    """Return the text of a request for one image, with changes to its tensor."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, *SHAPE], "data": list(range(12))} | changes
    return json.dumps({"inputs": [tensor]}).encode()


@given(st.integers(1, 3), st.booleans(), st.sampled_from(["FP32", "UINT8"]), st.none() | st.text(max_size=5))
def test_flat_and_nested_data_are_the_same_images(count, is_flat, datatype, identifier):
    expected = np.random.default_rng(count).integers(0, 256, (count, *SHAPE))
    data = (expected.ravel() if is_flat else expected).tolist()
    tensor = {"name": "image", "datatype": datatype, "shape": [count, *SHAPE], "data": data}
    request = {"inputs": [tensor], "outputs": [{"name": "logits"}]} | ({} if identifier is None else {"id": identifier})
    received, pixels = parse_request(json.dumps(request).encode(), SHAPE, 3)
    assert received == identifier and pixels.dtype == {"FP32": np.float32, "UINT8": np.uint8}[datatype]
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "one tensor named 'image'"),
        (b'{"inputs": []}', "one tensor named 'image'"),
        (b'{"inputs": [1]}', "one tensor named 'image'"),
        (json.dumps({"id": 3, **json.loads(encode())}).encode(), "id of the request must be a string"),
        (json.dumps({"outputs": [{"name": "x"}], **json.loads(encode())}).encode(), "one output, 'logits'"),
        (json.dumps({"outputs": 3, **json.loads(encode())}).encode(), "one output, 'logits'"),
        (encode(name="images"), "must be named 'image', received 'images'"),
        (encode(datatype="FP64"), "FP32, UINT8, received 'FP64'"),
        (encode(datatype=["FP32"]), "FP32, UINT8, received"),
        (encode(shape=[2, 2, 3]), r"must be \[N, 2, 2, 3\], received \[2, 2, 3\]"),
        (encode(shape=[1, 2, 2, 3.0]), r"must be \[N, 2, 2, 3\]"),
        (encode(shape=[]), r"must be \[N, 2, 2, 3\], received \[\]"),
        (encode(shape="1223"), r"must be \[N, 2, 2, 3\]"),
        (encode(shape=[4, *SHAPE], data=[0] * 48), "from 1 to 3 images, received 4"),
        (encode(shape=[0, *SHAPE], data=[]), "from 1 to 3 images, received 0"),
        (encode(shape=[-1, *SHAPE]), "from 1 to 3 images, received -1"),
        (encode(data=[0] * 11), "must be 12 numbers"),
        (encode(data=[[0] * 4] * 3), "must be 12 numbers"),
        (encode(data=[[0], [0, 1]]), "list of numbers"),
        (encode(data=["0"] * 12), "must be 12 numbers"),
        (encode(data=[None] * 12), "must be 12 numbers"),
        (encode(data=[10**400] * 12), "must be 12 numbers"),
        (encode(data=[True] * 12), "must be 12 numbers"),
        (encode(data=None), "must be 12 numbers"),
        (encode(datatype="UINT8", data=[256] + [0] * 11), "whole numbers from 0 to 255"),
        (encode(datatype="UINT8", data=[-1] + [0] * 11), "whole numbers from 0 to 255"),
        (encode(datatype="UINT8", data=[0.5] * 12), "whole numbers from 0 to 255"),
    ],
)
def test_a_wrong_request_is_refused(body, message):
    with pytest.raises(UserError, match=message):
        parse_request(body, SHAPE, 3)


def test_response_and_metadata():
    logits = np.array([[1, 2], [3, 4]], np.float32)
    output = {"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
    assert format_response("net", "a", logits) == {"id": "a", "model_name": "net", "outputs": [output]}
    assert format_response("net", None, logits) == {"model_name": "net", "outputs": [output]}
    metadata = describe_model("net", SHAPE, 2)
    assert metadata["inputs"][0]["shape"] == [-1, 2, 2, 3] and metadata["outputs"][0]["shape"] == [-1, 2]

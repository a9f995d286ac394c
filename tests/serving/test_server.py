"""The command `serve` as a process: answers, refusals, limits, overload, and the end."""

import contextlib
import json
import signal
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest
from commands import exit_status
from serving.servers import NET, encode_form, encode_image, read_answer, run_server

from efficientnet_tf.export.load import load_model

pytest.importorskip("onnxruntime")


def encode_bomb(width, height):
    """Return a PNG of a few bytes that declares a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("server") / "log.jsonl"


@pytest.fixture(scope="module")
def server(log):
    limits = ("--max_request_mb=0.5", "--max_megapixels=1", "--max_batch=4", "--read_timeout=2")
    with run_server(*limits, "--name=my-net", log=log) as server:
        yield server


@pytest.fixture(scope="module")
def model():
    return load_model(NET)


def test_an_image_file_is_classified_as_predict_does(server, model):
    for form in ("png", "jpeg", "webp", "tiff", "bmp", "gif"):
        image = encode_image(form=form)
        status, answer = server.post("/classify?top=3", image)
        received = [(each["label"], each["probability"]) for each in answer["predictions"]]
        [expected] = model.predict([image], top=3)
        assert status == 200 and [name for name, _ in received] == [name for name, _ in expected], form
        assert [value for _, value in received] == pytest.approx([value for _, value in expected], rel=1e-5)


def test_a_bad_image_in_a_form_fails_alone(server, model):
    images = [encode_image(seed) for seed in range(5)]
    body, content_type = encode_form(*zip("abcde", [*images[:2], b"text", *images[3:]], strict=True))
    status, answer = server.post("/classify?top=1", body, Content_Type=content_type)
    assert status == 200 and [result["name"] for result in answer["results"]] == list("abcde")
    assert answer["results"][2]["error"] == (
        "The image of 4 bytes cannot be decoded: this is a text file, not an image."
    )
    for number in (0, 1, 3, 4):
        [[(name, probability)]] = model.predict([images[number]], top=1)
        [prediction] = answer["results"][number]["predictions"]
        assert prediction == {"label": name, "probability": pytest.approx(probability, rel=1e-5)}
    body, content_type = encode_form(("a", b"text"))
    assert server.post("/classify", body, Content_Type=content_type)[0] == 400


def test_inference_protocol(server, model):
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype(np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
    status, answer = server.post("/v2/models/my-net/infer", json.dumps({"id": "7", "inputs": [tensor]}))
    [output] = answer["outputs"]
    assert status == 200 and answer["id"] == "7" and answer["model_name"] == "my-net"
    logits = np.array(output["data"]).reshape(output["shape"])
    np.testing.assert_allclose(logits, model(pixels), rtol=1e-5, atol=1e-5)

    _, metadata = server.request("GET", "/v2/models/my-net")
    assert metadata["inputs"][0]["shape"] == [-1, 32, 32, 3] and metadata["outputs"][0]["shape"] == [-1, 10]
    for path, key in (("/v2/health/live", "live"), ("/v2/health/ready", "ready"), ("/v2/models/my-net/ready", "ready")):
        assert server.request("GET", path)[1][key] is True
    assert server.request("GET", "/v2")[1]["name"] == "efficientnet_tf"


def test_an_export_is_explained_by_an_occlusion_map(server):
    image = encode_image(3)
    status, answer = server.post("/explain?label=4", image)
    assert status == 200 and (answer["label"], answer["method"]) == ("4", "occlusion map")
    assert np.array(answer["heat"]).shape == (7, 7)
    assert answer["crop"].startswith("data:image/png;base64,")
    _, first = server.post("/classify?top=1", image)
    assert server.post("/explain", image)[1]["label"] == first["predictions"][0]["label"]


FORM = {"Content-Type": "multipart/form-data; boundary=edge"}
NAN = '{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 32, 32, 3], "data": [%s]}]}'


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("POST", "/classify", b"", {}, 400, "empty"),
        ("POST", "/classify", b"%PDF-1.7", {}, 400, "a PDF file"),
        ("POST", "/classify", encode_image()[:2000], {}, 400, "truncated"),
        ("POST", "/classify", encode_bomb(10_000, 10_000), {}, 400, "10,000 x 10,000 pixels, more than the 1,000,000"),
        ("POST", "/classify", bytes(600_000), {}, 413, "more than 500,000 bytes"),
        ("POST", "/classify", None, {"Content-Length": "9" * 15}, 413, "more than 500,000 bytes"),
        ("POST", "/classify?top=0", encode_image(), {}, 400, "top: Input should be greater than or equal to 1"),
        ("POST", "/classify?top=x", encode_image(), {}, 400, "top: Input should be a valid integer"),
        ("POST", "/classify", b"--edge--\r\n", FORM, 400, "no file"),
        ("POST", "/classify", b"no form", FORM, 400, "form"),
        ("POST", "/classify", encode_form(("a", b"b"))[0][:-20], FORM, 400, "form"),
        ("POST", "/classify", b"x", {"Content-Type": "multipart/form-data"}, 400, "form cannot be read"),
        ("POST", "/classify", encode_form(*[("a", b"b")] * 65)[0], FORM, 400, "form cannot be read"),
        ("POST", "/explain", encode_form(("a", b"b"), ("c", b"d"))[0], FORM, 400, "Send one image to explain"),
        ("POST", "/explain?label=none", encode_image(), {}, 400, "no class of this name"),
        ("GET", "/classify", None, {}, 405, "Method Not Allowed"),
        ("GET", "/nothing", None, {}, 404, "Not Found"),
        ("GET", "/v2/models/other", None, {}, 404, "The model is my-net"),
        ("POST", "/v2/models/other/infer", b"{}", {}, 404, "The model is my-net"),
        ("POST", "/v2/models/my-net/infer", b"{}", {}, 400, "one tensor named 'image'"),
        ("POST", "/v2/models/my-net/infer", NAN % ",".join(["NaN"] * 3072), {}, 400, "NaN or infinity"),
        ("POST", "/v2/models/my-net/infer", NAN % ",".join(["999"] * 3072), {}, 400, "pixels are in"),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(server, method, path, body, headers, status, message):
    received, answer = server.request(method, path, body, headers)
    assert received == status and message in answer["error"] and set(answer) == {"error"}


def test_a_slow_request_ends_and_a_client_that_leaves_does_no_harm(server):
    with contextlib.closing(server.connect()) as slow:
        slow.putrequest("POST", "/classify")
        slow.putheader("Content-Length", "1000")
        slow.endheaders(b"\x89PNG")
        status, answer = read_answer(slow)
        assert status == 408 and "did not arrive within 2 seconds" in answer["error"]
    for sent in (
        b"",
        b"\0\0\0",
        b"POST /classify HTTP/1.1\r\nContent-Le",
        b"\x16\x03\x01\x02\0",
        b"GET / HTTP/9\r\n\r\n",
    ):
        address = urlsplit(server.address)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(sent)
    with contextlib.closing(server.connect()) as leaving:
        leaving.putrequest("POST", "/classify")
        leaving.putheader("Content-Length", "1000")
        leaving.endheaders(b"\x89PNG")
    assert server.post("/classify", encode_image())[0] == 200


def test_concurrent_answers_are_those_of_each_image(server, model):
    images = [encode_image(seed) for seed in range(24)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda image: server.post("/classify?top=10", image), images))
    for image, (status, answer) in zip(images, answers, strict=True):
        received = {each["label"]: each["probability"] for each in answer["predictions"]}
        assert status == 200 and received == pytest.approx(dict(model.predict([image], top=10)[0]), rel=1e-4)
    metrics = server.read_metrics()
    assert metrics["efficientnet_batch_images_count"] < metrics["efficientnet_batch_images_sum"]


def test_requests_are_counted_and_logged_as_json(server, log):
    before = server.read_metrics()
    server.post("/classify", encode_image())
    server.post("/classify/nothing/here", b"x")
    after = server.read_metrics()
    for name in ('{path="/classify",status="200"}', '{path="other",status="404"}'):
        key = f"efficientnet_requests_total{name}"
        assert after[key] == before.get(key, 0) + 1
    assert after["efficientnet_requests_in_progress"] == 0 and after["efficientnet_images_waiting"] == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [line for line in lines if line.get("path") == "/classify/nothing/here"]
    assert found[0]["status"] == 404 and found[0]["method"] == "POST" and found[0]["seconds"] >= 0
    assert not [line for line in lines if line["level"] == "error"]


def test_too_many_requests_are_told_to_come_back():
    with run_server("--max_requests=1") as server, contextlib.closing(server.connect()) as first:
        first.putrequest("POST", "/classify")
        first.putheader("Content-Length", "1000")
        first.endheaders(b"\x89PNG")
        deadline = time.monotonic() + 10
        while (answer := server.post("/classify", encode_image()))[0] == 200:
            assert time.monotonic() < deadline
        assert answer[0] == 503 and "as many requests as it may" in answer[1]["error"]
        assert server.request("GET", "/v2/health/live")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_the_answers_in_progress(number):
    image = encode_image()
    with run_server() as server, contextlib.closing(server.connect()) as connection:
        connection.putrequest("POST", "/classify")
        connection.putheader("Content-Length", str(len(image)))
        connection.endheaders(image[:100])
        while server.read_metrics()["efficientnet_requests_in_progress"] < 1:
            time.sleep(0.05)
        server.process.send_signal(number)
        time.sleep(0.3)
        connection.send(image[100:])
        assert read_answer(connection)[0] == 200
        assert server.process.wait(30) == 0
        with pytest.raises(OSError):
            server.post("/classify", image)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port=70000"], "invalid port from 0 to 65535 value: '70000'"),
        (["--host=256.1.1.1"], "the server cannot listen there"),
        (["--name=a/b"], "--name=a/b: a name starts with"),
        (["--max_megapixels=100"], "--max_megapixels=100 is too large"),
        (["--checkpoint=best"], "contains one model only"),
        (["--model_dir=nothing"], "nothing"),
        (["--model_dir=damaged"], "--model_dir=damaged"),
    ],
)
def test_a_mistake_ends_the_start(flags, message, tmp_path, capsys):
    (tmp_path / "damaged.onnx").write_bytes(NET.read_bytes()[:-900])
    flags = [flag.replace("damaged", str(tmp_path / "damaged.onnx")) for flag in flags]
    message = message.replace("--model_dir=damaged", "is damaged or was not written by")
    assert exit_status("serve", f"--model_dir={NET}", "--port=0", *flags) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_named(server, capsys):
    port = urlsplit(server.address).port
    assert exit_status("serve", f"--model_dir={NET}", f"--port={port}") == 1
    assert f"error: --host=127.0.0.1, --port={port}: the server cannot listen there" in capsys.readouterr().err

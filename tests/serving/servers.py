"""Starts `efficientnet_tf.serve` as a process for tests, and sends requests to it."""

import contextlib
import http.client
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

NET = Path(__file__).parents[1] / "fixtures" / "old_exports" / "net.onnx"  # 10 classes, 32x32 pixels


class Server:
    """A running server."""

    def __init__(self, process, address):
        self.process = process
        self.address = address

    def connect(self):
        """Return a new connection."""
        return http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=30)

    def request(self, method, path, body=None, headers=None):
        """Return the status and the answer, parsed if it is JSON."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {})
            return read_answer(connection)

    def post(self, path, body, **headers):
        """Return the status and the answer of a POST request."""
        return self.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def read_metrics(self):
        """Return {name with labels: value}."""
        _, text = self.request("GET", "/metrics")
        lines = [line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}


def read_answer(connection):
    """Return the status and the content of an answer."""
    response = connection.getresponse()
    content = response.read()
    is_json = response.getheader("content-type", "").startswith("application/json")
    return response.status, json.loads(content) if is_json else content


@contextlib.contextmanager
def run_server(*flags, model=NET, log=None):
    """Start a server on a free port, and end it after the block."""
    command = [sys.executable, "-m", "efficientnet_tf.serve", f"--model_dir={model}", "--port=0", *flags]
    with (
        open(log or "/dev/null", "wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            lines = [process.stdout.readline() for _ in range(2)]
            yield Server(process, re.match(r"http://\S+", lines[1])[0])
        finally:
            process.terminate()
            process.wait(60)


def encode_form(*files):
    """Return a form with files (name, content), and its content type."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="image"; filename="%b"\r\n\r\n%b\r\n'
        % (name.encode(), content)
        for name, content in files
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def encode_image(seed=0, size=(60, 80), form="png"):
    """Return an image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()

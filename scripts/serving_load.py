"""Measure the HTTP server under load and under hostile requests: `python scripts/serving_load.py --model_dir=net.onnx`.

    python scripts/serving_load.py --model_dir=net.onnx --output=docs/speed/serving.json   # requests per second
    python scripts/serving_load.py --model_dir=net.onnx --soak_minutes=10 --output=docs/speed/serving_soak.json

The clients run on the same machine and take a part of its cores. Servers with and without batches are measured in
turns. The limit is what the runtime computes in this process, without HTTP and without decoding, at the batch sizes 1
and 32. In the soak, some clients send images and check every answer, while others send what a server should survive.
"""

import argparse
import contextlib
import functools
import http.client
import io
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from efficientnet_tf.config.load import describe_environment
from efficientnet_tf.export.load import load_model
from efficientnet_tf.runtime.hardware import describe_hardware

ROUNDS = 3
CLIENTS = (1, 8, 64)
BATCHES = {"batches of up to 32": "--max_batch=32", "no batches": "--max_batch=1"}


def make_photo(seed, side=256):
    """Return a JPEG file of smooth random colors."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
    file = io.BytesIO()
    small.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()


@contextlib.contextmanager
def run_server(model, *flags):
    """Start a server and yield its process, its host and its port."""
    command = [sys.executable, "-m", "efficientnet_tf.serve", f"--model_dir={model}", "--port=0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            process.stdout.readline()
            address = urlsplit(process.stdout.readline().split()[0])
            yield process, address.hostname, address.port
        finally:
            process.terminate()


def classify(connection, image):
    """Return the status and the answer for an image."""
    connection.request("POST", "/classify?top=5", image)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


# ------------------------------------------------------------------------------------------------------------- load


def measure_load(host, port, clients, seconds, images):
    """Return requests per second and the percentiles of their duration, with a number of clients at a time."""
    durations, end = [], time.monotonic() + seconds

    def work(number):
        with contextlib.closing(http.client.HTTPConnection(host, port, timeout=120)) as connection:
            while (started := time.monotonic()) < end:
                status, answer = classify(connection, images[(number + len(durations)) % len(images)])
                if status != 200:
                    raise RuntimeError(f"status {status}: {answer}")
                durations.append(time.monotonic() - started)

    started = time.monotonic()
    threads = [threading.Thread(target=work, args=[number]) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    percentiles = statistics.quantiles(durations, n=100)
    return {
        "requests_per_second": len(durations) / (time.monotonic() - started),
        "p50_ms": 1000 * percentiles[49],
        "p99_ms": 1000 * percentiles[98],
    }


def measure_limit(model, batch, seconds):
    """Return the images per second that the runtime computes by itself."""
    shape = (batch, *model.config.input_shape)
    pixels = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    model(pixels)
    count, started = 0, time.monotonic()
    while time.monotonic() < started + seconds:
        model(pixels)
        count += batch
    return count / (time.monotonic() - started)


def run_load(args):
    """Return the rows of the load table: the median of the rounds."""
    images, model, found = [make_photo(seed) for seed in range(32)], load_model(args.model_dir), {}
    for round_number in range(ROUNDS + 1):  # The first one warms up.
        rows = {("limit", batch): {"images_per_second": measure_limit(model, batch, args.seconds)} for batch in (1, 32)}
        for name, flag in BATCHES.items():
            with run_server(args.model_dir, flag) as (_, host, port):
                for clients in CLIENTS:
                    rows[name, clients] = measure_load(host, port, clients, args.seconds, images)
        for key, row in rows.items():
            print(round_number, *key, row, flush=True)
            if round_number:
                found.setdefault(key, []).append(row)
    return [
        {"server": name, "batch" if name == "limit" else "clients": count}
        | {key: round(statistics.median(row[key] for row in rows), 2) for key in rows[0]}
        for (name, count), rows in found.items()
    ]


# ------------------------------------------------------------------------------------------------------------- soak


def make_attacks(image):
    """Return {name: function of an open socket} of requests that a server should survive."""

    def post(body, length=None, head=b""):
        return b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n%b" % (
            len(body) if length is None else length,
            head,
            body,
        )

    rng = random.Random(0)
    form = b"Content-Type: multipart/form-data; boundary=x\r\n"

    def drip(connection):
        for byte in post(image)[:40]:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return {
        "noise instead of HTTP": lambda c: c.sendall(rng.randbytes(500)),
        "noise instead of an image": lambda c: c.sendall(post(rng.randbytes(5000))),
        "a truncated image": lambda c: c.sendall(post(image[: rng.randrange(len(image))])),
        "a damaged image": lambda c: c.sendall(post(image[:200] + rng.randbytes(200) + image[400:])),
        "a request that ends early": lambda c: c.sendall(post(image[:100], len(image))),
        "a slow request": drip,
        "a huge request": lambda c: c.sendall(post(bytes(1000), 10**9)),
        "a body above the limit": lambda c: c.sendall(post(bytes(20_000_000))),
        "a damaged form": lambda c: c.sendall(post(b"--x\r\n" + rng.randbytes(300), head=form)),
        "a damaged tensor": lambda c: c.sendall(post(b'{"inputs": [[[[', head=b"")),
        "100 megapixels": lambda c: c.sendall(post(_large_image())),
        "long headers": lambda c: c.sendall(b"GET / HTTP/1.1\r\nA: " + b"x" * 200_000),
    }


@functools.cache
def _large_image():
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "png")
    return file.getvalue()


def read_memory(process):
    """Return the resident memory of a process in MiB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def run_soak(args):
    """Return what happened while good and bad clients used the server."""
    images, counts, wrong = [make_photo(seed) for seed in range(32)], {}, []
    lock, end = threading.Lock(), time.monotonic() + 60 * args.soak_minutes

    def count(name):
        with lock:
            counts[name] = counts.get(name, 0) + 1

    with run_server(args.model_dir, "--read_timeout=5") as (process, host, port):
        with contextlib.closing(http.client.HTTPConnection(host, port)) as connection:
            expected = [classify(connection, image)[1]["predictions"] for image in images]

        def check():
            while time.monotonic() < end:
                number = random.randrange(len(images))
                try:
                    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=60)) as connection:
                        status, answer = classify(connection, images[number])
                except OSError as error:
                    wrong.append(repr(error))
                    continue
                count(f"good request, status {status}")
                received = {each["label"]: each["probability"] for each in answer.get("predictions", [])}
                known = {each["label"]: each["probability"] for each in expected[number]}
                # Rounding depends on the batch, so classes of almost the same probability may change places.
                if status == 200 and any(abs(received.get(k, v) - v) > 1e-3 for k, v in known.items()):
                    wrong.append(f"image {number}: {received} instead of {known}")

        def attack():
            attacks = make_attacks(images[0])
            while time.monotonic() < end:
                name = random.choice(list(attacks))
                with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=10) as connection:
                    attacks[name](connection)
                    if random.random() < 0.5:
                        connection.recv(2**16)
                count(name)

        threads = [
            threading.Thread(target=work) for work in (check, check, check, check, attack, attack, attack, attack)
        ]
        for thread in threads:
            thread.start()
        memory = []
        while any(thread.is_alive() for thread in threads):
            memory.append(round(read_memory(process), 1))
            print(f"{memory[-1]} MiB, {counts}, {len(wrong)} wrong", flush=True)
            time.sleep(30)
    return {"minutes": args.soak_minutes, "requests": counts, "wrong": wrong[:20], "memory_mib": memory}


def main(args):
    """Measure, and write the file."""
    part = {"soak": run_soak(args)} if args.soak_minutes else {"rows": run_load(args)}
    model = load_model(args.model_dir).config
    about = {"network": model.model.name, "image_size": model.image_size, "format": args.model_dir.suffix}
    environment = describe_environment() | describe_hardware()
    args.output.write_text(json.dumps(about | {"environment": environment} | part, indent=1) + "\n")


def make_parser():
    """Return the flags of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", type=Path, required=True, help="Exported file to serve.")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--seconds", type=float, default=5, help="Length of one measurement.")
    parser.add_argument("--soak_minutes", type=float, default=0, help="Run the soak for so long instead.")
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())

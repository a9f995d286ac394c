"""Kill a run again and again at bad moments, and count the bits that differ at its end.

A tiny network is trained once without a disturbance, and once with SIGKILLs: at random times, and as soon as a file of
a checkpoint, of the model or of the metrics appears under its temporary or its final name. Then all tensors of the last
and of the best checkpoint, the lines of metrics.jsonl and the weights in model.keras are compared. The run ends early,
by `eval.patience`. At last, `export` is killed in the same way. A file that has its final name must then be complete.

Prints the number of kills and of differing bits, and exits with status 1 if there is a difference. With
KERAS_BACKEND=jax and --export_kills=0 it disturbs a run with JAX.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tensorflow  # noqa: F401 - before the forks, which then need not import it

from efficientnet_tf import cli, train  # noqa: F401
from efficientnet_tf.training import trainer  # noqa: F401

SETTINGS = [
    "model.stages=[{kernel: 3, stride: 1, expand: 1, channels: 8, repeats: 1, se_ratio: 0}]",
    "model.head_channels=16",
    "model.stem_channels=8",
    "data.source=synthetic",
    "data.eval_split=val",
    "data.synthetic_examples=64",
    "data.image_size=16",
    "train.batch_size=8",
    "eval.batch_size=32",
    "train.steps_per_loop=2",
    "train.checkpoint_every_epochs=0.5",
    "eval.every_epochs=0.75",
    "eval.best=loss",
    "eval.patience=5",
    "schedule.warmup_epochs=0",
]
# Where something is written: the storm waits for one of these, then strikes within a few milliseconds.
TARGETS = (
    r"checkpoints/step-\d+\.tmp_temp",
    r"checkpoints/step-\d+\.tmp\.data",
    r"checkpoints/step-\d+\.tmp\.index",
    r"checkpoints/step-\d+\.data",
    r"checkpoints/step-\d+\.index",
    r"checkpoints/checkpoint",
    r"metrics\.jsonl",
    r"model\.tmp-\d+\.keras",
    r"model\.keras",
    r"config\.yaml",
)
TIMES = ("seconds", "images_per_second")  # in metrics.jsonl, which no run repeats


def main() -> int:
    """Run the storm and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs while the run trains. Default: 50.")
    parser.add_argument("--export_kills", type=int, default=10, help="SIGKILLs while the run is exported. Default: 10.")
    parser.add_argument("--epochs", type=float, default=8.0, help="Length of the run. Default: 8.")
    parser.add_argument("--minutes", type=float, default=60.0, help="Time for the kills of the training. Default: 60.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the moments. Default: 0.")
    parser.add_argument("--dir", help="Folder to work in. Default: a new one, which is deleted.")
    args = parser.parse_args()
    folder = Path(args.dir or tempfile.mkdtemp(prefix="storm-"))
    rng = random.Random(args.seed)
    try:
        calm, stormy = folder / "calm", folder / "stormy"
        end(start("train", calm, args.epochs))
        kills = storm(stormy, args.epochs, args.kills, 60 * args.minutes, rng)
        export_kills, broken = storm_export(calm, folder / "export", args.export_kills, rng)
        bits, tensors, lines = compare(calm, stormy)
        print(f"train: {sum(kills.values())} kills, {bits} of {tensors} bits and {lines} lines of metrics.jsonl differ")
        for moment, count in sorted(kills.items()):
            print(f"  {count:3} {moment}")
        print(f"export: {export_kills} kills, {broken} partial outputs under a final name")
        return 1 if bits or lines or broken else 0
    finally:
        if args.dir is None:
            shutil.rmtree(folder, ignore_errors=True)


def start(command: str, model_dir: Path, epochs: float, *more: str) -> BaseProcess:
    """Start a command on a run, in a fork of this process, which has imported TensorFlow but has not used it."""
    words = [f"--model_dir={model_dir}", *more]
    if command == "train":
        settings = [*SETTINGS, f"train.epochs={epochs:g}"]
        words += ["--variant=b0", "--device=cpu", *(f"--set={setting}" for setting in settings)]
    process = multiprocessing.get_context("fork").Process(target=run, args=[command, words, f"{model_dir}.log"])
    process.start()
    return process


def run(command: str, words: list[str], log: str) -> None:
    """Run a command in this process. What it prints goes to a file."""
    os.makedirs(os.path.dirname(log), exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    module = importlib.import_module(f"efficientnet_tf.{command}" + (".__main__" if command == "export" else ""))
    cli.run(module.main, module.make_parser(), [command, "--verbose", *words])


def end(process: BaseProcess) -> None:
    """Wait for a process that must succeed."""
    process.join()
    if process.exitcode:
        raise SystemExit(f"a process ended with status {process.exitcode}. See its log.")


def storm(model_dir: Path, epochs: float, kills: int, seconds: float, rng: random.Random) -> dict[str, int]:
    """Train, and kill the process a number of times; return {moment: number of kills}. Then let it finish."""
    done: dict[str, int] = {}
    end_time = time.monotonic() + seconds
    while sum(done.values()) < kills and time.monotonic() < end_time:
        process = start("train", model_dir, epochs)
        moment = strike(process, model_dir, rng)
        if moment is None:
            end(process)
            if sum(done.values()) < kills:  # It has finished: only its last step and model are left to disturb.
                forget_the_end(model_dir)
            continue
        done[moment] = done.get(moment, 0) + 1
        print(f"kill {sum(done.values())}: {moment}", file=sys.stderr, flush=True)
    end(start("train", model_dir, epochs))
    return done


def forget_the_end(model_dir: Path) -> None:
    """Take a finished run back to its oldest checkpoint, so that there is something to disturb."""
    (model_dir / "model.keras").unlink()
    steps = sorted({int(path.name.split(".")[0][5:]) for path in (model_dir / "checkpoints").glob("step-*")})
    for path in (model_dir / "checkpoints").glob("step-*"):
        if int(path.name.split(".")[0][5:]) != steps[0]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def strike(process: BaseProcess, folder: Path, rng: random.Random) -> str | None:
    """Kill a process at a random time, or when a file is written; return the moment, or None if it ended before."""
    target = rng.choice([*TARGETS, "random"])
    before = versions(folder)
    deadline = time.monotonic() + (rng.uniform(1, 30) if target == "random" else 120)
    while process.is_alive():
        if time.monotonic() > deadline:
            target = "random"
            break
        if target != "random":
            now = versions(folder)
            if any(now[name] != before.get(name) and re.match(target, name) for name in now):
                time.sleep(rng.choice([0, 0, rng.uniform(0, 0.02)]))
                break
            before = {name: version for name, version in before.items() if name in now}
            continue
        time.sleep(0.01)
    process.kill()
    process.join()
    return target if process.exitcode == -9 else None


def versions(folder: Path) -> dict[str, tuple[int, int]]:
    """Return {name: (inode, time of the last change)} of the files of a run that are watched."""
    found = {}
    for parent in (folder, folder / "checkpoints"):
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    status = entry.stat()
                    name = os.path.relpath(entry.path, folder)
                    found[name] = (status.st_ino, status.st_mtime_ns)
        except OSError:  # Not there yet, or gone meanwhile.
            continue
    return found


def compare(one: Path, other: Path) -> tuple[int, int, int]:
    """Return how many bits of the last checkpoints and models differ, of how many, and how many lines of metrics."""
    import keras
    import numpy as np
    import tensorflow as tf  # Only now: forks must not inherit its threads.

    from efficientnet_tf.models.run_directory import list_checkpoints
    from efficientnet_tf.models.stored import find_step

    def tensors(model_dir):
        prefixes, found = list_checkpoints(str(model_dir)), {}
        for kind, step in ("last", max(prefixes)), ("best", find_step(str(model_dir), "best")):
            found[f"step of the {kind}"] = np.asarray(step)
            reader = tf.train.load_checkpoint(prefixes[step])
            names = [name for name in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in name]
            found |= {f"{kind}/{name}": np.asarray(reader.get_tensor(name)) for name in names}
        model: Any = keras.saving.load_model(model_dir / "model.keras", compile=False)
        return found | {f"model.keras/{v.path}": v.numpy() for v in model.weights}

    def lines(model_dir):
        parsed = map(json.loads, (model_dir / "metrics.jsonl").read_text().split("\n")[:-1])
        return [{key: value for key, value in line.items() if key not in TIMES} for line in parsed]

    first, second = tensors(one), tensors(other)
    bits = total = 0
    for name in first.keys() | second.keys():
        a, b = (values[name].tobytes() if name in values else b"" for values in (first, second))
        total += 8 * max(len(a), len(b))
        bits += (int.from_bytes(a, "little") ^ int.from_bytes(b, "little")).bit_count()
        bits += 8 * abs(len(a) - len(b))
    mine, theirs = lines(one), lines(other)
    different = abs(len(mine) - len(theirs)) + sum(a != b for a, b in zip(mine, theirs, strict=False))
    return bits, total, different


def storm_export(model_dir: Path, folder: Path, kills: int, rng: random.Random) -> tuple[int, int]:
    """Kill `export` a number of times; return the number of kills and of partial outputs with their final name."""
    folder.mkdir(exist_ok=True)
    done = broken = tries = 0
    while done < kills and tries < 4 * kills:
        tries += 1
        output = folder / rng.choice(["saved", "model.tflite"])
        process = start("export", model_dir, 0, f"--output={output}")
        began = time.monotonic()
        seconds = rng.uniform(3, 30)
        target = rng.random() < 0.7
        while process.is_alive() and time.monotonic() - began < seconds:
            if target and any(folder.iterdir()):
                time.sleep(rng.uniform(0, 0.5))
                break
            time.sleep(0.001)
        process.kill()
        process.join()
        done += process.exitcode == -9
        if output.exists():
            broken += not opens(output)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return done, broken


def opens(path: Path) -> bool:
    """Return whether an export can be opened and answers."""
    program = (
        "import sys, numpy as np\nfrom efficientnet_tf import load_model\n"
        "print(load_model(sys.argv[1])(np.zeros((1, 16, 16, 3), 'float32')))"
    )
    return subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())

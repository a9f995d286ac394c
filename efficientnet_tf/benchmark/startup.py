"""Measure what users wait for: whole processes, from their start to their answer, in rounds."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from efficientnet_tf.benchmark.report import Row
from efficientnet_tf.benchmark.startup_script import BATCH, DONE, FILES
from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.runtime.children import last_lines
from efficientnet_tf.runtime.terminal import ProgressBar

LIMIT_SECONDS = 1800.0  # for a process to answer
POLL_SECONDS = 0.005  # between two looks whether it has
WARM_UPS = 1  # rounds that do not count, so that all files are in the system's cache


@dataclass(frozen=True)
class Start:
    """A process to start, and its answer, which ends the measurement.

    Attributes:
        task: What the user does.
        implementation: Whose code does it.
        words: Words after `python -m`. NUMBER stands for the number of the round.
        answer: Pattern of the answer in its output, or the path of a file that has content then.
    """

    task: str
    implementation: str
    words: tuple[str, ...]
    answer: str


def list_starts(variant: str, compare: Sequence[str], folder: str) -> list[Start]:
    """Return the processes to measure, for files that `startup_script` has prepared in a folder."""
    ours, picture = "efficientnet_tf", os.path.join(folder, "picture.jpg")

    def start(task: str, command: str, *words: str, answer: str) -> Start:
        return Start(task, ours, ("efficientnet_tf", command, *words), answer)

    def predict(task: str, name: str) -> Start:
        model = os.path.join(folder, name)
        return start(task, "predict", f"--model_dir={model}", picture, answer=rf"{re.escape(picture)}: \w")

    def others(task: str, function: str) -> list[Start]:
        module = f"{__package__}.startup_script"
        return [Start(task, name, (module, f"{function}_{name}", folder, variant), DONE) for name in compare]

    model_dir = os.path.join(folder, "training_NUMBER")
    settings = (
        "data.source=synthetic",
        "data.synthetic_examples=1000",
        "data.eval_split=val",
        f"train.batch_size={BATCH}",
    )
    settings += ("train.steps_per_loop=1", "eval.batch_size=8")
    sets = [word for setting in settings for word in ("--set", setting)]
    network = ("--variant", variant, f"--model_dir={model_dir}")
    train = (*network, "--recipe=imagenet", *sets)
    missing = os.path.join(folder, "missing")
    exports = [name for name in (f"network.{ending}" for ending in FILES) if os.path.exists(os.path.join(folder, name))]
    return [
        predict("predict", "run"),
        *others("predict", "predict"),
        *(predict(f"predict with {name}", name) for name in exports),
        start("evaluate 360 digits", "evaluate", f"--model_dir={folder}/digits", answer="top-1"),
        start("first training step", "train", *train, answer=os.path.join(model_dir, "metrics.jsonl")),
        *others("first training step", "train"),
        start("error: no such model", "predict", f"--model_dir={missing}", picture, answer=re.escape(missing)),
        start("error: no such data", "train", *network, "--recipe=folder", f"--data_dir={missing}", answer=missing),
    ]


def measure_startup(variants: Sequence[str], compare: Sequence[str], rounds: int) -> Iterator[Row]:
    """Measure the processes of each variant in rounds.

    Args:
        variants: Names of networks.
        compare: Other implementations: "keras", "timm".
        rounds: Rounds that count, at least 1. `WARM_UPS` more come first.

    Yields:
        A dict for each process: variant, task, implementation, and "seconds", "low" and "high": the median, the lowest
        and the highest time from its start to its answer.

    Raises:
        UserError: If a process ends without an answer, or takes longer than `LIMIT_SECONDS`.
    """
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            for name in ("prepare", *(f"prepare_{name}" for name in compare)):
                _run([f"{__package__}.startup_script", name, folder, variant])
            starts = list_starts(variant, compare, folder)
            seconds: list[list[float]] = [[] for _ in starts]
            with ProgressBar((rounds + WARM_UPS) * len(starts), variant, "processes") as bar:
                for number in range(rounds + WARM_UPS):
                    for start, measured in zip(starts, seconds, strict=True):
                        measured.append(time_start(start, number))
                        bar.advance()
            for start, measured in zip(starts, (times[WARM_UPS:] for times in seconds), strict=True):
                median, low, high = statistics.median(measured), min(measured), max(measured)
                yield {"variant": variant, "task": start.task, "implementation": start.implementation} | {
                    key: round(value, 2) for key, value in (("seconds", median), ("low", low), ("high", high))
                }


def time_start(start: Start, number: int) -> float:
    """Start a process and return the seconds until it has answered. It is killed then."""
    words, answer = ([word.replace("NUMBER", str(number)) for word in part] for part in (start.words, [start.answer]))
    return _run(words, *answer)


def _run(words: Sequence[str], answer: str | None = None) -> float:
    """Run a module until it has answered, or to its end if no answer is expected. Return the seconds."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    text = ""
    # The output is opened twice. Otherwise, reading it would move the position at which the process writes.
    with tempfile.NamedTemporaryFile() as output, open(output.name, encoding="utf-8", errors="replace") as reader:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while (seconds := time.perf_counter() - started) < LIMIT_SECONDS:
                status = process.poll()  # before the output is read, so that nothing of it is missed
                text += reader.read()
                if answer and (_has_lines(answer) or re.search(answer, text)):
                    return seconds
                if status == 0 and answer is None:
                    return seconds
                if status is not None:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
            process.wait()
    said = escape(shorten(last_lines(text, 3)))
    raise UserError(f"python -m {' '.join(words[:3])} ended without an answer: {said}")


def _has_lines(path: str) -> bool:
    return os.path.isabs(path) and os.path.isfile(path) and os.path.getsize(path) > 0

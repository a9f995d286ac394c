"""A replacement for the command `train` that takes its flags and writes its files without TensorFlow.

It trains for `train.epochs` seconds. A learning rate above 100 makes it fail, and one above 1000 kills it. The networks
of a search for a baseline, trial000 and so on, are better the more of their kernels are large, at each evaluation.
"""

import json
import os
import signal
import sys
import time

from efficientnet_tf.config.load import dump_config, load_config
from efficientnet_tf.runtime.children import WATCH_PARENT

COMMAND = (sys.executable, "-c", WATCH_PARENT + f"runpy.run_path({__file__!r}, run_name='__main__')\n")


def make_failing_command(text):
    """Return a command that fails for every run with `text` in its flags, and trains the others."""
    check = f"if any({text!r} in word for word in sys.argv): sys.exit('error: this run fails')\n"
    program = COMMAND[2].replace("runpy.run_path", f"{check}runpy.run_path")
    return (*COMMAND[:2], program)


def measure(config):
    """Return the top-1 accuracy at each of the four evaluations."""
    if config.model.name.startswith("trial"):
        kernels = [stage.kernel for stage in config.model.stages]
        return [(0.2 + 0.7 * kernels.count(5) / len(kernels)) * step / 4 for step in (1, 2, 3, 4)]
    return [1 / config.model.width + config.train.seed / 1000 - (4 - step) for step in (1, 2, 3, 4)]


def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)


def train(variant, recipe, overrides, model_dir):
    config = load_config(variant, recipe, overrides)
    os.makedirs(model_dir, exist_ok=True)
    with open(f"{model_dir}/started", "a") as file:
        file.write(f"{os.getpid()}\n")
    with open(f"{model_dir}/classes.txt", "w") as file:
        file.write("one\ntwo\nthree\n")
    with open(f"{model_dir}/config.yaml", "w") as file:
        file.write(dump_config(config))
    if config.optimizer.learning_rate > 1000:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.optimizer.learning_rate > 100:
        print("  1%|bar\r  2%|bar", file=sys.stderr)
        sys.exit("error: the loss is nan after step 2")
    wait(config.train.epochs / 2)
    with open(f"{model_dir}/metrics.jsonl", "w", buffering=1) as file:
        for step, (rate, accuracy) in enumerate(zip([1.0, 30.0, 10.0, 20.0], measure(config), strict=True), 1):
            wait(config.train.epochs / 8)
            line = {"step": step, "kind": "train", "top1": 0.0, "seconds": 0.5, "images_per_second": rate}
            file.write(json.dumps(line) + "\n")
            for kind, shift in (("raw", -0.1), ("ema", 0.0)):
                line = {"top1": accuracy + shift, "top5": 0.9 + shift, "loss": 2.0 + shift}
                file.write(json.dumps({"step": step, "kind": f"eval/{kind}", **line}) + "\n")


def stop(*_):
    print("saved", flush=True)
    sys.exit(75)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    flags = dict(word[2:].split("=", 1) for word in sys.argv[1:] if not word.startswith("--set="))
    train(
        flags["variant"],
        flags["recipe"],
        [word[6:] for word in sys.argv[1:] if word.startswith("--set=")],
        flags["model_dir"],
    )

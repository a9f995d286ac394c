"""What is timed against each other: networks in training or inference, and the machine's own limits.

Each has a process of its own, so that threads, memory and start are its own, too; the parent lets them run in turns.
A process gets a Setting as its argument, tells when its first step is done, and from then on reads numbers of steps, a
line each, and answers each with what they took.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

from efficientnet_tf.config import UserError
from efficientnet_tf.machine import peak_bytes

IMAGES = 100_000  # as if of a data set: the schedule asks how many
CLASSES = 1000
PRODUCT = 2048  # side of the matrices whose product is the limit of arithmetic
COPIED_BYTES = 2**28


@dataclass(frozen=True)
class Setting:
    """What a process is to do."""

    contestant: str  # one of CONTESTANTS
    mode: str = "infer"  # or "train"
    variant: str = "b0"
    size: int = 224
    batch: int = 32
    precision: str = "float32"
    threads: int | None = None  # cores to run on; all, by default


class Contestant:
    """A process that does steps when it is told to; a context, which ends it."""

    def __init__(self, setting):
        self.setting = setting
        self.start_seconds = self.peak_bytes = None
        self._step_seconds = 1.0

    def __enter__(self):
        command = [sys.executable, "-m", "efficientnet_tf.contestants", json.dumps(asdict(self.setting))]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        self._errors = tempfile.TemporaryFile("w+")
        started = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{self.setting.contestant} ended with status {self._process.returncode}: {last[:300]}")
        return json.loads(line)

    def run(self, seconds):
        """Let it do steps for about so many seconds, one at least; return the seconds of one."""
        steps = max(1, round(seconds / self._step_seconds))
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        told = self._answer()
        self.peak_bytes, self._step_seconds = told["peak_bytes"], told["seconds"] / steps
        return self._step_seconds


# ------------------------------------------------------------------------------------- in the process of its own


def _examples(setting):
    import numpy as np

    rng, shape = np.random.default_rng(0), (setting.batch, setting.size, setting.size, 3)
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, CLASSES, setting.batch, np.int32)


def _ours(setting):
    import tensorflow as tf

    from efficientnet_tf import checkpoint, config, distribute, loops

    sizes = [f"data.image_size={setting.size}", f"train.batch_size={setting.batch}"]
    settings = config.load_config(setting.variant, "imagenet", [*sizes, f"train.precision={setting.precision}"])
    strategy = distribute.create_strategy("auto")
    examples = _examples(setting)
    if setting.mode == "infer":
        with strategy.scope(), checkpoint.precision_of(settings, strategy):
            model = checkpoint.build_for(settings, CLASSES)
        return _forward(model, examples[0])
    state = checkpoint.create_state(settings, CLASSES, IMAGES, strategy)
    loop = loops.make_train_loop(state, settings, strategy)
    batches = distribute.iterate(strategy, lambda _: tf.data.Dataset.from_tensors(examples).repeat())
    return lambda steps: loop(batches, tf.constant(steps)).numpy()


def _forward(model, images):
    import tensorflow as tf

    forward = tf.function(lambda images: model(images, training=False))
    images = tf.constant(images)

    def run(steps):
        for _ in range(steps):
            forward(images).numpy()

    return run


def _keras(setting):
    """keras.applications in a plain graph: its `fit` would compile by XLA, several times slower on a processor."""
    import keras
    import tensorflow as tf

    keras.config.set_dtype_policy(setting.precision)
    images, labels = map(tf.constant, _examples(setting))
    model = getattr(keras.applications, f"EfficientNet{setting.variant.upper()}")(
        weights=None, input_shape=(setting.size, setting.size, 3), classifier_activation=None
    )
    if setting.mode == "infer":
        return _forward(model, images)
    optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    def run(steps):
        for _ in range(steps):
            step().numpy()

    return run


def _timm(setting):
    """Torch's networks, compiled, channels last."""
    import timm
    import torch

    train, dtype = setting.mode == "train", getattr(torch, setting.precision.removeprefix("mixed_"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = (torch.from_numpy(array).to(device) for array in _examples(setting))
    model = timm.create_model(f"tf_efficientnet_{setting.variant}").to(device, memory_format=torch.channels_last)
    model.train(train)
    compiled = torch.compile(model)
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3, momentum=0.9)

    def forward():
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            x = images.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
            return compiled((x - 127) / 58)

    def run(steps):
        with contextlib.nullcontext() if train else torch.inference_mode():
            for _ in range(steps):
                logits = forward().float()
                if train:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(logits, labels.long()).backward()
                    optimizer.step()
                logits.sum().item()

    return run


def _product(setting):
    import tensorflow as tf

    dtype = tf.bfloat16 if "bfloat16" in setting.precision else tf.float32
    matrix = tf.cast(tf.random.normal([PRODUCT, PRODUCT]), dtype)
    multiply = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)[0]))

    def run(steps):
        for _ in range(steps):
            multiply().numpy()

    return run


def _copy(_):
    import tensorflow as tf

    values = tf.ones([COPIED_BYTES // 4])
    negate = tf.function(lambda: -values)

    def run(steps):
        for _ in range(steps):
            negate()[:1].numpy()

    return run


def _exported(setting):
    """Run the forward pass of a file that `export` would write; its weights are random."""
    import keras
    import numpy as np

    from efficientnet_tf import artefacts, folding, models

    runtime, precision = setting.contestant.split(":")
    kind = artefacts.FORMATS[RUNTIMES[runtime]]
    artefacts.require(kind, precision)
    images = _examples(setting)[0].astype(np.float32)
    model = folding.fold_batch_norm(models.build_model(setting.variant, CLASSES, images.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"network{RUNTIMES[runtime]}")
        named = keras.Model(model.input, {"logits": model.output})
        kind.write(named, path, precision, images[:8, None], (), dict.fromkeys(artefacts.TEXTS, precision))
        logits_of, _ = artefacts.open_artefact(path)

    def run(steps):
        for _ in range(steps):
            logits_of(images)

    return run


RUNTIMES = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml"}
EXPORTS = (
    *("litert:float32", "litert:float16", "litert:dynamic", "litert:int8"),
    *("onnx:float32", "onnx:int8"),
    *("openvino:float32", "openvino:bfloat16", "openvino:int8"),
)
CONTESTANTS = {
    **{"efficientnet_tf": _ours, "keras": _keras, "timm": _timm, "product": _product, "copy": _copy},
    **dict.fromkeys(EXPORTS, _exported),
}


def main(text):
    """Do what the parent says, until it says no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    setting = Setting(**json.loads(text))
    if setting.threads and hasattr(os, "sched_setaffinity"):  # every library counts by it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting.threads])
    run = CONTESTANTS[setting.contestant](setting)
    run(1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        run(int(line))
        told = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

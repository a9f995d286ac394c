"""What is timed against each other: networks in training or inference, and the machine's own limits.

Each has a process of its own, so that threads, memory and start are its own, too; `turns` is the other end. A process
gets a Setting as its argument, tells when its first step is done, and from then on reads numbers of steps, a line each,
and answers each with what they took. What is known of it beside time comes with every answer (`facts`).
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass

from efficientnet_tf.runtime.hardware import peak_bytes

IMAGES = 100_000  # as if of a data set: the schedule asks how many
CLASSES = 1000
SMOOTHING = 0.1  # of labels, as the recipe `imagenet` has it
PRODUCT = 2048  # side of the matrices whose product is the limit of arithmetic
COPIED_BYTES = 2**28
PACKAGES = ("torch", "timm", "ai-edge-litert", "onnxruntime", "openvino")  # whose versions matter beside this one's


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


def _examples(setting):
    import numpy as np

    rng, shape = np.random.default_rng(0), (setting.batch, setting.size, setting.size, 3)
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, CLASSES, setting.batch, np.int32)


def _ours(setting):
    import tensorflow as tf

    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.models.model_dir import build_from_config, precision_scope
    from efficientnet_tf.runtime.strategy import create_strategy, distribute_batches
    from efficientnet_tf.training.checkpoint import create_state
    from efficientnet_tf.training.tensorflow_loop import make_train_loop

    sizes = [f"data.image_size={setting.size}", f"train.batch_size={setting.batch}"]
    settings = load_config(setting.variant, "imagenet", [*sizes, f"train.precision={setting.precision}"])
    strategy = create_strategy("auto")
    examples = _examples(setting)
    if setting.mode == "infer":
        with strategy.scope(), precision_scope(settings, strategy):
            model = build_from_config(settings, CLASSES)
        return _forward(model, examples[0])
    state = create_state(settings, CLASSES, IMAGES, strategy)
    loop = make_train_loop(state, settings, strategy)
    batches = iter(distribute_batches(strategy, lambda _: tf.data.Dataset.from_tensors(examples).repeat()))
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
    """Torch's networks, compiled, channels last, with as much dropout as ours."""
    import timm
    import torch

    from efficientnet_tf.config.load import load_variant

    spec = load_variant(setting.variant)
    train, dtype = setting.mode == "train", getattr(torch, setting.precision.removeprefix("mixed_"))
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    images, labels = (torch.from_numpy(array).to(device) for array in _examples(setting))
    rates = {"drop_rate": spec.dropout, "drop_path_rate": spec.drop_connect}
    model = timm.create_model(f"tf_efficientnet_{setting.variant}", **rates)
    model = model.to(device, memory_format=torch.channels_last).train(train)
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
                    loss = torch.nn.functional.cross_entropy(logits, labels.long(), label_smoothing=SMOOTHING)
                    loss.backward()
                    optimizer.step()
        if gpu:
            torch.cuda.synchronize()

    def facts():
        if not gpu:
            return {"device": device, "device_peak_bytes": None}
        return {"device": torch.cuda.get_device_name(), "device_peak_bytes": torch.cuda.max_memory_allocated()}

    run.facts = facts
    return run


def _jax(setting):
    """This package's network on Keras's JAX backend, where TensorFlow need not be; a step is one compiled program."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # most of a GPU's memory, which others want, too
    import jax
    import keras

    from efficientnet_tf.models.builder import build_model

    keras.config.set_dtype_policy(setting.precision)
    examples = jax.device_put(_examples(setting))
    model = build_model(setting.variant, CLASSES, examples[0].shape[1:])
    state = [
        [variable.value for variable in part] for part in (model.trainable_variables, model.non_trainable_variables)
    ]

    def infer(state, images, _):
        return state, model.stateless_call(*state, images, training=False)[0]

    def train(state, images, labels):
        def loss_of(weights, others):
            logits, others = model.stateless_call(weights, others, images, training=True)
            targets = jax.nn.one_hot(labels, CLASSES)
            losses = keras.losses.categorical_crossentropy(targets, logits, True, SMOOTHING)
            return losses.mean(), others

        weights, others, slots = state
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights, others)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return [weights, others, slots], loss

    if setting.mode == "train":
        optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9)
        optimizer.build(model.trainable_variables)
        state.append([variable.value for variable in optimizer.variables])
    step = jax.jit(train if setting.mode == "train" else infer, donate_argnums=0)  # new values in the old one's memory

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, result = step(state, *examples)
        result.block_until_ready()

    def facts():
        device = jax.devices()[0]
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return {"device": device.device_kind, "device_peak_bytes": peak}

    run.facts = facts
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

    from efficientnet_tf.export.folding import fold_batch_norm
    from efficientnet_tf.export.formats import FORMATS, TEXTS, open_export, require_packages
    from efficientnet_tf.models.builder import build_model

    runtime, precision = setting.contestant.split(":")
    kind = FORMATS[RUNTIMES[runtime]]
    require_packages(kind, precision)
    images = _examples(setting)[0].astype(np.float32)
    model = fold_batch_norm(build_model(setting.variant, CLASSES, images.shape[1:]))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"network{RUNTIMES[runtime]}")
        named = keras.Model(model.input, {"logits": model.output})
        kind.write(named, path, precision, images[:8, None], (), dict.fromkeys(TEXTS, precision))
        size = sum(file.stat().st_size for file in os.scandir(folder))
        logits_of, _ = open_export(path)

    def run(steps):
        for _ in range(steps):
            logits_of(images)

    run.facts = lambda: {"file_bytes": size}
    return run


RUNTIMES = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml"}
EXPORTS = (
    *("litert:float32", "litert:float16", "litert:dynamic", "litert:int8"),
    *("onnx:float32", "onnx:int8"),
    *("openvino:float32", "openvino:bfloat16", "openvino:int8"),
)
IMPLEMENTATIONS = {
    **{"efficientnet_tf": _ours, "keras": _keras, "timm": _timm, "jax": _jax, "product": _product, "copy": _copy},
    **dict.fromkeys(EXPORTS, _exported),
}


def main(text):
    """Do what the parent says, until it says no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    setting = Setting(**json.loads(text))
    if setting.threads and hasattr(os, "sched_setaffinity"):  # every library counts by it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting.threads])
    run = IMPLEMENTATIONS[setting.contestant](setting)
    facts, steps = {}, 1
    while steps:
        started = time.perf_counter()
        run(steps)
        seconds = time.perf_counter() - started
        facts = {"first_step_seconds": seconds} | facts | getattr(run, "facts", dict)() | {"peak_bytes": peak_bytes()}
        print(json.dumps({"seconds": seconds, "facts": facts}), file=answers, flush=True)
        steps = int(sys.stdin.readline() or 0)


if __name__ == "__main__":
    main(sys.argv[1])

"""The processes that are timed: networks in training or inference, and the limits of the machine.

Each implementation runs in its own process, so that it has its own threads, memory and start-up time. The parent is
`rounds.Worker`. A process receives a `Setting` as its argument and runs one step. It then reads a number of steps from
each line of its standard input, runs them, and answers with the time they took. Every answer also has what else is
known about the process, such as its peak memory.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from efficientnet_tf.benchmark.jax_implementations import prepare_jax, prepare_keras_fit_on_jax
from efficientnet_tf.benchmark.setting import (
    CLASSES,
    LABEL_SMOOTHING,
    TRAINING_IMAGES,
    Job,
    Setting,
    make_batch,
    name_in_keras,
    name_in_timm,
    repeat,
)
from efficientnet_tf.runtime.hardware import peak_bytes

MATRIX_SIZE = 2048  # the product of two square matrices of this size is the limit of arithmetic
COPIED_BYTES = 2**28
# Results depend on their versions, too.
PACKAGES = ("torch", "timm", "jax", "ai-edge-litert", "onnxruntime", "openvino")


# -------------------------------------------------------------------------------------------- implementations


def _prepare_this_package(setting):
    """Prepare the training loop or the forward pass of this package."""
    import tensorflow as tf

    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.models.folding import Inference
    from efficientnet_tf.models.from_config import build_from_config, precision_scope
    from efficientnet_tf.runtime.strategy import create_strategy, device_type, distribute_batches
    from efficientnet_tf.training.state import create_state
    from efficientnet_tf.training.tensorflow_loop import make_train_loop

    sizes = [f"data.image_size={setting.size}", f"train.batch_size={setting.batch}"]
    config = load_config(setting.variant, "imagenet", [*sizes, f"train.precision={setting.precision}"])
    strategy = create_strategy("auto")
    batch = make_batch(setting)
    if setting.mode == "infer":
        with strategy.scope(), precision_scope(config, strategy):
            inference = Inference(build_from_config(config, CLASSES), device_type(strategy))
        return _prepare_forward_pass(inference, batch[0])
    state = create_state(config, CLASSES, TRAINING_IMAGES, strategy)
    loop = make_train_loop(state, config, strategy)
    batches = iter(distribute_batches(strategy, lambda _: tf.data.Dataset.from_tensors(batch).repeat()))
    return Job(lambda steps: loop(batches, tf.constant(steps)).numpy())


def _prepare_forward_pass(classify, images):
    import tensorflow as tf

    forward = tf.function(classify, autograph=False)
    images = tf.constant(images)
    return Job(repeat(lambda: forward(images).numpy()))


def _prepare_keras(setting):
    """Prepare keras.applications in a plain graph.

    `fit` is not used: it would compile with XLA, which is several times slower on a CPU.
    """
    import keras
    import tensorflow as tf

    keras.config.set_dtype_policy(setting.precision)
    keras.config.set_image_data_format("channels_last")
    images, labels = map(tf.constant, make_batch(setting))
    model = getattr(keras.applications, name_in_keras(setting.variant))(
        weights=None, input_shape=(setting.size, setting.size, 3), classifier_activation=None
    )
    if setting.mode == "infer":
        return _prepare_forward_pass(lambda images: model(images, training=False), images)
    optimizer = keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9)
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses: Any = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    return Job(repeat(lambda: step().numpy()))


def _prepare_timm(setting):
    """Prepare timm with torch.compile, channels last, and the same dropout as this package."""
    import timm
    import torch

    from efficientnet_tf.config.load import load_variant

    spec = load_variant(setting.variant)
    train, dtype = setting.mode == "train", getattr(torch, setting.precision.removeprefix("mixed_"))
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    images, labels = (torch.from_numpy(array).to(device) for array in make_batch(setting))
    rates: dict[str, Any] = {"drop_rate": spec.dropout, "drop_path_rate": spec.drop_connect}
    model: Any = timm.create_model(name_in_timm(setting.variant), **rates)
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
                    loss = torch.nn.functional.cross_entropy(logits, labels.long(), label_smoothing=LABEL_SMOOTHING)
                    loss.backward()
                    optimizer.step()
        if gpu:
            torch.cuda.synchronize()

    def get_facts():
        if not gpu:
            return {"device": device, "device_peak_bytes": None}
        return {"device": torch.cuda.get_device_name(), "device_peak_bytes": torch.cuda.max_memory_allocated()}

    return Job(run, get_facts)


def _prepare_matrix_product(setting):
    import tensorflow as tf

    dtype = tf.bfloat16 if "bfloat16" in setting.precision else tf.float32
    matrix = tf.cast(tf.random.normal([MATRIX_SIZE, MATRIX_SIZE]), dtype)
    multiply = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)[0]), autograph=False)
    return Job(repeat(lambda: multiply().numpy()))


def _prepare_copy(_):
    import tensorflow as tf

    values = tf.ones([COPIED_BYTES // 4])
    negate = tf.function(lambda: -values, autograph=False)
    return Job(repeat(lambda: negate()[:1].numpy()))


def _prepare_exported_file(setting):
    """Prepare the forward pass of a file as `export` writes it, with random weights."""
    import keras
    import numpy as np

    from efficientnet_tf.export.formats import FORMATS, require_packages
    from efficientnet_tf.export.int8_network import make_int8_network, measure_limits
    from efficientnet_tf.models.builder import build_model
    from efficientnet_tf.models.folding import fold_batch_norm

    runtime, precision = setting.implementation.split(":")
    kind = FORMATS[RUNTIMES[runtime]]
    require_packages(kind)
    keras.config.set_image_data_format("channels_last")
    images = make_batch(setting)[0].astype(np.float32)
    model = fold_batch_norm(build_model(setting.variant, CLASSES, images.shape[1:]))
    if precision == "int8":
        model = make_int8_network(model, measure_limits(model, images[:8, None]), runtime != "litert")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"network{RUNTIMES[runtime]}")
        named = keras.Model(model.input, {"logits": model.output})
        kind.write(named, path, precision, {"precision": precision})
        file_bytes = sum(file.stat().st_size for file in os.scandir(folder))
        logits_of, _ = kind.open(path, precision)
    return Job(repeat(lambda: logits_of(images)), lambda: {"file_bytes": file_bytes})


RUNTIMES = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml"}
EXPORTS = (
    *("litert:float32", "litert:float16", "litert:dynamic", "litert:int8"),
    *("onnx:float32", "onnx:int8"),
    *("openvino:float32", "openvino:bfloat16", "openvino:int8"),
)
IMPLEMENTATIONS: dict[str, Callable[[Setting], Job]] = {
    "efficientnet_tf": _prepare_this_package,
    "keras": _prepare_keras,
    "timm": _prepare_timm,
    "jax": prepare_jax,
    "keras_fit_jax": prepare_keras_fit_on_jax,
    "product": _prepare_matrix_product,
    "copy": _prepare_copy,
    **dict.fromkeys(EXPORTS, _prepare_exported_file),
}


# ------------------------------------------------------------------------------------------------ the process


def main(text: str):
    """Run steps until the standard input ends.

    Args:
        text: A `Setting` as JSON.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output, which is for the answers alone
    setting = Setting(**json.loads(text))
    if setting.threads and hasattr(os, "sched_setaffinity"):  # every library counts the cores it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting.threads])
    job = IMPLEMENTATIONS[setting.implementation](setting)
    facts, steps = {}, 1
    while steps:
        started = time.perf_counter()
        job.run(steps)
        seconds = time.perf_counter() - started
        facts = {"first_step_seconds": seconds} | facts | job.get_facts() | {"peak_bytes": peak_bytes()}
        print(json.dumps({"seconds": seconds, "facts": facts}), file=answers, flush=True)
        steps = int(sys.stdin.readline() or 0)


if __name__ == "__main__":
    main(sys.argv[1])

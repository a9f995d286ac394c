"""What is timed with JAX: the engine of this package, which needs no TensorFlow here, and Keras's own training."""

import itertools
import os
from typing import Any

from efficientnet_tf.benchmark.setting import (
    CLASSES,
    TRAINING_IMAGES,
    Job,
    Setting,
    make_batch,
    name_in_keras,
    repeat,
)


def prepare_jax(setting: Setting) -> Job:
    """Prepare the JAX engine of this package. It needs no TensorFlow."""
    _choose_jax()
    import jax

    from efficientnet_tf.config.load import load_config
    from efficientnet_tf.models.from_config import build_from_config, precision_scope
    from efficientnet_tf.runtime.jax_strategy import create_jax_strategy
    from efficientnet_tf.training.jax_loop import make_train_loop
    from efficientnet_tf.training.state import create_state

    sizes = [f"data.image_size={setting.size}", f"train.batch_size={setting.batch}"]
    config = load_config(setting.variant, "imagenet", [*sizes, f"train.precision={setting.precision}"])
    strategy = create_jax_strategy("auto", replicas=1)
    (batch,) = strategy.divide_batches([make_batch(setting)])
    if setting.mode == "train":
        state = create_state(config, CLASSES, TRAINING_IMAGES, strategy)
        loop = make_train_loop(state, config, strategy)
        return Job(lambda steps: jax.block_until_ready(loop(itertools.repeat(batch), steps)), _describe_jax_device)
    with precision_scope(config, strategy):
        model: Any = build_from_config(config, CLASSES)
    values = [[v.value for v in part] for part in (model.trainable_variables, model.non_trainable_variables)]
    forward = jax.jit(lambda values, images: model.stateless_call(*values, images, training=False)[0])
    return Job(repeat(lambda: jax.block_until_ready(forward(values, batch[0]))), _describe_jax_device)


def prepare_keras_fit_on_jax(setting: Setting) -> Job:
    """Prepare the training of keras.applications by Keras's own `fit`, with JAX."""
    _choose_jax()
    import keras

    if setting.mode != "train":
        raise ValueError("fit only trains")
    keras.config.set_dtype_policy(setting.precision)
    keras.config.set_image_data_format("channels_last")
    model = getattr(keras.applications, name_in_keras(setting.variant))(
        weights=None, input_shape=(setting.size, setting.size, 3), classifier_activation=None
    )
    model.compile(
        keras.optimizers.RMSprop(1e-3, rho=0.9, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batch = make_batch(setting)

    def batches():
        while True:
            yield batch

    return Job(
        lambda steps: model.fit(batches(), steps_per_epoch=steps, epochs=1, verbose=0),  # pyright: ignore
        _describe_jax_device,
    )


def _choose_jax():
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # other workers need memory on the same GPU


def _describe_jax_device():
    import jax

    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {"device": device.device_kind, "device_peak_bytes": peak}

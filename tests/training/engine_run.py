"""Trains a network with the engine of Keras's backend, from given weights: `engine_run.py ARGUMENTS`.

ARGUMENTS is JSON: "variant"; "weights" is a .npz file of {path: value}, written first if it is missing; "overrides" of
the recipe digits; "steps"; and "output", a .npz file of the losses and everything that training has changed.
"""

import json
import os
import sys

import numpy as np
import tensorflow as tf
import tiny

from efficientnet_tf.config.load import load_config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import Failures, train_dataset
from efficientnet_tf.runtime.backend import uses_jax
from efficientnet_tf.runtime.strategy import distribute_batches
from efficientnet_tf.training.losses import measure_targets
from efficientnet_tf.training.state import create_state


def main(variant, weights, overrides, steps, output):
    config = load_config(variant, "digits", overrides)
    if uses_jax():
        from efficientnet_tf.runtime.jax_strategy import JaxStrategy
        from efficientnet_tf.training.jax_loop import make_train_loop

        strategy = JaxStrategy()
    else:
        from efficientnet_tf.training.tensorflow_loop import make_train_loop

        strategy = tiny.make_strategy(1)
    source = open_source(config.data, config.data.train_split, training=True)
    config, outputs = measure_targets(config, source), len(source.class_names)
    if not os.path.exists(weights):
        model = create_state(config, outputs, source.size, strategy, labels=source.labels).model
        np.savez(weights, **{v.path: np.asarray(v.value) for v in model.variables if v.dtype == "float32"})
    with np.load(weights) as values:
        state = create_state(config, outputs, source.size, strategy, dict(values), source.labels)
    failures = Failures(source)
    batches = iter(distribute_batches(strategy, lambda context: train_dataset(source, config, failures, 0, context)))
    loop = make_train_loop(state, config, strategy)
    losses = [np.asarray(loop(batches, tf.constant(1))) for _ in range(steps)]
    np.savez(output, losses=losses, **{name: np.asarray(v) for name, v in tiny.variables_of(state).items()})


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

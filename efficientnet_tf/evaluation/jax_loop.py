"""Evaluates classifiers with JAX. The counterpart of `loop.make_eval_loop`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax import lax
from keras import ops

from efficientnet_tf.evaluation.metrics import Metrics
from efficientnet_tf.runtime.jax_strategy import AXIS, JaxStrategy, StepQueue


def make_eval_loop(
    classifiers: Sequence[Callable[[Any], Any]],
    metrics: Metrics,
    strategy: JaxStrategy,
    variables: Sequence[keras.Variable],
):
    """Make the function that evaluates for some steps. Arguments and result are those of `loop.make_eval_loop`.

    `variables` are those that the classifiers read. Their values are arguments of the compiled program.
    """
    step = make_eval_step(classifiers, metrics, strategy, variables)

    def loop(batches: Iterator[tuple[jax.Array, ...]], steps: Any, sums: Any = None) -> Any:
        if sums is None:
            sums = jnp.zeros([len(classifiers), metrics.size])
        sums = strategy.replicate(sums)
        values, queue = strategy.replicate([variable.value for variable in variables]), StepQueue()
        for _ in range(int(steps)):
            sums = step(values, sums, *next(batches))
            queue.add(sums)
        return sums

    return loop


def make_eval_step(
    classifiers: Sequence[Callable[[Any], Any]],
    metrics: Metrics,
    strategy: JaxStrategy,
    variables: Sequence[keras.Variable],
) -> Any:
    """Make the compiled step that the loop repeats. The arguments are those of `make_eval_loop`.

    Returns:
        A `jax.jit` of a function of the values of the variables, of the sums so far, float32 [len(classifiers),
        metrics.size], of images float32 [B, H, W, C], and of labels and weights. It returns new sums.
    """

    def device_step(values, sums, images, labels, weights):
        rows = []
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            for logits_of in classifiers:
                rows.append(metrics.sum_up(ops.cast(logits_of(images), "float32"), labels, weights))
        return sums + lax.psum(jnp.stack(rows), AXIS)

    return strategy.compile(device_step, batches=3)

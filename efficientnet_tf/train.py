"""Train a classifier: `python -m efficientnet_tf.train --variant=b0 --recipe=digits --model_dir=DIR`."""

import contextlib
import math
import signal
import time

from efficientnet_tf import cli


class _StopFlag:
    """Turns SIGTERM into a flag, so that a run saves before it ends. A context manager."""

    def __enter__(self):
        self.asked = False
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, *_):
        self.asked = True

    def __exit__(self, *exception):
        signal.signal(signal.SIGTERM, self._before)


def create_state(config, classes, size, strategy):
    """Create model, optimiser and moving average on the strategy's devices.

    Args:
        config: config.Config; `train.seed` decides the initial weights.
        classes: int >= 2.
        size: int, number of training images: the schedule is told in epochs.
        strategy: tf.distribute.Strategy.

    Returns:
        checkpoint.State.
    """
    import keras

    from efficientnet_tf import checkpoint, optim

    with strategy.scope(), _dtype_policy(config, strategy):
        keras.utils.set_random_seed(config.train.seed)
        model = checkpoint.build_for(config, classes)
        optimizer = optim.create_optimizer(config, model, size)
        average = optim.MovingAverage(model, config.train.ema_decay) if config.train.ema_decay else None
        return checkpoint.State(model, optimizer, average)


def graph_of(phase, state, strategy):
    """Return the model whose graph a phase's steps take: the state's, unless image size or drop rates are others.

    Args:
        phase: optim.Phase.
        state: checkpoint.State.
        strategy: tf.distribute.Strategy.
    """
    from efficientnet_tf import checkpoint, distribute

    with distribute.on_host(), _dtype_policy(phase.config, strategy):
        graph = checkpoint.build_for(phase.config, state.model.output_shape[-1])
    return state.model if graph.get_config() == state.model.get_config() else graph


@contextlib.contextmanager
def _dtype_policy(config, strategy):
    """Build models in the precision of the config."""
    import keras

    from efficientnet_tf import distribute

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(distribute.dtype_policy(config.train.precision, strategy))
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def train(config, model_dir, strategy):
    """Train as the config says, or go on where an earlier call with the same config was stopped.

    Args:
        config: config.Config.
        model_dir: str, local or gs://; `checkpoint` tells what comes to lie there.
        strategy: tf.distribute.Strategy.

    Returns:
        dict: {"step": int, "finished": bool} and, once finished, the last evaluation, {"raw": {...}, "ema": {...}} as
        `loops.make_evaluator` returns them. Not finished means that a SIGTERM came; all is saved.

    Raises:
        UserError: for data, directory or device that do not fit the config, and when the loss is no longer finite.
    """
    import tensorflow as tf

    from efficientnet_tf import checkpoint, data, loops, optim, report, sources
    from efficientnet_tf.config import UserError

    # Data and directory first: what is wrong with them shows before anything is built.
    train_source = sources.open_source(config.data, config.data.train_split, training=True)
    eval_source = sources.open_source(config.data, config.data.eval_split, training=False)
    if eval_source.class_names != train_source.class_names:
        raise UserError("the training and the evaluation split have different classes")
    data.check_batches(config, strategy.num_replicas_in_sync)
    checkpoint.open_model_dir(model_dir, config, train_source.class_names)

    size = train_source.size
    state = create_state(config, len(train_source.class_names), size, strategy)
    checkpointer = checkpoint.Checkpointer(model_dir, state, config)
    step = saved = checkpointer.restore()
    phases = optim.plan_phases(config, size)
    total = phases[-1].end_step
    checkpoint_every = optim.to_steps(config.train.checkpoint_every_epochs, config, size)
    eval_every = optim.to_steps(config.eval.every_epochs, config, size)
    evaluators = loops.make_evaluators(state, eval_source, config, strategy)
    failures = data.Failures(train_source)

    def start_phase(phase):
        """Return the batches from the current step on, and the loop that trains on them."""
        first = step - phase.first_step
        batches = strategy.distribute_datasets_from_function(
            lambda context: data.train_dataset(
                train_source, phase.config, failures, first, context, phase.first_position
            )
        )
        graph = graph_of(phase, state, strategy) if len(phases) > 1 else None
        return iter(batches), loops.make_train_loop(state, phase.config, strategy, graph)

    def run_loop(steps):
        started = time.perf_counter()
        try:
            loss, accuracy = loop(batches, tf.constant(steps)).numpy().tolist()
        except tf.errors.OpError as error:
            failures.check(config.data.max_bad_fraction)
            raise UserError(f"training failed after step {step}: {error.message}") from error
        failures.check(config.data.max_bad_fraction)
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} after step {step + steps}. Checkpoints written before are whole; a lower "
                "optimizer.learning_rate or a longer schedule.warmup_epochs usually mends this"
            )
        return {
            "loss": loss,
            "top1": accuracy,
            "learning_rate": float(state.optimizer.learning_rate),
            "images_per_second": steps * phase.batch_size / (time.perf_counter() - started),
        }

    def evaluate():
        return {kind: evaluator() for kind, evaluator in evaluators.items()}

    phase = result = None
    with report.Report(model_dir, config.model.name, step, total) as log, _StopFlag() as stop:
        if step:
            log.say(f"going on from the checkpoint of step {step} of {total}")
        while step < total and not stop.asked:
            if phase is None or step == phase.end_step:
                phase = next(p for p in phases if step < p.end_step)
                batches, loop = start_phase(phase)
            until = [every - step % every for every in (checkpoint_every, eval_every)]
            steps = min(config.train.steps_per_loop, phase.end_step - step, *until)
            values = run_loop(steps)
            step += steps
            log.train(step, values)
            if step % eval_every == 0 or step == total:
                result = evaluate()
                log.evaluation(step, result)
            # Last, for what a killed run has told since its checkpoint is told again.
            if step % checkpoint_every == 0 or step == total:
                saved = checkpointer.save()
        if saved < step:
            checkpointer.save()
        bad = failures.names()
        if bad:
            log.say(f"{len(bad)} of {size} training images could not be read and were left out: {', '.join(bad[:10])}")
        if step < total:
            log.say(f"stopped by a signal: step {step} of {total} is saved; the same command goes on from there")
            return {"step": step, "finished": False}
        log.say(f"finished: {checkpoint.save_model(model_dir)}")
    return {"step": step, "finished": True, **(result or evaluate())}


def main(args):
    """Compose the config, choose the device, train."""
    from efficientnet_tf.config import load_config

    config = load_config(args.variant, args.recipe, cli.overrides(args))
    if args.print_config:
        from efficientnet_tf.config import dump_config

        print(dump_config(config), end="")
        return 0

    from efficientnet_tf.distribute import create_strategy

    result = train(config, args.model_dir, create_strategy(args.device, args.tpu, args.replicas))
    return 0 if result["finished"] else cli.EXIT_RESTART


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "train",
        "Train a classifier. Killed at any moment and started again by the same command, it goes on from its last "
        f"checkpoint; after SIGTERM it saves and exits with status {cli.EXIT_RESTART}.",
    )
    parser.add_argument("--model_dir", required=True, help="where the run lies: config, checkpoints, metrics, model")
    cli.add_config_arguments(parser)
    cli.add_device_arguments(parser)
    parser.add_argument("--print_config", action="store_true", help="print the resolved config and end")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

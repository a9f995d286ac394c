"""Train a classifier: `python -m efficientnet_tf.train --variant=b0 --recipe=digits --model_dir=DIR`."""

import json
import math
import os
import time

from efficientnet_tf import cli
from efficientnet_tf.runtime.signals import EXIT_RESTART, StopFlag


def graph_of(phase, state, strategy):
    """Return the model whose graph a phase's steps take: the state's, where it is the same.

    Another image size, other drop rates or frozen layers make a graph of their own. A frozen body, which is to stay as
    it is, drops none of its branches.

    Args:
        phase: optim.Phase.
        state: checkpoint.State.
        strategy: tf.distribute.Strategy.
    """
    from efficientnet_tf.config.load import override_config
    from efficientnet_tf.models.model_dir import build_from_config, precision_scope
    from efficientnet_tf.runtime.strategy import on_host
    from efficientnet_tf.training.transfer import freeze_layers

    config, frozen = phase.config, phase.config.train.freeze
    if frozen == "body":
        config = override_config(config, ["model.drop_connect=0"])
    with on_host(), precision_scope(config, strategy):
        graph = build_from_config(config, state.model.output_shape[-1])
    freeze_layers(graph, frozen)
    return state.model if graph.get_config() == state.model.get_config() else graph


def open_together(model_dir, config, class_names, chief, gather):
    """Make or check a run's directory: `checkpoint.open_model_dir`, the chief first, then the other workers.

    Raises:
        UserError: also when the workers do not share the directory.
    """
    import tensorflow as tf

    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.models.model_dir import open_model_dir

    if chief:
        open_model_dir(model_dir, config, class_names)
    gather(0)
    if not chief:
        if not tf.io.gfile.exists(os.path.join(model_dir, "config.yaml")):
            raise UserError(f"--model_dir={model_dir}: this worker does not see what the chief has written there")
        open_model_dir(model_dir, config, class_names)


def train(config, model_dir, strategy, tracker="tensorboard"):
    """Train as the config says, or go on where an earlier call with the same config was stopped.

    Args:
        config: config.Config.
        model_dir: str, local or gs://; `checkpoint` tells what comes to lie there.
        strategy: tf.distribute.Strategy.
        tracker: str, "tensorboard", or "wandb" for Weights & Biases, too.

    Returns:
        dict: {"step": int, "finished": bool} and, once finished, the last evaluation, {"raw": {...}, "ema": {...}} as
        `loops.make_evaluator` returns them. Not finished means that a SIGTERM came; all is saved.

    Raises:
        UserError: for data, weights, directory or device that do not fit the config, a tracker that is not installed
            or cannot begin, and when the loss is no longer finite.
    """
    import tensorflow as tf

    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.data.open import open_source
    from efficientnet_tf.data.pipeline import Failures, check_batches, train_dataset
    from efficientnet_tf.evaluation.loop import make_evaluators
    from efficientnet_tf.models.model_dir import save_keras_model
    from efficientnet_tf.runtime.strategy import distribute_batches
    from efficientnet_tf.runtime.workers import is_chief, make_gather, report_lost_workers
    from efficientnet_tf.training.checkpoint import Checkpointer, create_state
    from efficientnet_tf.training.graph import batch_norm_group_size
    from efficientnet_tf.training.metrics import RunLog, SilentLog
    from efficientnet_tf.training.schedule import plan_phases, to_steps
    from efficientnet_tf.training.tensorflow_loop import make_train_loop
    from efficientnet_tf.training.transfer import read_initial_weights
    from efficientnet_tf.training.wandb import require_tracker

    require_tracker(tracker)
    # Data, weights and directory first: what is wrong with them shows before anything is built or written.
    train_source = open_source(config.data, config.data.train_split, training=True)
    eval_source = open_source(config.data, config.data.eval_split, training=False)
    if eval_source.class_names != train_source.class_names:
        raise UserError("the training and the evaluation split have different classes")
    check_batches(config, strategy.num_replicas_in_sync)
    batch_norm_group_size(config, strategy)
    initial, begun = None, tf.io.gfile.glob(os.path.join(model_dir, "checkpoints", "step-*.index"))
    if config.train.init_from is not None and not begun:
        initial = read_initial_weights(config, train_source.class_names)
    chief, gather = is_chief(strategy), make_gather(strategy)
    open_together(model_dir, config, train_source.class_names, chief, gather)

    size = train_source.size
    state = create_state(config, len(train_source.class_names), size, strategy, initial and initial.values)
    checkpointer = Checkpointer(model_dir, state, config)
    step = saved = checkpointer.restore()
    if set(gather(step)) != {step}:
        raise UserError(
            f"--model_dir={model_dir}: the workers find checkpoints of different steps there, this one {step}"
        )
    phases = plan_phases(config, size)
    total = phases[-1].end_step
    checkpoint_every = to_steps(config.train.checkpoint_every_epochs, config, size)
    eval_every = to_steps(config.eval.every_epochs, config, size)
    evaluators = make_evaluators(state, eval_source, config, strategy)
    failures = Failures(train_source)

    def start_phase(phase):
        """Return the batches from the current step on, and the loop that trains on them."""
        first = step - phase.first_step
        batches = distribute_batches(
            strategy,
            lambda context: train_dataset(train_source, phase.config, failures, first, context, phase.first_position),
        )
        plain = phase.config == config and config.train.freeze == "none"
        graph = None if plain else graph_of(phase, state, strategy)
        return iter(batches), make_train_loop(state, phase.config, strategy, graph)

    def run_loop(steps):
        started = time.perf_counter()
        try:
            with report_lost_workers(strategy):
                loss, accuracy = loop(batches, tf.constant(steps)).numpy().tolist()
        except tf.errors.OpError as error:
            failures.check(config.data.max_bad_fraction)
            raise UserError(f"training failed after step {step}: {error.message}") from error
        seconds = time.perf_counter() - started
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
            "seconds": seconds,
            "images_per_second": steps * phase.batch_size / seconds,
        }

    def evaluate():
        with report_lost_workers(strategy):
            return {kind: evaluator() for kind, evaluator in evaluators.items()}

    phase = result = None
    log = RunLog(model_dir, config.model.name, step, total, tracker, config) if chief else SilentLog()
    with checkpointer, log, StopFlag() as stop:
        if initial:
            log.say(initial.message)
        if step:
            log.say(f"going on from the checkpoint of step {step} of {total}")
        while step < total and not any(gather(stop.asked)):
            if phase is None or step == phase.end_step:
                phase = next(p for p in phases if step < p.end_step)
                batches, loop = start_phase(phase)
            until = [every - step % every for every in (checkpoint_every, eval_every)]
            steps = min(config.train.steps_per_loop, phase.end_step - step, *until)
            values = run_loop(steps)
            checkpointer.wait(only_if_done=True)
            step += steps
            log.train(step, values)
            if step % eval_every == 0 or step == total:
                result = evaluate()
                log.evaluation(step, result)
            # Last, for what a killed run has told since its checkpoint is told again.
            if chief and (step % checkpoint_every == 0 or step == total):
                saved = checkpointer.save(background=True)
        if chief and saved < step:
            checkpointer.save()
        checkpointer.wait()
        bad = failures.names()
        if bad:
            log.say(f"{len(bad)} of {size} training images could not be read and were left out: {', '.join(bad[:10])}")
        if step < total:
            log.say(f"stopped by a signal: step {step} of {total} is saved; the same command goes on from there")
            gather(step)  # a worker that ended now would take the chief, still writing, with it
            return {"step": step, "finished": False}
        if chief:
            log.say(f"finished: {save_keras_model(model_dir)}")
        result = result or evaluate()
        gather(step)
    return {"step": step, "finished": True, **result}


def main(args):
    """Compose the config, choose the device, train."""
    from efficientnet_tf.config.load import load_config

    init_from = [] if args.init_from is None else [f"train.init_from={json.dumps(args.init_from)}"]
    overrides = init_from + cli.overrides(args)
    config = load_config(args.variant, args.recipe, overrides)
    if not args.print_config:
        from efficientnet_tf.runtime.strategy import create_strategy
        from efficientnet_tf.training.wandb import require_tracker

        require_tracker(args.tracker)
        strategy = create_strategy(args.device, args.tpu, args.replicas, cluster=True)
    if config.train.init_from is not None:
        from efficientnet_tf.training.transfer import needs_as_overrides

        # Beneath the user's own, so that the run's config.yaml records what its weights need.
        config = load_config(args.variant, args.recipe, needs_as_overrides(config, args.model_dir) + overrides)
    if args.print_config:
        from efficientnet_tf.config.load import dump_config

        print(dump_config(config), end="")
        return 0
    result = train(config, args.model_dir, strategy, args.tracker)
    return 0 if result["finished"] else EXIT_RESTART


def make_parser():
    """Return the command's flags."""
    parser = cli.make_parser(
        "train",
        "Train a classifier. Killed at any moment and started again by the same command, it goes on from its last "
        f"checkpoint; after SIGTERM it saves and exits with status {EXIT_RESTART}.",
    )
    parser.add_argument("--model_dir", required=True, help="where the run lies: config, checkpoints, metrics, model")
    cli.add_config_arguments(parser)
    parser.add_argument(
        "--init_from", help="short for --set train.init_from=...: start from these weights, with a new classifier"
    )
    cli.add_device_arguments(parser)
    cli.add_tracker_argument(parser)
    parser.add_argument("--print_config", action="store_true", help="print the resolved config and end")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

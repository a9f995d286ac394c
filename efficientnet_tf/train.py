"""Train a classifier: `python -m efficientnet_tf.train --variant=b0 --recipe=digits --model_dir=DIR`."""

import json
import math
import os
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


def graph_of(phase, state, strategy):
    """Return the model whose graph a phase's steps take: the state's, where it is the same.

    Another image size, other drop rates or frozen layers make a graph of their own. A frozen body, which is to stay as
    it is, drops none of its branches.

    Args:
        phase: optim.Phase.
        state: checkpoint.State.
        strategy: tf.distribute.Strategy.
    """
    from efficientnet_tf import checkpoint, distribute, transfer
    from efficientnet_tf.config import override_config

    config, frozen = phase.config, phase.config.train.freeze
    if frozen == "body":
        config = override_config(config, ["model.drop_connect=0"])
    with distribute.on_host(), checkpoint.precision_of(config, strategy):
        graph = checkpoint.build_for(config, state.model.output_shape[-1])
    transfer.freeze(graph, frozen)
    return state.model if graph.get_config() == state.model.get_config() else graph


def open_together(model_dir, config, class_names, chief, gather):
    """Make or check a run's directory: `checkpoint.open_model_dir`, the chief first, then the other workers.

    Raises:
        UserError: also when the workers do not share the directory.
    """
    import tensorflow as tf

    from efficientnet_tf import checkpoint
    from efficientnet_tf.config import UserError

    if chief:
        checkpoint.open_model_dir(model_dir, config, class_names)
    gather(0)
    if not chief:
        if not tf.io.gfile.exists(os.path.join(model_dir, "config.yaml")):
            raise UserError(f"--model_dir={model_dir}: this worker does not see what the chief has written there")
        checkpoint.open_model_dir(model_dir, config, class_names)


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

    from efficientnet_tf import checkpoint, data, distribute, loops, optim, report, sources, train_graph, transfer
    from efficientnet_tf.config import UserError

    report.require_tracker(tracker)
    # Data, weights and directory first: what is wrong with them shows before anything is built or written.
    train_source = sources.open_source(config.data, config.data.train_split, training=True)
    eval_source = sources.open_source(config.data, config.data.eval_split, training=False)
    if eval_source.class_names != train_source.class_names:
        raise UserError("the training and the evaluation split have different classes")
    data.check_batches(config, strategy.num_replicas_in_sync)
    train_graph.group_size(config, strategy)
    initial, begun = None, tf.io.gfile.glob(os.path.join(model_dir, "checkpoints", "step-*.index"))
    if config.train.init_from is not None and not begun:
        initial = transfer.read_initial(config, train_source.class_names)
    chief, gather = distribute.is_chief(strategy), distribute.make_gather(strategy)
    open_together(model_dir, config, train_source.class_names, chief, gather)

    size = train_source.size
    state = checkpoint.create_state(config, len(train_source.class_names), size, strategy, initial and initial.values)
    checkpointer = checkpoint.Checkpointer(model_dir, state, config)
    step = saved = checkpointer.restore()
    if set(gather(step)) != {step}:
        raise UserError(
            f"--model_dir={model_dir}: the workers find checkpoints of different steps there, this one {step}"
        )
    phases = optim.plan_phases(config, size)
    total = phases[-1].end_step
    checkpoint_every = optim.to_steps(config.train.checkpoint_every_epochs, config, size)
    eval_every = optim.to_steps(config.eval.every_epochs, config, size)
    evaluators = loops.make_evaluators(state, eval_source, config, strategy)
    failures = data.Failures(train_source)

    def start_phase(phase):
        """Return the batches from the current step on, and the loop that trains on them."""
        first = step - phase.first_step
        batches = distribute.batches(
            strategy,
            lambda context: data.train_dataset(
                train_source, phase.config, failures, first, context, phase.first_position
            ),
        )
        plain = phase.config == config and config.train.freeze == "none"
        graph = None if plain else graph_of(phase, state, strategy)
        return iter(batches), loops.make_train_loop(state, phase.config, strategy, graph)

    def run_loop(steps):
        started = time.perf_counter()
        try:
            with distribute.together(strategy):
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
        with distribute.together(strategy):
            return {kind: evaluator() for kind, evaluator in evaluators.items()}

    phase = result = None
    log = report.Report(model_dir, config.model.name, step, total, tracker, config) if chief else report.Silence()
    with checkpointer, log, _StopFlag() as stop:
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
            log.say(f"finished: {checkpoint.save_model(model_dir)}")
        result = result or evaluate()
        gather(step)
    return {"step": step, "finished": True, **result}


def main(args):
    """Compose the config, choose the device, train."""
    from efficientnet_tf.config import load_config

    init_from = [] if args.init_from is None else [f"train.init_from={json.dumps(args.init_from)}"]
    overrides = init_from + cli.overrides(args)
    config = load_config(args.variant, args.recipe, overrides)
    if not args.print_config:
        from efficientnet_tf import report
        from efficientnet_tf.distribute import create_strategy

        report.require_tracker(args.tracker)
        strategy = create_strategy(args.device, args.tpu, args.replicas, cluster=True)
    if config.train.init_from is not None:
        from efficientnet_tf.transfer import needs_as_overrides

        # Beneath the user's own, so that the run's config.yaml records what its weights need.
        config = load_config(args.variant, args.recipe, needs_as_overrides(config, args.model_dir) + overrides)
    if args.print_config:
        from efficientnet_tf.config import dump_config

        print(dump_config(config), end="")
        return 0
    result = train(config, args.model_dir, strategy, args.tracker)
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
    parser.add_argument(
        "--init_from", help="short for --set train.init_from=...: start from these weights, with a new classifier"
    )
    cli.add_device_arguments(parser)
    cli.add_tracker_argument(parser)
    parser.add_argument("--print_config", action="store_true", help="print the resolved config and end")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

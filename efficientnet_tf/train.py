"""Train a classifier: `python -m efficientnet_tf.train --variant=b0 --recipe=digits --model_dir=DIR`."""

import argparse
import json
import os

from efficientnet_tf import cli
from efficientnet_tf.runtime.files import check_weights_path, is_remote
from efficientnet_tf.runtime.signals import EXIT_RESTART, StopFlag, StopLimit


def main(args: argparse.Namespace) -> int:
    """Compose the config, choose the device and train."""
    from efficientnet_tf.config.load import dump_config, load_config
    from efficientnet_tf.runtime.backend import choose_backend

    _describe_workers(args)
    choose_backend(args.backend)
    init_from = [] if args.init_from is None else [f"train.init_from={json.dumps(args.init_from)}"]
    overrides = init_from + cli.overrides(args)
    config = load_config(args.variant, args.recipe, overrides)
    # Until the run itself takes over, a signal ends the process at once, also while it waits for other workers.
    with StopFlag(), StopLimit(lambda: 0, _say_last_words):
        if not args.print_config:
            _check(args, config)
        strategy = None if args.print_config else _create_strategy(args)
        if config.train.init_from is not None:
            from efficientnet_tf.training.transfer import adopt_needs

            config = adopt_needs(config, args.model_dir, overrides)
        if args.print_config:
            print(dump_config(config), end="")
            return 0
        if args.find_learning_rate:
            _find_learning_rate(args, config, strategy)
            return 0
        from efficientnet_tf.training.trainer import train_model

    result = train_model(config, args.model_dir, strategy, args.tracker, allow_change=args.allow_change)
    return 0 if result["finished"] else EXIT_RESTART


def _describe_workers(args):
    """Put the workers of the flags where TensorFlow looks for them."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.runtime.cluster import describe_cluster

    if args.workers or args.worker is not None:
        if os.environ.get("TF_CONFIG"):
            raise UserError("--workers and the environment variable TF_CONFIG both list the workers. Use one of them.")
        os.environ["TF_CONFIG"] = describe_cluster(args.workers, args.worker)


def _check(args, config):
    """Refuse what can be refused before TensorFlow is imported, which takes seconds."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.data.batch_sizes import check_batches
    from efficientnet_tf.data.listing import check_data
    from efficientnet_tf.models.run_directory import check_run
    from efficientnet_tf.runtime.backend import BACKENDS
    from efficientnet_tf.runtime.cluster import read_cluster
    from efficientnet_tf.runtime.hardware import check_devices
    from efficientnet_tf.runtime.lock import check_unlocked
    from efficientnet_tf.training.teacher import check_teacher
    from efficientnet_tf.training.wandb import require_tracker
    from efficientnet_tf.visualization.figures import require_matplotlib
    from efficientnet_tf.weights.formats import check_weights
    from efficientnet_tf.weights.names import variable_paths

    if args.steps and not args.find_learning_rate:
        raise UserError(
            f"steps={args.steps} is only for --find_learning_rate. The length of a run is --set train.epochs=..."
        )
    if args.model_dir is None:
        raise UserError("--model_dir is missing. Name the directory of the run, for example --model_dir=runs/digits.")
    check_devices(args.device, args.tpu, args.replicas, BACKENDS)
    if args.find_learning_rate:
        require_matplotlib("--find_learning_rate")
    # The weights of init_from can change the config, so it can only be compared with that of the run afterwards. A
    # range test does not depend on a run that is in the directory.
    is_other = config.train.init_from or args.find_learning_rate
    check_run(args.model_dir, None if is_other else config, args.allow_change)
    # With several workers, the chief may hold the lock already.
    if not (args.find_learning_rate or read_cluster(os.environ.get("TF_CONFIG", ""))):
        check_unlocked(args.model_dir)
    # A run that has begun does not need the weights any more. On gs:// this cannot be known yet.
    if config.train.init_from and not is_remote(args.model_dir):
        if not os.path.exists(os.path.join(args.model_dir, "config.yaml")):
            check_weights_path("train.init_from", config.train.init_from)
            check_weights(config.train.init_from, variable_paths(config.model))
    check_teacher(config)
    check_batches(config, args.replicas)
    require_tracker(args.tracker)
    check_data(config.data)


def _find_learning_rate(args, config, strategy):
    """Run a range test, write its curve and its plot, and print the suggested rate with the command that uses it."""
    from efficientnet_tf.runtime.files import write_text
    from efficientnet_tf.runtime.workers import is_chief
    from efficientnet_tf.training.learning_rate_finder import STEPS, find_learning_rate
    from efficientnet_tf.visualization.figures import save_figure
    from efficientnet_tf.visualization.learning_rates import draw_range_test

    result = find_learning_rate(config, strategy, args.steps or STEPS)
    if not is_chief(strategy):
        return
    # `train` does not look for these files, so a run can begin in the same directory.
    path = os.path.join(args.model_dir, "learning_rate_test")
    write_text(f"{path}.json", json.dumps(result, indent=1) + "\n")
    title = f"Learning-rate range test: {config.model.name}, {config.data.source}, {config.optimizer.name}"
    save_figure(draw_range_test(result, title), f"{path}.png", "model_dir")
    for line in _describe_test(args, config, result):
        print(line)
    print(f"Plot and numbers: {path}.png, {path}.json")


def _describe_test(args, config, result):
    """Yield the lines that say what a range test has found."""
    rates, smoothed = result["learning_rates"], result["smoothed"]
    end = "where it diverged" if result["diverged"] else "without diverging"
    yield (
        f"The smoothed loss was lowest, {min(smoothed):.3f}, at the rate {rates[smoothed.index(min(smoothed))]:.2g}. "
        f"It began at {smoothed[0]:.3f} and ended with {smoothed[-1]:.3f} at the rate {rates[-1]:.2g}, {end}."
    )
    if result["suggestion"] is None:
        yield "The loss has hardly fallen, so no rate is suggested. Use more --steps or a larger train.batch_size."
        return
    setting = f"optimizer.learning_rate={result['suggestion']:.2g}"
    yield f"Suggested: {setting}, a tenth of the rate with the lowest loss."
    if config.train.phases and all("optimizer.learning_rate" in phase.set for phase in config.train.phases):
        yield "The first phase was tested. All phases of this config set the rate in train.phases."
        return
    others = [text for text in args.overrides if not text.startswith("optimizer.learning_rate=")]
    chosen = argparse.Namespace(**vars(args) | {"overrides": [*others, setting]})
    yield f"Train with it: {cli.format_command(make_parser(), chosen, omitted=('find_learning_rate', 'steps'))}"


def _say_last_words() -> None:
    print("Stopped before the training began. The same command starts it again.")


def _create_strategy(args):
    from efficientnet_tf.runtime.strategy import create_strategy

    return create_strategy(args.device, args.tpu, args.replicas, cluster=True)


def make_parser() -> argparse.ArgumentParser:
    """Return the flags of the command."""
    parser = cli.make_parser(
        "train",
        "Train a classifier. You can kill the command at any time. Started again, it continues from its last "
        f"checkpoint. After SIGTERM it saves and exits with status {EXIT_RESTART}.",
    )
    parser.add_argument(
        "--model_dir",
        type=cli.path,
        help="Directory of the run: config, checkpoints, metrics and the trained model. Required unless --print_config "
        "is given.",
    )
    cli.add_config_arguments(parser)
    parser.add_argument(
        "--init_from",
        type=cli.model_path,
        help="Start from these weights, with a new classifier. Short for --set train.init_from=...",
    )
    parser.add_argument(
        "--allow_change",
        type=cli.names,
        default=[],
        metavar="SECTION.KEY,...",
        help="Continue the run although these keys of the config have changed, for example train.epochs,data.dir. The "
        "change is recorded in config_history.yaml.",
    )
    parser.add_argument(
        "--find_learning_rate",
        action="store_true",
        help="Do not train. Run a learning-rate range test with a copy of the network, and write its plot and its "
        "numbers to learning_rate_test.png and .json in model_dir. It prints the suggested rate.",
    )
    parser.add_argument(
        "--steps", type=cli.positive_int, help="Most steps of --find_learning_rate. 300 unless this is given."
    )
    cli.add_device_arguments(parser)
    parser.add_argument(
        "--workers",
        type=cli.names,
        default=[],
        metavar="HOST:PORT,...",
        help="Train on several machines: the addresses of all of them, the same list on each. Short for TF_CONFIG.",
    )
    parser.add_argument("--worker", type=cli.index, metavar="I", help="Place of this machine in --workers, from 0.")
    cli.add_backend_argument(parser)
    cli.add_tracker_argument(parser)
    parser.add_argument("--print_config", action="store_true", help="Print the complete config and exit.")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

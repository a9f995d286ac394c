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
        from efficientnet_tf.training.trainer import train_model

    result = train_model(config, args.model_dir, strategy, args.tracker, allow_change=args.allow_change)
    return 0 if result["finished"] else EXIT_RESTART


def _check(args, config):
    """Refuse what can be refused before TensorFlow is imported, which takes seconds."""
    from efficientnet_tf.config.errors import UserError
    from efficientnet_tf.data.listing import check_data
    from efficientnet_tf.models.run_directory import check_run
    from efficientnet_tf.runtime.cluster import read_cluster
    from efficientnet_tf.runtime.hardware import check_devices
    from efficientnet_tf.runtime.lock import check_unlocked

    if args.model_dir is None:
        raise UserError("--model_dir is missing. Name the directory of the run, for example --model_dir=runs/digits.")
    check_devices(args.device, args.tpu, args.replicas)
    # The weights of init_from can change the config, so it can only be compared with that of the run afterwards.
    check_run(args.model_dir, None if config.train.init_from else config, args.allow_change)
    if not read_cluster(os.environ.get("TF_CONFIG", "")):  # Otherwise the chief may hold the lock already.
        check_unlocked(args.model_dir)
    # A run that has begun does not need the weights any more. On gs:// this cannot be known yet.
    if config.train.init_from and not is_remote(args.model_dir):
        if not os.path.exists(os.path.join(args.model_dir, "config.yaml")):
            check_weights_path("train.init_from", config.train.init_from)
    check_data(config.data)


def _say_last_words() -> None:
    print("Stopped before the training began. The same command starts it again.")


def _create_strategy(args):
    from efficientnet_tf.runtime.strategy import create_strategy
    from efficientnet_tf.training.wandb import require_tracker

    require_tracker(args.tracker)
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
        type=cli.path,
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
    cli.add_device_arguments(parser)
    cli.add_tracker_argument(parser)
    parser.add_argument("--print_config", action="store_true", help="Print the complete config and exit.")
    return parser


if __name__ == "__main__":
    cli.run(main, make_parser())

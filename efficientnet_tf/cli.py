"""What all commands share: flags, plain errors, exit statuses. Imports no TensorFlow, so that --help is quick."""

import argparse
import json
import os
import shlex
import sys

from absl import app, logging
from absl.flags import argparse_flags

from efficientnet_tf.config.errors import UserError, suggest

EXIT_ERROR = 1


class _Parser(argparse_flags.ArgumentParser):
    """A parser that names the nearest flag when one is unknown."""

    def error(self, message):
        unknown = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        hint = ""
        if "unrecognized arguments" in message and unknown:
            known = [option for action in self._actions for option in action.option_strings]
            hint = suggest(unknown[0], known)
        super().error(message + hint)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells which flags must be given, and the defaults of the others where there is one to name."""

    def _get_help_string(self, action):
        if action.option_strings and action.required:
            return f"{action.help} (required)"
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing else super()._get_help_string(action)


def make_parser(module, description):
    """Return a parser for `python -m efficientnet_tf.<module>`."""
    return _Parser(
        prog=f"python -m efficientnet_tf.{module}",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
    )


def add_device_arguments(parser):
    """Add the flags that say where to run."""
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "gpu", "tpu"], help="where to run")
    parser.add_argument("--tpu", help="'local', the name of a Cloud TPU, or grpc://address:8470")
    parser.add_argument("--replicas", type=positive_int, default=1, help="with the CPU: logical devices")


def training_arguments(args):
    """Return the flags that say where to run and whom to tell as words, for a command that starts `train`."""
    tpu = [] if args.tpu is None else [f"--tpu={args.tpu}"]
    return [f"--device={args.device}", *tpu, f"--replicas={args.replicas}", f"--tracker={args.tracker}"]


def add_tracker_argument(parser):
    """Add the flag that says who, beside metrics.jsonl, is told of a run."""
    parser.add_argument(
        "--tracker",
        default="tensorboard",
        choices=["tensorboard", "wandb"],
        help="where to follow the run: TensorBoard's files, always written, or Weights & Biases, too; with "
        "WANDB_MODE=offline nothing leaves the machine, WANDB_PROJECT names the project",
    )


def add_config_arguments(parser, recipe="digits"):
    """Add the flags that compose a config."""
    parser.add_argument("--variant", default="b0", help="b0 ... b8, l2, or the path of a variant's YAML")
    parser.add_argument("--recipe", default=recipe, help="a name in configs/recipes, or the path of a recipe's YAML")
    add_override_arguments(parser)


def add_override_arguments(parser):
    """Add the flags that change single keys of a config."""
    parser.add_argument("--data_dir", help="short for --set data.dir=...: the images, or TensorFlow Datasets' folder")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override one key of the config, any number of times; the keys are those of the resolved config",
    )


def positive_int(text):
    """Parse a flag that counts."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def positive_ints(text):
    """Parse a flag that counts several things: 1,2,4."""
    return [positive_int(part) for part in text.split(",")]


def names(text):
    """Parse a flag that names several things: b0,b1."""
    return [name for name in text.split(",") if name]


def positive_number(text):
    """Parse a flag that measures: 2.5, 1.8e9."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


positive_number.__name__ = "number > 0"
positive_ints.__name__ = "ints >= 1, divided by commas"
positive_int.__name__ = "int >= 1"  # argparse names the type in its message


def overrides(args):
    """Return the `section.key=value` strings that the flags of `add_override_arguments` describe."""
    data_dir = [] if args.data_dir is None else [f"data.dir={json.dumps(args.data_dir)}"]
    return data_dir + args.overrides


def format_command(parser, args, required=(), omitted=()):
    """Return the command that flags came from, for a shell; what has its default is left out.

    Args:
        parser: as of `make_parser`.
        args: what it has parsed.
        required: sequence of str, the flags that have no default, as words.
        omitted: sequence of str, names of flags that are not told.
    """
    words = [parser.prog, *required]
    defaults = vars(parser.parse_args(list(required)))
    for name, value in vars(args).items():
        if name in omitted or value == defaults[name]:
            continue
        if name == "overrides":
            words += [f"--set {shlex.quote(text)}" for text in value]
            continue
        if isinstance(value, dict):
            value = [f"{key}:{part:g}" for key, part in value.items()]
        if isinstance(value, list):
            value = ",".join(part if isinstance(part, str) else f"{part:g}" for part in value)
        words.append(f"--{name}={shlex.quote(str(value))}")
    return " ".join(words)


def run(main, parser, argv=None):
    """Parse the flags, call `main(args)` and exit with its status (None is 0); a UserError is one plain message."""

    def guarded(args):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        if not any(word.startswith(("--verbosity", "-v")) for word in sys.argv):
            logging.set_verbosity(logging.WARNING)
        try:
            return main(args)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_ERROR
        except ModuleNotFoundError as error:
            if error.name not in ("tensorflow", "tensorflow.python"):
                raise
            print(
                "error: TensorFlow is not installed. It is an extra, for CPU, GPU and TPU differ: "
                "pip install 'efficientnet_tf[cpu]' (or [gpu], [tpu])",
                file=sys.stderr,
            )
            return EXIT_ERROR

    app.run(guarded, argv=argv, flags_parser=lambda argv: parser.parse_args(argv[1:]))

"""What all commands share: flags, error messages, exit statuses and a quiet terminal.

Imports no TensorFlow, so that `--help` answers at once.
"""

import argparse
import contextlib
import copy
import itertools
import json
import re
import shlex
import sys
from collections.abc import Callable, Container, Sequence
from typing import Any, NoReturn

from absl import logging as absl_logging

from efficientnet_tf.config.errors import suggest
from efficientnet_tf.config.paths import find_problem
from efficientnet_tf.config.text import escape, escape_lines, shorten
from efficientnet_tf.runtime import failures
from efficientnet_tf.runtime.backend import BACKENDS
from efficientnet_tf.runtime.failures import EXIT_ERROR as EXIT_ERROR
from efficientnet_tf.runtime.hardware import DEVICES, check_devices
from efficientnet_tf.runtime.imports import faster_imports
from efficientnet_tf.runtime.terminal import quiet_libraries

LARGEST_COUNT = 10**9
LARGEST_NUMBER = 1e24
LONGEST_MESSAGE = 1000  # of an error about flags, in characters


class _Parser(argparse.ArgumentParser):
    """A parser whose errors name the nearest flag and the nearest choice, and show values in a safe and short form."""

    def parse_known_args(self, args=None, namespace=None):
        """Parse the words, unless one is an unknown flag. That is told before what is missing."""
        args = sys.argv[1:] if args is None else list(args)
        flags = itertools.takewhile(lambda word: word != "--", args)
        unknown = [word for word in flags if self._is_unknown_flag(word)]
        if unknown:
            hints = (self._hint(word.partition("=")[0]) for word in unknown)
            shown = " ".join(shorten(escape(word)) for word in unknown)
            self.error(f"unrecognized arguments: {shown}.{''.join(dict.fromkeys(hints))}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        super().error(shorten(escape_lines(message), LONGEST_MESSAGE))

    def _is_unknown_flag(self, word: str) -> bool:
        # argparse takes words with a blank, numbers and a single dash for values.
        is_flag = re.match(r"-[^\d\s.]", word) and " " not in word
        return bool(is_flag) and word.partition("=")[0] not in self._option_string_actions

    def _hint(self, flag: str) -> str:
        """Return a hint for an unknown flag: the commands that have it, and the nearest flag of this command."""
        flag = "--" + flag.lstrip("-").replace("-", "_")
        near = suggest(flag, [option for option in self._option_string_actions if option.startswith("--")])
        owners = _commands_with(flag)
        belongs = f" {escape(flag)} is a flag of {', '.join(owners)}." if owners else ""
        return ("" if f"{flag!r}" in near else belongs) + near

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"]:  # argparse would drop it, and return an empty list
            raise argparse.ArgumentError(action, "expected one argument, received '--'")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += suggest(value, action.choices or ())
            raise


def _commands_with(flag: str) -> list[str]:
    """Return the names of the commands that have a flag."""
    from efficientnet_tf.commands import COMMANDS, load_command

    return [name for name in COMMANDS if flag in load_command(name).make_parser()._option_string_actions]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Marks required flags, and shows defaults as they are typed, unless they are None, False or an empty list."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.option_strings and action.required:
            return f"{action.help} (required)"
        nothing = action.default in (None, False, "", [])
        return action.help if nothing else super()._get_help_string(action)

    def _expand_help(self, action: argparse.Action) -> str:
        if isinstance(action.default, list | tuple):
            action = copy.copy(action)
            action.default = ",".join(map(str, action.default))
        return super()._expand_help(action)


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Return a parser for `python -m efficientnet_tf.<module>`."""
    parser = _Parser(
        prog=f"python -m efficientnet_tf.{module}",
        description=description,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--verbose", action="store_true", help="Show the log messages of TensorFlow and other libraries."
    )
    return parser


MODEL_HELP = "Model directory of a run, an exported model, or hf://user/name on the Hugging Face Hub."


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the device."""
    parser.add_argument("--device", default="auto", choices=DEVICES, help="Device to use. 'auto' is a GPU if any.")
    parser.add_argument("--tpu", help="TPU to use: 'local', the name of a Cloud TPU, or grpc://address:8470.")
    parser.add_argument(
        "--replicas", type=positive_int, default=1, help="Number of logical devices to split the CPU into."
    )


def add_backend_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses what Keras computes with."""
    parser.add_argument(
        "--backend", choices=BACKENDS, help="Library to compute with. The default is KERAS_BACKEND, or else tensorflow."
    )


def training_arguments(args: argparse.Namespace) -> list[str]:
    """Return the device and tracker flags as words, for a command that starts `train`.

    Raises:
        UserError: If the flags contradict each other.
    """
    check_devices(args.device, args.tpu, args.replicas)
    tpu = [] if args.tpu is None else [f"--tpu={args.tpu}"]
    return [f"--device={args.device}", *tpu, f"--replicas={args.replicas}", f"--tracker={args.tracker}"]


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses the checkpoint of a model directory."""
    parser.add_argument(
        "--checkpoint",
        metavar="best|newest|STEP",
        help="Checkpoint of a model directory. The default is the best if eval.best chooses one, else the newest.",
    )


def add_tracker_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses where metrics are sent."""
    parser.add_argument(
        "--tracker",
        default="tensorboard",
        choices=["tensorboard", "wandb"],
        help="Where to follow the run. TensorBoard files are always written; 'wandb' also logs to Weights & Biases. "
        "Set WANDB_PROJECT to choose the project, and WANDB_MODE=offline to keep everything on this machine.",
    )


def add_config_arguments(parser: argparse.ArgumentParser, recipe: str = "digits") -> None:
    """Add the flags that compose a config."""
    parser.add_argument(
        "--variant",
        help="Network: b0 ... b8, l2, lite0 ... lite4, v2-b0 ... v2-b3, v2-s, v2-m, v2-l, v2-xl, edgetpu-s, edgetpu-m, "
        "edgetpu-l, another name in configs, or the path of a variant's YAML file. The default is that of the recipe, "
        "or else b0.",
    )
    parser.add_argument(
        "--recipe", default=recipe, help="Recipe: a name in configs/recipes, or the path of a recipe's YAML file."
    )
    add_override_arguments(parser)


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change single keys of a config."""
    parser.add_argument(
        "--data_dir",
        type=data_path,
        help="Folder of the images or of TensorFlow Datasets, or hf://datasets/user/name. Short for --set data.dir=...",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="Override one key of the config. Can be given several times. `train --print_config` shows all keys.",
    )


def path(text: str) -> str:
    """Parse the value of a flag that is a path, local or on gs://. There does not have to be anything at it."""
    if problem := find_problem(text):
        raise argparse.ArgumentTypeError(f"'{shorten(escape(text))}' {problem}")
    return text


def data_path(text: str) -> str:
    """Parse the value of a flag that names data: a path, or hf://datasets/user/name on the Hugging Face Hub."""
    if problem := find_problem(text, datasets=True):
        raise argparse.ArgumentTypeError(f"'{shorten(escape(text))}' {problem}")
    return text


def model_path(text: str) -> str:
    """Parse the value of a flag that names a model: a path, or hf://user/name on the Hugging Face Hub."""
    if problem := find_problem(text, hub=True):
        raise argparse.ArgumentTypeError(f"'{shorten(escape(text))}' {problem}")
    return text


def positive_int(text: str) -> int:
    """Parse the value of a flag that is a count: 3."""
    value = int(text)
    if value < 1:
        raise ValueError
    if value > LARGEST_COUNT:
        raise argparse.ArgumentTypeError(f"{shorten(text, 30)} is too large. The largest value is {LARGEST_COUNT}.")
    return value


def index(text: str) -> int:
    """Parse the value of a flag that is a place in a list, counted from 0."""
    return positive_int(str(int(text) + 1)) - 1


def positive_ints(text: str) -> list[int]:
    """Parse the value of a flag that is several counts: 1,2,4."""
    return [positive_int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """Parse the value of a flag that is several names: b0,b1."""
    return [name for name in text.split(",") if name]


def positive_number(text: str) -> float:
    """Parse the value of a flag that is a positive number: 2.5 or 1.8e9."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    if not 1 / LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(
            f"{shorten(text, 30)} is out of range. Use a number from {1 / LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}."
        )
    return value


# argparse names the type in its error messages.
positive_number.__name__ = "number > 0"
positive_ints.__name__ = "comma-separated integers >= 1"
positive_int.__name__ = "integer >= 1"
index.__name__ = "integer >= 0"


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the `section.key=value` strings that the flags of `add_override_arguments` describe."""
    data_dir = [] if args.data_dir is None else [f"data.dir={json.dumps(args.data_dir)}"]
    return data_dir + args.overrides


def format_command(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    required: Sequence[str] = (),
    omitted: Container[str] = (),
) -> str:
    """Return the shell command that gives these flags, without those that have their default value.

    Args:
        parser: A parser of `make_parser`.
        args: The namespace that it returned.
        required: The flags without a default, as words.
        omitted: Names of flags to leave out.

    Returns:
        The command as one line.
    """
    words = [parser.prog, *required]
    defaults = vars(parser.parse_args(list(required)))
    for name, value in vars(args).items():
        if name in omitted or value == defaults[name]:
            continue
        if name == "overrides":
            words += [f"--set {shlex.quote(text)}" for text in value]
            continue
        if value is True:
            words.append(f"--{name}")
            continue
        if isinstance(value, dict):
            value = [f"{key}:{part:g}" for key, part in value.items()]
        if isinstance(value, list | tuple):
            value = ",".join(part if isinstance(part, str) else f"{part:g}" for part in value)
        words.append(f"--{name}={shlex.quote(str(value))}")
    return " ".join(words)


def add_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """Return an error message of the library with its arguments written as flags: `batch=3` becomes `--batch=3`.

    Only names before an equals sign are arguments. Keys of a config, such as `train.batch_size=3`, stay as they are,
    because this is how `--set` takes them.
    """
    flags = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    names = "|".join(re.escape(name) for name in flags)
    # A config's error names the overrides as its source: `overrides: train.epoch: unknown key`.
    pattern = rf"(?<![\w.\-/])((?:{names})(?==)|overrides(?=: ))"
    return re.sub(pattern, lambda match: flags.get(match[1], match[1]), message)


def run(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: list[str] | None = None,
) -> NoReturn:
    """Parse the flags, call `main(args)`, and exit with the status that it returns.

    Every failure becomes one sentence on standard error: the exit status is 1 for what the user can change, 2 for wrong
    flags, 70 for a bug, whose traceback goes to a log file, and 130 for Ctrl-C. Without `--verbose`, log messages of
    TensorFlow and other libraries are hidden.

    Args:
        main: Function of the parsed flags. Returns the exit status, None for 0.
        parser: A parser of `make_parser`.
        argv: The command line, with the program's name first. Defaults to that of the process.
    """
    if argv is None:
        failures.use_utf8()
    words = sys.argv if argv is None else argv

    def parse_and_call() -> int | str | None:
        try:
            args = parser.parse_args(words[1:])
            if args.verbose:
                absl_logging.use_absl_handler()  # shows the messages of all libraries
            with faster_imports(), contextlib.nullcontext() if args.verbose else quiet_libraries():
                try:
                    return main(args)
                except Exception as error:
                    return failures.report(error, words, lambda text: add_flags(text, parser))
        except SystemExit as stopped:  # of the parser, after its help or its error
            return stopped.code

    sys.exit(failures.guard(parse_and_call, words))

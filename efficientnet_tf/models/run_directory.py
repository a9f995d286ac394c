"""The part of a model directory that needs no TensorFlow: its files, its config, and what can be refused at once.

`model_dir` lists the files and reads the checkpoints.
"""

import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import yaml

from efficientnet_tf.config.errors import UserError, suggest
from efficientnet_tf.config.load import diff_config, parse_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape, find_invisible, shorten
from efficientnet_tf.config.yaml12 import Dumper, parse_yaml
from efficientnet_tf.runtime import files

_LOGGER = logging.getLogger(__name__)

HISTORY = "config_history.yaml"

# Entries in the archive of a .keras file, for its config and its class names.
CONFIG_ENTRY, CLASSES_ENTRY = "efficientnet_tf.yaml", "classes.txt"
# A run may change what belongs to training. Everything else in the section `model` describes the trained network.
CHANGEABLE_IN_MODEL = frozenset({"model.name", "model.dropout", "model.drop_connect", "model.batch_norm_momentum"})
FIXED_ELSEWHERE = frozenset({"data.task", "data.channels", "optimizer.name", "train.adversarial_steps"})
STATISTICS = ("target_mean", "target_std")  # keys of the section `data` that are measured from the training images
# Keys outside of the section `model` that decide what a trained model answers.
PREDICTION_KEYS = tuple(
    f"data.{key}"
    for key in ("task", "image_size", "channels", "crop", "crop_padding", "interpolation", "background", *STATISTICS)
)

# ------------------------------------------------------------------------------------------------------------ files


def read_config(model_dir: str) -> Config:
    """Return the config of a model directory.

    Raises:
        UserError: If the directory is not a model directory, or its config cannot be read.
    """
    path = os.path.join(model_dir, "config.yaml")
    if not files.exists(path):
        hint = ""
        if list_checkpoints(model_dir):
            hint = " Its checkpoints hold the config: the command `train` that began this run writes the file again."
        raise UserError(f"model_dir={escape(model_dir)} is not a model directory: it has no config.yaml.{hint}")
    return parse_config(files.read_text(path), path)


def read_class_names(model_dir: str) -> list[str]:
    """Return the class names of a model directory, in the order of the labels.

    Raises:
        UserError: If classes.txt cannot be read, or has an empty or a repeated line.
    """
    path = os.path.join(model_dir, "classes.txt")
    return parse_class_names(files.read_text(path), path)


def parse_class_names(text: str, where: str) -> list[str]:
    r"""Return the class names in the text of a classes.txt: one per line, in the order of the labels.

    Only `\n` ends a line: other characters that Unicode counts as line ends can be part of a name. Empty lines at the
    end do not count.

    Args:
        text: The text, as `config.text.decode_text` returns it.
        where: Name of the file, for error messages.

    Raises:
        UserError: If there is no name, or a line is empty or repeated.
    """
    names = text.rstrip("\n").split("\n")
    first_lines: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"{escape(where)}, line {number}: this line is empty. Each line holds the name of a class.")
        if name in first_lines:
            raise UserError(
                f"{escape(where)}, line {number}: the class '{escape(name)}' is already on line {first_lines[name]}. "
                "Each class is listed once, in the order of the model's outputs."
            )
        first_lines[name] = number
    return names


def format_class_names(class_names: Sequence[str]) -> str:
    """Return the text of a classes.txt.

    Raises:
        UserError: If the text would be read as other names: a name is empty, repeated or not text, or it breaks the
            line.
    """
    text = "".join(f"{name}\n" for name in class_names)
    for name in class_names:
        if not name:
            raise UserError("the name of a class is empty. Give it one.")
        breaks = next((c for c in name if c in "\r\n\0\ufeff" or "\ud800" <= c <= "\udfff"), None)
        if breaks:
            raise UserError(
                f"the class name '{escape(name)}' contains the character U+{ord(breaks):04X}, which classes.txt "
                "cannot hold. Rename the class."
            )
    if class_names:
        parse_class_names(text, "classes.txt")
    return text


def write_class_names(model_dir: str, class_names: Sequence[str]) -> None:
    """Write classes.txt.

    Raises:
        UserError: As `format_class_names`.
        OSError: If a local file cannot be written.
        tf.errors.OpError: If a remote file cannot be written.
    """
    files.write_text(os.path.join(model_dir, "classes.txt"), format_class_names(class_names))


def list_checkpoints(model_dir: str) -> dict[int, str]:
    """Return {step: prefix} of the checkpoints that were written completely, newest first."""
    folder = os.path.join(model_dir, "checkpoints")
    names = files.list_folder(folder) if files.is_folder(folder) else []
    steps = [int(name[len("step-") : -len(".index")]) for name in names if re.fullmatch(r"step-[0-9]+\.index", name)]
    return {step: os.path.join(folder, f"step-{step}") for step in sorted(steps, reverse=True)}


def is_complete(prefix: str) -> bool:
    """Return whether the index of a local checkpoint has content, and its data are next to it."""
    folder, name = os.path.split(prefix)
    has_data = any(other.startswith(f"{name}.data-") for other in files.list_folder(folder))
    return has_data and os.path.getsize(f"{prefix}.index") > 0


def check_checkpoint(model_dir: str, checkpoint: str | int | None) -> None:
    """Raise UserError unless an argument names a checkpoint: None, "best", "newest", or the number of a step."""
    if checkpoint in (None, "best", "newest"):
        return
    steps = list_checkpoints(model_dir)
    if not re.fullmatch("[0-9]{1,18}", str(checkpoint)) or int(checkpoint) not in steps:
        known = ", ".join(map(str, sorted(steps)))
        raise UserError(
            f"checkpoint={shorten(escape(str(checkpoint)))} is not a checkpoint of {escape(model_dir)}. Use best, "
            f"newest, or the step of one that is there: {known or 'there is none yet'}."
        )


# ----------------------------------------------------------------------------------------------------------- checks


def check_run(model_dir: str, config: Config | None = None, allow_change: Iterable[str] = ()) -> None:
    """Check what can be known about the directory of a run before TensorFlow is imported.

    Args:
        model_dir: Path of the directory. It does not have to exist. On gs:// only the path itself is checked.
        config: The config of the run, or None to check the place alone.
        allow_change: Keys of the config that may differ from the run that is in the directory.

    Raises:
        UserError: If the path cannot be a model directory, cannot be written, or belongs to a run with another config.
    """
    check_place(model_dir)
    allowed = check_allowed(allow_change)
    if config is None or files.is_remote(model_dir):
        return
    if files.exists(os.path.join(model_dir, "config.yaml")):
        check_changes(model_dir, read_config(model_dir), adopt_statistics(model_dir, config), allowed)
    if files.exists(os.path.join(model_dir, "classes.txt")):
        read_class_names(model_dir)


def adopt_statistics(model_dir: str, config: Config) -> Config:
    """Return the config of a run with what was measured from its training images when it began.

    Args:
        model_dir: Its directory, local or gs://, which may not exist yet.
        config: Its config. What it states itself stays as it is.
    """
    path = os.path.join(model_dir, "config.yaml")
    if config.data.task != "regression" or config.data.target_mean is not None or not files.exists(path):
        return config
    data = read_config(model_dir).data
    if data.task != "regression":
        return config
    measured = {key: getattr(data, key) for key in STATISTICS}
    return config.model_copy(update={"data": config.data.model_copy(update=measured)})


def check_place(model_dir: str, argument: str = "model_dir") -> None:
    """Raise UserError if no run can be written to a path: its name is odd, a file is there, or it is not writable."""
    files.check_path(argument, model_dir)
    shown = escape(model_dir)
    if re.search(r"[*?[\\]", model_dir):
        raise UserError(
            f"{argument}={shown} contains one of the characters * ? [ \\, with which TensorFlow cannot read "
            "checkpoints. Choose another name."
        )
    invisible = find_invisible(model_dir)
    if invisible:
        raise UserError(
            f"{argument}={shown} contains the character U+{ord(invisible):04X}, which cannot be seen. Choose another "
            "name."
        )
    if files.is_remote(model_dir):
        return
    path = os.path.abspath(model_dir)
    try:
        while not os.path.lexists(path):  # The nearest folder that exists.
            if len(os.fsencode(os.path.basename(path))) > 255:
                raise UserError(f"{argument}={shown} cannot be written: a name in it is longer than 255 bytes.")
            path = os.path.dirname(path)
    except UnicodeEncodeError:
        raise UserError(f"{argument}={shown} cannot be written with the encoding of this system.") from None
    if not os.path.isdir(path):
        kind = "a file" if os.path.exists(path) else "a link to nothing"
        raise UserError(f"{argument}={shown} cannot be written: {escape(path)} is {kind}, not a folder.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{argument}={shown} cannot be written: no permission to write to {escape(path)}.")


def check_allowed(allow_change: Iterable[str]) -> frozenset[str]:
    """Return the keys that a user allows to change.

    Raises:
        UserError: If a key is unknown, or describes the trained network, which cannot change.
    """
    keys = frozenset(allow_change)
    known = [f"{section}.{key}" for section, field in Config.model_fields.items() for key in _fields_of(field)]
    for key in sorted(keys):
        if key not in known:
            raise UserError(
                f"allow_change={escape(key)}: there is no such key. Use section.key, for example "
                f"allow_change=train.epochs,data.dir.{suggest(key, known)}"
            )
        if not is_changeable(key):
            raise UserError(
                f"allow_change={key}: this key cannot change in a run, because the stored weights and the state of the "
                "optimizer belong to its value. Start a new run from these weights: another model_dir, with "
                "train.init_from set to this one."
            )
    return keys


def is_changeable(key: str) -> bool:
    """Return whether a run can go on with another value of a key."""
    if key.startswith("model."):
        return key in CHANGEABLE_IN_MODEL
    return key not in FIXED_ELSEWHERE


def check_changes(model_dir: str, old: Config, new: Config, allowed: Collection[str] = ()) -> dict[str, str]:
    """Return what a run changes in its config, {key: "key: old -> new"}.

    Raises:
        UserError: If a key has changed that is not allowed to. The message says how to go on.
    """
    changes = {line.partition(":")[0]: line for line in diff_config(old, new)}
    refused = [key for key in changes if key not in allowed]
    if bool(old.train.ema_decay) != bool(new.train.ema_decay):
        raise UserError(
            f"model_dir={escape(model_dir)} belongs to a run with another config. A run cannot begin or end its moving "
            f"average of the weights:\n  {changes['train.ema_decay']}\nChoose another directory, or undo this change."
        )
    if not refused:
        return changes
    message = (
        f"model_dir={escape(model_dir)} belongs to a run with another config. Choose another directory, or undo these "
        "changes (in the directory -> now):\n  " + "\n  ".join(changes[key] for key in refused)
    )
    if all(map(is_changeable, refused)):
        flag = ",".join(sorted({*refused, *allowed}))
        message += f"\nTo continue the run with these changes, add allow_change={flag}"
    else:
        fixed = ", ".join(key for key in refused if not is_changeable(key))
        message += f"\nA run cannot change {fixed}. A new run can start from its weights with train.init_from."
        if list_checkpoints(model_dir):
            message += " If config.yaml was edited by mistake, delete it: the same command writes it again."
    raise UserError(message)


def _fields_of(field):
    return field.annotation.model_fields


# ---------------------------------------------------------------------------------------------------------- history


def read_history(model_dir: str) -> list[dict[str, Any]]:
    """Return the deliberate changes of a run's config: [{"step": 7, "time": ..., "changes": {key: [old, new]}}, ...].

    A file that cannot be read counts as empty, with a warning.
    """
    path = os.path.join(model_dir, HISTORY)
    if not files.exists(path):
        return []
    try:
        entries = parse_yaml(files.read_text(path), path)
        if not isinstance(entries, list) or not all(isinstance(entry["changes"], dict) for entry in entries):
            raise UserError(f"{escape(path)}: not a list of changes")
    except (UserError, KeyError, TypeError) as error:
        _LOGGER.warning("The history of the config cannot be read: %s", error)
        return []
    return entries


def record_changes(model_dir: str, step: int, old: Config, new: Config) -> None:
    """Add what changes from one config to another to the history of a run. A repeated call adds nothing.

    Raises:
        OSError: If a local file cannot be written.
        tf.errors.OpError: If a remote file cannot be written.
    """
    before, after = flatten(old), flatten(new)
    changes = {key: [before[key], value] for key, value in after.items() if before[key] != value}
    entries = read_history(model_dir)
    if entries and entries[-1]["changes"] == changes:
        return  # A process was killed between this and writing the config.
    entry = {"step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "changes": changes}
    text = yaml.dump([*entries, entry], Dumper=Dumper, sort_keys=False, default_flow_style=None, width=120)
    files.write_text(os.path.join(model_dir, HISTORY), text)


def find_unexplained(stored: Config, config: Config, history: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return {key: "key: stored -> now"} for what differs between two configs and is not in the history."""
    before, after = flatten(stored), flatten(config)
    value = dict(before)
    for entry in history:
        for key, change in entry["changes"].items():
            if isinstance(change, list) and len(change) == 2 and key in value and change[0] == value[key]:
                value[key] = change[1]
    return {key: f"{key}: {before[key]!r} -> {after[key]!r}" for key in after if value[key] != after[key]}


def flatten(config: Config) -> dict[str, Any]:
    """Return {"section.key": value} of a config, with values as YAML holds them instead of defaults by other keys."""
    sections = config.resolve().model_dump(mode="json").items()
    return {f"{section}.{key}": value for section, keys in sections for key, value in keys.items()}


def decides_predictions(key: str) -> bool:
    """Return whether another value of a key changes what a trained model answers."""
    return key in PREDICTION_KEYS or (key.startswith("model.") and key not in CHANGEABLE_IN_MODEL)

"""Puts exports in place: nothing that is incomplete ever has the final name, and nothing is overwritten."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape, find_reason
from efficientnet_tf.export.check import FILE_ENDINGS
from efficientnet_tf.export.metadata import list_files
from efficientnet_tf.runtime import files
from efficientnet_tf.runtime.lock import lock_output

UNFINISHED = ".unfinished"  # ends the names of what is not complete


def check_output(model_dir: str, output: str) -> None:
    """Raise UserError unless an export can be written. This needs no TensorFlow, except for gs://.

    Args:
        model_dir: The model directory that is exported.
        output: What to write: a file for another runtime, or the folder of a SavedModel.
    """
    files.check_path("output", output)
    targets = list_files(output) if _is_file(output) else [output.rstrip("/")]
    for target in targets:
        reason = None if _is_left_behind(output, target) else _find_reason(target, _is_file(output))
        if reason:
            raise UserError(f"output={escape(output)} cannot be written because {reason}. Choose another name.")
    if files.is_remote(output):
        return
    place = os.path.realpath(os.path.dirname(os.path.abspath(output.rstrip("/"))))
    if place == os.path.realpath(os.path.join(model_dir, "checkpoints")):
        raise UserError(
            f"output={escape(output)} is in the folder of the checkpoints, in which training deletes files. Choose "
            "another folder."
        )


@contextlib.contextmanager
def unfinished_output(output: str) -> Iterator[str]:
    """Give the block a temporary name for a folder or a file, and rename it at the end of the block.

    Another process cannot write the same output meanwhile. What a killed process has left is removed first. If the
    block fails, nothing is left behind.

    Args:
        output: As for `check_output`, which the caller has called.

    Yields:
        The temporary name. For `FILE.xml`, the block also writes `FILE.bin` followed by `UNFINISHED`.

    Raises:
        UserError: If the output cannot be written, or another process writes it.
    """
    output = output.rstrip("/")
    targets = list_files(output) if _is_file(output) else [output]
    with lock_output(output, "exporting"):
        try:
            for target in targets:
                if _is_left_behind(output, target):
                    _remove(target)
            for target in targets:
                _remove(target + UNFINISHED)
            yield output + UNFINISHED
            for target in targets:
                _sync(target + UNFINISHED)
            for target in targets:
                if _find_reason(target, _is_file(output)):
                    raise UserError(f"output={escape(output)} cannot be written because {escape(target)} exists now.")
                _rename(target + UNFINISHED, target)
        except Exception as error:
            if not isinstance(error, OSError) and not type(error).__module__.startswith("tensorflow."):
                raise
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else find_reason(error)
            raise UserError(f"output={escape(output)} cannot be written: {escape(reason)}.") from None
        finally:
            for target in targets:
                with contextlib.suppress(Exception):  # The first error is the one to report.
                    _remove(target + UNFINISHED)


def _is_file(output):
    return output.endswith(FILE_ENDINGS)


def _is_left_behind(output, target):
    """Return whether a target was left by a process that was killed between its two files, which takes microseconds."""
    return (
        output != target
        and target.endswith(".bin")
        and files.exists(output + UNFINISHED)
        and not files.exists(output)
        and not files.exists(target + UNFINISHED)
    )


def _find_reason(path, is_file):
    """Return why a file or a folder cannot be written, or None."""
    if files.is_remote(path):
        if files.exists(path) and (is_file or not files.is_folder(path) or files.list_folder(path)):
            return f"{escape(path)} exists"
        return None
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"'{escape(folder)}' is not a folder. Create it first"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"nothing can be written to '{escape(folder)}'"
    if os.path.lexists(path) and (is_file or os.path.islink(path) or not os.path.isdir(path) or os.listdir(path)):
        return f"{escape(path)} exists" if is_file else f"{escape(path)} exists and is not an empty folder"
    return None


def _remove(path):
    """Remove a file or a folder, if there is one."""
    if not files.is_remote(path):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)
        return
    import tensorflow as tf

    if files.is_folder(path):
        tf.io.gfile.rmtree(path)
    elif files.exists(path):
        tf.io.gfile.remove(path)


def _rename(source, target):
    """Give a file or a folder its final name, which an empty folder may have."""
    if not files.is_remote(target):
        os.rename(source, target)
        files.sync(os.path.dirname(target) or ".")
        return
    import tensorflow as tf

    if files.exists(target):
        tf.io.gfile.rmtree(target)
    tf.io.gfile.rename(source, target)


def _sync(path):
    """Wait until a local file, or everything in a local folder, is on the disk."""
    if files.is_remote(path):
        return
    if os.path.isdir(path):
        for folder, _, names in os.walk(path):
            for name in names:
                files.sync(os.path.join(folder, name))
            files.sync(folder)
    else:
        files.sync(path)

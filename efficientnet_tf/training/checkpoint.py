"""The state that training changes, and its checkpoints in a model directory.

Random numbers and the position in the input need no checkpoint: dropout masks, crops and the order of the images follow
from the seed and the step.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import find_reason
from efficientnet_tf.models.model_dir import list_checkpoints, read_newest_checkpoint
from efficientnet_tf.models.stored import Stored, text_variables
from efficientnet_tf.models.variables import batch_norm_statistics
from efficientnet_tf.runtime.files import is_remote, sync, write_text
from efficientnet_tf.runtime.strategy import on_host
from efficientnet_tf.runtime.variables import copy_values, restorable, take_restored
from efficientnet_tf.training.state import State

_LOGGER = logging.getLogger(__name__)


def _name_variables(state: State) -> dict[str, dict[str, Any]]:
    """Return the variables of a state under the names that checkpoints use: {part: {name: keras.Variable}}."""
    weights = [*state.model.trainable_variables, *batch_norm_statistics(state.model)]
    parts = {
        "model": {v.path: v for v in weights},
        # Without the first part of the path: Keras numbers the optimizers of a process.
        "optimizer": {v.path.partition("/")[2] or v.path: v for v in state.optimizer.variables},
    }
    if state.ema:
        averages = [*state.ema.trainable, *state.ema.statistics]
        parts["average"] = {v.path: a for v, a in zip(weights, averages, strict=True)}
    if state.limits:
        parts["limits"] = {v.path: v for v in state.limits}
    if state.auxiliary:
        parts["auxiliary"] = {v.path: v for v in state.auxiliary}
    return parts


class Checkpointer:
    """Saves and restores the state of a run. As a context manager, it finishes writing before it ends.

    A checkpoint counts once its index file exists. It is written under another name and renamed, the index last, so
    that readers see whole checkpoints only. Its blocks carry checksums.

    `tf.train.CheckpointManager` is not used because it trusts a list in a file of its own. It would not fall back to an
    older checkpoint when the newest is damaged, and it would forget the existing checkpoints when that list is lost.
    TensorFlow's asynchronous checkpoints report a failed write only with the next one. Here, `wait` reports it.

    Args:
        model_dir: Path of the model directory, local or gs://.
        state: What to save and restore.
        config: The config of the run, which checkpoints hold.
        class_names: The class names, in the order of the labels, which checkpoints hold too.
        check: Raises UserError if nothing may be written any more, because the directory is gone.
    """

    def __init__(
        self,
        model_dir: str,
        state: State,
        config: Config,
        class_names: Sequence[str] = (),
        check: Callable[[], None] = lambda: None,
    ):
        self.model_dir = model_dir
        self.state = state
        self._keep = config.train.keep_checkpoints
        self._parts = _name_variables(state)
        self._config, self._class_names = config, class_names
        self._check = check
        self._writer = futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.wait()
        except UserError as error:
            if kind is None:
                raise
            _LOGGER.error("%s", error)  # Another error is ending the run already.
        finally:
            self._writer.shutdown()

    def restore(self) -> int:
        """Restore the newest checkpoint that can be read, and return its step, or 0 if there is none.

        What it says about the best evaluation counts if that was chosen by the same metric.

        Raises:
            UserError: If there are checkpoints and all are damaged.
        """
        found: list[Stored] = []
        values = restorable(self._parts)
        step = read_newest_checkpoint(self.model_dir, tf.train.Checkpoint(**values), found.append) or 0
        take_restored(self._parts, values)
        selection = found[-1].selection if step else None
        if selection and selection.metric == self.state.selection.metric:
            self.state.selection = selection
        return step

    def save(self, background: bool = False) -> int:
        """Write a checkpoint of the current step, then delete the oldest ones beyond `train.keep_checkpoints`.

        The best one is not deleted.

        Args:
            background: Return at once, and write the current values while training changes the variables. `wait`
                reports whether that worked.

        Returns:
            The step.

        Raises:
            UserError: If this checkpoint or the one before it cannot be written. Earlier checkpoints stay intact.
        """
        self.wait()
        with on_host():
            values = copy_values(self._parts)  # which later changes of the variables do not touch
            texts = text_variables(self._config, self._class_names, self.state.selection)
        step, best = self.state.step, self.state.selection.best_step
        self._writing = self._writer.submit(self._write, step, tf.train.Checkpoint(**values, **texts), best)
        if not background:
            self.wait()
        return step

    def wait(self, only_if_done: bool = False) -> None:
        """Wait until the checkpoint that `save` began is written.

        Args:
            only_if_done: Do not wait, but report a write that has failed.

        Raises:
            UserError: If the checkpoint cannot be written.
        """
        if self._writing and (self._writing.done() or not only_if_done):
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, step: int, values: tf.train.Checkpoint, best: int | None) -> None:
        folder = os.path.join(self.model_dir, "checkpoints")
        temporary = os.path.join(folder, f"step-{step}.tmp")
        self._check()
        try:
            values.write(temporary)
            self._check()
            _publish(temporary, os.path.join(folder, f"step-{step}"))
        except (tf.errors.OpError, OSError) as error:
            with contextlib.suppress(tf.errors.OpError, OSError):
                _remove(folder, lambda name: ".tmp" in name)
            self._check()  # This is the reason if it fails.
            raise UserError(
                f"The checkpoint of step {step} cannot be written to {self.model_dir} ({find_reason(error)}). Earlier "
                "checkpoints are intact. Fix the cause and start the same command again."
            ) from None
        try:
            # For `tf.train.latest_checkpoint`. This package does not read it.
            write_text(os.path.join(folder, "checkpoint"), f'model_checkpoint_path: "step-{step}"\n')
            self._delete_old(folder, best)
        except (tf.errors.OpError, OSError) as error:
            self._check()
            _LOGGER.warning("Old checkpoints in %s cannot be deleted: %s", folder, str(error)[:300])

    def _delete_old(self, folder: str, best: int | None) -> None:
        """Delete all but the newest checkpoints and the best one, and what a killed process left."""
        kept = [*list(list_checkpoints(self.model_dir))[: self._keep], best]

        def is_old(name):
            match = re.match(r"step-([0-9]+)[._]", name)
            return match and (int(match[1]) not in kept or re.search(r"\.tmp|_temp", name))

        _remove(folder, is_old)


def _publish(temporary: str, prefix: str) -> None:
    """Give the files of a checkpoint their names: the data first, and then the index, which makes it count."""
    folder, name = os.path.split(temporary)
    gfile, is_local = tf.io.gfile, not is_remote(prefix)
    endings = [found[len(name) :] for found in gfile.listdir(folder) if found.startswith(f"{name}.data-")]
    if gfile.exists(f"{prefix}.index"):  # A damaged checkpoint of the same step must not get data of another write.
        gfile.remove(f"{prefix}.index")
    for ending in [*endings, ".index"]:
        if is_local:
            sync(temporary + ending)
        gfile.rename(temporary + ending, prefix + ending, overwrite=True)
    if is_local:
        sync(folder)


def _remove(folder: str, is_unwanted: Callable[[str], Any]) -> None:
    """Delete files and folders by their names, index files first: a checkpoint without one does not count."""
    if not tf.io.gfile.isdir(folder):
        return
    for name in sorted(tf.io.gfile.listdir(folder), key=lambda name: not name.rstrip("/").endswith(".index")):
        if is_unwanted(name):
            path = os.path.join(folder, name)
            (tf.io.gfile.rmtree if tf.io.gfile.isdir(path) else tf.io.gfile.remove)(path)

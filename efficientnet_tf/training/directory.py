"""The directory of a run while it is trained: all workers agree on it, and one process writes it."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.models.model_dir import change_config, open_model_dir, remove_leftovers
from efficientnet_tf.models.run_directory import check_run
from efficientnet_tf.runtime.files import exists, is_remote
from efficientnet_tf.runtime.lock import lock_directory


class RunDirectory:
    """The directory of a run, which this process locks if it is the chief.

    Args:
        model_dir: Path of the directory, local or gs://.
        config: The config of the run.
        allow_change: Keys of the config that may differ from the run so far.
        is_chief: Whether this process is the worker that writes files.
        gather: Exchanges an integer with all workers (`make_gather`).
    """

    def __init__(
        self,
        model_dir: str,
        config: Config,
        allow_change: Sequence[str],
        is_chief: bool,
        gather: Callable[[int], list[int]],
    ):
        self._model_dir, self._config, self._is_chief, self._gather = model_dir, config, is_chief, gather
        self._allow_change = [allow_change] if isinstance(allow_change, str) else list(allow_change)
        self._lock = lock_directory(model_dir, "training")
        self._before: Config | None = None

    def check_first(self) -> None:
        """Raise UserError, on every worker, if they have different configs, or if the directory cannot be used."""
        different = []
        for name, section in self._config.model_dump(mode="json").items():
            digest = hashlib.sha256(json.dumps(section, sort_keys=True).encode()).digest()
            if len(set(self._gather(int.from_bytes(digest[:7], "big")))) > 1:
                different.append(name)
        if different:
            raise UserError(
                f"The workers have different configs, in the sections {', '.join(different)}. Start all "
                "workers with the same flags. `train --print_config` shows the config."
            )
        check_run(self._model_dir, self._config, self._allow_change)

    def open(self, stack: contextlib.ExitStack, config: Config, class_names: Sequence[str]) -> None:
        """Create or check the directory, first as the chief, then as the other workers.

        Args:
            stack: Gets the lock, which it releases when it is closed.
            config: The config of the run, now with what was measured from its data.
            class_names: The class names of the data.

        Raises:
            UserError: If the directory cannot be used, or another process trains in it.
        """
        self._config = config
        if self._is_chief:
            stack.enter_context(self._lock)
            remove_leftovers(self._model_dir)
            self._before = open_model_dir(self._model_dir, self._config, class_names, self._allow_change)
        self._gather(0)
        if not self._is_chief:
            if not exists(os.path.join(self._model_dir, "config.yaml")):
                raise UserError(
                    f"model_dir={self._model_dir}: this worker does not see the files that the chief has written there."
                    " Use a directory that all workers share."
                )
            open_model_dir(self._model_dir, self._config, class_names, self._allow_change)

    def record_changes(self, step: int) -> None:
        """Write a config that has changed, once the run has been restored at a step."""
        if self._before:
            change_config(self._model_dir, step, self._before, self._config)

    def check(self) -> None:
        """Raise UserError if the directory is gone. Nothing must be written then, or parts of it would appear again."""
        self._lock.check()
        if is_remote(self._model_dir) and not exists(os.path.join(self._model_dir, "config.yaml")):
            raise UserError(f"model_dir={self._model_dir} was deleted while this run used it. Nothing more is written.")

"""The queue of a study's runs in Optuna's storage, which any number of processes and machines can share.

A run is an Optuna trial that carries the name of the run. Processes that start at the same moment may each add a trial
for the same run. Of those, the one with the lowest number that has not failed owns the run, and the others are pruned.
A run that was stopped early is also pruned, but it has a result.
"""

import contextlib
import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.study import storage as storage_lib
from efficientnet_tf.study.storage import StorageError, explain_errors, open_storage

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


class JobQueue:
    """The queue. Use it as a context manager.

    The attributes of a trial are "run", its name, "config", the text of its config, "labels", those of the run,
    "beats", the number of heartbeats, and finally "result" or "error". A trial that failed without an error was
    interrupted.

    Args:
        output_dir: Folder of the default database. It is created if it is missing.
        storage: Database URL as Optuna takes it. None is `sqlite:///<output_dir>/trials.db`.
        study_name: Name of the study within the database.
        heartbeat_seconds: Seconds between heartbeats, at least 1. It must be the same in all processes.
        is_stopping: Returns whether the process should end, and thus not wait for the database.

    All methods raise `StorageError` if the database cannot be read or written. They wait a while if it is locked.

    Raises:
        UserError: If Optuna is not installed or the database cannot be opened.
    """

    def __init__(
        self,
        output_dir: str,
        storage: str | None,
        study_name: str,
        heartbeat_seconds: int = 60,
        is_stopping: Callable[[], bool] = lambda: False,
    ):
        if importlib.util.find_spec("optuna") is None:
            raise UserError("Optuna is not installed. Run pip install 'efficientnet_tf[study]'.")
        is_default = storage is None
        storage = storage_lib.default_url(output_dir) if storage is None else storage
        storage_lib.check_url(storage)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        if is_default:
            os.makedirs(output_dir, exist_ok=True)
        self.heartbeat_seconds, self.is_stopping = heartbeat_seconds, is_stopping
        self._url, self._name = storage, study_name
        self._storage = open_storage(storage, heartbeat_seconds)
        try:
            self._study = self._wait_for(
                lambda: optuna.create_study(
                    study_name=study_name, storage=self._storage, direction="maximize", load_if_exists=True
                )
            )
            self._study_id = self._wait_for(lambda: self._storage.get_study_id_from_name(study_name))
            self._list_trials()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "JobQueue":
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(Exception):  # The database may be gone.
            self._storage.remove_session()
        self._storage.engine.dispose()

    def _wait_for(self, call: Callable[[], Any]) -> Any:
        """Return the result of a call of Optuna. Repeat it for a while if the database is locked."""
        deadline = time.monotonic() + storage_lib.WAIT_SECONDS
        while True:
            try:
                with explain_errors(self._url):
                    return call()
            except StorageError as error:
                if not error.is_temporary or self.is_stopping() or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _list_trials(self) -> "list[FrozenTrial]":
        trials = self._wait_for(lambda: self._storage.get_all_trials(self._study_id))
        directions = self._wait_for(lambda: self._storage.get_study_directions(self._study_id))
        texts = [trial.user_attrs.get(key) for trial in trials for key in ("run", "config")]
        if [direction.name for direction in directions] != ["MAXIMIZE"] or not all(
            isinstance(text, str) for text in texts
        ):
            raise StorageError(
                f"storage={storage_lib.hide_password(self._url)} has a study {self._name!r} that another program made. "
                "Use another database."
            )
        return trials

    def owners(self) -> "dict[str, FrozenTrial]":
        """Return the trial that owns each run, by the name of the run."""
        return find_owners(self._list_trials())

    def clean_up(self) -> None:
        """Mark the trials of dead processes as failed, and prune waiting trials that do not own their run."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            self._wait_for(lambda: self._optuna.storages.fail_stale_trials(self._study))
        trials = self._list_trials()
        owners = find_owners(trials)
        for trial in trials:
            if trial.state.name == "WAITING" and trial is not owners[trial.user_attrs["run"]] and self.claim(trial):
                self._finish(trial, "PRUNED")

    def enqueue(self, name: str, config: str, labels: Mapping[str, Any] | None = None) -> None:
        """Add a trial for a run.

        Args:
            name: Name of the run.
            config: Text of its config.
            labels: The labels of the run.
        """
        attributes = {"run": name, "config": config, "labels": dict(labels or {})}
        self._wait_for(lambda: self._study.enqueue_trial({}, user_attrs=attributes))

    def claim(self, trial: "FrozenTrial") -> bool:
        """Try to claim a waiting trial for this process. Return whether that worked."""
        # The heartbeat comes first. If this process died between the two calls, a trial without a heartbeat would never
        # be considered stale.
        state = self._optuna.trial.TrialState.RUNNING
        self._record_heartbeat(trial)
        try:
            return self._wait_for(lambda: self._storage.set_trial_state_values(self._id(trial), state))
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False

    def beat(self, trial: "FrozenTrial", count: int) -> bool:
        """Record a heartbeat of a running trial.

        Args:
            trial: A trial that this process has claimed.
            count: Number of heartbeats before this one.

        Returns:
            Whether this process still owns the trial. Another process takes it over if too many heartbeats are missed.
        """
        try:
            self._wait_for(lambda: self._storage.set_trial_user_attr(self._id(trial), "beats", count))
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False
        self._record_heartbeat(trial)
        return True

    def complete(self, trial: "FrozenTrial", result: dict[str, Any]) -> None:
        """Record the result of a trial. Its "top1" becomes the value of the trial."""
        self._finish(trial, "COMPLETE", [result["top1"]], result=result)

    def prune(self, trial: "FrozenTrial", result: dict[str, Any]) -> None:
        """Record that a run was stopped early, and its result so far."""
        self._finish(trial, "PRUNED", result=result)

    def fail(self, trial: "FrozenTrial", error: str | None = None) -> None:
        """Record that a trial failed with an error, or that it was interrupted if `error` is None."""
        if error is None:
            self._finish(trial, "FAIL")
        else:
            self._finish(trial, "FAIL", error=error)

    def _finish(self, trial: "FrozenTrial", state: str, values: list[float] | None = None, **attributes: Any) -> None:
        # The error means that another process has taken the trial over.
        with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):
            for name, value in attributes.items():
                self._wait_for(lambda n=name, v=value: self._storage.set_trial_user_attr(self._id(trial), n, v))
            final = self._optuna.trial.TrialState[state]
            self._wait_for(lambda: self._storage.set_trial_state_values(self._id(trial), final, values))

    def _record_heartbeat(self, trial: "FrozenTrial") -> None:
        self._wait_for(lambda: self._storage.record_heartbeat(self._id(trial)))

    def _id(self, trial: "FrozenTrial") -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)


def find_owners(trials: "Sequence[FrozenTrial]") -> "dict[str, FrozenTrial]":
    """Return the trial that owns each run: the first one that has not failed, or else the last one.

    Args:
        trials: All trials of a study, in the order of their numbers.

    Returns:
        The trials by the names of their runs.
    """
    owners = {}
    for trial in trials:
        name = trial.user_attrs["run"]
        is_surplus = trial.state.name == "PRUNED" and "result" not in trial.user_attrs
        if not is_surplus and (name not in owners or owners[name].state.name == "FAIL"):
            owners[name] = trial
    return owners


def run_state(trial: "FrozenTrial | None") -> str:
    """Return the state of a run.

    Args:
        trial: The trial that owns the run, or None if the run is not in the queue.

    Returns:
        "missing", "waiting", "running", "done", "pruned", "failed" or "interrupted".
    """
    if trial is None:
        return "missing"
    if trial.state.name == "FAIL":
        return "failed" if "error" in trial.user_attrs else "interrupted"
    return {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "done", "PRUNED": "pruned"}[trial.state.name]


def read_owners(output_dir: str, storage: str | None, study_name: str) -> "dict[str, FrozenTrial]":
    """Return the trial that owns each run of a study, by the name of the run. Does not create the default database.

    Args:
        output_dir: Folder of the default database.
        storage: Database URL, or None for the default.
        study_name: Name of the study within the database.
    """
    if storage is None and not os.path.exists(storage_lib.default_path(output_dir)):
        return {}
    with JobQueue(output_dir, storage, study_name) as queue:
        return queue.owners()

"""The queue of a study's runs in Optuna's storage, which any number of processes and machines can share.

A run is an Optuna trial that carries the name of the run. Processes that start at the same moment may each add a trial
for the same run. Of those, the one with the lowest number that has not failed owns the run, and the others are pruned.
"""

import contextlib
import os
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from efficientnet_tf.config.errors import UserError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

GRACE_HEARTBEATS = 3  # a process that has missed this many heartbeats is considered dead
OPEN_ATTEMPTS = 10


class JobQueue:
    """The queue. Use it as a context manager.

    The attributes of a trial are "run", its name, "config", the text of its config, "beats", the number of heartbeats,
    and finally "result" or "error". A trial that failed without an error was interrupted.

    Args:
        output_dir: Folder of the default database. It is created if it is missing.
        storage: Database URL as Optuna takes it. None is `sqlite:///<output_dir>/trials.db`.
        study_name: Name of the study within the database.
        heartbeat_seconds: Seconds between heartbeats, at least 1. It must be the same in all processes.

    Raises:
        UserError: If Optuna is not installed or the database cannot be opened.
    """

    def __init__(self, output_dir: str, storage: str | None, study_name: str, heartbeat_seconds: int = 60):
        try:
            import optuna
        except ModuleNotFoundError:
            raise UserError("Optuna is not installed. Run pip install 'efficientnet_tf[study]'.") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        if storage is None:
            os.makedirs(output_dir, exist_ok=True)
            storage = f"sqlite:///{_default_database(output_dir)}"
        self.heartbeat_seconds = heartbeat_seconds
        self._storage = open_storage(storage, heartbeat_seconds)
        self._study = optuna.create_study(
            study_name=study_name, storage=self._storage, direction="maximize", load_if_exists=True
        )
        self._study_id = self._storage.get_study_id_from_name(study_name)

    def __enter__(self) -> "JobQueue":
        return self

    def __exit__(self, *exception: object) -> None:
        self._storage.remove_session()
        self._storage.engine.dispose()

    def owners(self) -> "dict[str, FrozenTrial]":
        """Return the trial that owns each run, by the name of the run."""
        return find_owners(self._storage.get_all_trials(self._study_id))

    def clean_up(self) -> None:
        """Mark the trials of dead processes as failed, and prune waiting trials that do not own their run."""
        with _ignore_experimental_warnings():
            self._optuna.storages.fail_stale_trials(self._study)
        trials = self._storage.get_all_trials(self._study_id)
        owners = find_owners(trials)
        for trial in trials:
            if trial.state.name == "WAITING" and trial is not owners[trial.user_attrs["run"]] and self.claim(trial):
                self._finish(trial, "PRUNED")

    def enqueue(self, name: str, config: str) -> None:
        """Add a trial for a run.

        Args:
            name: Name of the run.
            config: Text of its config.
        """
        self._study.enqueue_trial({}, user_attrs={"run": name, "config": config})

    def claim(self, trial: "FrozenTrial") -> bool:
        """Try to claim a waiting trial for this process. Return whether that worked."""
        # The heartbeat comes first. If this process died between the two calls, a trial without a heartbeat would never
        # be considered stale.
        self._storage.record_heartbeat(self._id(trial))
        try:
            return self._storage.set_trial_state_values(self._id(trial), self._optuna.trial.TrialState.RUNNING)
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
            self._storage.set_trial_user_attr(self._id(trial), "beats", count)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False
        self._storage.record_heartbeat(self._id(trial))
        return True

    def complete(self, trial: "FrozenTrial", result: dict[str, Any]) -> None:
        """Record the result of a trial. Its "top1" becomes the value of the trial."""
        self._finish(trial, "COMPLETE", [result["top1"]], result=result)

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
                self._storage.set_trial_user_attr(self._id(trial), name, value)
            self._storage.set_trial_state_values(self._id(trial), self._optuna.trial.TrialState[state], values)

    def _id(self, trial: "FrozenTrial") -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)


def _default_database(output_dir: str) -> str:
    return f"{output_dir}/trials.db"


@contextlib.contextmanager
def _ignore_experimental_warnings() -> Iterator[None]:
    """Hide Optuna's warning that its heartbeat may change."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def open_storage(url: str, heartbeat_seconds: int) -> "RDBStorage":
    """Open a database. Try again if that fails, because processes that start together may create the same tables.

    Args:
        url: Database URL as Optuna takes it.
        heartbeat_seconds: Seconds between heartbeats, at least 1.

    Raises:
        UserError: If the database cannot be opened.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    attempts_left = OPEN_ATTEMPTS
    while True:
        attempts_left -= 1
        try:
            with _ignore_experimental_warnings():
                storage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=GRACE_HEARTBEATS * heartbeat_seconds,
                )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
            if not attempts_left or isinstance(error, (ImportError, ArgumentError)):
                raise UserError(
                    f"storage={url} cannot be opened: {error}. Use a database URL such as sqlite:///trials.db."
                ) from None
            time.sleep(random.uniform(0.2, 1))
        else:
            if storage.engine.dialect.name == "sqlite":
                _lock_on_read(storage)
            return storage


def _lock_on_read(storage: "RDBStorage") -> None:
    """Make SQLite lock the database when a transaction begins.

    By default it locks at the first write of a transaction. Two processes could then read that a trial waits, and both
    claim it.
    """
    from sqlalchemy import event

    engine = storage.engine
    event.listen(engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    storage.remove_session()
    engine.dispose()


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
        if trial.state.name != "PRUNED" and (name not in owners or owners[name].state.name == "FAIL"):
            owners[name] = trial
    return owners


def run_state(trial: "FrozenTrial | None") -> str:
    """Return the state of a run.

    Args:
        trial: The trial that owns the run, or None if the run is not in the queue.

    Returns:
        "missing", "waiting", "running", "done", "failed" or "interrupted".
    """
    if trial is None:
        return "missing"
    if trial.state.name == "FAIL":
        return "failed" if "error" in trial.user_attrs else "interrupted"
    return {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "done"}[trial.state.name]


def read_owners(output_dir: str, storage: str | None, study_name: str) -> "dict[str, FrozenTrial]":
    """Return the trial that owns each run of a study, by the name of the run. Does not create the default database.

    Args:
        output_dir: Folder of the default database.
        storage: Database URL, or None for the default.
        study_name: Name of the study within the database.
    """
    if storage is None and not os.path.exists(_default_database(output_dir)):
        return {}
    with JobQueue(output_dir, storage, study_name) as queue:
        return queue.owners()

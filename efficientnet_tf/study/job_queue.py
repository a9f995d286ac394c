"""The list of a study's runs in Optuna's storage: who owns which run, across processes and machines.

A run is a trial that carries the run's name. Processes that start at the same moment may each add one: the
lowest-numbered trial of a name that has not failed owns the run, the others are pruned.
"""

import contextlib
import os
import random
import time
import warnings

from efficientnet_tf.config.errors import UserError

GRACE = 3  # heartbeats that a process may miss until its run is taken over
ATTEMPTS = 10  # to open the storage


class JobQueue:
    """The list in Optuna's storage. A context manager.

    A trial's attributes are "run", "config", its text, "beats" counted, and at the end "result" or "error". A
    trial that failed without an error was interrupted.
    """

    def __init__(self, output_dir, storage, study_name, heartbeat_seconds=60):
        try:
            import optuna
        except ModuleNotFoundError:
            raise UserError("Optuna is not installed: pip install 'efficientnet_tf[study]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        if storage is None:
            os.makedirs(output_dir, exist_ok=True)
            storage = _default_storage(output_dir)
        self.heartbeat_seconds = heartbeat_seconds
        self._storage = _open_storage(storage, heartbeat_seconds)
        self._study = optuna.create_study(
            study_name=study_name, storage=self._storage, direction="maximize", load_if_exists=True
        )
        self._study_id = self._storage.get_study_id_from_name(study_name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._storage.remove_session()
        self._storage.engine.dispose()

    def owners(self):
        """Return {name of a run: its trial}."""
        return find_owners(self._storage.get_all_trials(self._study_id))

    def tidy(self):
        """Mark the trials of processes that are gone as failed, and those that a run has too many as pruned."""
        with _experimental():
            self._optuna.storages.fail_stale_trials(self._study)
        trials = self._storage.get_all_trials(self._study_id)
        owners = find_owners(trials)
        for trial in trials:
            if trial.state.name == "WAITING" and trial is not owners[trial.user_attrs["run"]] and self.claim(trial):
                self._finish(trial, "PRUNED")

    def enqueue(self, name, config):
        """Add a trial of a run."""
        self._study.enqueue_trial({}, user_attrs={"run": name, "config": config})

    def claim(self, trial):
        """Return whether a trial that waited is this process's now."""
        # The heartbeat first: were this process killed between the two, a trial without any would never be missed.
        self._storage.record_heartbeat(self._id(trial))
        try:
            return self._storage.set_trial_state_values(self._id(trial), self._optuna.trial.TrialState.RUNNING)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False

    def beat(self, trial, count):
        """Tell that a trial goes on; return False where it was taken over, for this process was silent too long."""
        try:
            self._storage.set_trial_user_attr(self._id(trial), "beats", count)
        except self._optuna.exceptions.UpdateFinishedTrialError:
            return False
        self._storage.record_heartbeat(self._id(trial))
        return True

    def complete(self, trial, result):
        """Record the result of a trial."""
        self._finish(trial, "COMPLETE", [result["top1"]], result=result)

    def fail(self, trial, **attributes):
        """Record that a trial failed; without error=text, that it was interrupted."""
        self._finish(trial, "FAIL", **attributes)

    def _finish(self, trial, state, values=None, **attributes):
        with contextlib.suppress(self._optuna.exceptions.UpdateFinishedTrialError):  # taken over
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(self._id(trial), name, value)
            self._storage.set_trial_state_values(self._id(trial), self._optuna.trial.TrialState[state], values)

    def _id(self, trial):
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)


def _default_storage(output_dir):
    return f"sqlite:///{output_dir}/trials.db"


@contextlib.contextmanager
def _experimental():
    """Silence Optuna's warning that its heartbeat may change."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _open_storage(url, heartbeat_seconds):
    import optuna
    import sqlalchemy

    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for left in reversed(range(ATTEMPTS)):
        try:
            with _experimental():
                storage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=GRACE * heartbeat_seconds,
                )
            break
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:
            if not left or isinstance(error, (ImportError, sqlalchemy.exc.ArgumentError)):
                raise UserError(f"the storage {url} cannot be opened: {error}") from None
            time.sleep(random.uniform(0.2, 1))  # Processes that start at the same moment make the same tables.
    if storage.engine.dialect.name == "sqlite":
        # By itself SQLite locks when a transaction writes, not when it reads what it is to write: two could claim one.
        sqlalchemy.event.listen(storage.engine, "connect", lambda raw, _: setattr(raw, "isolation_level", None))
        sqlalchemy.event.listen(
            storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
        )
        storage.remove_session()
        storage.engine.dispose()
    return storage


def find_owners(trials):
    """Return {name of a run: its trial}: the first that has not failed, else the last. `trials` are in their order."""
    owners = {}
    for trial in trials:
        name = trial.user_attrs["run"]
        if trial.state.name != "PRUNED" and (name not in owners or owners[name].state.name == "FAIL"):
            owners[name] = trial
    return owners


def state_of(trial):
    """Return where a run is, by the trial that owns it."""
    if trial is None:
        return "missing"
    if trial.state.name == "FAIL":
        return "failed" if "error" in trial.user_attrs else "interrupted"
    return {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "done"}[trial.state.name]


def read_owners(output_dir, storage, study_name):
    """Return {name of a run: its trial} of a study, without making it; {} where there is none."""
    if storage is None and not os.path.exists(os.path.join(output_dir, "trials.db")):
        return {}
    with JobQueue(output_dir, storage, study_name) as ledger:
        return ledger.owners()

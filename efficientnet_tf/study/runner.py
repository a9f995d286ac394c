"""Trains the runs of a study, each of them once, in any number of processes or machines.

Each run is trained by the command `train` in a separate process, so that a crash or a lack of memory ends only that
run.
"""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.load import diff_config, dump_config, dump_variant, parse_config
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import escape, shorten
from efficientnet_tf.data.listing import check_data
from efficientnet_tf.runtime import hardware
from efficientnet_tf.runtime.children import MOST_BYTES, describe_end, last_lines, module_command
from efficientnet_tf.runtime.files import check_file, write_text
from efficientnet_tf.runtime.signals import EXIT_RESTART, StopFlag
from efficientnet_tf.runtime.terminal import ProgressBar
from efficientnet_tf.study.job_queue import JobQueue, run_state
from efficientnet_tf.study.results import read_accuracies, read_accuracy, read_result
from efficientnet_tf.study.runs import Owners, Plan, Run, list_overrides, load_configs
from efficientnet_tf.study.storage import StorageError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

POLL_SECONDS = 0.2
CHECK_SECONDS = 1.0  # between looks at the evaluations of a running process
STOP_SECONDS = 120.0  # for saving after a stop signal. Then the process is killed, which loses what is not saved.
LOG_LINES, LONGEST_LINE = 8, 500  # of a failed run, which are recorded as its error
TRAIN_COMMAND = module_command("efficientnet_tf.train")


def run_jobs(
    runs: Sequence[Run] | Plan,
    output_dir: str,
    *,
    recipe: str,
    study_name: str,
    storage: str | None = None,
    overrides: Sequence[str] = (),
    train_arguments: Sequence[str] = (),
    heartbeat_seconds: int = 60,
    train_command: Sequence[str] = TRAIN_COMMAND,
) -> bool:
    """Train the runs of a study that are not done, until none is waiting here or running elsewhere.

    Any number of processes may call this at once, and each of them may be killed. If a process misses three heartbeats,
    another one takes over its run and continues from the checkpoint. A run that fails, or is killed for its memory, is
    recorded with the last lines of its log. The next call of this function tries it again.

    Args:
        runs: The runs, or a plan that chooses them. The list may have grown since an earlier call.
        output_dir: Folder that all processes share. Variants are written to variants/<name>.yaml, model directories to
            runs/<name>, and logs to runs/<name>.log.
        recipe: Name of a recipe, or path of its YAML file.
        study_name: Name of the study within the database.
        storage: Database URL as Optuna takes it. None is `sqlite:///<output_dir>/trials.db`.
        overrides: "section.key=value" texts for all runs.
        train_arguments: More flags for the command `train`, such as "--device=cpu".
        heartbeat_seconds: Seconds between heartbeats, at least 1. It must be the same in all processes.
        train_command: The command that trains, to which the flags of `train` are appended. It must end when its
            standard input is closed.

    Returns:
        True when no run is left, or False if SIGTERM or Ctrl-C stopped the work. The interrupted run is then saved, and
        waits in the queue for the next call.

    Raises:
        UserError: If a config, its data or the name of a run is invalid, a run of the same name was queued with
            another config, the database cannot be used, the folder is deleted, or Optuna is not installed. What is
            trained is kept, and the next call continues from there.
    """
    plan = runs if isinstance(runs, Plan) else Plan(runs)
    loaded = _Configs(recipe, overrides)
    loaded.load(plan.list_runs({}))
    retried = {"missing", "interrupted", "failed"}
    with (
        StopFlag(signal.SIGTERM, signal.SIGINT, once=True) as stop,
        JobQueue(output_dir, storage, study_name, heartbeat_seconds, lambda: stop.asked) as queue,
        ProgressBar(plan.total, study_name, "runs") as bar,
    ):
        command = [*train_command, f"--recipe={recipe}"]
        trainer = _RunTrainer(plan, output_dir, command, train_arguments, queue, bar, stop)
        os.makedirs(output_dir, exist_ok=True)
        while not stop.asked:
            _check_exists(output_dir)
            queue.clean_up()
            owners = queue.owners()
            runs = plan.list_runs(owners)
            configs = loaded.load(runs)
            _check_unchanged(configs, owners)
            states = {name: run_state(owners.get(name)) for name in configs}
            missing = [name for name, state in states.items() if state in retried]
            for run in runs:
                if run.name in missing:
                    queue.enqueue(run.name, dump_config(configs[run.name]), run.labels)
            retried = {"missing", "interrupted"}  # A run that fails from here on waits for the next call.
            if missing:
                continue  # Another process may have been faster, so look again which trial owns which run.
            bar.advance(sum(state in ("done", "pruned", "failed") for state in states.values()) - bar.completed)
            run = next((run for run in runs if states[run.name] == "waiting" and queue.claim(owners[run.name])), None)
            if run:
                trainer.train(run, owners, list_overrides(run, overrides))
            elif {"waiting", "running"} & set(states.values()):
                bar.set_status("the remaining runs are in other processes")
                time.sleep(1)
            else:
                break
    if stop.asked:
        logging.getLogger(__name__).warning("Stopped by a signal. Run the same command again to continue.")
    return not stop.asked


class _Configs:
    """The configs of the runs of a study. Each of them is loaded and checked once."""

    def __init__(self, recipe: str, overrides: Sequence[str]):
        self._recipe, self._overrides = recipe, overrides
        self._runs: dict[str, Run] = {}
        self._configs: dict[str, Config] = {}
        self._checked: set[str] = set()

    def load(self, runs: Sequence[Run]) -> dict[str, Config]:
        """Return the configs of runs by their names."""
        # Another process may have been faster to choose a run, which then is another one of the same name.
        new = [run for run in runs if self._runs.get(run.name) != run]
        configs = load_configs(new, self._recipe, self._overrides)
        for config in configs.values():
            if repr(config.data) not in self._checked:
                check_data(config.data)  # Otherwise every run would fail for the same reason, one after the other.
                self._checked.add(repr(config.data))
        self._runs |= {run.name: run for run in new}
        self._configs |= configs
        return {run.name: self._configs[run.name] for run in runs}


def _check_exists(output_dir: str) -> None:
    """Raise UserError if the folder was deleted. Otherwise parts of it would be created again."""
    if not os.path.isdir(output_dir):
        raise UserError(f"output_dir={escape(output_dir)} was deleted during the study.")


def _check_unchanged(configs: dict[str, Config], owners: "dict[str, FrozenTrial]") -> None:
    """Refuse to mix runs of different configs under one name."""
    for name in configs.keys() & owners.keys():
        text = owners[name].user_attrs["config"]
        # Parsed, because a key that is new in this version has its default in the older config.
        changed = text != dump_config(configs[name]) and diff_config(parse_config(text, name), configs[name])
        if changed:
            raise UserError(
                f"Run {name} was queued with another config. Use another output folder, or undo these changes "
                "(queued -> requested):\n  " + "\n  ".join(changed)
            )


class _RunTrainer:
    """Trains claimed runs one after the other, and records how each of them ended."""

    def __init__(
        self,
        plan: Plan,
        output_dir: str,
        command: Sequence[str],
        arguments: Sequence[str],
        queue: JobQueue,
        bar: ProgressBar,
        stop: StopFlag,
    ):
        self._plan, self._output_dir, self._command, self._arguments = plan, output_dir, command, arguments
        self._queue, self._bar, self._stop = queue, bar, stop

    def train(self, run: Run, owners: Owners, overrides: Sequence[str]) -> None:
        """Train a run that this process has claimed, until its end or until the plan stops it early."""
        trial = owners[run.name]
        variant = os.path.join(self._output_dir, "variants", f"{run.name}.yaml")
        model_dir = os.path.join(self._output_dir, "runs", run.name)
        log = f"{model_dir}.log"
        write_text(variant, dump_variant(run.spec))
        settings = [f"--set={text}" for text in overrides]
        command = [*self._command, f"--variant={variant}", f"--model_dir={model_dir}", *settings, *self._arguments]
        beats = itertools.count()

        def on_heartbeat() -> bool:
            _check_exists(self._output_dir)
            accuracy = read_accuracy(model_dir)
            self._bar.set_status(run.name if accuracy is None else f"{run.name} {accuracy:.1%}")
            self._bar.advance(0)  # In a log file, only this prints a line.
            return self._beat(trial, next(beats))

        def find_stop() -> int | None:
            return self._plan.find_stop(run, read_accuracies(model_dir), owners) if self._plan.stops_early else None

        def is_behind() -> bool:
            return find_stop() is not None

        status, peak_bytes = _run_process(
            command, log, on_heartbeat, self._queue.heartbeat_seconds, self._stop, is_behind
        )
        _check_exists(self._output_dir)
        # Found again, because how far a process gets until it is stopped is a matter of chance, and it may have ended.
        step = None if status is None else find_stop()
        if step is not None:
            self._record_stop(run, trial, step)
        elif status == 0:
            self._record(run, trial, peak_bytes)
        elif status == EXIT_RESTART or self._stop.asked or status is None:
            self._queue.fail(trial)
        else:
            self._record_failure(run, trial, describe_end(status))

    def _beat(self, trial: "FrozenTrial", count: int) -> bool:
        """Record a heartbeat. Training goes on if the database cannot be used: it may be back when the run is done."""
        try:
            return self._queue.beat(trial, count)
        except StorageError as error:
            self._bar.print(f"warning: {error} Training goes on.", file=sys.stderr)
            return True

    def _record(self, run: Run, trial: "FrozenTrial", peak_bytes: int | None) -> None:
        try:
            config = parse_config(trial.user_attrs["config"], f"the config of {run.name} in the database")
            result = read_result(os.path.join(self._output_dir, "runs", run.name), config.eval.best)
        except UserError as error:
            self._record_failure(run, trial, str(error))
            return
        accuracies = read_accuracies(os.path.join(self._output_dir, "runs", run.name))
        self._queue.complete(trial, result | {"peak_bytes": peak_bytes, "accuracies": sorted(accuracies.items())})
        self._bar.print(f"{run.name}: top-1 {result['top1']:.2%}, trained for {result['train_seconds']:.0f} s")

    def _record_stop(self, run: Run, trial: "FrozenTrial", step: int) -> None:
        found = read_accuracies(os.path.join(self._output_dir, "runs", run.name))
        accuracies = sorted((at, top1) for at, top1 in found.items() if at <= step)
        self._queue.prune(trial, {"top1": accuracies[-1][1], "accuracies": accuracies})
        self._bar.print(f"{run.name}: top-1 {accuracies[-1][1]:.2%} at step {step}, stopped because it is behind")

    def _record_failure(self, run: Run, trial: "FrozenTrial", reason: str) -> None:
        log = os.path.join(self._output_dir, "runs", f"{run.name}.log")
        lines = _read_last_lines(log)
        self._queue.fail(trial, error=f"{reason}\n{lines}")
        reason = reason.rstrip(".")
        text = f"{run.name} failed: {reason}. The last lines of {escape(log)} are:\n{lines}"
        self._bar.print(text, file=sys.stderr)


def _read_last_lines(log: str) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - MOST_BYTES))
        lines = last_lines(file.read().decode(errors="replace"), LOG_LINES)
    return "\n".join(shorten(line, LONGEST_LINE) for line in lines.split("\n"))


def _run_process(
    command: Sequence[str],
    log: str,
    on_heartbeat: Callable[[], bool],
    heartbeat_seconds: int,
    stop: StopFlag,
    is_behind: Callable[[], bool] = lambda: False,
) -> tuple[int | None, int | None]:
    """Run a command until it ends.

    Pass a stop signal on to it, or send one when `is_behind()` returns True, and kill it if it has not ended
    `STOP_SECONDS` later. Kill it when `on_heartbeat()` returns False.

    Returns:
        The exit status, or None if another process has taken over the run. The peak resident memory in bytes, or None
        if the system does not report it.
    """
    os.makedirs(os.path.dirname(log), exist_ok=True)
    if os.path.exists(log):
        check_file(log)
    with open(log, "ab") as output:
        # In a new session, so that Ctrl-C reaches only this process, which passes it on as SIGTERM.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
    killed_at, next_heartbeat, next_check, peak_bytes = float("inf"), 0.0, 0.0, None
    try:
        while process.poll() is None:
            # Read while it runs: after its end, the system also counts the memory of the process that started it.
            peak_bytes = hardware.peak_bytes(process.pid) or peak_bytes
            is_stopping = stop.asked
            if not is_stopping and time.monotonic() > next_check:
                is_stopping, next_check = is_behind(), time.monotonic() + CHECK_SECONDS
            if is_stopping and killed_at == float("inf"):
                killed_at = time.monotonic() + STOP_SECONDS
                os.kill(process.pid, signal.SIGTERM)
            if time.monotonic() > killed_at:
                process.kill()
            if time.monotonic() > next_heartbeat:
                next_heartbeat = time.monotonic() + heartbeat_seconds
                if not on_heartbeat():
                    return None, None
            time.sleep(POLL_SECONDS)
        return process.returncode, peak_bytes
    finally:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()

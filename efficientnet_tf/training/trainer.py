"""A training run from top to bottom: open the data, create or restore the state, train the phases, save the model."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.config.text import find_reason
from efficientnet_tf.data.open import open_splits
from efficientnet_tf.data.pipeline import Failures, check_batches
from efficientnet_tf.models.model_dir import list_checkpoints, save_keras_model
from efficientnet_tf.models.run_directory import adopt_statistics
from efficientnet_tf.models.selection import check_metric
from efficientnet_tf.runtime.signals import StopFlag, StopLimit
from efficientnet_tf.runtime.strategy import create_strategy, describe_devices
from efficientnet_tf.runtime.workers import LostWorkerError, is_chief, make_gather, report_lost_workers
from efficientnet_tf.training.callback import Callback
from efficientnet_tf.training.checkpoint import Checkpointer
from efficientnet_tf.training.directory import RunDirectory
from efficientnet_tf.training.graph import batch_norm_group_size
from efficientnet_tf.training.losses import measure_targets
from efficientnet_tf.training.metrics import RunLog, SilentLog, describe_run
from efficientnet_tf.training.phase_loop import PhaseLoop
from efficientnet_tf.training.schedule import Phase, Rhythm, plan_phases
from efficientnet_tf.training.state import State, create_state
from efficientnet_tf.training.teacher import check_teacher
from efficientnet_tf.training.tensorflow_loop import make_state_evaluator
from efficientnet_tf.training.transfer import read_initial_weights
from efficientnet_tf.training.wandb import require_tracker

# How long a run may take to end after SIGTERM, if what it does cannot be interrupted.
QUICK_SECONDS = 20.0  # while nothing would be lost
LOOP_SECONDS = 600.0  # while training or writing. Afterwards the run goes on from its last checkpoint.


def train_model(
    config: Config,
    model_dir: str | os.PathLike[str],
    strategy: tf.distribute.Strategy | None = None,
    tracker: str = "tensorboard",
    callbacks: Sequence[Callback] = (),
    allow_change: Sequence[str] = (),
) -> dict[str, Any]:
    """Train a classifier, or continue a run that was stopped.

    The run saves checkpoints. Called again with the same config and directory, it continues from the newest one and
    ends with the same weights as a run that was never stopped.

    Args:
        config: What to train and how, from `load_config`.
        model_dir: The run's directory, local or gs://. It will hold the config, class names, checkpoints, metrics and
            the trained model.
        strategy: Where to train. Defaults to all GPUs, or the CPU if there is none.
        tracker: "tensorboard", or "wandb" to log to Weights & Biases as well.
        callbacks: Objects that follow every loop and every evaluation.
        allow_change: Keys of the config, such as "train.epochs" or "data.dir", in which a run that has begun may differ
            from what it was. The change is recorded in config_history.yaml.

    Returns:
        {"step": int, "finished": bool} and, if the run is finished, the last evaluation, {"raw": {...}, "ema": {...}},
        and with `eval.best` the "best_step", whose weights are in model.keras.
        A run that was stopped by SIGTERM or a callback is saved but not finished.

    Raises:
        UserError: If data, weights, directory or device do not fit the config, if another process trains in the
            directory or it is deleted meanwhile, if the tracker cannot be used, or if the loss is no longer finite.

    Example:
        >>> from efficientnet_tf import load_config, train_model
        >>> small = ["model.width=0.25", "model.depth=0.25", "train.epochs=1", "schedule.warmup_epochs=0"]
        >>> config = load_config("b0", "digits", small)
        >>> train_model(config, "runs/digits")["step"]  # doctest: +ELLIPSIS
        b0: ...
        22
    """
    return Trainer(config, str(model_dir), strategy or create_strategy(), tracker, callbacks, allow_change).run()


class Trainer:
    """One training run. `run` does all of it, and the other methods are its chapters, in order.

    Attributes:
        config: The config of the run.
        model_dir: The run's directory.
        state: What training changes.
        step: Number of steps done.
        total_steps: Number of steps of the whole run.
    """

    state: State

    def __init__(
        self,
        config: Config,
        model_dir: str,
        strategy: tf.distribute.Strategy,
        tracker: str = "tensorboard",
        callbacks: Sequence[Callback] = (),
        allow_change: Sequence[str] = (),
    ):
        self.config, self.model_dir = adopt_statistics(model_dir, config), model_dir
        self._strategy, self._tracker, self._callbacks = strategy, tracker, callbacks
        self._is_chief, self._gather = is_chief(strategy), make_gather(strategy)
        self._directory = RunDirectory(model_dir, self.config, allow_change, self._is_chief, self._gather)
        self._is_stopping, self.step, self.total_steps, self._saved_step = False, 0, 0, 0
        self._doing, self._stop_seconds = "opening the data", QUICK_SECONDS

    def run(self) -> dict[str, Any]:
        """Train what is left of the run, and return what `train_model` returns."""
        with (
            StopFlag() as self._stop_flag,
            StopLimit(lambda: self._stop_seconds, self._say_last_words),
            contextlib.ExitStack() as stack,
        ):
            self._check_and_open(stack)
            self._create_or_restore_state()
            stack.enter_context(self._checkpointer)
            self._log = stack.enter_context(self._open_log())
            self._print_essentials()
            self._repeat_evaluation()
            for phase in self._phases:
                self._train_phase(phase)
                if self.step < phase.end_step:
                    return self._finish() if self._is_exhausted else self._leave()
            return self._finish()

    def stop(self) -> None:
        """Save and end the run after the current loop, as SIGTERM does."""
        self._is_stopping = True

    # ------------------------------------------------------------------------------------------------ before training

    def _check_and_open(self, stack: contextlib.ExitStack) -> None:
        """Open data, initial weights and directory: what is wrong with them shows before anything is built."""
        self._directory.check_first()
        require_tracker(self._tracker)
        self._train_source, self._eval_source = open_splits(self.config.data)
        config = self.config = measure_targets(self.config, self._train_source)
        check_teacher(config, self._train_source.class_names)
        check_metric(config.eval.best, len(self._train_source.class_names))
        check_batches(config, self._strategy.num_replicas_in_sync)
        batch_norm_group_size(config, self._strategy)
        self._initial = None
        if config.train.init_from is not None and not list_checkpoints(self.model_dir):
            self._initial = read_initial_weights(config, self._train_source.class_names)
        self._directory.open(stack, config, self._train_source.class_names)

    def _create_or_restore_state(self) -> None:
        self._doing = "building the model"
        config, size, class_names = self.config, self._train_source.size, self._train_source.class_names
        initial = self._initial and self._initial.values
        self.state = create_state(config, len(class_names), size, self._strategy, initial, self._train_source.labels)
        self._checkpointer = Checkpointer(self.model_dir, self.state, config, class_names, self._directory.check)
        self.step = self._saved_step = self._checkpointer.restore()
        if set(self._gather(self.step)) != {self.step}:
            raise UserError(
                f"model_dir={self.model_dir}: the workers find checkpoints of different steps there, this one of step "
                f"{self.step}. Use a directory that all workers share."
            )
        self._saved_selection = self.state.selection
        self._phases = plan_phases(config, size)
        self.total_steps = self._phases[-1].end_step
        if self.step > self.total_steps:
            needed = f"train.epochs={config.train.epochs:g} means {self.total_steps} steps"
            raise UserError(f"{needed}, but this run has already done {self.step}. Use a larger number.")
        self._directory.record_changes(self.step)
        self._checkpoints = Rhythm(config.train.checkpoint_every_epochs, config, size)
        self._evaluations = Rhythm(config.eval.every_epochs, config, size)
        self._evaluator = make_state_evaluator(self.state, self._eval_source, config, self._strategy)
        self._failures = Failures(self._train_source)
        self._results: dict[str, Any] | None = None

    def _open_log(self) -> RunLog | SilentLog:
        if not self._is_chief:
            return SilentLog()
        # The checkpoint may have been written before the evaluation of its step.
        repeats = self._has_evaluation and self.state.selection.lacks(self.step)
        steps = self.step, self.total_steps
        return RunLog(self.model_dir, self.config, *steps, self._tracker, check=self._directory.check, repeats=repeats)

    def _print_essentials(self) -> None:
        model, sizes = self.state.model, (self._train_source.size, self._eval_source.size)
        for line in describe_run(self.config, model, sizes, describe_devices(self._strategy), self.total_steps):
            self._log.print(line)
        self._log.print(f"Results: {self.model_dir}")
        if self._initial:
            self._log.print(self._initial.message)
        if self.step:
            self._log.print(f"Continuing from the checkpoint of step {self.step} of {self.total_steps}")

    # -------------------------------------------------------------------------------------------------- while training

    def _train_phase(self, phase: Phase) -> None:
        """Train to the end of a phase, or until the run is asked to stop."""
        loop = None
        while self.step < phase.end_step and not self._is_exhausted and not self._is_asked_to_stop():
            if loop is None:  # Only now: building it takes long, and a run that stops does not need it.
                loop = PhaseLoop(phase, self.config, self.state, self.step, self._failures, self._strategy)
            due = min(rhythm.next_after(self.step) for rhythm in (self._checkpoints, self._evaluations))
            steps = min(self.config.train.steps_per_loop, phase.end_step - self.step, due - self.step)
            # The first loop compiles, which can take long, and nothing is lost yet.
            is_quick = not loop.is_compiled and self._saved_step == self.step
            with self._while_doing("training", QUICK_SECONDS if is_quick else LOOP_SECONDS):
                metrics = loop.run(self.step, steps)
            self._checkpointer.wait(only_if_done=True)
            self.step += steps
            self._log.log_training(self.step, metrics)
            for callback in self._callbacks:
                callback.after_loop(self, metrics)
            self._save_and_evaluate()

    def _save_and_evaluate(self) -> None:
        """Write a checkpoint and evaluate, if either is due at this step."""
        is_due = self._is_evaluation_due()
        must_save = self._checkpoints.is_due(self.step) or self.step == self.total_steps
        # After the lines up to this step, because a killed run logs everything after its newest checkpoint again.
        # Before the evaluation, because that can fail. A run that continues here repeats it if it was not logged.
        # But a checkpoint that says which one is the best comes after it, so that both appear in the same moment.
        if must_save and not (is_due and self.state.selection.is_used):
            self._save_now(background=True)
        if is_due:
            self._evaluate()
            is_best = self.state.selection.best_step == self.step
            if (must_save or is_best) and not self._is_saved:
                self._save_now(background=True)

    def _is_evaluation_due(self) -> bool:
        """Return whether to evaluate now. A run that was sent a signal does it when it continues."""
        if not self._has_evaluation:
            return False
        return self.step == self.total_steps or not any(self._gather(int(self._stop_flag.asked)))

    @property
    def _has_evaluation(self) -> bool:
        """Whether an undisturbed run evaluates at this step."""
        return self.step > 0 and (self._evaluations.is_due(self.step) or self.step == self.total_steps)

    @property
    def _is_exhausted(self) -> bool:
        """Whether the run ends because no evaluation has been better for so long."""
        return self.state.selection.is_exhausted(self.config.eval.patience)

    def _repeat_evaluation(self) -> None:
        """Evaluate at the restored step if the run was ended there before it had logged this."""
        if self._is_evaluation_due() and any(self._gather(int(self._log.lacks_evaluation))):
            self._evaluate()

    def _is_asked_to_stop(self) -> bool:
        """Return whether any worker was asked to stop. All workers get the same answer."""
        return any(self._gather(int(self._stop_flag.asked or self._is_stopping)))

    def _evaluate(self) -> None:
        self._results = self._compute_results()
        selection = self.state.selection
        if selection.is_used:  # The chief decides, so that all workers do the same.
            is_best = bool(self._gather(int(selection.improves(self._results)))[0])
            self.state.selection = selection.add(self.step, self._results, is_best)
        note = ", the best so far" if self.state.selection.best_step == self.step else ""
        self._log.log_evaluation(self.step, self._results, note)
        for callback in self._callbacks:
            callback.after_evaluation(self, self._results)

    def _compute_results(self) -> dict[str, Any]:
        """Evaluate. If that fails, the steps done so far are saved."""
        try:
            with self._while_doing("evaluating", QUICK_SECONDS), report_lost_workers(self._strategy):
                return self._evaluator()
        except LostWorkerError:
            raise
        except (UserError, tf.errors.OpError) as error:
            self._save()
            message = f"The evaluation failed after step {self.step}, which is saved. The same command continues there"
            raise UserError(f"{message}. {error if isinstance(error, UserError) else find_reason(error)}") from error

    # ---------------------------------------------------------------------------------------- saving and after training

    @contextlib.contextmanager
    def _while_doing(self, what: str, stop_seconds: float) -> Iterator[None]:
        """Say within the block what the run does, and how long it may take to end after SIGTERM."""
        before = self._doing, self._stop_seconds
        self._doing, self._stop_seconds = what, stop_seconds
        try:
            yield
        finally:
            self._doing, self._stop_seconds = before

    def _say_last_words(self) -> None:
        """Save what can be saved after SIGTERM while the main thread does something that cannot be interrupted."""
        if self._doing == "evaluating" and self._saved_step < self.step:
            self._save_now()  # Evaluation does not change the variables.
        if self.step:
            self._checkpointer.wait()
        print(
            f"Stopped while {self._doing}. Step {self._saved_step} of {self.total_steps or 'the run'} is saved. The "
            "same command continues from there.",
            flush=True,
        )

    def _save_now(self, background: bool = False) -> None:
        if self._is_chief:
            self._log.sync()
            self._checkpointer.save(background)
        self._saved_step, self._saved_selection = self.step, self.state.selection

    @property
    def _is_saved(self) -> bool:
        return self._saved_step == self.step and self._saved_selection == self.state.selection

    def _save(self) -> None:
        """Finish writing checkpoints, and name the images that could not be read."""
        with self._while_doing("writing a checkpoint", LOOP_SECONDS):
            if not self._is_saved:
                self._save_now()
            self._checkpointer.wait()
        failed = self._failures.names()
        if failed:
            counts, causes = f"{len(failed)} of {self._train_source.size}", self._failures.describe()
            self._log.print(f"{counts} training images could not be read and were left out: {causes}")

    def _leave(self) -> dict[str, Any]:
        """Save a run that was asked to stop."""
        self._save()
        self._log.print(
            f"Stopped. Step {self.step} of {self.total_steps} is saved. The same command continues from there."
        )
        self._gather(self.step)  # A worker that ended now would take the chief with it, which is still writing.
        return {"step": self.step, "finished": False}

    def _finish(self) -> dict[str, Any]:
        """Save a run that has done all its steps or gets no better, and write its model."""
        self._save()
        selection = self.state.selection
        if self.step < self.total_steps:
            self._log.print(f"Stopped early after step {self.step} of {self.total_steps}: {selection.describe_end()}")
        if self._is_chief:
            with self._while_doing("writing the model", LOOP_SECONDS):
                self._directory.check()
                path = save_keras_model(self.model_dir)
                self._directory.check()
            best = selection.describe()
            self._log.print(f"Finished: {path}" + (f", from the best checkpoint, {best}" if best else ""))
        if self._results is None:  # The run was finished before.
            self._results = self._compute_results()
        self._gather(self.step)
        best = {"best_step": selection.best_step} if selection.best_step is not None else {}
        return {"step": self.step, "finished": True, **best, **self._results}

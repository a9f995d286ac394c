"""A training run from top to bottom: open the data, create or restore the state, train the phases, save the model."""

import math
import os
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.schema import Config
from efficientnet_tf.data.open import open_source
from efficientnet_tf.data.pipeline import Failures, check_batches, train_dataset
from efficientnet_tf.models.model_dir import list_checkpoints, open_model_dir, save_keras_model
from efficientnet_tf.runtime.signals import StopFlag
from efficientnet_tf.runtime.strategy import create_strategy, describe_devices, distribute_batches
from efficientnet_tf.runtime.workers import is_chief, make_gather, report_lost_workers
from efficientnet_tf.training.checkpoint import Checkpointer, State, create_state
from efficientnet_tf.training.graph import batch_norm_group_size, build_phase_graph
from efficientnet_tf.training.metrics import RunLog, SilentLog
from efficientnet_tf.training.schedule import Phase, plan_phases, to_steps
from efficientnet_tf.training.tensorflow_loop import make_evaluators, make_train_loop
from efficientnet_tf.training.transfer import read_initial_weights
from efficientnet_tf.training.wandb import require_tracker


class Callback:
    """Follows the progress of a run. Override the methods you need, and pass instances to `train_model`.

    Example:
        >>> from efficientnet_tf import Callback
        >>> class StopWhenGoodEnough(Callback):
        ...     def after_evaluation(self, trainer, results):
        ...         if results["raw"]["top1"] > 0.9:
        ...             trainer.stop()
        >>> callbacks = [StopWhenGoodEnough()]  # for train_model(..., callbacks=callbacks)
    """

    def after_loop(self, trainer: "Trainer", metrics: dict[str, float]) -> None:
        """React to a loop of training steps.

        Args:
            trainer: The running trainer. `trainer.step` is the number of steps done; `trainer.stop()` ends the run.
            metrics: "loss", "top1", "learning_rate", "seconds" and "images_per_second" of the loop.
        """

    def after_evaluation(self, trainer: "Trainer", results: dict[str, dict[str, Any]]) -> None:
        """React to an evaluation.

        Args:
            trainer: The running trainer.
            results: {"raw": ..., "ema": ...}, each with "examples", "loss", "top1" and "top5".
        """


def train_model(
    config: Config,
    model_dir: str | os.PathLike[str],
    strategy: tf.distribute.Strategy | None = None,
    tracker: str = "tensorboard",
    callbacks: Sequence[Callback] = (),
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

    Returns:
        {"step": int, "finished": bool} and, if the run is finished, the last evaluation, {"raw": {...}, "ema": {...}}.
        A run that was stopped by SIGTERM or a callback is saved but not finished.

    Raises:
        UserError: If data, weights, directory or device do not fit the config, if the tracker cannot be used, or if the
            loss is no longer finite.

    Example:
        >>> from efficientnet_tf import load_config, train_model
        >>> small = ["model.width=0.25", "model.depth=0.25", "train.epochs=1", "schedule.warmup_epochs=0"]
        >>> config = load_config("b0", "digits", small)
        >>> train_model(config, "runs/digits")["step"]  # doctest: +ELLIPSIS
        b0: ...
        22
    """
    return Trainer(config, str(model_dir), strategy or create_strategy(), tracker, callbacks).run()


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
    ):
        self.config, self.model_dir = config, model_dir
        self.step = self.total_steps = 0
        self._strategy, self._tracker, self._callbacks = strategy, tracker, callbacks
        self._is_chief, self._gather = is_chief(strategy), make_gather(strategy)
        self._is_stopping = False

    def run(self) -> dict[str, Any]:
        """Train what is left of the run, and return what `train_model` returns."""
        self._check_and_open()
        self._create_or_restore_state()
        with self._checkpointer, self._open_log() as self._log, StopFlag() as self._stop_flag:
            self._print_essentials()
            for phase in self._phases:
                self._train_phase(phase)
                if self.step < phase.end_step:
                    return self._leave()
            return self._finish()

    def stop(self) -> None:
        """Save and end the run after the current loop, as SIGTERM does."""
        self._is_stopping = True

    # ------------------------------------------------------------------------------------------------ before training

    def _check_and_open(self) -> None:
        """Open data, initial weights and directory: what is wrong with them shows before anything is built."""
        config = self.config
        require_tracker(self._tracker)
        self._train_source = open_source(config.data, config.data.train_split, training=True)
        self._eval_source = open_source(config.data, config.data.eval_split, training=False)
        if self._eval_source.class_names != self._train_source.class_names:
            raise UserError("The training and the evaluation split have different classes.")
        check_batches(config, self._strategy.num_replicas_in_sync)
        batch_norm_group_size(config, self._strategy)
        self._initial = None
        if config.train.init_from is not None and not list_checkpoints(self.model_dir):
            self._initial = read_initial_weights(config, self._train_source.class_names)
        self._open_model_dir()

    def _open_model_dir(self) -> None:
        """Create or check the run's directory, first as the chief, then as the other workers."""
        class_names = self._train_source.class_names
        if self._is_chief:
            open_model_dir(self.model_dir, self.config, class_names)
        self._gather(0)
        if not self._is_chief:
            if not tf.io.gfile.exists(os.path.join(self.model_dir, "config.yaml")):
                raise UserError(
                    f"model_dir={self.model_dir}: this worker does not see the files that the chief has written there. "
                    "Use a directory that all workers share."
                )
            open_model_dir(self.model_dir, self.config, class_names)

    def _create_or_restore_state(self) -> None:
        config, size = self.config, self._train_source.size
        initial = self._initial.values if self._initial else None
        self.state = create_state(config, len(self._train_source.class_names), size, self._strategy, initial)
        self._checkpointer = Checkpointer(self.model_dir, self.state, config)
        self.step = self._saved_step = self._checkpointer.restore()
        if set(self._gather(self.step)) != {self.step}:
            raise UserError(
                f"model_dir={self.model_dir}: the workers find checkpoints of different steps there, this one of step "
                f"{self.step}. Use a directory that all workers share."
            )
        self._phases = plan_phases(config, size)
        self.total_steps = self._phases[-1].end_step
        self._checkpoint_every = to_steps(config.train.checkpoint_every_epochs, config, size)
        self._eval_every = to_steps(config.eval.every_epochs, config, size)
        self._evaluators = make_evaluators(self.state, self._eval_source, config, self._strategy)
        self._failures = Failures(self._train_source)
        self._results: dict[str, Any] | None = None

    def _open_log(self) -> RunLog | SilentLog:
        if not self._is_chief:
            return SilentLog()
        return RunLog(self.model_dir, self.config, self.step, self.total_steps, self._tracker)

    def _print_essentials(self) -> None:
        config, source = self.config, self._train_source
        params = sum(math.prod(v.shape) for v in self.state.model.trainable_variables)
        self._log.print(
            f"{config.model.name}: {params:,} parameters, {config.image_size} pixels, "
            f"{len(source.class_names):,} classes"
        )
        self._log.print(
            f"Data: {config.data.source}, {source.size:,} training and {self._eval_source.size:,} evaluation images"
        )
        self._log.print(f"Device: {describe_devices(self._strategy)}, {self.state.model.dtype_policy.name}")
        self._log.print(
            f"Steps: {self.total_steps:,} of {config.train.batch_size} images each, {config.train.epochs:g} epoch"
            f"{'' if config.train.epochs == 1 else 's'}"
        )
        self._log.print(f"Results: {self.model_dir}")
        if self._initial:
            self._log.print(self._initial.message)
        if self.step:
            self._log.print(f"Continuing from the checkpoint of step {self.step} of {self.total_steps}")

    # -------------------------------------------------------------------------------------------------- while training

    def _train_phase(self, phase: Phase) -> None:
        """Train to the end of a phase, or until the run is asked to stop."""
        loop = batches = None
        while self.step < phase.end_step and not self._is_asked_to_stop():
            if loop is None:  # Only now: building it takes long, and a run that stops does not need it.
                batches, loop = self._start_phase(phase)
            until = [every - self.step % every for every in (self._checkpoint_every, self._eval_every)]
            steps = min(self.config.train.steps_per_loop, phase.end_step - self.step, *until)
            metrics = self._run_steps(phase, loop, batches, steps)
            self._checkpointer.wait(only_if_done=True)
            self.step += steps
            self._log.log_training(self.step, metrics)
            for callback in self._callbacks:
                callback.after_loop(self, metrics)
            if self.step % self._eval_every == 0 or self.step == self.total_steps:
                self._evaluate()
            # Last, because a killed run logs everything after its newest checkpoint again.
            if self._is_chief and (self.step % self._checkpoint_every == 0 or self.step == self.total_steps):
                self._saved_step = self._checkpointer.save(background=True)

    def _is_asked_to_stop(self) -> bool:
        """Return whether any worker was asked to stop. All workers get the same answer."""
        return any(self._gather(int(self._stop_flag.asked or self._is_stopping)))

    def _start_phase(self, phase: Phase) -> tuple[Any, Any]:
        """Return the batches of a phase from the current step on, and the loop that trains on them."""
        first = self.step - phase.first_step
        batches = distribute_batches(
            self._strategy,
            lambda context: train_dataset(
                self._train_source, phase.config, self._failures, first, context, phase.first_position
            ),
        )
        graph = build_phase_graph(phase.config, self.config, self.state.model, self._strategy)
        return iter(batches), make_train_loop(self.state, phase.config, self._strategy, graph)

    def _run_steps(self, phase: Phase, loop: Any, batches: Any, steps: int) -> dict[str, float]:
        """Train some steps on the device, and return their metrics."""
        started = time.perf_counter()
        try:
            with report_lost_workers(self._strategy):
                loss, accuracy = loop(batches, tf.constant(steps)).numpy().tolist()
        except tf.errors.OpError as error:
            self._failures.check(self.config.data.max_bad_fraction)
            raise UserError(f"Training failed after step {self.step}: {error.message}") from error
        seconds = time.perf_counter() - started
        self._failures.check(self.config.data.max_bad_fraction)
        if not math.isfinite(loss):
            raise UserError(
                f"The loss is {loss} after step {self.step + steps}. Earlier checkpoints are intact. A lower "
                "optimizer.learning_rate or a longer schedule.warmup_epochs usually helps."
            )
        return {
            "loss": loss,
            "top1": accuracy,
            "learning_rate": float(self.state.optimizer.learning_rate),
            "seconds": seconds,
            "images_per_second": steps * phase.batch_size / seconds,
        }

    def _evaluate(self) -> None:
        self._results = self._compute_results()
        self._log.log_evaluation(self.step, self._results)
        for callback in self._callbacks:
            callback.after_evaluation(self, self._results)

    def _compute_results(self) -> dict[str, Any]:
        with report_lost_workers(self._strategy):
            return {kind: evaluate() for kind, evaluate in self._evaluators.items()}

    # -------------------------------------------------------------------------------------------------- after training

    def _save(self) -> None:
        """Finish writing checkpoints, and name the images that could not be read."""
        if self._is_chief and self._saved_step < self.step:
            self._checkpointer.save()
        self._checkpointer.wait()
        failed = self._failures.names()
        if failed:
            self._log.print(
                f"{len(failed)} of {self._train_source.size} training images could not be read and were left out: "
                f"{', '.join(failed[:10])}"
            )

    def _leave(self) -> dict[str, Any]:
        """Save a run that was asked to stop."""
        self._save()
        self._log.print(
            f"Stopped. Step {self.step} of {self.total_steps} is saved. The same command continues from there."
        )
        self._gather(self.step)  # A worker that ended now would take the chief with it, which is still writing.
        return {"step": self.step, "finished": False}

    def _finish(self) -> dict[str, Any]:
        """Save a run that has done all its steps, and write its model."""
        self._save()
        if self._is_chief:
            self._log.print(f"Finished: {save_keras_model(self.model_dir)}")
        if self._results is None:  # The run was finished before.
            self._results = self._compute_results()
        self._gather(self.step)
        return {"step": self.step, "finished": True, **self._results}

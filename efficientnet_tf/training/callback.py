"""The interface of objects that follow a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientnet_tf.training.trainer import Trainer


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

    def after_loop(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """React to a loop of training steps.

        Args:
            trainer: The running trainer. `trainer.step` is the number of steps done; `trainer.stop()` ends the run.
            metrics: "loss", "top1", "learning_rate", "seconds" and "images_per_second" of the loop. With another
                data.task than classification, "exact" or "mae" takes the place of "top1".
        """

    def after_evaluation(self, trainer: Trainer, results: dict[str, dict[str, Any]]) -> None:
        """React to an evaluation.

        Args:
            trainer: The running trainer.
            results: {"raw": ..., "ema": ...}, each with what `evaluate_model` returns.
        """

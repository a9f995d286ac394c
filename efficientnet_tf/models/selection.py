"""Which evaluation of a run was the best so far: `eval.best`, `eval.patience`. Checkpoints hold the answer."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from efficientnet_tf.config.errors import UserError


@dataclasses.dataclass(frozen=True)
class MetricText:
    """How a metric is shown to people.

    Attributes:
        label: Its name in a sentence.
        form: How its value is formatted.
        lower_is_better: Whether a smaller value is better.
    """

    label: str
    form: str
    lower_is_better: bool = False

    def format(self, value: float) -> str:
        """Return a value as text."""
        return format(value, self.form)


METRIC_TEXTS = {
    "top1": MetricText("top-1", ".2%"),
    "top5": MetricText("top-5", ".2%"),
    "f1": MetricText("F1", ".2%"),
    "exact": MetricText("all labels right", ".2%"),
    "mae": MetricText("mean absolute error", ".4g", lower_is_better=True),
    "r2": MetricText("R2", ".4f"),
    "loss": MetricText("loss", ".4f", lower_is_better=True),
}


@dataclasses.dataclass(frozen=True)
class Selection:
    """What the evaluations of a run have decided so far.

    It depends on nothing but them, so a resumed run, which restores it with the weights, decides like an undisturbed
    one.

    Attributes:
        metric: What is compared: a key of `METRIC_TEXTS`, or "none" if nothing is.
        step: Step of the last evaluation, or 0.
        best_step: Step of the best evaluation, or None if there is none.
        best_value: What the metric was there, float. 0 if there is none.
        since_best: Number of evaluations after the best one.
    """

    metric: str = "none"
    step: int = 0
    best_step: int | None = None
    best_value: float = 0.0
    since_best: int = 0

    @property
    def is_used(self) -> bool:
        """Whether evaluations are compared at all."""
        return self.metric != "none"

    def improves(self, results: Mapping[str, Mapping[str, Any]]) -> bool:
        """Return whether an evaluation is better than all before. An equal one or NaN is not.

        Args:
            results: {"raw": {...}, "ema": {...}}. The EMA counts if there is one.
        """
        if not self.is_used:
            return False
        value = self._read(results)
        if self.best_step is None:
            return not math.isnan(value)
        return value < self.best_value if METRIC_TEXTS[self.metric].lower_is_better else value > self.best_value

    def add(self, step: int, results: Mapping[str, Mapping[str, Any]], is_best: bool) -> "Selection":
        """Return the selection after the evaluation at a step. One that has been added before changes nothing.

        Args:
            step: Number of steps done.
            results: As for `improves`.
            is_best: What `improves` said, on the worker that decides.
        """
        if not self.is_used or step <= self.step:
            return self
        if is_best:
            return Selection(self.metric, step, step, self._read(results))
        return dataclasses.replace(self, step=step, since_best=self.since_best + 1)

    def is_exhausted(self, patience: int | None) -> bool:
        """Return whether so many evaluations in a row were no better that the run ends. None means never."""
        return self.is_used and patience is not None and self.since_best >= patience

    def lacks(self, step: int) -> bool:
        """Return whether the evaluation at a step has not been added, although it should be."""
        return self.is_used and self.step < step

    def describe(self) -> str:
        """Return the best evaluation for people, "step 40 with a top-1 of 97.22%", or "" if there is none."""
        if self.best_step is None:
            return ""
        metric = METRIC_TEXTS[self.metric]
        return f"step {self.best_step} with a {metric.label} of {metric.format(self.best_value)}"

    def describe_end(self) -> str:
        """Return for people why a run ends before its last step."""
        return f"no better {METRIC_TEXTS[self.metric].label} in {self.since_best} evaluations (eval.patience)"

    def to_text(self) -> str:
        """Return the selection as JSON."""
        return json.dumps(dataclasses.asdict(self))

    def _read(self, results: Mapping[str, Mapping[str, Any]]) -> float:
        return float((results.get("ema") or results["raw"])[self.metric])


def check_metric(metric: str, classes: int) -> None:
    """Raise UserError if `eval.best` names a metric that evaluations on so many classes do not have."""
    if metric == "top5" and classes <= 5:
        raise UserError(
            f"eval.best=top5 needs more than five classes, but the data has {classes}. Use eval.best=top1 or "
            "eval.best=loss."
        )


def parse_selection(text: str | bytes) -> Selection:
    """Return a selection from the text of `Selection.to_text`, or raise ValueError if it is none."""
    values = json.loads(text)
    names = [field.name for field in dataclasses.fields(Selection)]
    if not isinstance(values, dict) or sorted(values) != sorted(names) or values["metric"] not in [*METRIC_TEXTS]:
        raise ValueError("its record of the best evaluation is damaged")
    counts = [values["step"], values["since_best"], values["best_step"] or 0]
    if not all(type(count) is int and count >= 0 for count in counts) or type(values["best_value"]) is not float:
        raise ValueError("its record of the best evaluation is damaged")
    return Selection(**values)

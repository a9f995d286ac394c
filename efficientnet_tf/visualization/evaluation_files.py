"""The files that an evaluation can write: the metrics of each class, the confusion matrix, all metrics, and a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.files import check_output, write_output

_ENDINGS = {"per_class": (".csv", ".json"), "confusion": (".png",), "metrics": (".json",), "report": (".html",)}


@dataclass(frozen=True)
class EvaluationFiles:
    """What an evaluation writes, as paths of files, local or gs://. None is not written.

    Attributes:
        per_class: The metrics of each class, label or number, .csv or .json.
        confusion: A picture of the confusion matrix, .png.
        metrics: All metrics that scikit-learn computes, .json.
        report: A page with curves, tables and the worst mistakes, .html.
    """

    per_class: str | None = None
    confusion: str | None = None
    metrics: str | None = None
    report: str | None = None

    def check(self, inputs: Sequence[str | None]) -> None:
        """Raise UserError if a file cannot be written, before the work starts.

        Args:
            inputs: Paths that must not be overwritten.
        """
        from efficientnet_tf.visualization.figures import require_matplotlib
        from efficientnet_tf.visualization.page import require_plotly

        for name, endings in _ENDINGS.items():
            check_output(name, getattr(self, name), endings, inputs)
        if self.confusion:
            require_matplotlib("confusion")
        if self.report:
            require_plotly("report")

    def check_task(self, task: str) -> None:
        """Raise UserError if a file is for classes only, and the model predicts something else."""
        if task != "classification" and self.confusion:
            raise UserError(
                f"confusion={escape(self.confusion)} is for a model that predicts classes, and this one has "
                f"data.task={task}."
            )

    def check_count(self, classes: int) -> None:
        """Raise UserError if a picture cannot show so many classes."""
        from efficientnet_tf.visualization.confusion_matrix import MOST_CLASSES

        if self.confusion and classes > MOST_CLASSES:
            raise UserError(
                f"confusion={escape(self.confusion)} cannot show the data's {classes} classes, at most {MOST_CLASSES}. "
                "Use per_class=FILE.csv, which takes any number."
            )

    def counts_classes(self, task: str) -> bool:
        """Return whether the confusion matrix is needed."""
        return task == "classification" and bool(self.per_class or self.confusion or self.report)

    def needs_outputs(self, task: str) -> bool:
        """Return whether the outputs for all images are needed."""
        return bool(self.metrics or self.report) or (task != "classification" and bool(self.per_class))

    def write(
        self, result: dict[str, Any], details: dict[str, Any] | None, names: Sequence[str], title: str, page: Any = None
    ) -> None:
        """Write the files.

        Args:
            result: What an evaluator returns.
            details: What `evaluation.details` returns, if it is needed.
            names: Names of the data's classes, labels or numbers.
            title: Name of the model.
            page: The text of the page, if it is needed.

        Raises:
            UserError: If a file cannot be written.
        """
        if self.per_class:
            from efficientnet_tf.evaluation.per_class import write_per_class

            write_per_class(self.per_class, list_rows(result, details, names))
        if self.confusion:
            from efficientnet_tf.visualization.confusion_matrix import draw_confusion
            from efficientnet_tf.visualization.figures import save_figure

            text = f"{escape(title)}: top-1 {result['top1']:.2%} on {result['examples']} examples"
            save_figure(draw_confusion(result["confusion"], names, text), self.confusion, "confusion")
        if self.metrics:
            write_output("metrics", self.metrics, json.dumps(details, indent=1, allow_nan=False) + "\n")
        if self.report:
            write_output("report", self.report, page)

    def describe(self, result: dict[str, Any]) -> Iterator[str]:
        """Yield the lines that are printed about the files.

        Args:
            result: What `evaluate_model` returns.
        """
        if self.per_class and "accuracy" in result["per_class"][0]:
            known = [row for row in result["per_class"] if row["examples"]]
            worst = min(known, key=lambda row: row["accuracy"])
            shown = f"{escape(self.per_class)}: {len(result['per_class'])} classes"
            yield f"{shown}, the worst is {escape(worst['class'])} with " + (
                "{correct} of {examples} images correct".format(**worst)
            )
        elif self.per_class:
            yield f"{escape(self.per_class)}: {len(result['per_class'])} rows"
        if self.confusion:
            classes = len(result["confusion"])
            yield (
                f"{escape(self.confusion)}: {classes} classes, the true ones as rows and the predicted ones as columns"
            )
        if self.metrics or self.report:
            yield _describe_summary(result["metrics"]["summary"])
        if self.metrics:
            yield f"{escape(self.metrics)}: all metrics"
        if self.report:
            yield f"{escape(self.report)}: open it in a browser"


def list_rows(result: dict[str, Any], details: dict[str, Any] | None, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of `per_class`: the accuracies of classes, or the metrics of labels or numbers."""
    if details is not None and "confusion" not in result:
        return details["rows"]
    from efficientnet_tf.evaluation.per_class import per_class

    return per_class(result["confusion"], names)


def _describe_summary(summary):
    """Return the most important metrics in one line."""
    texts = {
        "macro_f1": "macro F1 {:.2%}",
        "micro_f1": "micro F1 {:.2%}",
        "macro_average_precision": "mean average precision {:.2%}",
        "macro_auroc": "mean AUROC {:.4f}",
        "calibration_error": "calibration error {:.2%}",
        "rmse": "root mean squared error {:.4g}",
        "bias": "mean error {:.4g}",
    }
    known = [text.format(summary[key]) for key, text in texts.items() if summary.get(key) is not None]
    return ", ".join(known)

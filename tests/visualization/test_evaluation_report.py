"""The page of an evaluation, in a real browser, and what it calls the worst mistakes."""

import numpy as np
import pytest
from browser import launch_browser, read_column, watch_pages
from hostile import NAMES

from efficientnet_tf.evaluation import details
from efficientnet_tf.visualization.evaluation_report import Evaluated, find_mistakes, make_evaluation_report

SCORES = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.05, 0.95]], np.float32)


@pytest.fixture(scope="module")
def browser():
    with launch_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser, tmp_path):
    """Return a function that writes the page of some outputs and opens it."""

    def write(evaluated):
        describe = {
            "classification": details.describe_classes,
            "multilabel": details.describe_labels,
            "regression": details.describe_numbers,
        }[evaluated.task]
        found = describe(evaluated.scores, evaluated.labels, evaluated.names)
        confusion = None
        if evaluated.task == "classification":
            count = len(evaluated.names)
            confusion = np.zeros((count, count), np.int64)
            np.add.at(confusion, (evaluated.labels, evaluated.scores.argmax(axis=1)), 1)
        shown = [
            (mistake, np.full((8, 8, 3), 10.0 * mistake.row), f"image {mistake.place}")
            for mistake in find_mistakes(evaluated)
        ]
        path = tmp_path / "report.html"
        path.write_text(make_evaluation_report("Evaluation of x", "On 4 images.", evaluated, found, confusion, shown))
        return path

    with watch_pages(browser) as open_page:
        yield lambda evaluated: open_page(write(evaluated))


def evaluated(task, labels, names=("cat", "dog"), scores=SCORES):
    labels = np.array(labels, np.float32 if task == "regression" else np.int64)
    return Evaluated(task, names, scores, labels, np.arange(10, 10 + len(scores)))


def captions(page):
    return page.eval_on_selector_all("#mistakes figcaption", "all => all.map(one => one.innerText.split('\\n'))")


def test_classes(visit):
    page = visit(evaluated("classification", [0, 1, 1, 0]))
    assert read_column(page, "summary", "value")[0] == "50.00 %"
    assert read_column(page, "rows", "name") == ["cat", "dog"]
    # The last image is the worst: its true class has a probability of 0.05.
    assert captions(page) == [
        ["true: cat", "predicted: dog (95.0%)", "image 13"],
        ["true: dog", "predicted: cat (60.0%)", "image 11"],
    ]
    assert page.evaluate("document.getElementById('confusion').data[0].customdata") == [[1, 1], [1, 1]]
    assert len(page.evaluate("document.getElementById('precision_recall').data")) == 2
    assert page.evaluate("document.getElementById('reliability').data[0].y") == [0, 1, 1, 0]
    assert not page.is_visible("#numbers_section")


def test_labels(visit):
    page = visit(evaluated("multilabel", [[1, 0], [1, 1], [0, 0], [0, 1]]))
    assert captions(page) == [
        ["true: no label", "predicted: dog (80.0%)", "image 12"],
        ["true: cat, dog", "predicted: cat (60.0%)", "image 11"],
    ]
    assert not page.is_visible("#confusion_section") and page.is_visible("#curves_section")


def test_numbers(visit):
    page = visit(evaluated("regression", [[0.9, 0.1], [0.6, 1.4], [0.2, 0.8], [0.05, 0.95]], ("age", "weight")))
    assert captions(page) == [["true: age 0.6, weight 1.4", "predicted: age 0.6, weight 0.4", "image 11"]]
    assert page.evaluate("document.getElementById('number1').data[0].x")[1] == pytest.approx(1.4)
    for section in ("curves", "reliability", "confusion"):
        assert not page.is_visible(f"#{section}_section")


def test_no_mistake(visit):
    page = visit(evaluated("classification", [0, 0, 1, 1]))
    assert page.inner_text("#mistakes_hint") == "There is none." and captions(page) == []


def test_names_cannot_be_markup(visit):
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(len(NAMES)), 4 * len(NAMES))
    page = visit(evaluated("classification", np.tile(np.arange(len(NAMES)), 4), NAMES, scores))
    assert len(read_column(page, "rows", "name")) == len(NAMES)
    assert page.evaluate("document.querySelectorAll('#mistakes b, #rows b, #mistakes script').length") == 0


def test_the_errors_of_numbers_count_in_units_of_their_deviation():
    data = evaluated("regression", [[0.9, 0.1], [0.6, 0.4], [100.2, 0.8], [0.05, 1.95]])
    assert [mistake.row for mistake in find_mistakes(data)][:2] == [2, 3]
    assert [mistake.row for mistake in find_mistakes(data, std=[1000, 1])][:2] == [3, 2]

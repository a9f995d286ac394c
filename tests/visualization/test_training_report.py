"""Test the page that compares training runs, in a real browser."""

import re

import pytest
from browser import launch_browser, read_column, watch_pages
from hostile import NAMES
from logged_runs import eval_lines, train_line, write_run

from efficientnet_tf.report import main, make_parser

EPOCHS = ["train.epochs=2", "schedule.warmup_epochs=0", "eval.every_epochs=1"]
LINES = [
    train_line(11, 11),
    train_line(22, 11, top1=0.7),
    *eval_lines(22, 0.9),
    train_line(45, 23),
    *eval_lines(45, 0.8),
]


@pytest.fixture(scope="module")
def browser():
    with launch_browser() as browser:
        yield browser


def write_page(folder, *runs, flags=()):
    path = folder / "report.html"
    main(make_parser().parse_args([*(f"--model_dir={run}" for run in runs), f"--output={path}", *flags]))
    return path


@pytest.fixture
def visit(browser, tmp_path):
    """Return a function that writes the page of some runs and opens it."""
    with watch_pages(browser) as open_page:
        yield lambda *runs, **settings: open_page(write_page(tmp_path, *runs), **settings)


def read_trace(page, chart, name, key="y"):
    traces = page.evaluate(f"document.getElementById('{chart}').data.map(t => [t.name, t.{key}])")
    return dict(traces)[name]


def test_page_compares_two_runs(visit, tmp_path):
    page = visit(
        write_run(tmp_path / "one", LINES, *EPOCHS),
        write_run(tmp_path / "two", LINES[:2], *EPOCHS, "optimizer.learning_rate=0.5", finished=False),
    )
    assert page.text_content("h1") == page.title() == "Comparison of 2 training runs"
    assert page.text_content("#status").startswith("1 of 2 runs is finished. Read on ")
    assert [text.split("two/")[1] for text in page.locator("#notes li").all_text_contents()] == [
        "metrics.jsonl has no evaluation yet."
    ]
    assert read_trace(page, "top1", "one, training") == [50, 70, 50]
    assert read_trace(page, "top1", "one, training", "x") == [11, 22, 45], "the epochs of one run are unknown"
    assert read_trace(page, "top1", "one, evaluation, EMA weights") == [90, 80]
    assert read_trace(page, "images_per_second", "two, training") == [704, 704]
    assert read_column(page, "evaluations", "evaluation") == ["best top-1", "last"]
    assert read_column(page, "evaluations", "raw_top1") == ["80.00", "70.00"]
    assert read_column(page, "differences", "key") == ["optimizer.learning_rate"]
    assert read_column(page, "differences", "1") == ["0.5"]
    assert read_column(page, "runs", "state") == ["finished", "unfinished"]
    assert len(read_column(page, "settings", "key")) > 50 and not page.is_visible("#phases")
    page.click("#runs_legend button:has-text('two')")
    page.click("#kinds_legend button:has-text('raw')")
    assert page.locator("#loss .scatterlayer .trace").count() == 2


def test_a_run_with_phases_is_shown_over_epochs(visit, tmp_path):
    phases = "train.phases=[{until: 0.5, set: {data.image_size: 16}}, {until: 1.0, set: {}}]"
    page = visit(write_run(tmp_path / "run", LINES, *EPOCHS, phases))
    assert page.text_content("h1") == "Training of run"
    assert read_trace(page, "loss", "run, evaluation, raw weights", "x") == pytest.approx([22 / 22.5, 2])
    assert read_column(page, "phases", "changes") == ["data.image_size=16", "nothing"]
    assert page.evaluate("document.getElementById('loss').layout.shapes.map(s => s.x0)") == pytest.approx([1], abs=0.03)
    assert not page.is_visible("#differences_section")
    page.select_option("#x", "hours")
    assert read_trace(page, "loss", "run, training", "x") == pytest.approx([1 / 60, 2 / 60, 3 / 60])
    assert page.locator("#loss .xtitle").text_content() == "training time (minutes)"
    page.select_option("#scale", "log")
    assert page.evaluate("document.getElementById('loss').layout.yaxis.type") == "log"


def test_page_without_any_line_or_with_hostile_names_fits_a_phone(visit, tmp_path):
    names = [name for name in NAMES if name and len(name) < 200 and not re.search(r"[/\n\udcff]", name)]
    assert len(names) > 8, "colors are used twice"
    phone = {"width": 390, "height": 800}
    page = visit(*(write_run(tmp_path / name, LINES, *EPOCHS) for name in names), viewport=phone)
    assert [s.strip() for s in page.locator("#runs_legend button").all_text_contents()] == [
        name.encode("unicode_escape").decode() if not name.isprintable() else name for name in names
    ]
    styles = page.evaluate("document.getElementById('loss').data.map(t => t.line.color + t.marker.symbol)")
    assert len(set(styles)) == 3 * len(names) - len(names), "training and EMA share the symbol"
    assert page.locator("#loss a, #loss img, td img, td script, button b").count() == 0
    empty = visit(write_run(tmp_path / "empty", [], *EPOCHS, finished=False), viewport=phone)
    assert empty.text_content("#loss") == "Nothing is logged yet."
    for shown in (page, empty):
        assert shown.evaluate("document.scrollingElement.scrollWidth") == 390


def test_pages_can_share_plotly(tmp_path, capsys):
    path = write_page(tmp_path, write_run(tmp_path / "run", LINES, *EPOCHS), flags=["--share_plotly"])
    assert capsys.readouterr().out == f"{path}: 1 run. Open it in a browser.\n"
    assert path.stat().st_size < 60_000 and '<script src="plotly.min.js">' in path.read_text()
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000

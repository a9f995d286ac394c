"""Tests of the averages, the files and the page of a study. The page is opened in a real browser."""

import csv
import json
import math
import os
from dataclasses import replace

import pytest
from browser import launch_browser, read_column, watch_pages
from hostile import NAMES
from outputs import full_disk

from efficientnet_tf.config.errors import UserError
from efficientnet_tf.config.text import escape
from efficientnet_tf.runtime.tables import parse_csv
from efficientnet_tf.study.columns import average_seeds, count_overlaps
from efficientnet_tf.study.page import StudyInfo, draw_accuracy, write_page

MILLION = 1e6
MACS = {"base": 8 * MILLION, "width1.4": 15 * MILLION, "width2": 29 * MILLION, "depth2": 100 * MILLION}


def make_rows(seeds=3, **changes):
    """Return runs of four networks with invented numbers. Each column orders the networks differently."""
    rows = []
    for seed in range(seeds):
        for i, (name, macs) in enumerate(MACS.items()):
            dimension = name.rstrip("0123456789.")
            rows.append(
                {
                    "dimension": dimension,
                    "multiplier": float(name.removeprefix(dimension) or 1),
                    "seed": seed,
                    "run": f"{name}_seed{seed}",
                    "depth": 1.0,
                    "width": 1.0 + i / 3,
                    "resolution": 32,
                    "params": [4, 9, 16, 7][i] * MILLION,
                    "macs": int(macs),
                    "top1": 0.9 + 0.01 * i + 0.001 * [0, 1, 5][seed],
                    "top5": 0.99,
                    "loss": 0.5 - 0.1 * i,
                    "raw_top1": 0.88,
                    "images_per_second": 900.0 / (i + 1),
                    "train_seconds": 100.0 * (i + 1) + seed,
                    "inference_seconds": 0.002 * (4 - i),
                    "peak_bytes": None,
                    "config": f"runs/{name}_seed{seed}/config.yaml",
                    **changes,
                }
            )
    return rows


ROWS = make_rows() * 2


def make_lines(rows):
    points = average_seeds(rows)
    return {
        dimension: [point for point in points if point["dimension"] in ("base", dimension)]
        for dimension in ("width", "depth")
    }


INFO = StudyInfo(
    "One dimension <of> three",
    "Accuracy saturates along every single dimension.",
    ("Small images & few of them.", "</script><b>not markup</b>"),
    "python -m efficientnet_tf.study --study=one_dimension",
    planned_runs=12,
    conclusions=("Wide is good.",),
)


# ------------------------------------------------------------------------------------------------ numbers and files


def test_averages_are_over_seeds_only():
    points = average_seeds(make_rows())
    assert [point["name"] for point in points] == list(MACS)
    second = points[1]
    assert (second["dimension"], second["multiplier"], second["seeds"]) == ("width", 1.4, 3)
    assert second["runs"] == [f"width1.4_seed{seed}" for seed in range(3)]
    assert second["top1"] == pytest.approx(0.912)
    assert second["top1_spread"] == pytest.approx(0.001 * 7**0.5)
    assert second["train_seconds"] == pytest.approx(201)
    assert second["peak_bytes"] is None
    assert "seed" not in second


def test_averages_skip_missing_and_non_finite_values():
    rows = make_rows()[::4]
    rows[0]["top1"], rows[1]["loss"] = None, math.nan
    (point,) = average_seeds(rows)
    assert point["top1"] == pytest.approx(0.903)
    assert point["loss"] == 0.5
    assert average_seeds(rows[:1])[0]["top1"] is None
    assert average_seeds(rows[1:2])[0]["top1_spread"] is None


def test_overlaps_are_counted():
    assert count_overlaps(average_seeds(make_rows())) == (0, 6)
    wide = [row | {"top1": 0.9 + 0.02 * row["seed"]} for row in make_rows()]
    assert count_overlaps(average_seeds(wide)) == (6, 6)
    assert count_overlaps(average_seeds(make_rows(seeds=1))) is None


def test_csv_file_contains_the_rows(tmp_path):
    rows = make_rows()
    rows[1]["top1"] = 1 / 3
    write_page(tmp_path, INFO, rows, make_lines(rows), plots=())
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [list(row) for row in table] == [list(row) for row in rows]
    for read, row in zip(table, rows, strict=True):
        assert {key: type(row[key])(value) if value else None for key, value in read.items()} == row


def test_plot_has_lines_with_error_bars_and_the_axes_of_the_paper():
    lines = make_lines(make_rows())
    figure = draw_accuracy(INFO, lines, "macs")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "multiply-adds (B)")
    assert axes.get_ylabel() == "top-1 accuracy (%)"
    for container, (name, points) in zip(axes.containers, lines.items(), strict=True):
        assert container.get_label() == name
        xs, ys = container.lines[0].get_data()
        assert list(xs) == pytest.approx([point["macs"] / 1e9 for point in points])
        assert list(ys) == pytest.approx([point["top1"] * 100 for point in points])
        (low, high), *_ = [segment[:, 1] for segment in container.lines[2][0].get_segments()]
        assert (low, high) == pytest.approx((90.2 - 0.1 * 7**0.5, 90.2 + 0.1 * 7**0.5))
    assert len(axes.texts) == len(MACS), "a shared network is named once"
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not [1 for i, box in enumerate(boxes) for other in boxes[:i] if box.overlaps(other)]


@pytest.mark.slow
def test_plots_are_drawn_only_of_measured_columns(tmp_path):
    rows = make_rows(inference_seconds=None)
    write_page(tmp_path, INFO, rows, make_lines(rows), ["macs", "params", "inference_seconds"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"accuracy_macs.png", "accuracy_params.png"}
    page = (tmp_path / "index.html").read_text()
    assert '"files": ["results.csv", "accuracy_macs.png", "accuracy_params.png"]' in page


def test_no_cell_of_the_table_is_a_formula(tmp_path):
    rows = make_rows(dimension="=HYPERLINK(1)", run="@SUM(1)", multiplier=-2.5)
    write_page(tmp_path, INFO, rows, {"line": average_seeds(rows)}, plots=())
    text = (tmp_path / "results.csv").read_text()
    assert text.split("\n")[1].startswith("'=HYPERLINK(1),-2.5,0,'@SUM(1),")
    assert parse_csv(text)[0]["dimension"] == "=HYPERLINK(1)"


@pytest.mark.slow
def test_plots_show_names_literally():
    rows = [row | {"scaling": n, "run": f"{n}_seed0", "dimension": n} for row, n in zip(ROWS, NAMES, strict=False)]
    points = average_seeds(rows)
    lines = {name: [point for point in points if point["dimension"] == name] for name in NAMES}
    (axes,) = draw_accuracy(replace(INFO, title="$x$ and $"), lines, "macs").figure.axes
    axes.figure.draw_without_rendering()
    assert axes.get_title() == "$x$ and $"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:4] == NAMES[:4] and len(labels) == len(NAMES)
    assert "\n" not in "".join(labels) and max(map(len, labels)) < 1100


@pytest.mark.parametrize("name", ["results.csv", "index.html", "accuracy_macs.png"])
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, name):
    limits = {"results.csv": 100, "accuracy_macs.png": 5000, "index.html": 10**6}
    with full_disk(limits[name]), pytest.raises((UserError, OSError), match=f"{name}|File too large"):
        write_page(tmp_path, INFO, make_rows(), make_lines(make_rows()))
    assert name not in os.listdir(tmp_path) and not list(tmp_path.glob("*.tmp*"))


def test_a_page_without_any_run_is_written(tmp_path):
    write_page(tmp_path, INFO, [], {"width": []})
    assert (tmp_path / "results.csv").read_text() == "\n"


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser():
    with launch_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser, tmp_path):
    """Return a function that writes a page and opens it."""
    path = tmp_path / "study" / "index.html"
    path.parent.mkdir()
    with watch_pages(browser) as open_page:

        def write_and_open(rows, info=INFO, lines=None, shares_plotly=False, **settings):
            lines = make_lines(rows) if lines is None else lines
            write_page(path.parent, info, rows, lines, plots=(), shares_plotly=shares_plotly)
            return open_page(path, *([tmp_path / "plotly.min.js"] if shares_plotly else []), **settings)

        yield write_and_open


def read_traces(page, key):
    """Return values of the trace of each line's means. Traces of means have error bars, those of single runs do not."""
    js = f"document.getElementById('plot').data.filter(trace => trace.error_y).map(trace => trace.{key})"
    return json.loads(page.evaluate(f"JSON.stringify({js})"))


def click_header(page, table, key):
    page.click(f"#{table} th[data-key={key}]")
    return page.get_attribute(f"#{table} th[data-key={key}]", "aria-sort")


def test_pages_that_share_plotly_are_small(visit, tmp_path):
    page = visit(make_rows(), shares_plotly=True)
    assert page.locator("#plot .scatterlayer .trace").count() == 4
    assert (tmp_path / "study" / "index.html").stat().st_size < 50_000
    assert (tmp_path / "plotly.min.js").stat().st_size > 1_000_000


def test_page_draws_every_mean_and_every_run(visit):
    page = visit(make_rows())
    assert read_traces(page, "x") == [[8, 15, 29], [8, 100]]
    assert read_traces(page, "y")[0] == pytest.approx([90.2, 91.2, 92.2])
    assert read_traces(page, "error_y.array")[0] == pytest.approx([0.1 * 7**0.5] * 3)
    assert page.locator("#plot .scatterlayer .trace").count() == 4
    assert page.locator("#plot .scatterlayer .point").count() == 9 + 3 + 6 + 2
    assert page.locator("#plot .xtitle").text_content() == "multiply-adds (M)"
    assert page.locator("#legend button").all_text_contents() == ["width", "depth"]
    assert page.evaluate("document.getElementById('plot').layout.xaxis.type") == "log"
    ticks = page.locator("#plot .xtick").all_text_contents()
    assert {"10", "20", "50", "100"} <= set(ticks)


def test_page_shows_the_given_texts(visit):
    page = visit(make_rows())
    assert page.title() == page.text_content("h1") == INFO.title
    assert page.locator("#caveats li").all_text_contents() == list(INFO.caveats)
    assert page.locator("#conclusions li").all_text_contents() == ["Wide is good."]
    assert page.text_content("#command") == INFO.command
    assert page.text_content("#status") == "All 12 runs are done."
    assert page.locator("#files a").all_text_contents() == ["results.csv"]


def test_axes_can_be_switched(visit):
    page = visit(make_rows())
    expected = {
        "params": ([4, 9, 16], "parameters (M)"),
        "resolution": ([32, 32, 32], "resolution (pixels)"),
        "images_per_second": ([900, 450, 300], "training rate (images/s)"),
        "train_seconds": ([101, 201, 301], "training time (s)"),
        "inference_seconds": ([8, 6, 4], "inference time (ms)"),
    }
    options = page.eval_on_selector_all("#x option", "options => options.map(option => option.value)")
    assert options == ["macs", *expected], "peak memory was not measured"
    for key, (numbers, title) in expected.items():
        page.select_option("#x", key)
        assert read_traces(page, "x")[0] == pytest.approx(numbers)
        assert page.locator("#plot .xtitle").text_content() == title
    page.select_option("#y", "loss")
    assert read_traces(page, "y")[0] == pytest.approx([0.5, 0.4, 0.3])
    page.select_option("#scale", "linear")
    assert page.evaluate("document.getElementById('plot').layout.xaxis.type") == "linear"


def test_headers_sort_by_number_and_by_text(visit):
    page = visit(make_rows())
    assert click_header(page, "runs", "macs") == "ascending"
    assert read_column(page, "runs", "macs") == [f"{n}" for n in (8, 15, 29, 100) for _ in range(3)]
    assert click_header(page, "runs", "macs") == "descending"
    assert read_column(page, "runs", "macs") == [f"{n}" for n in (100, 29, 15, 8) for _ in range(3)]
    assert click_header(page, "runs", "dimension") == "ascending"
    assert page.get_attribute("#runs th[data-key=macs]", "aria-sort") is None
    assert read_column(page, "runs", "dimension") == ["base"] * 3 + ["depth"] * 3 + ["width"] * 6
    click_header(page, "networks", "inference_seconds")
    assert read_column(page, "networks", "name") == list(MACS)[::-1]
    page.focus("#networks th[data-key=params] button")
    page.keyboard.press("Enter")
    assert read_column(page, "networks", "params") == ["4", "7", "9", "16"]


def test_runs_link_to_their_configs(visit):
    page = visit(make_rows())
    links = page.eval_on_selector_all("#runs td a", "links => links.map(link => link.getAttribute('href'))")
    assert links == [row["config"] for row in make_rows()]


def test_hover_text_describes_the_network(visit):
    page = visit(make_rows())
    page.locator("#plot .scatterlayer .point").first.wait_for()
    box = page.locator("#plot .scatterlayer .trace").first.locator(".point").nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#plot .hovertext").wait_for()
    text = page.locator("#plot .hovertext").text_content()
    for part in ("width1.4", "multiplier 1.4", "91.20 ± 0.26 %", "15 M", "9 M", "450 ± 0 images/s", "6 ms", "3 seeds"):
        assert part in text
    assert "memory" not in text
    buttons = page.eval_on_selector_all("#plot .modebar-btn", "all => all.map(one => one.dataset.title)")
    assert "Zoom" in buttons and not [b for b in buttons if "hare" in b or "loud" in b], "nothing can be uploaded"


def test_missing_values_are_skipped(visit):
    rows = make_rows()
    for row in rows[:4]:
        row |= {"top1": None, "inference_seconds": None}
    for row in rows[1::4]:
        row |= {"inference_seconds": None, "loss": math.inf, "config": None}
    page = visit(rows)
    page.select_option("#x", "inference_seconds")
    assert read_traces(page, "x")[0] == [8, None, 4]
    page.select_option("#y", "loss")
    assert read_traces(page, "y")[0] == [0.5, None, 0.3]
    for _ in range(2):
        click_header(page, "runs", "inference_seconds")
        assert read_column(page, "runs", "inference_seconds")[-6:] == ["–"] * 6
    assert page.locator("#runs td a").count() == 9


def test_page_of_an_unfinished_study(visit):
    page = visit(make_rows(seeds=1)[:2])
    assert page.text_content("#status").startswith("Unfinished: 2 of 12 runs are done")
    assert read_traces(page, "error_y.array") == [[0, 0], [0]]
    empty = visit([])
    assert empty.text_content("#plot") == "No run is finished yet."


def test_no_name_runs_a_script_or_becomes_markup(visit):
    names = [name for name in NAMES if len(name) < 200 and "\udcff" not in name and name]
    script, image, anchor = (next(n for n in names if start in n) for start in ("</script>", "<img", "<a href"))
    rows = [row | {"scaling": name, "run": name, "dimension": name} for row, name in zip(ROWS, names, strict=False)]
    # A database from a stranger can hold any text.
    rows[0]["config"], rows[1]["config"], rows[2]["config"] = "javascript:hacked=1", "//host/a", "a/<b>/$'\"c"
    info = StudyInfo(script, image, tuple(names), anchor, 3, tuple(names))
    page = visit(rows, info, lines={name: [p for p in average_seeds(rows) if p["dimension"] == name] for name in names})
    page.locator("#plot .scatterlayer .point").first.wait_for()
    shown = [escape(name) for name in names]
    assert read_column(page, "runs", "run") == read_column(page, "networks", "scaling") == shown
    assert page.locator("#caveats li").all_text_contents() == shown
    assert page.title() == page.text_content("h1") == script

    assert page.locator("#legend button").all_text_contents() == shown

    def read(texts):  # Plotly writes blanks as no-break spaces, in a few places.
        return ["".join(text.replace("\xa0", " ").split()) for text in texts]

    points = page.locator("#plot .scatterlayer .trace .point")
    for index in map(names.index, (script, image, anchor)):
        page.evaluate(f"Plotly.Fx.hover('plot', [{{curveNumber: {2 * index}, pointNumber: 0}}])")
        page.wait_for_timeout(100)
        assert read([shown[index]])[0] in read([page.locator("#plot .hovertext").first.text_content()])[0]
    assert points.count() == len(names)
    assert page.locator("#plot a, #plot img, #legend a, #legend img, h1 *, li *, td script, body > img").count() == 0
    assert page.evaluate("[typeof hacked, document.scripts.length]") == ["undefined", 2]
    links = page.eval_on_selector_all("#runs td a", "links => links.slice(0, 3).map(a => a.getAttribute('href'))")
    assert links == ["javascript%3Ahacked%3D1", "host/a", "a/%3Cb%3E/%24'%22c"]


def test_page_follows_the_color_scheme_of_the_system(visit):
    page = visit(make_rows(), color_scheme="dark")
    background = "document.getElementById('plot').layout.paper_bgcolor"
    assert page.evaluate(background) == "#15181c"
    page.emulate_media(color_scheme="light")
    page.locator("#plot .main-svg[style*='rgb(255, 255, 255)']").first.wait_for()
    assert page.evaluate(background) == "#fff"


def test_lines_are_hidden_and_shown_by_the_legend(visit):
    page = visit(make_rows())
    page.click("#legend button:has-text('depth')")
    assert page.locator("#plot .scatterlayer .point").count() == 9 + 3
    page.click("#legend button:has-text('depth')")
    assert page.locator("#plot .scatterlayer .point").count() == 9 + 3 + 6 + 2


def test_page_fits_a_phone(visit):
    rows = make_rows()
    long = "alpha 1.2, beta 1.1, gamma 1.15, as_in_the_paper_and_" + "without_any_blank" * 5
    info = replace(INFO, title="x" * 100, caveats=("/a/long/path" * 20,))
    page = visit(rows, info, {long: average_seeds(rows)}, viewport={"width": 390, "height": 900})
    assert page.evaluate("document.scrollingElement.scrollWidth") == 390
    legend = page.locator("#legend button").bounding_box()
    assert legend["x"] >= 0 and legend["x"] + legend["width"] <= 390, "a long name is wrapped, not cut off"
    assert page.locator("#plot .xtitle").bounding_box()["width"] > 50

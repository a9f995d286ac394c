"""Opens pages in a real browser for tests, and checks that they fetch nothing and report no error."""

import importlib.util
import os
import shutil
from contextlib import contextmanager

import pytest


@contextmanager
def launch_browser():
    """Start Chromium, or skip the test where it is not installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for path in map(shutil.which, names) if path), None)
    if chromium is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright and chromium are not installed")
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@contextmanager
def watch_pages(browser):
    """Yield a function that opens a file. At the end, check that only the given files were read, and without errors."""
    requests, errors, contexts, local = [], [], [], set()

    def open_page(path, *others, **settings):
        local.update(file.as_uri() for file in (path, *others))
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings))
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type in ("error", "warning") else None)
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} == local
    assert not errors


def read_column(page, table, key):
    """Return the texts of a column of a table."""
    index = page.eval_on_selector(f"#{table} th[data-key='{key}']", "th => th.cellIndex")
    return page.eval_on_selector_all(f"#{table} tbody tr", f"trs => trs.map(tr => tr.cells[{index}].textContent)")

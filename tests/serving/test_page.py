"""The page of the server, in a real browser: drop a picture, see classes, probabilities and a map."""

import base64
from urllib.parse import urljoin

import pytest
from browser import launch_browser
from serving.servers import encode_image, run_server

pytest.importorskip("onnxruntime")

DROP = """([data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, {type}));
  const target = document.getElementById("drop");
  for (const kind of ["dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: transfer}));
  }
}"""
READ_PIXEL = "() => [...document.getElementById('picture').getContext('2d').getImageData(224, 224, 1, 1).data]"


@pytest.fixture(scope="module")
def server():
    with run_server("--name=digits") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with launch_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, server):
    """Yield the page, and check at the end that it fetched nothing elsewhere and reported no error."""
    requests, errors = [], []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    page.wait_for_selector("h1:text('digits')")
    yield page
    context.close()
    assert all(url.startswith((urljoin(server.address, "/"), "data:")) for url in requests), requests
    assert not errors


def drop(page, content, name="photo.png", kind="image/png"):
    page.evaluate(DROP, [base64.b64encode(content).decode(), name, kind])


def read_classes(page):
    return [each.inner_text() for each in page.query_selector_all("#predictions button span:nth-of-type(1)")]


def test_a_dropped_picture_is_classified_and_explained(page, server):
    image = encode_image(1)
    drop(page, image)
    page.wait_for_selector("#predictions button[aria-pressed=true]")
    _, answer = server.post("/classify?top=8", image)
    expected = [each["label"] for each in answer["predictions"]]
    assert read_classes(page) == expected and page.inner_text("#answer") == expected[0]
    first = answer["predictions"][0]["probability"]
    assert page.inner_text("#predictions li:first-child span:nth-of-type(2)") == f"{first:.1%}".replace("%", " %")
    assert page.inner_text("#explained") == expected[0] and page.inner_text("#method") == "occlusion map"

    overlaid = page.evaluate(READ_PIXEL)
    page.uncheck("#overlay")
    assert page.evaluate(READ_PIXEL) != overlaid and page.evaluate(READ_PIXEL)[3] == 255

    page.click("#predictions li:nth-child(3) button")
    page.wait_for_selector(f"#explained:text-is('{expected[2]}')")
    assert page.get_attribute("#predictions li:nth-child(3) button", "aria-pressed") == "true"


def test_a_file_that_is_no_picture_is_explained_and_the_next_one_works(page):
    drop(page, b"%PDF-1.7", "a.pdf", "application/pdf")
    page.wait_for_selector("#message:not([hidden])")
    assert "this is a PDF file" in page.inner_text("#message") and page.is_hidden("#result")
    page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": encode_image(2)})
    page.wait_for_selector("#predictions button[aria-pressed=true]")
    assert page.is_hidden("#message") and page.is_visible("#result")


def test_the_page_fits_a_phone(browser, server):
    page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    page.goto(server.address)
    page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": encode_image(2)})
    page.wait_for_selector("#predictions button[aria-pressed=true]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.context.close()

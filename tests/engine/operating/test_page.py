"""The page in a real browser: everything it offers, done once. Skipped where there is no Chromium.

The pictures of docs/images/ are taken by packaging/screenshots.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

SPEECH = Path(__file__).parents[2] / "data" / "speech" / "sentence.flac"
PATIENCE = 120_000  # ms; one machine runs many things at once


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as started:
        # No sandbox: tests may run as root, where Chromium has none.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, operated) -> Iterator[playwright.Page]:
    """The page, connected with the key. An error on its console fails the test."""
    from .conftest import KEY

    context = browser.new_context(viewport={"width": 900, "height": 760})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if is_fault(line) else None)
    page.goto(operated.url)
    page.get_by_text("not connected").wait_for()  # without the key
    problems.clear()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("API key").press("Tab")
    page.get_by_text("serves tiny").wait_for()
    yield page
    assert problems == []
    context.close()


def is_fault(line: playwright.ConsoleMessage) -> bool:
    """Whether a line on the console is an error; that of a refused request is not."""
    return line.type == "error" and "Failed to load resource" not in line.text


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "house.png"
    image = Image.new("RGB", (128, 128), (150, 200, 240))
    draw = ImageDraw.Draw(image)
    draw.rectangle((30, 60, 98, 118), fill=(210, 170, 90))
    draw.polygon([(22, 60), (64, 22), (106, 60)], fill=(170, 50, 40))
    image.save(path)
    return path


def test_ask_about_a_picture(page, picture):
    page.locator("#chat-attach").set_input_files(picture)
    page.locator("#chat-files img").wait_for()
    page.get_by_label("Message").fill("What is in the picture?")
    page.get_by_label("Tokens").fill("32")
    page.get_by_role("button", name="Send").click()
    report = page.locator("#chat-log li.assistant .report")
    report.wait_for()
    assert page.locator("#chat-log li.user img").count() == 1
    assert page.locator("#chat-log .masks").count() == 0  # nothing is masked any more
    page.get_by_label("Message").fill("Are you sure?")
    page.get_by_role("button", name="Send").click()
    page.locator("#chat-log li.assistant").nth(1).locator(".report").wait_for()


def test_ask_about_a_recording(page):
    page.locator("#chat-attach").set_input_files(SPEECH)
    page.locator("#chat-files audio").wait_for()
    page.get_by_label("Message").fill("What is said?")
    page.get_by_role("button", name="Send").click()
    page.locator("#chat-log li.assistant .report").wait_for()


WATCH_MASKS = """() => {
  window.seen = new Set();
  const look = () => document.querySelectorAll('.masks').forEach(
    (masks) => window.seen.add(masks.textContent.length));
  const log = document.getElementById('chat-log');
  new MutationObserver(look).observe(log, { childList: true, subtree: true, characterData: true });
}"""


def test_masks_are_shown_while_they_are_filled(page):
    page.evaluate(WATCH_MASKS)
    page.get_by_label("Message").fill("Count.")
    page.get_by_label("Tokens").fill("256")  # 16 blocks: a busy page is given several at once
    page.get_by_role("button", name="Send").click()
    page.locator("#chat-log li.assistant .report").wait_for()
    lengths = page.evaluate("[...window.seen]")
    assert len(lengths) > 2  # it was seen to get shorter, block by block
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == 256


def test_an_image_fills_in(page):
    page.get_by_role("tab", name="New image").click()
    page.get_by_label("Description").fill("a cat on a red chair")
    page.locator("#image-steps").fill("8")
    page.locator("#image-seed").fill("3")
    page.get_by_role("button", name="Make it").click()
    page.locator("#image-film img").nth(3).wait_for()
    page.get_by_text("8 denoising steps").wait_for()
    assert page.get_by_text("16 forwards").is_visible()  # guided: two a step
    grey = [
        page.evaluate(SHARE_OF_GREY, element)
        for element in page.locator("#image-film img").element_handles()
    ]
    assert grey == sorted(grey, reverse=True)
    assert grey[0] > 0.3 and grey[-1] < 0.05


SHARE_OF_GREY = """async (image) => {
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let grey = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] === 128 && data[i + 1] === 128 && data[i + 2] === 128) grey += 1;
  }
  return (4 * grey) / data.length;
}"""


WATCH_FORMS = """() => {
  const send = window.fetch;
  window.fetch = (url, options) => {
    if (options?.body instanceof FormData) window.sent = options.body;
    return send(url, options);
  };
}"""
MASK_ALPHA = """async (points) => {
  const mask = await createImageBitmap(window.sent.get('mask'));
  const context = new OffscreenCanvas(mask.width, mask.height).getContext('2d');
  context.drawImage(mask, 0, 0);
  return [points.map(([x, y]) => context.getImageData(x, y, 1, 1).data[3]), mask.width];
}"""


def test_edit_with_a_drawn_mask(page, picture):
    page.get_by_role("tab", name="Edit an image").click()
    page.locator("#edit-file").set_input_files(picture)
    canvas = page.locator("#edit-canvas")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 150, box["y"] + 240)
    page.mouse.down()
    page.mouse.move(box["x"] + 260, box["y"] + 300, steps=6)
    page.mouse.up()
    page.get_by_label("Instruction").fill("a house with a blue door")
    page.locator("#edit-steps").fill("6")
    page.evaluate(WATCH_FORMS)
    page.get_by_role("button", name="Edit", exact=True).click()
    page.locator("#edit-report").get_by_text("denoising steps").wait_for()
    assert page.locator("#edit-result").is_visible()
    # Transparent where it was drawn, in the size of the picture (128 pixels, shown as 384).
    (drawn, beside), size = page.evaluate(MASK_ALPHA, [[60, 87], [10, 10]])
    assert (drawn, beside, size) == (0, 255, 128)


def test_speak(page):
    page.get_by_role("tab", name="Speak").click()
    page.get_by_label("Text").fill("good morning")
    page.get_by_label("Voice").fill("onyx")
    page.get_by_role("button", name="Say it").click()
    player = page.locator("#speak-result")
    # A model of random weights may say nothing at all; then the page has to say so.
    player.or_(page.get_by_role("alert")).first.wait_for()
    if player.is_visible():
        page.wait_for_function("document.getElementById('speak-result').readyState > 0")
        assert player.evaluate("player => player.duration") > 0
    else:
        assert "speech" in page.get_by_role("alert").text_content()
    assert page.locator("#voices option").count() > 10


def test_transcribe_a_recording(page):
    page.get_by_role("tab", name="Transcribe").click()
    page.locator("#listen-file").set_input_files(SPEECH)
    page.locator("#listen-report").get_by_text(" s").wait_for()
    assert page.locator("#listen-audio").is_visible()
    assert page.locator("#error").is_hidden()


def test_an_error_says_what_to_do(page):
    page.get_by_role("tab", name="New image").click()
    page.get_by_label("Description").fill("a cat")
    page.locator("#image-size").fill("65x65")
    with page.expect_response("**/v1/images/generations") as answer:
        page.get_by_role("button", name="Make it").click()
    assert answer.value.status == 400
    page.get_by_role("alert").get_by_text("multiple").wait_for()


def test_the_page_asks_no_other_host(browser, operated):
    """All of it comes from the server, and its policy lets nothing else in."""
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(operated.url)
    page.wait_for_load_state("networkidle")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert [url for url in asked if not url.startswith((operated.url, "data:"))] == []
    page.close()

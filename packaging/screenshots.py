"""Take the pictures of the page in docs/images/ from a server of dynin-tiny, in headless Chromium.

vllm-dynin serve vllm_dynin/assets/dynin-tiny --ui --port 8000
python packaging/screenshots.py http://localhost:8000
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import soundfile
from playwright.sync_api import Page, sync_playwright

from vllm_dynin.processors.media import AUDIO_RATE
from vllm_dynin.training_ext.tiny import digits, utterances, words

FOLDER = Path(__file__).parents[1] / "docs" / "images"
PATIENCE = 120_000  # ms


def keep(page: Page, name: str) -> None:
    page.wait_for_timeout(300)  # pictures are faded in
    page.screenshot(path=FOLDER / f"page-{name}.png")


def chat(page: Page, picture: Path) -> None:
    page.locator("#chat-attach").set_input_files(picture)
    page.get_by_label("Message").fill(words.IMAGE_QUESTIONS[0])
    page.get_by_label("Tokens").fill("16")
    page.get_by_role("button", name="Send").click()
    page.locator("#chat-log li.assistant .report").wait_for()
    keep(page, "chat")


def new_image(page: Page) -> None:
    page.get_by_role("tab", name="New image").click()
    page.get_by_label("Description").fill(words.DRAW_PROMPTS[0].format("seven"))
    page.locator("#image-steps").fill("8")
    page.locator("#image-seed").fill("3")
    page.get_by_role("button", name="Make it").click()
    page.get_by_text("8 denoising steps").wait_for()
    keep(page, "image")


def edit(page: Page, picture: Path) -> None:
    page.get_by_role("tab", name="Edit an image").click()
    page.locator("#edit-file").set_input_files(picture)
    box = page.locator("#edit-canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 90, box["y"] + 250)
    page.mouse.down()
    page.mouse.move(box["x"] + 290, box["y"] + 330, steps=6)
    page.mouse.up()
    page.get_by_label("Instruction").fill(words.DRAW_PROMPTS[0].format("three"))
    page.locator("#edit-steps").fill("6")
    page.get_by_role("button", name="Edit", exact=True).click()
    page.locator("#edit-report").get_by_text("denoising steps").wait_for()
    keep(page, "edit")


def speak(page: Page) -> None:
    page.get_by_role("tab", name="Speak").click()
    page.get_by_label("Text").fill("four two seven")
    page.get_by_role("button", name="Say it").click()
    page.locator("#speak-result").wait_for()
    keep(page, "speak")


def transcribe(page: Page, recording: Path) -> None:
    page.get_by_role("tab", name="Transcribe").click()
    page.locator("#listen-file").set_input_files(recording)
    page.locator("#listen-report").get_by_text(" s").wait_for()
    keep(page, "transcribe")


def main(url: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as started:
        picture, recording = Path(name) / "digit.png", Path(name) / "spoken.wav"
        digits.image(digits.test_indices()[3]).resize((256, 256)).save(picture)
        soundfile.write(recording, utterances.say((4, 2, 7)), AUDIO_RATE)
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 760})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.get_by_text("serves ").wait_for()
        chat(page, picture)
        new_image(page)
        edit(page, picture)
        speak(page)
        transcribe(page, recording)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])

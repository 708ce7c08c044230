"""Makes the pictures of the documentation: ``python -m tests.browser.screenshots``.

X-ray, side by side and Completion use the sample model. It has no thinking, citations or fill-in-the-middle, so those
pictures have scripted answers in the format of Granite 3.3, and the page says so.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright
from rich.console import Console

from granite_demo.cli.composition import local_backend
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.settings import Settings
from granite_demo.types.events import Citation, Finish, ReasoningDelta, StreamEvent, TextDelta, Timings, Usage
from granite_demo.types.messages import Switches
from tests.browser.chromium import launch_args
from tests.browser.frame import attach, open_panel, open_sheet
from tests.browser.test_chat import send
from tests.browser.test_conversation import settled
from tests.fakes import READY, FakeBackend

ROOT = Path(__file__).parents[2]
SCRIPTED = replace(
    READY,
    title="Scripted answers (no model)",
    switches=Switches(
        thinking=("off", "full"), length=True, citations=True, hallucinations=True, tools=True, documents=True
    ),
)
THOUGHTS = (
    "The question is how far the train goes. It leaves at 14:10 and arrives at 16:40, so it runs for two and a half "
    "hours. At 120 km an hour that makes 120 times 2.5.\n\nI check: 120 times 2 is 240, and half of 120 is 60."
)
SOLVED = (
    "The train runs for $2.5$ hours at $120$ km an hour:\n\n$$120 \\times 2.5 = 300$$\n\nSo the distance is **300 km**."
)
FACTS = (
    "Granite is a coarse-grained igneous rock. It is composed mostly of quartz, alkali feldspar and plagioclase. "
    "It forms from magma that cools slowly underground. Its density is between 2.65 and 2.75 g/cm3."
)
MIDDLE = "    total = 0\n    for number in numbers:\n        total += number\n    if not numbers:\n        return 0\n"
SCORED = "The capital of France is Paris. The capital of Spain is Madrid. The capital of Italy is a bicycle."
CITED = "Granite is made mostly of quartz, alkali feldspar and plagioclase. It forms from magma that cools slowly."


def picture(name: str) -> Path:
    """Return the path of a picture. The picture of the README has another folder than those of the docs."""
    return ROOT / ("assets/screenshot-chat.png" if name == "chat" else f"docs/images/{name}.png")


def words(kind: Any, text: str, start: int) -> list[StreamEvent]:
    pieces = text.split(" ")
    return [kind(piece + " " * (number < len(pieces)), start + number) for number, piece in enumerate(pieces, 1)]


def new_page(browser: Browser, url: str, height: int = 800) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": height}).new_page()
    page.goto(url)
    page.locator("#message textarea").wait_for()
    page.wait_for_timeout(1500)
    return page


def take(page: Page, name: str, *, whole: bool = False) -> None:
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1200)
    page.screenshot(path=picture(name), full_page=whole)
    page.context.close()


def scripted(browser: Browser) -> None:
    backend = FakeBackend()
    backend.state = SCRIPTED
    with running(create_app(backend), backend) as url:
        thoughts = words(ReasoningDelta, THOUGHTS, 0)
        answer = words(TextDelta, SOLVED, len(thoughts))
        total = len(thoughts) + len(answer)
        end = Finish("stop", Usage(80, total, len(thoughts)), Timings(0.02, total / 60, len(thoughts) / 60))
        backend.script = [*thoughts, *answer, end]
        page = new_page(browser, url)
        send(page, "A train leaves at 14:10 and arrives at 16:40. It runs at 120 km an hour. How far does it go?")
        settled(page)
        page.locator("#chatbot .thought-group .title").click()
        take(page, "thinking")
        page = new_page(browser, url, 640)
        attach(page, {"name": "granite.txt", "mimeType": "text/plain", "buffer": FACTS.encode()})
        first = CITED.index(" It forms")
        cited = [Citation("1", 0, first), Citation("1", first + 1, len(CITED))]
        backend.script = [*words(TextDelta, CITED, 0), *cited, replace(end, usage=Usage(140, 18))]
        send(page, "What is granite made of, and how does it form?")
        settled(page)
        page.locator("#chatbot sup a").first.click()
        page.locator("#chatbot .act.ground").click()
        expect(page.locator("#sources")).to_be_visible()
        take(page, "citations", whole=True)
        page = new_page(browser, url, 700)
        page.get_by_role("tab", name="Completion").click()
        page.get_by_role("tab", name="Fill in the middle").click()
        backend.script = [*words(TextDelta, MIDDLE, 0), replace(end, usage=Usage(60, 40))]
        page.locator("#fill-run").click()
        expect(page.locator("#fill-accept")).to_be_enabled()
        take(page, "fill", whole=True)


def with_the_sample(browser: Browser) -> None:
    backend = local_backend(Settings.resolve({"model": "sample"}, {}), Console(stderr=True))
    with running(create_app(backend), backend) as url:
        backend.wait_until_ready()
        page = new_page(browser, url)
        send(page, "What is the capital of Germany?")
        expect(page.locator("#chatbot .act.retry")).to_be_visible(timeout=60_000)
        take(page, "chat")
        page = new_page(browser, url)
        page.get_by_role("tab", name="Settings").click()
        page.locator("#facts td").first.wait_for()
        take(page, "settings", whole=True)
        page = new_page(browser, url, 600)
        open_sheet(page, "system")
        page.locator("#system-prompt textarea").press_sequentially("You are a geographer. Answer in one sentence.")
        page.keyboard.press("Escape")
        send(page, "What is the capital of Germany?")
        expect(page.locator("#chatbot .act.retry")).to_be_visible(timeout=60_000)
        open_panel(page, "xray")
        page.locator("#xray-show").click()
        page.locator("#xray-text").wait_for()
        take(page, "xray", whole=True)
        page = new_page(browser, url, 560)
        open_panel(page, "compare")
        page.locator("#compare-question textarea").fill("Give me three words that rhyme with stone.")
        hottest = page.locator("#compare input[type=number][aria-label*=Temperature]").last
        hottest.fill("1.2")
        hottest.press("Enter")
        page.locator("#compare-run").click()
        expect(page.locator("#compare-stop")).to_be_visible()
        expect(page.locator("#compare-run")).to_be_visible(timeout=120_000)
        take(page, "side-by-side", whole=True)
        laboratory(browser, url)


def laboratory(browser: Browser, url: str) -> None:
    page = new_page(browser, url, 900)
    open_panel(page, "sampling")
    page.locator("#sampling").get_by_label("Max new tokens").fill("24")
    page.locator("#sampling").get_by_label("Max new tokens").blur()
    page.get_by_role("tab", name="Completion").click()
    page.locator("#prompt textarea").fill("Once upon a time, on a small island in the north,")
    page.locator("#run").click()
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#run")).to_be_visible(timeout=60_000)
    page.locator("#token-view .tokens b").nth(4).click()
    page.locator(".token-popup button.choice").first.click()
    expect(page.locator(".branches .count")).to_have_text("2/2")
    expect(page.locator("#run")).to_be_visible(timeout=60_000)
    page.locator("#token-view .tokens b").nth(4).click()
    page.locator(".token-popup").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=picture("completion"), full_page=True)
    page.context.close()
    constrained(browser, url)
    page = new_page(browser, url, 700)
    page.get_by_role("tab", name="Completion").click()
    page.get_by_role("tab", name="Score").click()
    page.locator("#score-text textarea").fill(SCORED)
    page.locator("#score-run").click()
    expect(page.locator("#score-figures")).to_contain_text("erplexity", timeout=60_000)
    page.locator(".tokens b", has_text="Madrid").click()
    page.locator(".token-popup").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=picture("score"), full_page=True)
    page.context.close()


def constrained(browser: Browser, url: str) -> None:
    page = new_page(browser, url, 900)
    page.get_by_role("tab", name="Completion").click()
    page.locator("#prompt textarea").fill('Tom is 7 years old: {"name": "Tom", "age": 7}\nAnna is 42 years old: ')
    page.get_by_role("button", name="Constrained output").click()
    page.locator("#constraint-kind").get_by_label("JSON schema").check()
    page.locator("#run").click()
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#run")).to_be_visible(timeout=60_000)
    take(page, "constrained", whole=True)


def precisions(browser: Browser) -> None:
    """With torch: llama.cpp compares no precisions."""
    backend = local_backend(Settings.resolve({"model": "sample", "dtype": "float32"}, {}), Console(stderr=True))
    with running(create_app(backend), backend) as url:
        backend.wait_until_ready()
        page = new_page(browser, url, 900)
        page.get_by_role("tab", name="Completion").click()
        page.get_by_role("tab", name="Precision").click()
        page.locator("#precisions-run").click()
        expect(page.locator("#precisions-cancel")).to_be_visible()
        expect(page.locator("#precisions-run")).to_be_visible(timeout=300_000)
        take(page, "precisions", whole=True)


def main() -> None:
    """Make all pictures. Overwrites the files."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_args(playwright))
        scripted(browser)
        with_the_sample(browser)
        precisions(browser)


if __name__ == "__main__":
    main()

"""Measures the cost of one update of a running answer for server and browser, at turn 2 and at turn 200.

Run it by hand: ``python -m tests.browser.measure_turns``. The backend is a fake, so only the page is measured.
"""

import json
import time
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from granite_demo.chat import conversation as conversations
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from tests.browser.chromium import launch_args
from tests.fakes import FakeBackend

UPDATES = 80
TEXT = "The **quick** brown fox jumps over the lazy dog, `again` and again, until the evening comes. " * 5


class Timed(FakeBackend):
    """Streams for some time, and measures the processor time of the server."""

    cpu = 0.0

    async def stream(self, request: Any) -> Any:
        start = time.process_time()
        async for event in super().stream(request):
            yield event
        self.cpu = time.process_time() - start


def conversation_of(turns: int) -> str:
    """Return a conversation file to import."""
    conversation = conversations.start(title="Long")
    for number in range(turns // 2):
        conversation = conversations.add(conversation, "user", content=f"Question {number}: {TEXT[:90]}")
        conversation = conversations.add(conversation, "assistant", content=TEXT, note="90 tokens")
    return json.dumps(conversations.dump(conversation))


def measure(page: Page, backend: Timed, turns: int) -> tuple[float, float, float]:
    """Return milliseconds of (server, main thread of the browser, scripts of the browser) for each update."""
    file = {"name": "long.json", "mimeType": "application/json", "buffer": conversation_of(turns).encode()}
    page.locator("#library input[type=file]").set_input_files(file)  # type: ignore[arg-type]
    expect(page.locator("#chatbot")).to_contain_text(f"Question {turns // 2 - 1}")
    page.wait_for_timeout(1500)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def metrics() -> dict[str, float]:
        return {entry["name"]: entry["value"] for entry in session.send("Performance.getMetrics")["metrics"]}

    page.locator("#message textarea").fill("And now?")
    before = metrics()
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#chatbot .bot.message").last).to_contain_text("finished", timeout=60_000)
    after = metrics()
    task, script = ((after[name] - before[name]) * 1000 / UPDATES for name in ("TaskDuration", "ScriptDuration"))
    return backend.cpu * 1000 / UPDATES, task, script


def main() -> None:
    """Print a row for each number of turns."""
    expect.set_options(timeout=30_000)
    backend = Timed([f"word{number} " for number in range(UPDATES)], 1 / 11)
    print(f"Milliseconds for each of {UPDATES} updates")
    with running(create_app(backend), backend) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_args(playwright))
        for turns in (2, 20, 200, 2, 200):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.goto(url)
            page.locator("#model-status .status").wait_for()
            server, task, script = measure(page, backend, turns)
            print(f"{turns:4} turns: server {server:5.1f}  browser {task:5.1f}, of which scripts {script:5.1f}")
            page.context.close()


if __name__ == "__main__":
    main()

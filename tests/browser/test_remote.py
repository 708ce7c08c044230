"""Tests for the page with another server that can stop and start again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from granite_demo.backends.remote.backend import RemoteBackend
from granite_demo.backends.remote.endpoints import Endpoints, parse_urls
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from tests.backends.remote.test_own_server import free_port, own, process, transformers_serve
from tests.browser.test_chat import act, answers, send
from tests.fakeserver import FakeServer, ended, remote, said, serving

pytestmark = pytest.mark.browser

LONG = [*(said(f"word{number} ") for number in range(12)), ended()]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    with serving(server):
        yield server


@pytest.fixture
def page(server: FakeServer, chromium: Browser) -> Iterator[Page]:
    """Return the page that uses ``server``."""
    with remote(server) as backend, running(create_app(backend), backend) as url:
        page = chromium.new_page()
        page.goto(url)
        expect(page.locator("#model-status")).to_contain_text("granite-4.0-micro")
        yield page
        page.close()


@pytest.mark.release
def test_a_chat_with_another_server(page: Page, server: FakeServer) -> None:
    expect(page.locator("#model-status")).to_contain_text(f"vLLM at {server.url}")
    server.chunks = [said("", reasoning_content="Let me see."), said("Hello"), said(" world"), ended()]
    send(page, "Hi")
    expect(answers(page).last).to_contain_text("Hello world")
    expect(answers(page).last).to_contain_text("finished (stop)")
    expect(answers(page).first).to_contain_text("Thinking")
    send(page, "And?")
    expect(page.locator("#chatbot .act.retry")).to_have_count(2)
    assert [turn["content"] for turn in server.bodies[-1]["messages"]] == ["Hi", "Hello world", "And?"]


def test_the_page_survives_a_failure_of_the_server_and_recovers(page: Page, server: FakeServer) -> None:
    server.chunks, server.delay = LONG, 0.3
    send(page, "Hi")
    expect(answers(page)).to_contain_text("word2")
    server.kill()
    expect(answers(page)).to_contain_text("The answer was cut off. The text so far is kept.")
    expect(answers(page)).to_contain_text("word2")
    expect(page.locator("#model-status .failed")).to_contain_text("does not answer")
    server.delay = 0.0
    server.start()
    expect(page.locator("#model-status .ready")).to_contain_text("granite-4.0-micro")
    act(page, "retry")
    expect(answers(page)).to_contain_text("word11")
    expect(answers(page)).to_contain_text("finished (stop)")


@pytest.mark.release
@pytest.mark.parametrize("kind", ["our own", "transformers serve"])
def test_a_server_in_another_process_stops_and_starts_again(
    chromium: Browser, gguf_path: Path, sample_path: Path, kind: str
) -> None:
    port = free_port()
    command = own(port) if kind == "our own" else transformers_serve(sample_path, port)
    model = "" if kind == "our own" else str(sample_path)
    backend = RemoteBackend(Endpoints(parse_urls(f"http://127.0.0.1:{port}")), model)
    with running(create_app(backend), backend) as url:
        page = chromium.new_page()
        page.goto(url)
        with process(*command) as there:
            expect(page.locator("#model-status .ready")).to_be_visible(timeout=90_000)
            send(page, "Tell me a very long story about a ship.")
            expect(answers(page)).to_contain_text("ship")
            there.kill()
            expect(answers(page)).to_contain_text("The answer was cut off. The text so far is kept.")
            expect(page.locator("#model-status .failed")).to_contain_text("does not answer")
        with process(*command):
            expect(page.locator("#model-status .ready")).to_be_visible(timeout=90_000)
            send(page, "What is the capital of Germany?")
            expect(answers(page).last).to_contain_text("Berlin")
        page.close()


@pytest.mark.release
def test_stop_ends_the_request_on_the_server(page: Page, server: FakeServer) -> None:
    server.chunks, server.delay = LONG * 50, 0.1
    send(page, "Hi")
    expect(answers(page)).to_contain_text("word2")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(answers(page)).to_contain_text("stopped")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    for _ in range(100):
        if not server.running:
            return
        page.wait_for_timeout(20)
    raise AssertionError("the server still writes")


@pytest.mark.release
def test_the_settings_list_the_models_of_the_server_and_reject_its_options(page: Page, server: FakeServer) -> None:
    page.get_by_role("tab", name="Settings").click()
    expect(page.locator("#facts")).to_contain_text("the model runs on that server")
    page.locator("#model-status .status").click()
    page.locator("#unload").click()
    expect(page.locator("#load-message")).to_contain_text("belongs to another server")

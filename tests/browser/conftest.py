"""A real Chromium in front of the real page: over a fake backend, or over the sample model."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from granite_demo.server.app import create_app
from granite_demo.server.run import running
from tests.browser.chromium import launch_args
from tests.fakes import READY, FakeBackend

OpenPage = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser, a server and a page on a busy machine: what fails once runs once more, and the summary names it."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser a module: its event loop must be gone before the asynchronous tests of other modules."""
    # A test that passes never waits this long; a machine with other work may need it.
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_args(playwright))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def fake_server() -> Iterator[tuple[FakeBackend, str]]:
    """One page over one fake backend for a module."""
    backend = FakeBackend()
    with running(create_app(backend), backend) as url:
        yield backend, url


@pytest.fixture
def fake(fake_server: tuple[FakeBackend, str]) -> FakeBackend:
    """The fake backend behind the page, as new."""
    backend, _ = fake_server
    backend.__init__()  # type: ignore[misc]
    backend.state = READY
    return backend


@pytest.fixture
def open_page(chromium: Browser, fake: FakeBackend, fake_server: tuple[FakeBackend, str]) -> Iterator[OpenPage]:
    """Opens the page as a new visitor; extra arguments are those of ``browser.new_context``."""
    contexts: list[BrowserContext] = []

    def open_new(**options: object) -> Page:
        contexts.append(chromium.new_context(**options))  # type: ignore[arg-type]
        page = contexts[-1].new_page()
        page.goto(fake_server[1])
        page.locator("#message textarea").wait_for()
        # What the page asks for at its start is there, and does not come after what a test does.
        page.locator("#model-status .status").wait_for()
        return page

    yield open_new
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """The page, opened by one visitor at 1280 pixels."""
    return open_page(viewport={"width": 1280, "height": 900})

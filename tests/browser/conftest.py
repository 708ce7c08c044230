"""A real Chromium in front of the real page: over a fake backend, or over the sample model."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from granite_demo.server.app import create_app
from granite_demo.server.run import running
from tests.browser.chromium import launch_args
from tests.fakes import READY, FakeBackend

NewContext = Callable[..., BrowserContext]
OpenPage = Callable[..., Page]


def kept(page: Page) -> list[dict[str, Any]]:
    """What the browser's database holds."""
    found: list[dict[str, Any]] = page.evaluate(
        """() => new Promise((resolve) => {
            const request = indexedDB.open("granite-demo", 1);
            request.onsuccess = () => {
                const all = request.result.transaction("conversations").objectStore("conversations").getAll();
                all.onsuccess = () => { request.result.close(); resolve(all.result); };
            };
        })"""
    )
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser, a server and a page on a busy machine: what fails once runs once more, and the summary names it."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """One browser for this folder: its event loop must be gone before the asynchronous tests of others."""
    # A test that passes never waits this long; a machine with other work may need it.
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_args(playwright))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def idle(chromium: Browser) -> dict[str, list[BrowserContext]]:
    """Contexts that no test has at the moment, by their options."""
    return {}


@pytest.fixture
def new_context(chromium: Browser, idle: dict[str, list[BrowserContext]]) -> Iterator[NewContext]:
    """``browser.new_context``, for a visitor of whom nothing is kept.

    What the page is made of, fetched and compiled for an earlier test, stays with a context: a third of what it costs.
    """
    taken: list[tuple[list[BrowserContext], BrowserContext]] = []

    def take(**options: object) -> BrowserContext:
        free = idle.setdefault(repr(sorted(options.items())), [])
        context = free.pop() if free else chromium.new_context(**options)  # type: ignore[arg-type]
        taken.append((free, context))
        return context

    yield take
    for free, context in taken:
        for page in context.pages:
            page.close()
        context.set_storage_state({"cookies": [], "origins": []})
        free.append(context)


@pytest.fixture(scope="package")
def fake_server() -> Iterator[tuple[FakeBackend, str]]:
    """One page over one fake backend for all that ask for no other."""
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
def open_page(new_context: NewContext, fake: FakeBackend, fake_server: tuple[FakeBackend, str]) -> OpenPage:
    """Opens the page as a new visitor, at a query; extra arguments are those of ``browser.new_context``."""

    def open_new(query: str = "", **options: object) -> Page:
        page = new_context(**options).new_page()
        page.goto(f"{fake_server[1]}/{query}")
        page.locator("#message textarea").wait_for()
        # What the page asks for at its start is there, and does not come after what a test does.
        page.locator("#model-status .status").wait_for()
        return page

    return open_new


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """The page, opened by one visitor at 1280 pixels."""
    return open_page(viewport={"width": 1280, "height": 900})

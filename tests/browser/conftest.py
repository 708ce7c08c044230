"""Fixtures for a Chromium browser and the page, with a fake backend or the sample model."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from granite_demo.server.app import create_app
from granite_demo.server.policy import PUBLIC_UNREAD_SECONDS, Policy
from granite_demo.server.run import running
from tests.browser.chromium import launch_args
from tests.fakes import READY, FakeBackend

NewContext = Callable[..., BrowserContext]
OpenPage = Callable[..., Page]


def stored(page: Page) -> list[dict[str, Any]]:
    """Return the content of the database of the browser."""
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
    """Let browser tests run again after a failure, because a busy machine can be slow. The summary names such tests."""
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Start one browser for this folder. Its event loop must end before the asynchronous tests of other folders."""
    # A test that passes does not wait this long, except on a busy machine.
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_args(playwright))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def idle(chromium: Browser) -> dict[str, list[BrowserContext]]:
    """The contexts that no test uses, by their options."""
    return {}


@pytest.fixture
def new_context(chromium: Browser, idle: dict[str, list[BrowserContext]]) -> Iterator[NewContext]:
    """``browser.new_context``, for a visitor of whom nothing is stored.

    A context keeps the files of the page that an earlier test downloaded and compiled, which saves a third of the time.
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
    """Run one page with one fake backend for all tests that need no other."""
    backend = FakeBackend()
    with running(create_app(backend, policy=Policy(unread=PUBLIC_UNREAD_SECONDS)), backend) as url:
        yield backend, url


@pytest.fixture
def fake(fake_server: tuple[FakeBackend, str]) -> FakeBackend:
    """Return the fake backend of the page in its initial state."""
    backend, _ = fake_server
    backend.__init__()  # type: ignore[misc]
    backend.state = READY
    return backend


@pytest.fixture
def open_page(new_context: NewContext, fake: FakeBackend, fake_server: tuple[FakeBackend, str]) -> OpenPage:
    """Return a function that opens the page with a query as a new visitor. Options are for ``browser.new_context``."""

    def open_new(query: str = "", **options: object) -> Page:
        page = new_context(**options).new_page()
        page.goto(f"{fake_server[1]}/{query}")
        page.locator("#message textarea").wait_for()
        # The first requests of the page are complete, so their answers do not come after an action of a test.
        page.locator("#model-status .status").wait_for()
        return page

    return open_new


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """Return the page of one visitor, with a width of 1280 pixels."""
    return open_page(viewport={"width": 1280, "height": 900})

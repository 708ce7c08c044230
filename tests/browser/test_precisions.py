"""Tests for Precision A/B in a browser, on a small page with the HTTP headers of the real one."""

import csv
import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped, unused-ignore]
from playwright.sync_api import Page, expect

from granite_demo.access import Access
from granite_demo.server.run import running
from granite_demo.ui.completion.precisions import EXAMPLE
from tests.browser.completion_tabs import build, script
from tests.browser.conftest import NewContext
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeBackend, str]]:
    backend = FakeBackend()
    with running(build(backend, Access(public=True, token="secret")), backend) as url:
        yield backend, url


@pytest.fixture
def fake(server: tuple[FakeBackend, str]) -> FakeBackend:
    backend, _ = server
    backend.__init__()  # type: ignore[misc]
    backend.comparison = script(EXAMPLE)
    return backend


@pytest.fixture
def pair(new_context: NewContext, fake: FakeBackend, server: tuple[FakeBackend, str]) -> Page:
    page = new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(server[1])
    page.get_by_role("tab", name="Precision").click()
    page.locator("#precisions-run").wait_for()
    return page


def compare(page: Page, token: str = "secret") -> None:
    page.locator("#precisions-token input").fill(token)
    page.locator("#precisions-token input").press("Tab")
    page.wait_for_timeout(300)
    page.locator("#precisions-run").click()


@pytest.mark.release
def test_two_precisions_are_compared_without_contact_to_other_servers(pair: Page, fake: FakeBackend) -> None:
    asked: list[str] = []
    pair.on("request", lambda request: asked.append(request.url))
    compare(pair)
    expect(pair.locator("#precisions-summary")).to_contain_text("Mean KL divergence")
    expect(pair.locator("#precisions-heat .tokens > b")).to_have_count(len(EXAMPLE.split(" ")))
    expect(pair.locator("#precisions-worst tbody tr")).to_have_count(10)
    expect(pair.locator("#precisions-plot .js-plotly-plot .trace.scatter").first).to_be_visible(timeout=60_000)
    expect(pair.locator("#precisions-run")).to_be_visible()
    assert asked
    assert [url for url in asked if not url.startswith(("http://127.0.0.1", "data:", "blob:"))] == []
    [request] = fake.compared
    assert (request.text, request.reference.dtype, request.other.dtype) == (EXAMPLE, "bfloat16", "float32")
    pair.locator("#precisions-heat .tokens > b").nth(8).hover()
    expect(pair.locator(".token-popup")).to_contain_text("KL divergence10 nats")
    expect(pair.locator(".token-popup")).to_contain_text("Likeliest in nf4·<i>else")
    found = Axe().run(pair, context="#precisions-heat").response["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found] == []


@pytest.mark.release
def test_the_result_can_be_saved(pair: Page) -> None:
    compare(pair)
    expect(pair.locator("#precisions-worst tbody tr")).to_have_count(10)
    with pair.expect_download() as saving:
        pair.locator("#precisions-save").click()
    assert saving.value.suggested_filename == "precisions.csv"
    text = saving.value.path().read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(EXAMPLE.split(" ")) - 1
    assert float(rows[7]["kl_nats"]) == 10.0


def test_on_a_public_page_it_needs_the_token(pair: Page, fake: FakeBackend) -> None:
    expect(pair.get_by_text("needs the admin token")).to_be_visible()
    compare(pair, "guess")
    expect(pair.locator("#precisions-note .error")).to_contain_text("not the admin token")
    expect(pair.locator("#precisions-run")).to_be_visible()
    expect(pair.locator("#precisions-summary")).to_be_hidden()
    assert fake.compared == []


@pytest.mark.release
def test_progress_is_shown_and_it_can_be_cancelled(pair: Page, fake: FakeBackend) -> None:
    fake.comparison, fake.delay = fake.comparison[:2] * 30, 0.3
    compare(pair)
    expect(pair.locator("#precisions-note")).to_contain_text("bfloat16: reading")
    expect(pair.locator("#precisions-note")).to_contain_text("nf4: reading")
    pair.locator("#precisions-cancel").click()
    expect(pair.locator("#precisions-note")).to_have_text("Cancelled.")
    expect(pair.locator("#precisions-run")).to_be_visible()


@pytest.mark.release
def test_a_model_that_cannot_be_compared_has_a_reason(pair: Page, fake: FakeBackend) -> None:
    fake.state = replace(READY, unable=(("comparing precisions", "The model is fixed."),))
    expect(pair.locator("#precisions-reason")).to_have_text("The model is fixed.")
    expect(pair.locator("#precisions-run")).to_be_disabled()

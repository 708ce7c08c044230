"""Tests for the token view, Score and Fill in the middle in a browser, on a small page."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped, unused-ignore]
from playwright.sync_api import Page, expect

from granite_demo.access import Access
from granite_demo.server.run import running
from granite_demo.ui.completion.score import WRITTEN
from tests.browser.completion_tabs import CSP, WORDS, build, scored, summary
from tests.browser.conftest import NewContext
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeBackend, str]]:
    backend = FakeBackend()
    with running(build(backend, Access()), backend) as url:
        yield backend, url


@pytest.fixture
def fake(server: tuple[FakeBackend, str]) -> FakeBackend:
    backend, _ = server
    backend.__init__()  # type: ignore[misc]
    backend.scores = [*scored(), summary(scored())]
    return backend


@pytest.fixture
def tabs(new_context: NewContext, fake: FakeBackend, server: tuple[FakeBackend, str]) -> Page:
    page = new_context(viewport={"width": 1280, "height": 900}, has_touch=True).new_page()
    page.goto(server[1])
    page.locator("#fill-run").wait_for()
    return page


@pytest.fixture
def view(tabs: Page) -> Page:
    """Return the page with a scored text."""
    tabs.get_by_role("tab", name="Score").click()
    tabs.locator("#score-run").click()
    expect(tabs.locator("#score-figures")).to_contain_text("Perplexity")
    expect(tabs.locator("#score-run")).to_be_visible()
    return tabs


def test_a_scored_text_is_shown_as_its_tokens(view: Page) -> None:
    expect(view.locator("#score-view .tokens > b")).to_have_count(len(WORDS))
    for index, words in ((6, " <b>Rome"), (9, "{{x}}"), (10, "<|end_of_text|>")):
        expect(view.locator("#score-view .tokens > b").nth(index)).to_have_text(words)
    colours = view.evaluate(
        "[...document.querySelectorAll('#score-view .tokens > b')].map((b) => getComputedStyle(b).backgroundColor)"
    )
    assert len(set(colours)) >= 5
    view.locator("#score-tint").get_by_text("entropy").click()
    expect(view.locator("#score-view .legend")).to_contain_text("Entropy in nats")


@pytest.mark.release
def test_hover_shows_the_alternatives(view: Page) -> None:
    popup = view.locator(".token-popup")
    view.locator("#score-view .tokens > b").nth(3).hover()
    expect(popup).to_contain_text("·France token 3")
    expect(popup).to_contain_text("Log probability-2.250")
    expect(popup.locator("tbody tr").nth(0)).to_have_text("·Paris75.0 %90.0 %")
    expect(popup.locator("tbody tr").nth(1)).to_have_class("taken")
    expect(popup.locator("tbody tr").nth(2)).to_have_text(f"{CSP}5.0 %—")
    view.mouse.move(2, 2)
    expect(popup).to_have_count(0)


@pytest.mark.release
def test_a_tap_opens_the_popup_and_a_tap_elsewhere_closes_it(view: Page) -> None:
    view.locator("#score-view .tokens > b").nth(1).tap()
    expect(view.locator(".token-popup")).to_contain_text("capital")
    view.locator("#score-view .tokens > b").nth(3).tap()
    expect(view.locator(".token-popup")).to_have_count(1)
    expect(view.locator(".token-popup")).to_contain_text("France")
    view.locator("#score-figures").tap()
    expect(view.locator(".token-popup")).to_have_count(0)


@pytest.mark.release
def test_the_first_token_has_no_prediction(view: Page) -> None:
    view.locator("#score-view .tokens > b").first.hover()
    expect(view.locator(".token-popup dl")).to_contain_text("nothing comes before it")


@pytest.mark.release
def test_the_keyboard_selects_tokens_and_alternatives(view: Page) -> None:
    view.locator("#score-view .tokens").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        view.keyboard.press(key)
    expect(view.locator(".token-popup")).to_contain_text("capital")
    view.keyboard.press("Enter")
    expect(view.locator(".token-popup button").first).to_be_focused()
    view.keyboard.press("Escape")
    expect(view.locator(".token-popup")).to_have_count(0)
    expect(view.locator("#score-view .tokens > b").nth(1)).to_be_focused()
    view.keyboard.press("Enter")
    view.keyboard.press("Enter")
    expect(view.locator("#prompt input, #prompt textarea")).to_have_value("The Paris")


def test_a_click_on_an_alternative_changes_the_text(view: Page) -> None:
    view.locator("#score-view .tokens > b").nth(3).click()
    view.locator(".token-popup").get_by_role("button", name=CSP).click()
    expect(view.locator("#prompt input, #prompt textarea")).to_have_value(f"The capital of{CSP}")
    expect(view.locator("#score-note")).to_have_text(WRITTEN)
    expect(view.locator(".token-popup")).to_have_count(0)


@pytest.mark.release
def test_two_thousand_tokens_are_fast(view: Page, fake: FakeBackend) -> None:
    fake.scores = [*scored(2000), summary(scored(2000))]
    before = view.locator("*").count()
    view.locator("#score-run").click()
    expect(view.locator("#score-view .tokens > b")).to_have_count(2000)
    assert view.locator("*").count() - before < 2100
    view.locator("#score-view .tokens > b").nth(1500).scroll_into_view_if_needed()
    view.locator("#score-view .tokens > b").nth(1500).hover()
    expect(view.locator(".token-popup")).to_contain_text("token 1500")


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.release), "dark"])
def test_accessibility_of_the_token_view(view: Page, scheme: str) -> None:
    if scheme == "dark":
        view.evaluate("document.body.classList.add('dark')")
    view.locator("#score-view .tokens > b").nth(3).click()
    for inside in ("#score-view", ".token-popup"):
        found = Axe().run(view, context=inside).response["violations"]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found] == []


def test_the_generated_text_is_shown_in_the_gap(tabs: Page, fake: FakeBackend) -> None:
    fake.words = ["    total", " = sum(numbers)\n"]
    tabs.locator("#fill-run").click()
    result = tabs.locator("#fill-result .filled")
    expect(result.locator("mark")).to_have_text("    total = sum(numbers)\n", use_inner_text=False)
    expect(result).to_contain_text("def mean(numbers):")
    expect(result).to_contain_text("return total / len(numbers)")
    [request] = fake.requests
    assert (request.prompt or "").endswith('numbers."""\n')
    assert request.suffix == "    return total / len(numbers)\n"
    tabs.locator("#fill-accept").click()
    expect(tabs.locator("#prefix textarea")).to_have_value(f"{request.prompt}    total = sum(numbers)\n")
    expect(result).to_have_count(0)
    expect(tabs.locator("#fill-accept")).to_be_disabled()


@pytest.mark.release
def test_filling_can_be_stopped(tabs: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["x "] * 500, 0.05
    tabs.locator("#fill-run").click()
    expect(tabs.locator("#fill-result mark")).to_contain_text("x x")
    tabs.locator("#fill-stop").click()
    expect(tabs.locator("#fill-note")).to_contain_text("stopped")
    expect(tabs.locator("#fill-run")).to_be_visible()
    expect(tabs.locator("#fill-accept")).to_be_enabled()
    assert fake.running == 0


@pytest.mark.release
def test_a_model_that_cannot_fill_has_a_reason(tabs: Page, fake: FakeBackend) -> None:
    why = "This model's tokenizer has no fill-in-the-middle tokens."
    fake.state = replace(READY, unable=(("fill in the middle", why), ("scoring", "No scoring.")))
    expect(tabs.locator("#fill-reason")).to_have_text(why)
    expect(tabs.locator("#fill-run")).to_be_hidden()
    tabs.get_by_role("tab", name="Score").click()
    expect(tabs.locator("#score-reason")).to_have_text("No scoring.")
    expect(tabs.locator("#score-run")).to_be_disabled()
    fake.state = READY
    expect(tabs.locator("#score-run")).to_be_enabled()
    tabs.get_by_role("tab", name="Fill").click()
    expect(tabs.locator("#fill-run")).to_be_visible()

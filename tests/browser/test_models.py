"""Tests for loading a model from the Settings tab in a browser, with a fake backend."""

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from granite_demo.access import Access
from granite_demo.server.app import create_app
from granite_demo.server.run import running
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.model_status import MemoryUse, ModelStatus
from tests.browser.frame import open_tab
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser


def choose(page: Page, model: str, precision: str = "Automatic") -> None:
    open_picker(page)
    if precision != "Automatic":
        page.get_by_role("button", name="How to load it").click()
        page.get_by_label("Precision").first.click()
        page.get_by_role("option", name=precision).click()
    page.locator("#model-list .model", has_text=model).click()
    page.locator("#model-list .ask:visible [data-yes]").click()


def open_picker(page: Page) -> None:
    page.locator("#model-status .status").click()
    page.locator("#picker").wait_for()


def test_a_model_is_chosen_and_its_progress_moves(page: Page, fake: FakeBackend) -> None:
    choose(page, "Family · two", "int4 nf4")
    expect(page.locator("#load-message")).to_contain_text("Loading two")
    assert fake.selected == [LoadOptions("two", quantization="nf4")]
    for fraction, detail in ((0.2, "1.0 of 5.1 GB"), (0.7, "3.6 of 5.1 GB")):
        fake.state = ModelStatus("two", "downloading", fraction, detail)
        expect(page.locator("#model-status")).to_contain_text(detail)
        assert page.locator("#model-status progress").get_attribute("value") == f"{fraction:.3f}"
    memory = MemoryUse("cuda", 10**9, 10**8, 10**9)
    card = (("Layers", "40", "each with attention"),)
    fake.state = ModelStatus("two", "ready", 1.0, title="Model two", memory=memory, card=card)
    expect(page.locator("#model-status")).to_contain_text("Model two")
    expect(page.get_by_role("button", name="Cancel the load")).to_be_hidden()
    page.keyboard.press("Escape")
    open_tab(page, "Settings")
    page.get_by_role("button", name="Configuration").click()
    expect(page.locator("#card")).to_contain_text("Layers")
    expect(page.locator("#memory")).to_contain_text("weights 1.0 GB")


@pytest.mark.release
def test_a_load_by_another_visitor_is_shown(page: Page, fake: FakeBackend) -> None:
    expect(page.locator("#model-status")).to_contain_text("Fake model")
    page.wait_for_timeout(1500)
    fake.state = ModelStatus("two", "downloading", 0.2, "1.0 of 5.1 GB")
    expect(page.locator("#model-status")).to_contain_text("1.0 of 5.1 GB")
    fake.state = ModelStatus("two", "downloading", 0.4, "2.0 of 5.1 GB")
    expect(page.locator("#model-status")).to_contain_text("2.0 of 5.1 GB")


@pytest.mark.release
def test_a_load_is_cancelled(page: Page, fake: FakeBackend) -> None:
    choose(page, "Family · one")
    fake.state = ModelStatus("one", "downloading", 0.2, "1.0 of 5.1 GB")
    page.get_by_role("button", name="Cancel the load").click()
    assert fake.cancelled.wait(2)


@pytest.mark.release
def test_a_failure_is_shown_and_the_old_model_answers(page: Page, fake: FakeBackend) -> None:
    choose(page, "Family · one")
    fake.state = ModelStatus("fake", "ready", 1.0, title="Fake model", notice="one: The hub cannot be reached.")
    expect(page.locator("#model-status")).to_contain_text("The hub cannot be reached.")
    expect(page.locator("#model-status")).to_contain_text("Fake model")


@pytest.mark.release
def test_a_load_without_a_choice_has_a_note(page: Page, fake: FakeBackend) -> None:
    open_picker(page)
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#load-message .error")).to_contain_text("Choose a model first")
    assert fake.selected == []


def test_a_path_can_be_typed_and_the_list_follows_the_search(page: Page, fake: FakeBackend) -> None:
    open_picker(page)
    page.locator("#model-choice input, #model-choice textarea").fill("two")
    expect(page.locator("#model-list .model:visible")).to_have_count(1)
    page.locator("#model-choice input, #model-choice textarea").fill("/models/mine.gguf")
    expect(page.locator("#model-list .none")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#load-message")).to_contain_text("Loading /models/mine.gguf")
    assert fake.selected == [LoadOptions("/models/mine.gguf")]


@pytest.mark.release
def test_a_model_is_unloaded(page: Page, fake: FakeBackend) -> None:
    open_picker(page)
    page.get_by_role("button", name="Unload").click()
    assert fake.unloaded.wait(2)


@pytest.fixture(scope="module")
def public() -> Iterator[tuple[FakeBackend, str]]:
    """Run a public page with an admin token."""
    backend = FakeBackend()
    backend.state = READY
    with running(create_app(backend, Access(public=True, token="sesame")), backend) as url:
        yield backend, url


def test_a_public_page_asks_for_the_token(public: tuple[FakeBackend, str], chromium: Browser) -> None:
    backend, url = public
    page = chromium.new_page()
    page.goto(url)
    choose(page, "Family · one")
    expect(page.locator("#load-message .error")).to_contain_text("not the admin token")
    assert backend.selected == []
    page.locator("#admin-token input").fill("sesame")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#load-message")).to_contain_text("Loading one")
    assert backend.selected == [LoadOptions("one")]
    backend.selected.clear()
    page.close()


def test_on_a_public_page_no_route_of_gradio_changes_the_model(
    public: tuple[FakeBackend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("granite_demo.access.MAX_FAILURES", 1000)
    backend, url = public
    backend.selected.clear()
    config = httpx.get(f"{url}/config").json()
    events = {event["id"]: event["api_name"] for event in config["dependencies"]}
    assert {"load", "cancel", "unload"} <= set(events.values())
    for number, name in events.items():
        arguments = ["one", "Automatic", "auto", 0, False, "guess"] if name == "load" else ["guess"]
        if name not in ("load", "cancel", "unload"):
            continue
        body = {"data": arguments, "fn_index": number, "session_hash": "stranger"}
        httpx.post(f"{url}/gradio_api/queue/join", json=body)
        httpx.post(f"{url}/gradio_api/run/predict", json=body)
        httpx.post(f"{url}/gradio_api/run/{name}", json={"data": arguments})
        httpx.post(f"{url}/gradio_api/call/{name}", json={"data": arguments})
        httpx.post(f"{url}/gradio_api/api/{name}", json={"data": arguments})
    assert backend.selected == []
    assert not backend.cancelled.is_set()
    assert not backend.unloaded.is_set()
    # The same call with the token has an effect, which shows that the calls above are valid.
    load = next(number for number, name in events.items() if name == "load")
    body = {"data": ["one", "Automatic", "auto", 0, False, "sesame"], "fn_index": load, "session_hash": "admin"}
    httpx.post(f"{url}/gradio_api/run/predict", json=body)
    assert backend.selected == [LoadOptions("one")]

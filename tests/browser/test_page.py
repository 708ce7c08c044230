"""Tests for the header of the page and the Settings tab in a browser, with a fake backend."""

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from granite_demo.types.model_status import ModelStatus
from tests.browser.conftest import OpenPage
from tests.browser.frame import open_panel, open_tab
from tests.browser.test_chat import answers, reload, send
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser


def test_settings_have_an_effect_and_are_kept_after_a_reload(page: Page, fake: FakeBackend) -> None:
    open_panel(page, "sampling")
    page.get_by_label("number input for Temperature").fill("0.7")
    page.locator("#sampling").get_by_label("Max new tokens").fill("2")
    page.locator("#sampling").get_by_label("Seed").press_sequentially("42")
    page.locator("#stop-strings textarea").press_sequentially("END\n\\n\\n")
    page.locator("#stop-strings textarea").blur()
    page.wait_for_timeout(500)
    for count in (1, 2):
        send(page, "Hello")
        expect(answers(page)).to_have_count(count)
        expect(answers(page).last).to_contain_text("cut at the token limit (length)")
        expect(answers(page).last).to_contain_text("seed 42")
        sampling = fake.requests[-1].sampling
        assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.7, 2, 42)
        assert sampling.stop == ("END", "\n\n")
        reload(page)
        page.locator("#message textarea").wait_for()
        expect(answers(page)).to_have_count(count)
        open_panel(page, "sampling")
        expect(page.get_by_label("number input for Temperature")).to_have_value("0.7")
    page.get_by_role("button", name="Reset to defaults").click()
    expect(page.get_by_label("number input for Temperature")).to_have_value("0")


@pytest.mark.release
def test_an_idle_page_requests_only_the_status_of_the_model(page: Page) -> None:
    send(page, "Hello")
    expect(answers(page)).to_contain_text("finished")
    reload(page)
    expect(answers(page)).to_contain_text("finished")
    events = page.request.get(page.evaluate("location.origin") + "/config").json()["dependencies"]
    looks = {event["id"] for event in events if event["targets"][0][1] == "tick"}
    asked: list[Any] = []
    page.on("request", lambda request: asked.append((request.post_data_json or {}).get("fn_index")))
    for _ in range(10):  # until the first requests of the page are complete
        asked.clear()
        page.wait_for_timeout(3000)
        if set(asked) <= looks:
            break
    assert set(asked) <= looks


@pytest.mark.release
def test_each_visitor_has_separate_settings(open_page: OpenPage, fake: FakeBackend) -> None:
    one, two = open_page(), open_page()
    open_panel(one, "sampling")
    one.get_by_label("number input for Temperature").fill("1.5")
    one.get_by_label("number input for Temperature").blur()
    one.wait_for_timeout(300)
    send(two, "Hello")
    expect(answers(two)).to_contain_text("finished")
    assert fake.requests[-1].sampling.temperature == 0


@pytest.mark.parametrize(
    "kept", ["garbage", *(pytest.param(kept, marks=pytest.mark.release) for kept in ("[1, 2]", "{}", "null"))]
)
def test_invalid_stored_settings_are_ignored(page: Page, fake: FakeBackend, kept: str) -> None:
    page.evaluate("kept => localStorage.setItem('granite-demo-settings', kept)", kept)
    page.reload()
    page.locator("#message textarea").wait_for()
    send(page, "Hello")
    expect(answers(page)).to_contain_text("finished")
    assert fake.requests[-1].sampling.max_tokens == 512


@pytest.mark.parametrize(
    ("kept", "name", "expected"),
    [
        ('[0, 0, 0, 0, 1, 512, "", ""]', "top_p", 0.01),
        *(
            pytest.param(kept, name, expected, marks=pytest.mark.release)
            for kept, name, expected in (
                ('[-1, 1, 0, 0, 1, 512, "", ""]', "temperature", 0.0),
                ('[0, 1, 5000, 0, 1, 512, "", ""]', "top_k", 200),
                ('[0, 1, 2.6, 0, 1, 512, "", ""]', "top_k", 3),
                ('[0, 1, 0, 0, 1, 1e9, "", ""]', "max_tokens", 1_000_000),
                ('[0, 1, 0, 0, 1, null, "", ""]', "max_tokens", 512),
                ('[0, 1, 0, 0, "many", 7, "", ""]', "repetition_penalty", 1.0),
                ("[0, 1, 0, 0, 1, 7, 4, null]", "seed", 4),
            )
        ),
    ],
)
def test_stored_settings_come_back_within_their_limits(
    page: Page, fake: FakeBackend, kept: str, name: str, expected: float
) -> None:
    page.evaluate("kept => localStorage.setItem('granite-demo-settings', kept)", kept)
    page.reload()
    page.locator("#message textarea").wait_for()
    send(page, "Hello")
    expect(answers(page)).to_contain_text("finished")
    assert getattr(fake.requests[-1].sampling, name) == expected


@pytest.mark.parametrize(
    ("label", "typed", "expected"),
    [
        ("number input for Top-p", "0", "0.01"),
        ("Max new tokens", "0", "1"),
        *(
            pytest.param(label, typed, expected, marks=pytest.mark.release)
            for label, typed, expected in (
                ("number input for Temperature", "-1", "0"),
                ("number input for Top-k", "7000", "200"),
                ("Max new tokens", "1e9", "1000000"),
                ("Max new tokens", "", "512"),
            )
        ),
    ],
)
def test_a_typed_number_is_kept_within_its_limits(page: Page, label: str, typed: str, expected: str) -> None:
    open_panel(page, "sampling")
    box = page.locator("#sampling").get_by_label(label)
    box.fill(typed)
    page.wait_for_timeout(700)  # the meter sees the number before it is clamped
    box.blur()
    expect(box).to_have_value(expected)
    expect(page.locator(".toast-wrap")).not_to_contain_text("value")
    kept = "value => JSON.parse(localStorage.getItem('granite-demo-settings')).map(String).includes(value)"
    page.wait_for_function(kept, arg=expected)
    page.reload()
    open_panel(page, "sampling")
    expect(page.locator("#sampling").get_by_label(label)).to_have_value(expected)


@pytest.mark.release
def test_an_invalid_stop_string_is_an_error_in_the_chat(page: Page, fake: FakeBackend) -> None:
    open_panel(page, "sampling")
    page.locator("#stop-strings textarea").fill("a\nb\nc\nd\ne")
    page.locator("#stop-strings textarea").blur()
    send(page, "Hello")
    expect(page.locator("#chatbot .error")).to_contain_text("At most 4 stop strings")
    assert fake.requests == []


def test_the_model_and_its_reasons_are_shown(page: Page) -> None:
    expect(page.locator("#model-status")).to_contain_text("Fake model")
    open_tab(page, "Settings")
    expect(page.locator("#facts")).to_contain_text("a test")


def test_a_load_shows_its_progress_then_the_model(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.state = ModelStatus("fake", "downloading", 0.34, "31 of 93 MB")
    page = open_page()
    expect(page.locator("#model-status")).to_contain_text("31 of 93 MB")
    assert page.locator("#model-status progress").get_attribute("value") == "0.340"
    fake.first_delay = 1.5
    send(page, "Hello")
    expect(answers(page)).to_contain_text("Getting the model ready: downloading 34% 31 of 93 MB")
    fake.state = READY
    expect(page.locator("#model-status")).to_contain_text("Fake model")
    expect(answers(page)).to_contain_text("finished")


@pytest.mark.release
def test_a_failed_load_shows_the_reason_and_can_be_tried_again(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.state = ModelStatus("fake", "failed", None, "No network. Check the connection.")
    page = open_page()
    expect(page.locator("#model-status")).to_contain_text("No network. Check the connection.")
    fake.started.clear()
    page.get_by_role("button", name="Try again").click()
    assert fake.started.wait(2)
    fake.state = READY
    expect(page.locator("#model-status")).to_contain_text("Fake model")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()


def test_the_page_contacts_no_other_server(open_page: OpenPage) -> None:
    page = open_page()
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url))
    page.reload()
    page.locator("#message textarea").wait_for()
    page.wait_for_timeout(500)
    assert outside
    assert [url for url in outside if not url.startswith(("http://127.0.0.1", "data:", "blob:"))] == []

"""Tests for the Completion tab in a browser, with a fake backend."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import log

import pytest
from playwright.sync_api import Page, expect

from granite_demo.errors import EngineError
from granite_demo.types.events import Finish, FinishReason, StreamEvent, TextDelta, Timings, TokenScored, Usage
from granite_demo.types.logprobs import ScoredToken, TokenAlternative
from granite_demo.types.prompt_view import PromptPart, PromptView
from tests.browser.conftest import OpenPage
from tests.browser.frame import open_panel, open_tab
from tests.browser.test_chat import wait_idle
from tests.browser.test_comfort import faults
from tests.fakes import READY, FakeBackend

pytestmark = pytest.mark.browser

IDS = {word: number for number, word in enumerate((" sat", " down", " ran", " away", " far", "<|end_of_text|>"), 11)}
OTHERS = (" ran", "<|end_of_text|>")
VIEW = PromptView((PromptPart("user", "The cat", ((5, "The"), (6, " cat"))),), 2, 0, 8192)


def scripted(*words: str, reason: FinishReason = "length") -> list[StreamEvent]:
    """Return an answer with two alternatives for each token."""
    events: list[StreamEvent] = []
    for count, word in enumerate(words, 1):
        others = tuple(TokenAlternative(IDS[other], other, log(share), log(share)) for other, share in _shares(word))
        events.append(TokenScored(ScoredToken(IDS[word], word, log(0.5), log(0.5), 1.2, others)))
        events.append(TextDelta("" if word in OTHERS[1:] else word, count))
    ids = tuple(IDS[word] for word in words)
    return [*events, Finish(reason, Usage(2, len(words)), Timings(0.1, 0.5), None, ids)]


def _shares(word: str) -> list[tuple[str, float]]:
    return [(word, 0.5), *((other, 0.12) for other in OTHERS if other != word)]


@pytest.fixture
def write(page: Page, fake: FakeBackend) -> Page:
    """Return the page with the Completion tab open, and an answer with tokens."""
    fake.view, fake.script = VIEW, scripted(" sat", " down")
    return opened(page)


def opened(page: Page) -> Page:
    open_tab(page, "Completion")
    page.locator("#prompt textarea").wait_for()
    return page


def text(page: Page) -> str:
    return page.locator("#prompt textarea").input_value()


def output(page: Page, words: str | re.Pattern[str]) -> None:
    expect(page.locator("#output textarea")).to_have_value(words)


def begin(page: Page, words: str = "The cat") -> None:
    page.locator("#prompt textarea").fill(words)
    page.locator("#run").click()
    expect(page.locator("#completion-note")).to_contain_text("tokens ·")
    expect(page.locator("#run")).to_be_visible()


def pick(page: Page, position: int, word: str) -> None:
    page.locator("#token-view .tokens b").nth(position).click()
    page.locator(".token-popup button.choice", has_text=word).click()


def set_temperature(page: Page, value: str) -> None:
    open_panel(page, "sampling")
    page.get_by_label("number input for Temperature").fill(value)
    page.get_by_label("number input for Temperature").blur()
    page.wait_for_timeout(300)
    page.locator("#sampling .close").click()


def test_a_continuation_is_separate_until_it_is_accepted(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.allowed = [f"word{n} " for n in range(10)], 0
    opened(page)
    page.locator("#prompt textarea").fill("Once upon")
    page.locator("#run").click()
    for count in (1, 3, 9):
        fake.allowed = count
        output(page, "".join(fake.words[:count]))
        expect(page.locator("#completion-note")).not_to_contain_text("finished")
    fake.allowed = 10
    expect(page.locator("#completion-note")).to_contain_text("finished")
    assert fake.requests[-1].prompt == "Once upon"
    assert not fake.requests[-1].special_tokens
    output(page, "".join(fake.words))
    assert text(page) == "Once upon"
    page.locator("#accept").click()
    expect(page.locator("#prompt textarea")).to_have_value("Once upon" + "".join(fake.words))
    output(page, "")


def test_stop_keeps_the_text(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.05
    opened(page)
    page.locator("#prompt textarea").fill("Once upon")
    page.locator("#run").click()
    output(page, re.compile("^word word"))
    page.locator("#stop").click()
    wait_idle(fake)
    expect(page.locator("#completion-note")).to_contain_text("stopped")
    output(page, re.compile("^word word"))
    expect(page.locator("#run")).to_be_visible()


@pytest.mark.release
def test_a_running_continuation_cannot_be_accepted(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.3
    opened(page).locator("#prompt textarea").fill("Once")
    page.locator("#run").click()
    output(page, re.compile("^word"))
    expect(page.locator("#accept")).to_be_disabled()
    expect(page.locator("#discard")).to_be_disabled()
    page.locator("#stop").click()
    wait_idle(fake)
    page.locator("#run").wait_for()
    page.locator("#accept").click()
    expect(page.locator("#prompt textarea")).to_have_value(re.compile("^Onceword"))


@pytest.mark.release
def test_an_empty_text_has_a_note(page: Page, fake: FakeBackend) -> None:
    opened(page).locator("#run").click()
    expect(page.locator("#completion-note .error")).to_contain_text("The prompt is empty")
    assert fake.requests == []


@pytest.mark.release
def test_keys_continue_and_stop(page: Page, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.05
    opened(page)
    page.locator("#prompt textarea").press_sequentially("Once")
    page.keyboard.press("Control+Enter")
    output(page, re.compile("^word word"))
    page.keyboard.press("Escape")
    wait_idle(fake)
    expect(page.locator("#completion-note")).to_contain_text("stopped")
    assert text(page) == "Once"


@pytest.mark.release
def test_an_error_has_a_note_and_keeps_the_text(page: Page, fake: FakeBackend) -> None:
    fake.error = EngineError("The engine broke.")
    opened(page).locator("#prompt textarea").fill("Once")
    page.locator("#run").click()
    expect(page.locator("#completion-note .error")).to_be_visible()
    output(page, "Hello world!")
    expect(page.locator("#run")).to_be_visible()


def test_a_closed_page_stops_its_request(open_page: OpenPage, fake: FakeBackend) -> None:
    fake.words, fake.delay = ["word "] * 1000, 0.05
    page = opened(open_page())
    page.locator("#prompt textarea").fill("Once")
    page.locator("#run").click()
    output(page, re.compile("^word"))
    page.close()
    wait_idle(fake)


@pytest.mark.release
def test_a_pending_continuation_is_extended_by_token_ids(write: Page, fake: FakeBackend) -> None:
    begin(write)
    output(write, " sat down")
    fake.script = scripted(" far", " away")
    write.locator("#run").click()
    output(write, " sat down far away")
    assert fake.requests[-1].prompt_ids == (5, 6, IDS[" sat"], IDS[" down"])
    write.locator("#discard").click()
    output(write, "")
    write.locator("#run").click()
    output(write, " far away")
    assert fake.requests[-1].prompt == "The cat"


@pytest.mark.release
def test_an_edited_text_has_a_new_continuation(write: Page, fake: FakeBackend) -> None:
    begin(write)
    fake.script = scripted(" ran")
    write.locator("#prompt textarea").fill("The dog")
    write.locator("#run").click()
    output(write, " ran")
    assert fake.requests[-1].prompt == "The dog"


@pytest.mark.release
def test_undo_and_redo(write: Page) -> None:
    begin(write)
    write.locator("#accept").click()
    box = write.locator("#prompt textarea")
    expect(box).to_have_value("The cat sat down")
    box.press("End")
    box.press_sequentially("!")
    write.locator("#undo").click()
    expect(box).to_have_value("The cat sat down")
    write.locator("#undo").click()
    expect(box).to_have_value("The cat")
    write.wait_for_timeout(1500)
    write.locator("#redo").click()
    expect(box).to_have_value("The cat sat down")
    write.locator("#redo").click()
    expect(box).to_have_value("The cat sat down!")
    expect(write.locator("#redo")).to_be_disabled()


@pytest.mark.release
def test_the_tokens_of_the_text_are_counted(write: Page, fake: FakeBackend) -> None:
    write.locator("#prompt textarea").press_sequentially("The cat")
    line = write.get_by_role("button", name="2 tokens of 8,192")
    line.click()
    expect(write.locator(".token-ids li")).to_have_text(["The 5", " cat 6"])
    write.get_by_label("Let the text spell control tokens").check()
    for _ in range(40):
        if fake.inspected[-1].special_tokens:
            break
        write.wait_for_timeout(50)
    assert fake.inspected[-1].special_tokens
    begin(write, "The cat")
    assert fake.requests[-1].special_tokens


def test_an_alternative_starts_a_branch_and_the_old_branch_can_be_shown(write: Page, fake: FakeBackend) -> None:
    begin(write)
    assert fake.requests[-1].sampling.logprobs == 10
    expect(write.locator("#token-view .tokens b")).to_have_text([" sat", " down"])
    fake.script = scripted(" far", " away")
    pick(write, 1, "ran")
    output(write, " sat ran far away")
    expect(write.locator("#run")).to_be_visible()
    assert fake.requests[-1].prompt_ids == (5, 6, IDS[" sat"], IDS[" ran"])
    expect(write.locator(".branches")).to_contain_text(re.compile(r"2/2\s+at\s+down\s+down\s+50 %\s+ran\s+12 %"))
    write.locator("#token-view .tokens b").nth(1).click()
    expect(write.locator(".token-popup tr.taken")).to_contain_text("ran")
    write.keyboard.press("Escape")
    write.get_by_role("button", name="Previous branch").click()
    output(write, " sat down")
    expect(write.locator(".branches .count")).to_have_text("1/2")
    write.get_by_role("button", name="Next branch").click()
    output(write, " sat ran far away")
    assert len(fake.requests) == 2, "navigation sends no request"
    write.locator("#accept").click()
    expect(write.locator("#prompt textarea")).to_have_value("The cat sat ran far away")
    expect(write.locator(".branches")).to_have_count(0)
    expect(write.locator("#token-view .tokens")).to_have_count(0)


@pytest.mark.release
def test_an_end_token_ends_the_text(write: Page, fake: FakeBackend) -> None:
    fake.script = scripted(" sat", "<|end_of_text|>", reason="stop")
    begin(write)
    expect(write.locator("#token-view .tokens b")).to_have_count(2)
    output(write, " sat")
    pick(write, 0, "end_of_text")
    expect(write.locator(".branches .count")).to_have_text("2/2")
    output(write, "")
    assert len(fake.requests) == 1
    write.get_by_role("button", name="Previous branch").click()
    write.locator("#accept").click()
    expect(write.locator("#prompt textarea")).to_have_value("The cat sat")


@pytest.mark.release
def test_the_tint_can_be_changed(write: Page) -> None:
    begin(write)
    expect(write.locator("#token-view .legend")).to_contain_text("Probability")
    write.locator("#tint").get_by_label("Entropy").check()
    expect(write.locator("#token-view .legend")).to_contain_text("Entropy")


@pytest.mark.release
def test_without_tokens_nothing_is_scored(write: Page, fake: FakeBackend) -> None:
    fake.script = None
    write.get_by_label("Show tokens").uncheck()
    begin(write)
    assert fake.requests[-1].sampling.logprobs is None
    expect(write.locator("#token-view .tokens")).to_have_count(0)
    write.locator("#run").click()
    output(write, "Hello world!Hello world!")
    assert fake.requests[-1].prompt == "The catHello world!"


@pytest.mark.release
def test_samples_are_side_by_side_and_one_is_accepted(write: Page, fake: FakeBackend) -> None:
    write.get_by_label("Show tokens").wait_for()
    set_temperature(write, "0.8")
    write.locator("#sample-count").get_by_label("3").check()
    write.locator("#prompt textarea").fill("The cat")
    write.locator("#run").click()
    expect(write.locator("[id^=use-]:visible")).to_have_count(3)
    seeds = [request.sampling.seed for request in fake.requests]
    assert None not in seeds
    assert len(set(seeds)) == 3
    expect(write.get_by_label(f"Sample · seed {seeds[1]}")).to_have_value(" sat down")
    output(write, "")
    write.locator("#use-2").click()
    output(write, " sat down")
    expect(write.locator("[id^=use-]:visible")).to_have_count(0)
    expect(write.locator("#token-view .tokens b")).to_have_count(2)
    expect(write.locator(".branches .count")).to_have_text("2/3")


@pytest.mark.release
def test_samples_need_a_temperature_above_0(write: Page, fake: FakeBackend) -> None:
    write.locator("#sample-count").get_by_label("2").check()
    write.locator("#prompt textarea").fill("The cat")
    write.locator("#run").click()
    expect(write.locator("#completion-note .error")).to_contain_text("At temperature 0 all samples are the same")
    assert fake.requests == []


release = partial(pytest.param, marks=pytest.mark.release)


@pytest.mark.parametrize(
    ("kind", "box", "written", "check"),
    [
        release("JSON object", "", "", lambda constraint: constraint.kind == "json_object"),
        ("JSON schema", "schema", '{"type": "integer"}', lambda constraint: constraint.schema == '{"type":"integer"}'),
        release("Regular expression", "pattern", "[ab]+", lambda constraint: constraint.pattern == "[ab]+"),
        release("Choice list", "choices", "one\n\ntwo", lambda constraint: constraint.choices == ("one", "two")),
    ],
)
def test_the_output_is_constrained(
    write: Page, fake: FakeBackend, kind: str, box: str, written: str, check: Callable[[object], bool]
) -> None:
    write.get_by_role("button", name="Constrained output").click()
    write.locator("#constraint-kind").get_by_label(kind).check()
    if box:
        write.locator(f"#constraint-{box}").get_by_role("textbox").fill(written)
    begin(write)
    assert check(fake.requests[-1].sampling.constraint)
    expect(write.locator("#completion-note")).to_contain_text("the output was cut, so it may not be complete")
    fake.script = scripted(" sat", reason="stop")
    write.locator("#run").click()
    expect(write.locator("#completion-note")).to_contain_text("finished (stop)")
    expect(write.locator("#completion-note")).not_to_contain_text("cut")


@pytest.mark.release
def test_a_malformed_schema_has_a_note_and_the_text_is_kept(write: Page, fake: FakeBackend) -> None:
    begin(write)
    write.get_by_role("button", name="Constrained output").click()
    write.locator("#constraint-kind").get_by_label("JSON schema").check()
    write.locator("#constraint-schema textarea").fill("{")
    write.locator("#run").click()
    expect(write.locator("#completion-note .error")).to_contain_text("The schema is not JSON")
    output(write, " sat down")
    expect(write.locator("#constraint-schema textarea")).to_have_value("{")
    assert len(fake.requests) == 1


@pytest.mark.release
def test_missing_features_have_a_note(open_page: OpenPage, fake: FakeBackend) -> None:
    unable = (
        ("constraints", "This server knows no constraints."),
        ("log probabilities", "This server returns no probabilities."),
        ("special tokens", "This server takes text only."),
        ("token ids", "This server returns no ids."),
    )
    fake.state = replace(READY, unable=unable)  # type: ignore[arg-type]
    page = opened(open_page())
    expect(page.get_by_label("Show tokens")).to_be_disabled()
    expect(page.get_by_label("Show tokens")).not_to_be_checked()
    expect(page.get_by_label("Let the text spell control tokens")).to_be_disabled()
    page.get_by_role("button", name="Constrained output").click()
    expect(page.get_by_label("JSON object")).to_be_disabled()
    page.get_by_role("button", name="Tokens", exact=False).last.click()
    for _, why in unable:
        expect(page.get_by_text(why)).to_be_visible()
    begin(page)
    assert fake.requests[-1].sampling.logprobs is None


@pytest.mark.parametrize(
    ("theme", "width"), [pytest.param("light", 1280, marks=pytest.mark.release), ("dark", 390)], ids=["light", "dark"]
)
def test_nothing_overflows_and_axe_finds_no_violation(
    open_page: OpenPage, fake: FakeBackend, theme: str, width: int
) -> None:
    fake.view, fake.script = VIEW, scripted(" sat", " down", " far")
    page = open_page(f"?__theme={theme}", viewport={"width": width, "height": 900})
    opened(page)
    begin(page)
    pick(page, 1, "ran")
    expect(page.locator(".branches .count")).to_have_text("2/2")
    page.get_by_role("button", name="Constrained output").click()
    page.locator("#constraint-kind").get_by_label("JSON schema").check()
    expect(page.locator("#constraint-schema")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert faults(page) == []
    set_temperature(page, "1")
    page.locator("#sample-count").get_by_label("4").check()
    page.locator("#run").click()
    expect(page.locator("[id^=use-]:visible")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert faults(page) == []

"""The context meter: its numbers, its words, and what it measures."""

import asyncio
import re

import gradio as gr
import pytest

from granite_demo.chat import conversation as conversations
from granite_demo.errors import ContextOverflowError, EngineError
from granite_demo.types.messages import Message
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import GenerationRequest
from granite_demo.ui.chat import context_meter
from granite_demo.ui.chat.context_meter import measure, measure_now, meter_html, reserve
from granite_demo.ui.settings import DEFAULTS
from tests.fakes import FakeBackend

EMPTY = conversations.start()


def view(tokens: int, dropped: int = 0, length: int = 32_768) -> PromptView:
    return PromptView((), tokens, dropped, length)


def words(html: str) -> str:
    inside = re.search('<div class="meter-words">(.*)', html)
    return re.sub("<[^>]*>", "", inside[1].replace("<strong", " <strong")) if inside else ""


def widths(html: str) -> dict[str, float]:
    return {kind: float(share) for kind, share in re.findall(r'<i class="(\w+)" style="width:([\d.]+)%">', html)}


def test_three_parts_in_words_and_widths() -> None:
    html = meter_html(view(1234), 512)
    assert words(html) == "1,234 used · 512 reserved for the answer · 31,022 free of 32,768"
    assert widths(html) == pytest.approx({"used": 3.77, "reserved": 1.56})
    assert 'class="meter"' in html
    assert "4 % of 32K" in html


def test_without_a_view_there_is_nothing() -> None:
    assert meter_html(None, 512) == ""


@pytest.mark.parametrize("tokens", [1000, 1200])
def test_what_does_not_fit_is_red_and_refused(tokens: int) -> None:
    html = meter_html(view(tokens, length=1000), 0)
    assert 'class="meter over"' in html
    assert words(html).startswith(f"{tokens:,} used of 1,000 This does not fit the context and will be refused.")
    assert widths(html) == {"used": 100}


def test_one_token_of_room_is_enough() -> None:
    assert 'class="meter"' in meter_html(view(999, length=1000), 1)


@pytest.mark.parametrize(("dropped", "expected"), [(1, "the oldest message will"), (1234, "the oldest 1,234 messages")])
def test_messages_that_will_be_dropped_are_shown(dropped: int, expected: str) -> None:
    html = meter_html(view(900, dropped, 1000), 100)
    assert 'class="meter over"' in html
    assert expected in words(html)


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "expected"),
    [(100, 512, 512), (600, 512, 400), (600, None, 400), (1000, 512, 0), (1200, None, 0)],
)
def test_the_answer_gets_its_limit_or_the_rest(tokens: int, max_tokens: int | None, expected: int) -> None:
    assert reserve(view(tokens, length=1000), max_tokens) == expected


async def test_the_next_request_is_measured(backend: FakeBackend) -> None:
    backend.view = view(1234)
    conversation = conversations.start(system="Be kind.", overflow="drop")
    html = await measure(backend, conversation, "Hi", DEFAULTS)
    assert words(html).startswith("1,234 used · 512 reserved")
    request = backend.inspected[0]
    assert request.messages == (Message("system", "Be kind."), Message("user", "Hi"))
    assert request.overflow == "drop"


async def test_an_overflow_shows_its_numbers(backend: FakeBackend) -> None:
    backend.view_error = ContextOverflowError(1200, 1000)
    assert words(await measure(backend, EMPTY, "Hi", DEFAULTS)).startswith("1,200 used of 1,000")


@pytest.mark.parametrize("text", ["", "  "])
async def test_before_anything_is_written_it_shows_what_the_conversation_takes(backend: FakeBackend, text: str) -> None:
    backend.view = view(5)
    assert words(await measure(backend, EMPTY, text, DEFAULTS)).startswith("5 used")


async def test_nothing_is_shown_where_nothing_can_be_known(backend: FakeBackend) -> None:
    assert await measure(backend, EMPTY, "Hi", DEFAULTS) == ""
    backend.view = view(5)
    assert await measure(backend, EMPTY, "Hi", (9.0, *DEFAULTS[1:])) == ""
    backend.view_error = EngineError("broken")
    assert await measure(backend, EMPTY, "Hi", DEFAULTS) == ""


async def test_a_backend_that_does_not_reply_holds_nothing_back(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(request: GenerationRequest, parts: bool = False) -> None:
        await asyncio.sleep(60)

    backend.view = view(5)
    assert words(await measure_now(backend, EMPTY, DEFAULTS)).startswith("5 used")
    monkeypatch.setattr(backend, "inspect", never)
    monkeypatch.setattr(context_meter, "PATIENCE_SECONDS", 0.05)
    assert await measure_now(backend, EMPTY, DEFAULTS) == gr.skip()

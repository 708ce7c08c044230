"""One panel: what Start, Stop and a closed page do, and what the last update holds."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from granite_demo.errors import InvalidRequestError
from granite_demo.ui.gradio_patches.events import DAMAGED
from granite_demo.ui.streaming import STILL_WRITING, StreamingPanel, Update, Visit, run_or_stop
from tests.fakes import FakeBackend


class Panel:
    """A panel on a small page. ``stops`` are the visits whose answers were stopped."""

    def __init__(self, error: Exception | None = None) -> None:
        self.backend = FakeBackend()
        self.visits: list[Visit] = []
        with gr.Blocks(analytics_enabled=False) as page:
            self.run, self.stop, self.text, self.count = gr.Button(), gr.Button(), gr.Textbox(), gr.Number()
            self.note = gr.HTML()
            panel = StreamingPanel(self.backend, [self.run, self.stop], run_or_stop, self.note, [self.text, self.count])

            async def stream(visit: Visit, text: str) -> AsyncGenerator[Update]:
                self.visits.append(visit)
                if error:
                    raise error
                yield {**visit.busy, self.text: text, self.count: 1}
                yield {}
                yield {self.count: 2}

            panel.start("ask", [self.run.click], stream, [self.text])
            panel.stop(self.stop.click)
            panel.stop_on_leave(page)
        self.components = len(page.blocks)
        self.names = {self.run: "run", self.stop: "stop", self.text: "text", self.count: "count", self.note: "note"}
        self.handlers: dict[str, Any] = {str(fn.api_name): fn.fn for fn in page.fns.values()}

    async def ask(self, visitor: str = "a") -> AsyncGenerator[dict[str, Any]]:
        """The updates by name; a button's value is whether it is visible."""
        async with aclosing(self.handlers["ask"](request(visitor), gr.EventData(None, None), "Hi")) as updates:
            async for update in updates:
                yield self.named(update)

    def named(self, update: Any) -> dict[str, Any]:
        if update == gr.skip():
            return {}
        return {
            self.names[part]: value.visible if isinstance(value, gr.Button) else value for part, value in update.items()
        }


def request(visitor: str) -> Any:
    return SimpleNamespace(client=SimpleNamespace(host="192.0.2.1"), session_hash=visitor)


IDLE = {"run": True, "stop": False}
BUSY = {"run": False, "stop": True}


def test_the_events_place_no_component() -> None:
    assert Panel().components == 6  # the page and those of the panel


async def test_the_last_update_has_every_value_once_more() -> None:
    panel = Panel()
    first, pause, second, last = [update async for update in panel.ask()]
    assert first == {**BUSY, "text": "Hi", "count": 1}
    assert (pause, second) == ({}, {"count": 2})
    assert last == {**IDLE, "text": "Hi", "count": 2}
    assert (panel.visits[0].address, panel.backend.visitors) == ("192.0.2.1", ["192.0.2.1"])


async def test_one_answer_at_a_time_for_each_visitor() -> None:
    panel = Panel()
    async with aclosing(panel.ask()) as updates:
        await anext(updates)
        [refused] = [update async for update in panel.ask()]
        assert STILL_WRITING in refused.pop("note")
        assert refused == {}
        assert len([update async for update in panel.ask("b")]) == 4
    assert len([update async for update in panel.ask()]) == 4


async def test_stop_reaches_the_stream_and_resets_the_buttons_of_none() -> None:
    panel = Panel()
    stop = panel.handlers["stop"]
    async with aclosing(panel.ask()) as updates:
        await anext(updates)
        assert panel.named(await stop(request("b"))) == IDLE
        assert not panel.visits[0].stop.is_set()
        assert panel.named(await stop(request("a"))) == {}
        assert panel.visits[0].stop.is_set()
    assert panel.named(await stop(request("a"))) == IDLE


async def test_a_closed_page_stops_its_answer() -> None:
    panel = Panel()
    async with aclosing(panel.ask()) as updates:
        await anext(updates)
        panel.handlers["leave"](request("a"))
        assert panel.visits[0].stop.is_set()


@pytest.mark.parametrize(
    ("error", "words"), [(InvalidRequestError("Write a text."), "Write a text."), (TypeError("secret"), DAMAGED)]
)
async def test_what_cannot_be_started_is_a_note(error: Exception, words: str) -> None:
    [last] = [update async for update in Panel(error).ask()]
    assert words in last.pop("note")
    assert last == IDLE

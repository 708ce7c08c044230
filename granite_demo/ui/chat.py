"""The Chat tab: the conversation lives in the visitor's browser, and each request carries all of it."""

import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.backends import Backend
from granite_demo.types import GenerationRequest
from granite_demo.ui import render
from granite_demo.ui.answering import Visitors, session, snapshots
from granite_demo.ui.events import DIRECT, STREAMING
from granite_demo.ui.render import ChatHistory
from granite_demo.ui.settings import Preferences, to_sampling

STORAGE_KEY = "granite-demo-chat"

LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
"""A single dollar sign is left out: it is a price more often than a formula."""

SEND, STOP = "Send", "Stop"

EXAMPLES = [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain what a hash table is, with a small Python example.",
    "Give me three tips for better sleep.",
]


@dataclass(frozen=True, slots=True)
class ChatTab:
    """The tab's components."""

    chatbot: gr.Chatbot
    textbox: gr.Textbox
    system_prompt: gr.Textbox
    saved: gr.BrowserState


def layout() -> ChatTab:
    """Place the components. Call inside the tab."""
    chatbot = gr.Chatbot(
        show_label=False,
        elem_id="chatbot",
        height="100%",
        layout="bubble",
        editable="user",
        buttons=["copy", "copy_all"],
        latex_delimiters=LATEX,
        allow_tags=False,
        placeholder="### Ask something\nThe answer streams in below. Stop it at any time; nothing you wrote is lost.",
        examples=[{"text": text} for text in EXAMPLES],
    )
    textbox = gr.Textbox(
        elem_id="message",
        show_label=False,
        placeholder="Message (Enter sends, Shift+Enter starts a new line)",
        lines=1,
        max_lines=12,
        autofocus=True,
        submit_btn=SEND,
        stop_btn=False,
    )
    with gr.Accordion("System prompt", open=False, elem_id="system"):
        system_prompt = gr.Textbox(
            show_label=False,
            elem_id="system-prompt",
            lines=2,
            max_lines=8,
            placeholder="Who the model should be and how it should answer. Empty: the model's own default.",
        )
    saved = gr.BrowserState([], storage_key=STORAGE_KEY, secret=STORAGE_KEY)
    return ChatTab(chatbot, textbox, system_prompt, saved)


def wire(tab: ChatTab, preferences: Preferences, backend: Backend, demo: gr.Blocks) -> None:
    """Connect the events. Call after all tabs are laid out.

    Each way to ask first puts the question into the conversation, then the one ``respond`` answers it.
    """
    screen = [tab.chatbot, tab.textbox]
    visitors = Visitors()

    async def respond(
        visit: gr.Request, history: ChatHistory, system_prompt: str | None, *values: Any
    ) -> AsyncGenerator[Any]:
        with visitors.answering(session(visit)) as stop:
            async with aclosing(answer(backend, history, system_prompt, values, stop)) as updates:
                async for update in updates:
                    yield update

    async def stop(visit: gr.Request) -> Any:
        # The stream itself tells that it was stopped; without one, as after a restart, the box is set free here.
        return gr.skip() if visitors.stop(session(visit)) else _box(busy=False)

    def leave(visit: gr.Request) -> None:
        visitors.stop(session(visit))

    asked = [
        tab.textbox.submit(ask, [tab.textbox, tab.chatbot], screen, **DIRECT),
        tab.chatbot.retry(retry, [tab.chatbot], screen, **DIRECT),
        tab.chatbot.edit(edit, [tab.chatbot], screen, **DIRECT),
        tab.chatbot.example_select(ask_example, [tab.chatbot], screen, **DIRECT),
    ]
    inputs = [tab.chatbot, tab.system_prompt, *preferences.components]
    answered = [event.then(respond, inputs, screen, **STREAMING) for event in asked]
    tab.textbox.stop(stop, None, [tab.textbox], **DIRECT)
    demo.unload(leave)
    undone = tab.chatbot.undo(undo, [tab.chatbot], screen, **DIRECT)
    # Saved when asked, too: a reload in the middle of an answer keeps the question.
    for event in (*asked, *answered, undone):
        event.then(_keep, [tab.chatbot], [tab.saved], **DIRECT)
    tab.chatbot.clear(list, None, [tab.saved], **DIRECT)
    demo.load(_keep, [tab.saved], [tab.chatbot], **DIRECT)


def ask(text: str | None, history: ChatHistory) -> tuple[Any, Any]:
    """Put what was written into the conversation."""
    if not text or not text.strip():
        return gr.skip(), gr.skip()
    return [*history, render.user_turn(text)], gr.Textbox(value="")


def ask_example(data: gr.SelectData, history: ChatHistory) -> tuple[Any, Any]:
    """Put a chosen example into the conversation."""
    return [*history, render.user_turn(str(data.value["text"]))], gr.skip()


def retry(data: gr.RetryData, history: ChatHistory) -> tuple[Any, Any]:
    """Drop the answer to be made again."""
    return history[: _index(data) + 1], gr.skip()


def edit(data: gr.EditData, history: ChatHistory) -> tuple[Any, Any]:
    """Replace a question and drop what followed it."""
    return [*history[: _index(data)], render.user_turn(str(data.value))], gr.skip()


def undo(data: gr.UndoData, history: ChatHistory) -> tuple[Any, Any]:
    """Take back the last question and put it into the box again."""
    index = _index(data)
    return history[:index], gr.Textbox(value=render.turn_text(history[index]))


async def answer(
    backend: Backend,
    history: ChatHistory,
    system_prompt: str | None,
    values: tuple[Any, ...],
    stop: threading.Event,
) -> AsyncGenerator[tuple[Any, Any]]:
    """Yield (history, message box) while the answer to the last turn grows."""
    if not history or history[-1].get("role") != "user":
        yield gr.skip(), gr.skip()
        return

    def build() -> GenerationRequest:
        return GenerationRequest(render.to_messages(history, system_prompt), sampling=to_sampling(*values))

    yield [*history, render.assistant_turn("", "Waiting for the first token")], _box(busy=True)
    turn = history[-1]
    async with aclosing(snapshots(backend, build, stop)) as updates:
        async for answer, note, kind, _ in updates:
            turn = render.assistant_turn(answer.text, note, kind)
            yield [*history, turn], gr.skip()
    yield [*history, turn], _box(busy=False)


def _box(*, busy: bool) -> Any:
    return gr.Textbox(submit_btn=False if busy else SEND, stop_btn=STOP if busy else False)


def _index(data: gr.RetryData | gr.EditData | gr.UndoData) -> int:
    return data.index if isinstance(data.index, int) else data.index[0]


def _keep(value: Any) -> Any:
    return value

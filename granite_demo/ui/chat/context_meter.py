"""The context meter: how much of the context the next request takes, before it is sent."""

import asyncio
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation
from granite_demo.chat.request import build_request
from granite_demo.errors import ContextOverflowError, GraniteDemoError
from granite_demo.types.prompt_view import PromptView
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT, follow
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import own

METER_SECONDS = 0.5
"""Each measurement starts with this pause, and Gradio runs one at a time: two a second for each visitor."""

OVERFLOW_TITLE = "When the chat gets too long"
OVERFLOW_CHOICES = [("Stop and tell me", "refuse"), ("Leave out the oldest messages", "drop")]

CHOOSE_JS = "(value, overflow) => [{ ...value, overflow }]"
"""In the browser alone: the server sends turns back, and nothing else of a conversation."""

TYPED_JS = """(held, text, ...settings) => {
  const page = window.graniteDemo, inRange = window.graniteSettings;
  return [page ? page.typed(held, text) : held, text, ...(inRange ? inRange(settings) : settings)];
}"""
"""A question that is sent empties the box. The server measures that case itself, so it gets no conversation for it."""
CHANGED_JS = """(held, text, ...settings) => {
  const page = window.graniteDemo, inRange = window.graniteSettings;
  return [page ? page.shownPart(held) : held, text, ...(inRange ? inRange(settings) : settings)];
}"""
"""A setting that is being typed can be out of its range, which Gradio refuses."""

PATIENCE_SECONDS = 1.0
"""Another server that does not reply must not hold back the end of an answer."""

NOTHING = "?"
"""Stands for the next question while the box is empty: about one token."""


@dataclass(frozen=True, slots=True)
class Meter:
    """The panel's components."""

    bar: gr.HTML
    overflow: gr.Radio


def reserve(view: PromptView, max_tokens: int | None) -> int:
    """The tokens that the answer may take: ``max_tokens``, or all that is left."""
    room = max(view.context_length - view.tokens, 0)
    return min(max_tokens or room, room)


def meter_html(view: PromptView | None, reserved: int) -> str:
    """A thin bar of the used and reserved tokens, which opens the same in words; empty without a view."""
    if view is None:
        return ""
    whole = max(view.context_length, 1)
    free = max(view.context_length - view.tokens - reserved, 0)
    over = view.tokens >= view.context_length
    words = (
        f"{view.tokens:,} used · {reserved:,} reserved for the answer · {free:,} free of {view.context_length:,}"
        if not over
        else f"{view.tokens:,} used of {view.context_length:,}"
    )
    shares = (("used", min(view.tokens, whole)), ("reserved", reserved))
    bar = "".join(f'<i class="{kind}" style="width:{100 * size / whole:.2f}%"></i>' for kind, size in shares if size)
    warning = _warning(view, over)
    percent = f"{min(100 * view.tokens / whole, 100):.0f} % of {_short(view.context_length)}"
    return (
        f'<div class="meter{" over" if warning else ""}">'
        f'<button type="button" class="pill quiet" popovertarget="meter-detail" title="Context in use">'
        f'<span class="meter-line" aria-hidden="true">{bar}</span><span>{percent}</span></button>'
        f'<div id="meter-detail" class="menu" popover><b>Context</b><div class="meter-words">{html.escape(words)}</div>'
        f"</div>{warning}</div>"
    )


def _short(tokens: int) -> str:
    """A context length as people say it: 128K for 131,072."""
    return f"{tokens / 1024:.0f}K" if tokens >= 10_000 and tokens % 1024 == 0 else f"{tokens:,}"


def _warning(view: PromptView, over: bool) -> str:
    if over:
        text = "This does not fit the context and will be refused. Shorten it, or start a new conversation."
    elif view.dropped:
        oldest = "oldest message" if view.dropped == 1 else f"oldest {view.dropped:,} messages"
        text = f"To fit the context, the {oldest} will be left out."
    else:
        return ""
    return f'<strong class="meter-warning">{text}</strong>'


async def measure(backend: Backend, conversation: Conversation, text: str, settings: Sequence[Any]) -> str:
    """The meter for ``conversation`` with ``text`` as its next question; empty where sending will say what is wrong.

    ``settings`` are the values of the Settings tab.
    """
    try:
        sampling = to_sampling(*settings)
        request = await off_loop(build_request, conversation, sampling, text if text.strip() else NOTHING)
        view = await backend.inspect(request)
    except ContextOverflowError as error:
        view = PromptView((), error.prompt_tokens, 0, error.context_length)
    except GraniteDemoError:
        return ""
    return meter_html(view, reserve(view, sampling.max_tokens) if view else 0)


async def measure_now(backend: Backend, conversation: Conversation, settings: Sequence[Any]) -> Any:
    """The meter for ``conversation`` with nothing typed; no change where the backend takes longer than a second."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await measure(backend, conversation, "", settings)
    except TimeoutError:
        return gr.skip()


def layout(bar: gr.HTML) -> Meter:
    """Place the choice, in a sheet that the composer's menu opens; ``bar`` is inside the composer."""
    with gr.Column(elem_id="overflow-sheet", elem_classes="sheet"):
        overflow = gr.Radio(OVERFLOW_CHOICES, value="refuse", label=OVERFLOW_TITLE, elem_id="overflow")
    return Meter(bar, overflow)


def wire(
    panel: Meter,
    backend: Backend,
    holder: gr.JSON,
    message: gr.Textbox,
    components: Sequence[Any],
    changes: Sequence[Any],
) -> None:
    """Connect the events. ``components`` are those of ``Preferences``.

    After ``changes``, and while the visitor types in ``message``, the browser sends the conversation to be measured.
    Handlers that have the conversation call ``measure`` themselves.
    """

    async def update(visit: gr.Request, value: Any, text: str | None, *settings: Any) -> Any:
        if value is None:
            return gr.skip()
        await asyncio.sleep(METER_SECONDS)
        try:
            conversation = await off_loop(conversations.load, value)
        except GraniteDemoError:
            return ""
        return await measure(own(backend, visit), conversation, text or "", settings)

    inputs, changed = [holder, message, *components], [*(part.change for part in components), *changes]
    follow([message.change], update, inputs, [panel.bar], js=TYPED_JS)
    follow(changed, update, inputs, [panel.bar], js=CHANGED_JS)
    panel.overflow.input(None, [holder, panel.overflow], [holder], js=CHOOSE_JS, **DIRECT)

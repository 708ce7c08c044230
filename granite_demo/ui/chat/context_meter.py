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
from granite_demo.ui.conversation_list import SHOWN_JS
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT, follow
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import own

METER_SECONDS = 0.5
"""Each measurement starts with this pause, and Gradio runs one at a time: two a second for each visitor."""

OVERFLOW_CHOICES = [("Refuse what does not fit", "refuse"), ("Leave out the oldest messages to fit", "drop")]

CHOOSE_JS = "(value, overflow) => [{ ...value, overflow }]"
"""In the browser alone: the server sends turns back, and nothing else of a conversation."""

TYPED_JS = """(held, text, ...rest) => {
  const page = window.graniteDemo;
  return [page ? page.typed(held, text) : held, text, ...rest];
}"""
"""A question that is sent empties the box. The server measures that case itself, so it gets no conversation for it."""

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
    """A bar with the used, reserved and free tokens, and the same in words; empty without a view."""
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
    shares = (("used", min(view.tokens, whole)), ("reserved", reserved), ("free", free))
    bar = "".join(f'<i class="{kind}" style="width:{100 * size / whole:.2f}%"></i>' for kind, size in shares if size)
    return (
        f'<div class="meter{" over" if over or view.dropped else ""}"><div class="meter-bar" aria-hidden="true">'
        f'{bar}</div><div class="meter-words">{html.escape(words)}{_warning(view, over)}</div></div>'
    )


def _warning(view: PromptView, over: bool) -> str:
    if over:
        text = "This does not fit the context and will be refused. Shorten it, or start a new conversation."
    elif view.dropped:
        oldest = "oldest message" if view.dropped == 1 else f"oldest {view.dropped:,} messages"
        text = f"To fit the context, the {oldest} will be left out."
    else:
        return ""
    return f' <strong class="meter-warning">{text}</strong>'


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


def layout() -> Meter:
    """Place the components, near the message box."""
    with gr.Column(elem_id="meter", min_width=0):
        bar = gr.HTML(elem_id="meter-bar")
        overflow = gr.Radio(
            OVERFLOW_CHOICES,
            value="refuse",
            label="When the conversation does not fit the context",
            elem_id="overflow",
            container=False,
        )
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
    follow(changed, update, inputs, [panel.bar], js=SHOWN_JS)
    panel.overflow.input(None, [holder, panel.overflow], [holder], js=CHOOSE_JS, **DIRECT)

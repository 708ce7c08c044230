"""The context meter: how much of the context the next request takes, before it is sent."""

import asyncio
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.chat import conversation
from granite_demo.errors import ContextOverflowError, GraniteDemoError, InvalidRequestError
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.ui.chat.respond import build_request
from granite_demo.ui.conversation_list import SHOWN_JS
from granite_demo.ui.gradio_patches.events import DIRECT, follow
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import own

PAUSE_SECONDS = 0.5
"""Each measurement begins with this rest, and Gradio runs one at a time: two a second for each visitor."""

CHOICES = [("Refuse what does not fit", "refuse"), ("Leave out the oldest messages to fit", "drop")]

CHOOSE_JS = "(value, overflow) => [{ ...value, overflow }]"
CHOSEN_JS = '(value) => [value?.overflow ?? "refuse"]'
"""In the browser alone: a round trip would undo what was said meanwhile."""

NOTHING = "?"
"""Stands for the next question while nothing is written: about a token."""


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
    """A bar of what is used, reserved for the answer and free, with the same in words; empty without a view."""
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


async def measure(backend: Backend, value: Any, text: str | None, sampling: SamplingParams) -> str:
    """The meter for the conversation ``value`` with ``text`` as its next question."""
    try:
        question = text if text and text.strip() else NOTHING
        request = await asyncio.to_thread(lambda: build_request(conversation.load(value), sampling, question))
        view = await backend.inspect(request)
    except ContextOverflowError as error:
        view = PromptView((), error.prompt_tokens, 0, error.context_length)
    except GraniteDemoError:
        # Sending will say what is wrong.
        return ""
    return meter_html(view, reserve(view, sampling.max_tokens) if view else 0)


def layout() -> Meter:
    """Place the components, near the message box."""
    with gr.Column(elem_id="meter", min_width=0):
        bar = gr.HTML(elem_id="meter-bar")
        overflow = gr.Radio(
            CHOICES,
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
    ready: Sequence[Any] = (),
) -> None:
    """Connect the events. ``components`` are those of ``Preferences``; after ``ready`` another model may answer."""

    async def update(visit: gr.Request, value: Any, text: str | None, *values: Any) -> Any:
        await asyncio.sleep(PAUSE_SECONDS)
        try:
            return await measure(own(backend, visit), value, text, to_sampling(*values))
        except InvalidRequestError:  # a setting out of range
            return ""

    changes = [holder.change, message.change, *(part.change for part in components), *ready]
    follow(changes, update, [holder, message, *components], [panel.bar], js=SHOWN_JS)
    panel.overflow.input(None, [holder, panel.overflow], [holder], js=CHOOSE_JS, **DIRECT)
    holder.change(None, [holder], [panel.overflow], js=CHOSEN_JS, **DIRECT)

"""The page: a head with the model's state, and the tabs Chat, Completion and Settings."""

from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.backend import Backend, ModelControl
from granite_demo.ui import conversation_list, languages, models, settings
from granite_demo.ui.chat import handlers, running_answers, side_by_side
from granite_demo.ui.chat import tab as chat_tab
from granite_demo.ui.chat.running_answers import RunningAnswers
from granite_demo.ui.completion import tab as completion_tab
from granite_demo.ui.gradio_patches.blocks import Page, set_plot_backend, unmounted, widen_queue
from granite_demo.ui.gradio_patches.events import BUSY_SECONDS, DIRECT, MAX_STREAMS
from granite_demo.ui.html import status_html

MAX_QUEUED_EVENTS = MAX_STREAMS
"""Events that can wait in Gradio's queue; more are rejected. They wait there briefly: long waits are the engine's."""
SHORT_EVENTS = 32
"""Places in that queue for events other than answers."""
SETTLED_SECONDS = 5.0
"""Between two reads of the model's state, while it does not change."""

HEAD_START = (
    '<h1 class="unseen">granite-demo</h1><button type="button" class="icon" data-side title="Conversations"></button>'
)
HEAD_END = "".join(
    f'<button type="button" class="icon" data-panel="{panel}" aria-pressed="false" title="{title}"></button>'
    for panel, title in (("compare", "Side by side"), ("xray", "Prompt X-ray"), ("sampling", "Sampling"))
)
"""The buttons of the panels beside the conversation; ``assets/frame.js`` opens them."""


def build_ui(
    backend: Backend, control: ModelControl, access: Access, grace: float = running_answers.UNREAD_GRACE
) -> gr.Blocks:
    """The page over ``backend``, ready to be mounted. ``access``: who can change the model with ``control``.

    An answer in the chat that no page has read for ``grace`` seconds ends.
    """
    set_plot_backend()
    with unmounted():
        return _page(backend, control, access, RunningAnswers(grace))


def _page(backend: Backend, control: ModelControl, access: Access, answers: RunningAnswers) -> gr.Blocks:
    demo = Page(title="granite-demo", analytics_enabled=False, fill_height=True, delete_cache=(3600, 3600))
    with demo, gr.Row(elem_id="app"):
        languages.layout()
        conversations = conversation_list.layout(answers.functions())
        with gr.Row(elem_id="head"):
            gr.HTML(HEAD_START, elem_id="head-start")
            status = gr.HTML(elem_id="model-status")
            again = gr.Button("Try again", visible=False, size="sm", elem_id="again", scale=0)
            gr.HTML(HEAD_END, elem_id="head-end")
        picker = models.picker_layout(control, access)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat", scale=1):
                chat_parts = chat_tab.layout(backend, control, access)
            with gr.Tab("Completion", id="completion"):
                completion_parts = completion_tab.layout(backend, access)
            with gr.Tab("Settings", id="settings"), gr.Column(elem_classes="page"):
                panel = models.layout(picker)
        preferences = settings.layout()
        timer = gr.Timer(BUSY_SECONDS)
        answering = gr.Textbox(visible=False)

        def refresh() -> tuple[Any, ...]:
            state = backend.status()
            settled = state.stage in ("ready", "idle")
            again_button = gr.Button(visible=state.stage == "failed")
            # It never stops: another visitor may load another model.
            pace = gr.Timer(SETTLED_SECONDS if settled else BUSY_SECONDS)
            which = f"{state.model} {state.stage}"
            compared = side_by_side.shown_values(control, state)
            return status_html(state), again_button, pace, which, *compared, *models.shown_values(control, state)

        shown = [status, again, timer, answering, *chat_parts.comparison.shown, *panel.shown]
        demo.load(refresh, None, shown, **DIRECT)
        timer.tick(refresh, None, shown, **DIRECT)
        again.click(lambda: control.start(), None, None, **DIRECT).then(refresh, None, shown, **DIRECT)
        conversation_list.wire(conversations, chat_parts.holder)
        ready = [answering.change]
        handlers.wire(chat_parts, conversations, preferences, backend, control, access, demo, ready, answers)
        completion_tab.wire(completion_parts, preferences, backend, access, demo, [answering.change])
        settings.wire(preferences, backend, demo, [answering.change])
        models.wire(panel, control, access, timer)
    demo.queue(max_size=MAX_QUEUED_EVENTS, api_open=False, default_concurrency_limit=MAX_STREAMS)
    widen_queue(demo, MAX_STREAMS + SHORT_EVENTS)
    return demo

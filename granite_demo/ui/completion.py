"""The Completion tab: raw text in, its continuation streamed beside it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.backends import Backend
from granite_demo.types import GenerationRequest
from granite_demo.ui.answering import snapshots
from granite_demo.ui.events import DIRECT, STREAMING
from granite_demo.ui.render import STOPPED, note_html
from granite_demo.ui.settings import Preferences, to_sampling

EXAMPLES = [
    "Once upon a time, on a small island in the north,",
    "Three reasons to learn a second language:\n1.",
    "def fibonacci(n):\n    ",
]


@dataclass(frozen=True, slots=True)
class CompletionTab:
    """The tab's components."""

    prompt: gr.Textbox
    run: gr.Button
    stop: gr.Button
    append: gr.Button
    output: gr.Textbox
    note: gr.HTML


def layout() -> CompletionTab:
    """Place the components. Call inside the tab."""
    prompt = gr.Textbox(
        label="Text",
        elem_id="prompt",
        lines=6,
        max_lines=20,
        info="Sent to the model as it stands, without a chat template.",
        placeholder="Write the beginning of a text.",
    )
    with gr.Row():
        run = gr.Button("Continue the text", variant="primary", elem_id="run")
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
        append = gr.Button("Append to the text", elem_id="append")
    output = gr.Textbox(
        label="Continuation", elem_id="output", lines=6, max_lines=20, interactive=False, buttons=["copy"]
    )
    note = gr.HTML(elem_id="completion-note")
    gr.Examples([[text] for text in EXAMPLES], [prompt], label="Examples")
    return CompletionTab(prompt, run, stop, append, output, note)


def wire(tab: CompletionTab, preferences: Preferences, backend: Backend) -> None:
    """Connect the events. Call after all tabs are laid out."""
    screen = [tab.output, tab.note, tab.run, tab.stop]

    async def complete(prompt: str | None, *values: Any) -> AsyncGenerator[Any]:
        def build() -> GenerationRequest:
            return GenerationRequest(prompt=prompt or "", sampling=to_sampling(*values))

        yield "", note_html("Waiting for the first token"), gr.Button(visible=False), gr.Button(visible=True)
        async with aclosing(snapshots(backend, build)) as updates:
            async for text, note, kind in updates:
                yield text, note_html(note, kind), gr.skip(), gr.skip()
        yield gr.skip(), gr.skip(), gr.Button(visible=True), gr.Button(visible=False)

    running = tab.run.click(complete, [tab.prompt, *preferences.components], screen, **STREAMING)
    tab.stop.click(_stopped, None, [tab.note, tab.run, tab.stop], cancels=[running], **DIRECT)
    tab.append.click(
        lambda prompt, more: ((prompt or "") + (more or ""), ""),
        [tab.prompt, tab.output],
        [tab.prompt, tab.output],
        **DIRECT,
    )


def _stopped() -> tuple[Any, Any, Any]:
    return note_html(STOPPED), gr.Button(visible=True), gr.Button(visible=False)

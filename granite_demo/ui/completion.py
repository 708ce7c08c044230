"""The Completion tab: raw text in, its continuation streamed beside it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.backends import Backend
from granite_demo.types import GenerationRequest
from granite_demo.ui.answering import Visitors, session, snapshots
from granite_demo.ui.events import DIRECT, STREAMING
from granite_demo.ui.render import note_html
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
        run = gr.Button("Continue", variant="primary", elem_id="run")
        stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
        append = gr.Button("Append to text", elem_id="append")
    output = gr.Textbox(
        label="Continuation", elem_id="output", lines=6, max_lines=20, interactive=False, buttons=["copy"]
    )
    note = gr.HTML(elem_id="completion-note")
    gr.Examples([[text] for text in EXAMPLES], [prompt], label="Examples")
    return CompletionTab(prompt, run, stop, append, output, note)


def wire(tab: CompletionTab, preferences: Preferences, backend: Backend, demo: gr.Blocks) -> None:
    """Connect the events. Call after all tabs are laid out."""
    screen = [tab.output, tab.note, tab.run, tab.stop]
    visitors = Visitors()

    async def complete(visit: gr.Request, prompt: str | None, *values: Any) -> AsyncGenerator[Any]:
        def build() -> GenerationRequest:
            return GenerationRequest(prompt=prompt or "", sampling=to_sampling(*values))

        yield "", note_html("Waiting for the first token"), gr.Button(visible=False), gr.Button(visible=True)
        with visitors.answering(session(visit)) as stop:
            async with aclosing(snapshots(backend, build, stop)) as updates:
                async for answer, note, kind, _ in updates:
                    yield answer.text, note_html(note, kind), gr.skip(), gr.skip()
        yield gr.skip(), gr.skip(), gr.Button(visible=True), gr.Button(visible=False)

    async def stop(visit: gr.Request) -> Any:
        if visitors.stop(session(visit)):
            return gr.skip(), gr.skip()
        return gr.Button(visible=True), gr.Button(visible=False)

    def leave(visit: gr.Request) -> None:
        visitors.stop(session(visit))

    tab.run.click(complete, [tab.prompt, *preferences.components], screen, **STREAMING)
    tab.stop.click(stop, None, [tab.run, tab.stop], **DIRECT)
    demo.unload(leave)
    tab.append.click(
        lambda prompt, more: ((prompt or "") + (more or ""), ""),
        [tab.prompt, tab.output],
        [tab.prompt, tab.output],
        **DIRECT,
    )

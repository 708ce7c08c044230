"""A small page with the panels and a fake backend."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.chat import conversation
from granite_demo.types.events import Finish, ReasoningDelta, StreamEvent, TextDelta, Timings, Usage
from granite_demo.types.messages import Switches
from granite_demo.types.prompt_view import PromptPart, PromptView
from granite_demo.ui import markdown, settings, theme
from granite_demo.ui.chat import context_meter, prompt_xray, side_by_side
from tests.fakes import READY, FakeBackend

THINKS = replace(READY, switches=Switches(thinking=("off", "full")))
VIEW = PromptView(
    (
        PromptPart("control", "<|role|>", ((7, "<|role|>"),)),
        PromptPart("system", "Be kind.", ((8, "Be"), (9, " kind."))),
        PromptPart("user", "Hi <b>\n", ((10, "Hi"), (11, " <b>\n"))),
        PromptPart("document", "Doc", ((12, "Doc"),)),
        PromptPart("tool", "Tool", ((13, "Tool"),)),
        PromptPart("assistant", "Yes", ((14, "Yes"),)),
        PromptPart("template", "\n", ((15, "\n"),)),
    ),
    9,
    0,
    1000,
)
QUESTION: list[Any] = [{"role": "user", "content": "First"}, {"role": "assistant", "content": "One"}]
MATH = "So $x^2$ costs $5, not $6, in `$y$`."
NOTE = 'See <a href="#note-1">[1]</a>\n\n<details id="note-1"><summary>Note</summary>The passage</details>'


def script(words: int, thoughts: int = 0) -> list[StreamEvent]:
    thinking: list[StreamEvent] = [ReasoningDelta("Hmm", thoughts)] if thoughts else []
    usage = Usage(5, words + thoughts, thoughts)
    timings = Timings(0.1, 0.1 + words / 10)
    text = [TextDelta(f"word{n} ", thoughts + n + 1) for n in range(words)]
    return [*thinking, *text, Finish("stop", usage, timings)]


async def write(lines: int) -> AsyncGenerator[Any]:
    """Yield an answer with ``lines`` lines, at the speed of the chat."""
    question = [*QUESTION, {"role": "user", "content": "Second"}]
    busy, idle = gr.Textbox(submit_btn=False, stop_btn="Stop"), gr.Textbox("", submit_btn="Send", stop_btn=False)
    for count in range(lines):
        text = "\n\n".join(f"Line {n}" for n in range(count + 1))
        # Not in each update: an update that arrives after the cancellation would show Stop again.
        yield [*question, {"role": "assistant", "content": text}], busy if count < 3 else gr.skip()
        await asyncio.sleep(0.08)
    yield gr.skip(), idle


def build(backend: FakeBackend) -> gr.Blocks:
    """Return a page with the panels in the layout of the real page."""
    demo = gr.Blocks(title="Panels", analytics_enabled=False)
    with demo:
        gr.HTML(js_on_load=theme.script("assets/page.js"))
        holder = gr.JSON(conversation.dump(conversation.start()), visible=False)
        chatbot = gr.Chatbot(
            QUESTION,
            elem_id="chatbot",
            height=360,
            show_label=False,
            editable="user",
            latex_delimiters=markdown.DELIMITERS,
            allow_tags=False,
        )
        chatbot.edit(lambda: None, None, None)
        box = gr.Textbox(elem_id="message", show_label=False, submit_btn="Send", stop_btn=False)
        count = gr.Number(60, label="Lines")
        stream = box.submit(write, [count], [chatbot, box])
        box.stop(lambda: gr.Textbox(submit_btn="Send", stop_btn=False), None, [box], cancels=[stream])
        math = [{"role": "assistant", "content": markdown.prepare(MATH)}]
        gr.Button("Math").click(lambda: math, None, [chatbot])
        gr.Button("Footnote").click(lambda: [{"role": "assistant", "content": NOTE}], None, [chatbot])
        gauge, rays = context_meter.layout(gr.HTML(elem_id="meter-bar")), prompt_xray.layout()
        pair = side_by_side.layout(backend, backend, Access())
        with gr.Accordion("Settings", open=False):
            preferences = settings.layout()
        context_meter.wire(gauge, backend, holder, box, preferences.components, [holder.change])
        prompt_xray.wire(rays, backend, holder, box, preferences.components)
        side_by_side.wire(pair, backend, backend, Access(), demo)
        demo.load(lambda: side_by_side.shown_values(backend, backend.status()), None, pair.shown)
    demo.queue(default_concurrency_limit=16)
    return demo

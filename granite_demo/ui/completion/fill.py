"""Fill in the middle: the model writes what stands between two texts, with its own tokens for that."""

import html
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from granite_demo.backend import Backend
from granite_demo.chat.answer import waiting_words
from granite_demo.errors import InvalidRequestError
from granite_demo.types.model_status import ModelStatus
from granite_demo.types.requests import GenerationRequest
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT, follow
from granite_demo.ui.html import note_html
from granite_demo.ui.settings import Preferences, to_sampling
from granite_demo.ui.streaming import StreamingPanel, Update, Visit, run_or_stop, snapshots

CODE_LANGUAGES = [
    "bash",
    "c",
    "cpp",
    "css",
    "go",
    "html",
    "java",
    "javascript",
    "json",
    "markdown",
    "python",
    "rust",
    "sql",
]
CODE_LANGUAGES += ["text", "typescript", "yaml"]
AROUND_GAP = 1000
"""Characters shown on both sides of what was filled in."""
MAX_HIGHLIGHTED = 4000
"""Characters. Pygments takes quadratic time for some texts, such as line breaks alone: 0.6 s for as many of them."""
EXAMPLE_PREFIX = 'def mean(numbers):\n    """The arithmetic mean; 0 for no numbers."""\n'
EXAMPLE_SUFFIX = "    return total / len(numbers)\n"


@dataclass(frozen=True, slots=True)
class FillingTab:
    """The tab's components."""

    reason: gr.HTML
    body: gr.Column
    language: gr.Dropdown
    prefix: gr.Textbox
    suffix: gr.Textbox
    run: gr.Button
    stop: gr.Button
    accept: gr.Button
    middle: gr.Textbox
    result: gr.HTML
    note: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [self.reason, self.body]


def shown_values(status: ModelStatus) -> tuple[Any, ...]:
    """What ``status`` changes in the tab: whether the model can, and why not."""
    why = status.unable_to("fill in the middle")
    return gr.HTML(note_html(why) if why else "", visible=bool(why)), gr.Column(visible=not why)


def to_request(backend: Backend, prefix: str | None, suffix: str | None, *values: Any) -> GenerationRequest:
    """The visitor's values as a request. Raises InvalidRequestError."""
    if why := backend.status().unable_to("fill in the middle"):
        raise InvalidRequestError(why)
    if not prefix and not suffix:
        raise InvalidRequestError("Write what comes before the gap, or after it.")
    return GenerationRequest(prompt=prefix or "", suffix=suffix or "", sampling=to_sampling(*values))


def filled_html(prefix: str | None, middle: str | None, suffix: str | None, language: Any = "text") -> str:
    """The filled-in text, marked, between the texts around it, highlighted as ``language`` unless it is long."""
    if not middle:
        return ""
    before, after = prefix or "", suffix or ""
    start, end = before[-AROUND_GAP:], after[:AROUND_GAP]
    ends = (len(start), len(start) + len(middle))
    parts = ["", "", ""]
    at = 0
    for kind, text in _lexed(start + middle + end, language):
        for index, (low, high) in enumerate(((0, ends[0]), ends, (ends[1], len(start + middle + end)))):
            if piece := text[max(0, low - at) : max(0, high - at)]:
                shown = html.escape(piece)
                parts[index] += f'<i class="{kind}">{shown}</i>' if kind else shown
        at += len(text)
    more = ["…" * (len(before) > AROUND_GAP), "…" * (len(after) > AROUND_GAP)]
    return (
        '<pre class="filled" tabindex="0" role="region" aria-label="The text with what was filled in">'
        f"{more[0]}{parts[0]}<mark>{parts[1]}</mark>{parts[2]}{more[1]}</pre>"
    )


def _lexed(text: str, language: Any) -> list[tuple[str, str]]:
    """(class in the style sheet, text) of each piece of ``text``."""
    from pygments.lexers import get_lexer_by_name
    from pygments.token import Comment, Keyword, Name, Number, String

    if len(text) > MAX_HIGHLIGHTED:
        return [("", text)]
    classes = ((Comment, "c"), (Keyword, "k"), (String, "s"), (Number, "n"), (Name.Function, "f"), (Name.Class, "f"))
    lexer = get_lexer_by_name(language if language in CODE_LANGUAGES else "text", stripnl=False, ensurenl=False)
    pieces = [
        (next((name for kind, name in classes if token in kind), ""), piece) for token, piece in lexer.get_tokens(text)
    ]
    # The lexer changes all line breaks to one kind.
    return pieces if "".join(piece for _, piece in pieces) == text else [("", text)]


def layout() -> FillingTab:
    """Place the components. Call inside the tab."""
    reason = gr.HTML(elem_id="fill-reason", visible=False)
    with gr.Column(elem_id="fill") as body:
        # No gr.Code: it takes the white space off both ends of what it is given, which here is a part of the text.
        code: dict[str, Any] = {"lines": 5, "max_lines": 16, "elem_classes": "code-box"}
        prefix = gr.Textbox(EXAMPLE_PREFIX, label="Before the gap", elem_id="prefix", **code)
        suffix = gr.Textbox(EXAMPLE_SUFFIX, label="After the gap", elem_id="suffix", **code)
        with gr.Row():
            run = gr.Button("Fill", variant="primary", elem_id="fill-run")
            stop = gr.Button("Stop", variant="stop", visible=False, elem_id="fill-stop")
            accept = gr.Button("Accept", interactive=False, elem_id="fill-accept")
        language = gr.Dropdown(CODE_LANGUAGES, value="python", label="Highlighted as", elem_id="fill-language")
        result = gr.HTML(elem_id="fill-result")
        note = gr.HTML(elem_id="fill-note")
        middle = gr.Textbox(visible=False)
    return FillingTab(reason, body, language, prefix, suffix, run, stop, accept, middle, result, note)


def wire(tab: FillingTab, preferences: Preferences, backend: Backend, demo: gr.Blocks, ready: list[Any]) -> None:
    """Connect the events. ``ready``: those after which another model may answer."""
    panel = StreamingPanel(backend, [tab.run, tab.stop], run_or_stop, tab.note, [tab.accept, tab.middle, tab.result])

    async def fill(
        visit: Visit, prefix: str | None, suffix: str | None, language: Any, *values: Any
    ) -> AsyncGenerator[Update]:
        empty = {tab.accept: gr.Button(interactive=False), tab.middle: "", tab.result: ""}
        yield {**visit.busy, **empty, tab.note: note_html(waiting_words(None))}
        text = ""
        shots = snapshots(visit.backend, lambda: to_request(visit.backend, prefix, suffix, *values), visit.stop)
        async with aclosing(shots):
            async for answer, note, kind, _ in shots:
                text = answer.text
                shown = await off_loop(filled_html, prefix, text, suffix, language)
                yield {tab.middle: text, tab.result: shown, tab.note: note_html(note, kind)}
        yield {tab.accept: gr.Button(interactive=bool(text))}

    def accept(prefix: str | None, middle: str | None) -> tuple[Any, ...]:
        return (prefix or "") + (middle or ""), "", "", "", gr.Button(interactive=False)

    panel.start("fill", [tab.run.click], fill, [tab.prefix, tab.suffix, tab.language, *preferences.components])
    panel.stop(tab.stop.click)
    panel.stop_on_leave(demo)
    accepted = [tab.prefix, tab.middle, tab.result, tab.note, tab.accept]
    tab.accept.click(accept, [tab.prefix, tab.middle], accepted, **DIRECT)
    shown_of = [tab.prefix, tab.middle, tab.suffix, tab.language]
    tab.language.input(filled_html, shown_of, [tab.result], **DIRECT)
    follow(ready, lambda: shown_values(backend.status()), None, tab.shown)

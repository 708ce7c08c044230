"""Tools on the page: the panel that defines them, the cards of calls in the chat, and the panel for their results.

Only the two examples of ``tools`` can be run; every other result is typed by the visitor.
"""

import html
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.chat.tools import EXAMPLE_TOOLS, check_call, parse_tools, run, runs_here, to_json
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import ToolCall, ToolSpec
from granite_demo.ui.conversation_list import SHOWN_JS
from granite_demo.ui.gradio_patches.events import DIRECT
from granite_demo.ui.html import note_html

MAX_CARDS = 4
"""Calls that are shown at once; further ones follow when these have results."""
MAX_BRACKETS = 200
"""In the arguments of a call that are indented to be shown."""
MAX_RESULT = 100_000
"""Characters of one result."""
REJECTED = "The user rejected this call; it was not run."
DEFINITIONS_JS = "(value, tools) => [{ ...value, tools: (tools ?? '').trim() }]"
"""In the browser alone: a round trip would undo what was said meanwhile."""


# The definitions


@dataclass(frozen=True, slots=True)
class ToolsPanel:
    """The components of the definitions."""

    definitions: gr.Textbox
    examples: gr.Button
    message: gr.HTML

    @property
    def shown(self) -> list[Any]:
        """The components that ``shown_values`` fills."""
        return [self.definitions, self.message]


def layout() -> ToolsPanel:
    """Place the components of the definitions."""
    with gr.Column(elem_id="tools", elem_classes="sheet"):
        definitions = gr.Textbox(
            label="Tools",
            info="A JSON list of functions, as OpenAI's API takes them. A call runs only when you press Run.",
            elem_id="tool-definitions",
            lines=4,
            max_lines=16,
            placeholder='[{"name": "weather", "description": "…", "parameters": {"type": "object", "properties": {}}}]',
        )
        examples = gr.Button("Use the examples", elem_id="tool-examples")
        message = gr.HTML(elem_id="tools-message", padding=False)
    return ToolsPanel(definitions, examples, message)


def shown_values(conversation: Conversation, reason: str = "") -> tuple[Any, ...]:
    """What the definitions show. ``reason`` is why the model would not see any."""
    return conversation.tools, note_html(reason) if reason else _note(conversation.tools)


def wire(panel: ToolsPanel, holder: gr.JSON) -> None:
    """Connect the events. ``holder`` has the conversation, as ``conversations.dump`` makes it."""
    added = panel.examples.click(with_examples, [panel.definitions], [panel.definitions, panel.message], **DIRECT)
    for event in (panel.definitions.blur, added.success):
        event(None, [holder, panel.definitions], [holder], js=DEFINITIONS_JS, **DIRECT)
        event(verdict, [panel.definitions], [panel.message], **DIRECT)


def verdict(text: str | None) -> str:
    """The note for definitions: their names, or why they cannot be read."""
    written = (text or "").strip()
    try:
        parse_tools(written)
    except InvalidRequestError as error:
        return note_html(f"{error.user_text} Fix this before sending.", "error")
    return _note(written)


def with_examples(text: str | None) -> tuple[Any, Any]:
    """The definitions with those of the examples that they lack. What cannot be read stays as it is."""
    try:
        specs = parse_tools(text or "")
        names = {spec.name for spec in specs}
        both = to_json([*specs, *(spec for spec in EXAMPLE_TOOLS if spec.name not in names)])
        parse_tools(both)
    except InvalidRequestError as error:
        return gr.skip(), note_html(error.user_text, "error")
    return both, ""


def _note(text: str) -> str:
    names = [spec.name for spec in _specs(text)]
    return note_html(f"The model may call {', '.join(names)}.") if names else ""


def _specs(text: str) -> tuple[ToolSpec, ...]:
    try:
        return parse_tools(text)
    except InvalidRequestError:
        return ()  # from another version or an edited file; the panel shows the text, so that the visitor can fix it


# The results


@dataclass(frozen=True, slots=True)
class ResultCard:
    """The components for the result of one call."""

    box: gr.Column
    call: gr.HTML
    result: gr.Textbox
    run: gr.Button
    reject: gr.Button


@dataclass(frozen=True, slots=True)
class ResultsPanel:
    """The components for the results of the last answer's calls. ``results`` are the arguments of ``with_results``."""

    box: gr.Column
    cards: tuple[ResultCard, ...]
    send: gr.Button
    run_all: gr.Button
    """Runs all calls that wait, where each can run here, and sends the results."""
    message: gr.HTML

    @property
    def results(self) -> list[Any]:
        """The boxes with the results."""
        return [card.result for card in self.cards]

    @property
    def shown(self) -> list[Any]:
        """The components that ``results_shown_values`` fills."""
        cards = [part for card in self.cards for part in (card.box, card.call, card.result, card.run)]
        return [self.box, self.run_all, self.message, *cards]


def results_layout() -> ResultsPanel:
    """Place the components of the results, hidden."""
    with gr.Column(visible=False, elem_id="tool-results") as box:
        cards = tuple(_card_layout(number) for number in range(1, MAX_CARDS + 1))
        message = gr.HTML(elem_id="results-message", padding=False)
        with gr.Row():
            run_all = gr.Button("Run all and send", visible=False, elem_id="run-all")
            send = gr.Button("Send results", variant="primary", elem_id="send-results")
    return ResultsPanel(box, cards, send, run_all, message)


def _card_layout(number: int) -> ResultCard:
    with gr.Column(visible=False) as box:
        call = gr.HTML(elem_id=f"call-{number}", padding=False)
        with gr.Row(equal_height=False):
            result = gr.Textbox(label=f"Result {number}", lines=1, max_lines=6, elem_id=f"result-{number}")
            button = gr.Button("Run", size="sm", scale=0, min_width=80, visible=False, elem_id=f"run-{number}")
            reject = gr.Button("Reject", size="sm", scale=0, min_width=80, elem_id=f"reject-{number}")
    return ResultCard(box, call, result, button, reject)


def pending(conversation: Conversation) -> tuple[ToolCall, ...]:
    """The calls of the last answer on the shown path without a result; results come in the order of the calls."""
    turns = conversations.path(conversation)
    given = 0
    while turns and turns[-1].role == "tool":
        turns.pop()
        given += 1
    return turns[-1].calls[given:] if turns and turns[-1].role == "assistant" else ()


def waits_for_answer(conversation: Conversation) -> bool:
    """Whether the last turn that is shown is one to answer: a question, or the last of the results."""
    turns = conversations.path(conversation)
    return bool(turns) and turns[-1].role != "assistant" and not pending(conversation)


def results_shown_values(conversation: Conversation) -> tuple[Any, ...]:
    """What the results show for ``conversation``: nothing, or an empty box for each call."""
    calls = pending(conversation)
    specs = _specs(conversation.tools)
    values: list[Any] = []
    for number in range(MAX_CARDS):
        call = calls[number] if number < len(calls) else None
        runs = call is not None and _runs(call)
        card = call_card(call, check_call(specs, call)) if call else ""
        values += [gr.Column(visible=call is not None), card, "", gr.Button(visible=runs)]
    more = len(calls) - MAX_CARDS
    message = note_html(f"{more} more follow when these have results.") if more > 0 else ""
    return gr.Column(visible=bool(calls)), gr.Button(visible=all(map(_runs, calls))), message, *values


def wire_results(panel: ResultsPanel, holder: gr.JSON) -> None:
    """Connect the Run buttons. The owner of the chat connects ``send``."""
    for number, card in enumerate(panel.cards):
        card.run.click(partial(run_pending, number), [holder], [card.result, panel.message], js=SHOWN_JS, **DIRECT)
        card.reject.click(lambda: REJECTED, None, [card.result], **DIRECT)


def run_pending(index: int, held: Any) -> tuple[Any, str]:
    """Run one of the pending calls; its result goes into the box, to look at and edit before it is sent."""
    try:
        calls = pending(conversations.load(held))
    except InvalidRequestError as error:
        return gr.skip(), note_html(error.user_text, "error")
    if index >= len(calls) or not _runs(calls[index]):
        return gr.skip(), note_html("That call cannot be run here. Type its result.", "error")
    return run(calls[index]), ""


def run_all(conversation: Conversation) -> Conversation:
    """Answer the pending calls with what they give here. Raises InvalidRequestError where one cannot run."""
    calls = pending(conversation)
    if not all(map(_runs, calls)):
        raise InvalidRequestError("Not all of these calls can be run here. Type the results.")
    return with_results(conversation, [run(call) for call in calls])


def _runs(call: ToolCall) -> bool:
    return not call.error and runs_here(call.name)


def with_results(conversation: Conversation, results: Sequence[str | None]) -> Conversation:
    """Answer the pending calls with ``results``, the first with the first; boxes without a call are left out.

    Raises InvalidRequestError. If ``pending`` calls remain, their results are to be asked for before the model goes on.
    """
    calls = pending(conversation)
    if not calls:
        raise InvalidRequestError("No call waits for a result.")
    for number, (call, result) in enumerate(zip(calls, results, strict=False), 1):
        if not (result or "").strip():
            raise InvalidRequestError(f"Result {number} is empty. Press Run, or type what {call.name or 'it'} gives.")
        if len(result or "") > MAX_RESULT:
            raise InvalidRequestError(f"Result {number} has more than {MAX_RESULT:,} characters.")
        conversation = conversations.add(conversation, "tool", name=call.name, content=result)
    return conversation


# The cards


def call_card(call: ToolCall, fault: str = "") -> str:
    """A model's call of a tool as markup; ``fault`` is what ``check_call`` found."""
    if call.error:
        head = f"A call that cannot be read{f': <b>{html.escape(call.name)}</b>' if call.name else ''}"
        return _card("call malformed", head, call.arguments, call.error)
    arguments = call.arguments
    # Each level of brackets indents all within it: a text can become as long as its square.
    if sum(map(arguments.count, "[{")) <= MAX_BRACKETS:
        with suppress(ValueError, RecursionError):
            arguments = json.dumps(json.loads(arguments), indent=2, ensure_ascii=False)
    return _card("call malformed" if fault else "call", f"Calls <b>{html.escape(call.name)}</b>", arguments, fault)


def result_card(turn: Turn) -> str:
    """A tool's result as markup."""
    name = f" of <b>{html.escape(turn.name)}</b>" if turn.name else ""
    return _card("result", f"Result{name}", turn.content)


def _card(kind: str, head: str, text: str, fault: str = "") -> str:
    # In one line: to Markdown, an empty line would end the markup.
    lines = html.escape(text).replace("\r", "").replace("\n", "&#10;")
    note = f'<div class="fault">{" ".join(html.escape(fault).split())}</div>' if fault else ""
    head = " ".join(head.split())
    return f'<div class="card {kind}"><div class="card-head">{head}</div><pre>{lines}</pre>{note}</div>'

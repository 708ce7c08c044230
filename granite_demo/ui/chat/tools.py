"""Tools on the page: the panel that defines them, and the cards of calls and their results in the chat.

Only the two examples of ``tools`` can be run; every other result is typed by the visitor.
"""

import html
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import gradio as gr

from granite_demo.chat import conversation as conversations
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.chat.tools import EXAMPLE_TOOLS, MAX_TOOLS_BYTES, check_call, parse_tools, run, runs_here, to_json
from granite_demo.errors import InvalidRequestError
from granite_demo.types.messages import ToolCall, ToolSpec
from granite_demo.ui.gradio_patches.events import DAMAGED, DIRECT
from granite_demo.ui.html import note_html

MAX_BRACKETS = 200
"""In the arguments of a call that are indented to be shown."""
MAX_RESULT = 100_000
"""Characters of one result."""
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


def run_call(data: Any) -> dict[str, Any]:
    """For the script of the cards: the result of a call, given as [name, arguments], or an error to show."""
    try:
        name, arguments = data
        call = ToolCall(name=str(name), arguments=str(arguments))
    except (TypeError, ValueError):
        return {"error": DAMAGED}
    return {"result": run(call)} if _runs(call) else {"error": "That call cannot be run here. Type its result."}


def _runs(call: ToolCall) -> bool:
    return not call.error and runs_here(call.name)


def with_results(
    conversation: Conversation, results: Sequence[str | None], arguments: Sequence[str | None] = ()
) -> Conversation:
    """Answer the pending calls with ``results``, the first with the first.

    ``arguments`` are those with which the calls were run; where they are not the model's, the answer gets a new version
    with them. Raises InvalidRequestError. If ``pending`` calls remain, they need results before the model goes on.
    """
    calls = pending(conversation)
    if not calls:
        raise InvalidRequestError("No call waits for a result.")
    pairs = zip_longest(calls, arguments[: len(calls)])
    ran = tuple(_with_arguments(number, *pair) for number, pair in enumerate(pairs, 1))
    if ran != calls:
        conversation = _with_calls(conversation, ran)
    for number, (call, result) in enumerate(zip(ran, results, strict=False), 1):
        if not (result or "").strip():
            raise InvalidRequestError(f"Result {number} is empty. Press Run, or type what {call.name or 'it'} gives.")
        if len(result or "") > MAX_RESULT:
            raise InvalidRequestError(f"Result {number} has more than {MAX_RESULT:,} characters.")
        conversation = conversations.add(conversation, "tool", name=call.name, content=result)
    return conversation


def _with_arguments(number: int, call: ToolCall, arguments: str | None) -> ToolCall:
    if arguments is None or call.error or arguments == call.arguments:
        return call
    with suppress(ValueError, RecursionError):
        if len(arguments) <= MAX_TOOLS_BYTES and isinstance(json.loads(arguments), dict):
            return replace(call, arguments=arguments)
    limit = f"{MAX_TOOLS_BYTES:,} characters"
    raise InvalidRequestError(f"The arguments of call {number} must be a JSON object of at most {limit}.")


def _with_calls(conversation: Conversation, ran: tuple[ToolCall, ...]) -> Conversation:
    """The conversation with a new version of its last answer, whose last calls are ``ran``."""
    *_, answer = (turn for turn in conversations.path(conversation) if turn.role == "assistant")
    if answer.id != conversation.head:
        raise InvalidRequestError("Arguments can be changed before the first result only.")
    kept = answer.model_dump(exclude={"id", "role", "made", "vote", "kind", "calls"})
    return conversations.add(conversation, "assistant", **{**kept, "calls": ran, "note": "edited"})


# The cards


def call_card(call: ToolCall) -> str:
    """A model's call of a tool as markup."""
    return _call_card(call, call.error, "")


def pending_card(conversation: Conversation, turn: Turn, place: int) -> str:
    """The card of a call that waits, as markup. ``tool_cards.js`` makes a form of it."""
    call = turn.calls[place]
    classes = f" pending{' runs' if _runs(call) else ''} t-{turn.id} n-{place}"
    return _call_card(call, check_call(_specs(conversation.tools), call), classes)


def _call_card(call: ToolCall, fault: str, classes: str) -> str:
    kind = f"call{' malformed' if fault else ''}{classes}"
    if call.error:
        head = f"A call that cannot be read{f': <b>{html.escape(call.name)}</b>' if call.name else ''}"
        return _card(kind, head, call.arguments, fault)
    arguments = call.arguments
    # Each level of brackets indents all within it: a text can become as long as its square.
    if sum(map(arguments.count, "[{")) <= MAX_BRACKETS:
        with suppress(ValueError, RecursionError):
            arguments = json.dumps(json.loads(arguments), indent=2, ensure_ascii=False)
    return _card(kind, f"Calls <b>{html.escape(call.name)}</b>", arguments, fault)


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

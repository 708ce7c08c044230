"""What happens in the Chat tab: its events, wired to the pure functions that know what they mean."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr
from pydantic import ValidationError

from granite_demo.access import Access
from granite_demo.backend import Backend, ModelControl
from granite_demo.chat import actions
from granite_demo.chat import conversation as conversations
from granite_demo.chat.actions import Asked
from granite_demo.chat.bundle import bundle
from granite_demo.chat.conversation import Conversation
from granite_demo.chat.tools import parse_tools
from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.events import Citation
from granite_demo.ui.chat import context_meter, documents, prompt_xray, side_by_side, template_switches, tools
from granite_demo.ui.chat.respond import respond
from granite_demo.ui.chat.sources import as_sent, grounding_html, listed_of
from granite_demo.ui.chat.tab import ChatTab, attachments, message_box, panel_values, screen_values
from granite_demo.ui.chat.tools import waits_for_answer
from granite_demo.ui.conversation_list import SHOWN_JS
from granite_demo.ui.gradio_patches.events import DIRECT, STREAMING, follow, forgiving, refusal
from granite_demo.ui.html import note_html
from granite_demo.ui.settings import Preferences
from granite_demo.ui.streaming import Visitors, own, session

SYSTEM_JS = "(value, system) => [{ ...value, system }]"
ASK_JS = "(held, ...rest) => [window.graniteDemo?.settled(held) ?? held, ...rest]"
"""The next question comes after what there is of an answer, though its end may have been lost on the way."""
ANSWER_JS = "(held, ...rest) => [window.graniteDemo?.begun(held) ?? held, ...rest]"
STOP_JS = "(held, pending) => window.graniteDemo?.ended(held, pending) ?? [held, false]"
ENDED_JS = "(held, pending) => window.graniteDemo?.arrived(held, pending) ?? [held, false]"
LOST_JS = "(over) => { if (over) window.graniteDemo?.reloadIfLost(); }"
SETTLE_JS = "(held, pending, over) => [(over && window.graniteDemo?.settled(held, pending)) || held]"
KEEP_JS = "(pending) => { window.graniteDemo?.keep(pending); }"
DOWNLOAD_JS = """(bundle) => {
  if (bundle) window.graniteDemo?.download(JSON.stringify(bundle, null, 1), "answer.json", "application/json");
  return null;
}"""
STOP_SECONDS = 3.0
"""To wait for a stopped answer to end before another conversation is shown."""


def wire(
    tab: ChatTab,
    library: gr.HTML,
    preferences: Preferences,
    backend: Backend,
    control: ModelControl,
    access: Access,
    demo: gr.Blocks,
    ready: list[Any],
) -> None:
    """Connect the events. ``ready`` are those after which another model may answer."""
    visitors = Visitors()
    wire_answering(tab, preferences, backend, visitors, wire_asking(tab, visitors))
    wire_opening(tab, library, backend, visitors)
    wire_editor(tab)
    documents.wire(tab.documents, tab.holder)
    tools.wire(tab.tools, tab.holder)
    tools.wire_results(tab.results, tab.holder)
    context_meter.wire(tab.meter, backend, tab.holder, tab.textbox, preferences.components, ready)
    prompt_xray.wire(tab.xray, backend, tab.holder, tab.textbox, preferences.components)
    side_by_side.wire(tab.comparison, backend, control, access, demo)
    changed = [tab.holder.change, *ready]
    template_switches.wire(tab.switches, tab.holder, backend, changed)
    # In the browser alone, at every letter.
    tab.system_prompt.input(None, [tab.holder, tab.system_prompt], [tab.holder], js=SYSTEM_JS, **DIRECT)
    tab.pending.change(None, [tab.pending], None, js=KEEP_JS, **DIRECT)
    wire_showing(tab, backend, ready)

    def leave(visit: gr.Request) -> None:
        visitors.stop(session(visit))
        visitors.settled(session(visit))

    demo.unload(leave)


def wire_showing(tab: ChatTab, backend: Backend, ready: list[Any]) -> None:
    """What only shows something of the conversation."""

    def attached(value: Any) -> tuple[Any, ...]:
        return attachments(conversations.load(value), backend.status())

    def earlier(value: Any) -> tuple[Any, ...]:
        return screen_values(conversations.load(value), everything=True)

    def sources(event: gr.EventData, value: Any) -> tuple[Any, ...]:
        conversation = conversations.load(value)
        turn = conversations.find(conversation, str(event.id))
        citations = [Citation(cited.document, cited.start, cited.end) for cited in turn.citations]
        texts = as_sent(turn, conversation.documents)
        view = grounding_html(turn.content, texts, citations, listed_of(turn))
        return gr.Accordion(visible=True, open=True), view

    def download(event: gr.EventData, value: Any) -> tuple[Any, ...]:
        turn_id = str(event.id)
        # What made the answer comes with the event: the page holds a mark in its place.
        whole = conversations.change(conversations.load(value), turn_id, made=event.made or {})
        return (bundle(whole, turn_id),)

    panels = [*tab.documents.shown, *tab.tools.shown]
    holder = [tab.holder]
    follow(ready, forgiving(attached, len(panels)), holder, [*panels, tab.message])
    tab.earlier.click(forgiving(earlier, len(tab.screen)), holder, [*tab.screen, tab.message], js=SHOWN_JS, **DIRECT)
    tab.acts.expand(forgiving(sources, 2), holder, [tab.sources, tab.grounding, tab.message], js=SHOWN_JS, **DIRECT)
    asked = tab.acts.download(forgiving(download, 1), holder, [tab.download, tab.message], js=SHOWN_JS, **DIRECT)
    asked.then(None, [tab.download], [tab.download], js=DOWNLOAD_JS, **DIRECT)


def wire_asking(tab: ChatTab, visitors: Visitors) -> list[Any]:
    """Each way to ask changes the conversation; the events after which it is to be answered."""
    outputs = [tab.holder, *tab.screen, tab.ask, tab.begun, tab.message, tab.textbox, tab.editor.group]

    def changed(
        visit: gr.Request, carried: tuple[Any, ...], change: Callable[[Conversation], Asked], **box: Any
    ) -> tuple[Any, ...]:
        try:
            if visitors.busy(session(visit)):
                raise InvalidRequestError("The answer is still being written. Stop it first.")
            held, system, definitions = carried
            before = conversations.load(held)
            given = {"system": system or "", "tools": (definitions or "").strip()}
            done = change(conversations.load({**held, **given} if isinstance(held, dict) else held))
            if done.ask:
                parse_tools(done.conversation.tools)
            if done.ask and len(done.conversation.turns) >= conversations.MAX_TURNS:
                raise InvalidRequestError(f"This conversation has {conversations.MAX_TURNS:,} turns. Start a new one.")
        except (GraniteDemoError, ValidationError, TypeError, AttributeError) as error:
            kept = [gr.skip()] * (1 + len(tab.screen))
            return *kept, gr.skip(), gr.skip(), note_html(refusal(error), "error"), gr.skip(), gr.skip()
        shown = screen_values(done.conversation, busy=done.ask)
        if tools.pending(done.conversation) == tools.pending(before):  # what was typed as a result stays
            kept_results = len(tab.results.shown)
            shown = *shown[:-kept_results], *(gr.skip(),) * kept_results
        # Two events may overlap: a turn's id tells which of them is answered, where a yes or no could not.
        ask = (done.conversation.head, done.begun) if done.ask else (gr.skip(), gr.skip())
        return conversations.dump(done.conversation), *shown, *ask, "", gr.Textbox(**box), gr.Group(visible=False)

    def send(visit: gr.Request, held: Any, system: Any, defined: Any, text: str | None) -> tuple[Any, ...]:
        return changed(visit, (held, system, defined), lambda talk: actions.send(talk, text), value="")

    def example(visit: gr.Request, data: gr.SelectData, *carried: Any) -> tuple[Any, ...]:
        return changed(visit, carried, lambda talk: actions.send(talk, str(data.value["text"])))

    def act(visit: gr.Request, event: gr.EventData, *carried: Any) -> tuple[Any, ...]:
        return changed(visit, carried, lambda talk: actions.act(talk, str(event.action), str(event.id), event.made))

    def edit(visit: gr.Request, held: Any, system: Any, defined: Any, target: Any, text: str | None) -> tuple[Any, ...]:
        return changed(visit, (held, system, defined), lambda talk: actions.edit(talk, str(target), text))

    def results(visit: gr.Request, held: Any, system: Any, defined: Any, *texts: str | None) -> tuple[Any, ...]:
        return changed(visit, (held, system, defined), lambda talk: _going_on(tools.with_results(talk, texts)))

    def run_all(visit: gr.Request, *carried: Any) -> tuple[Any, ...]:
        return changed(visit, carried, lambda talk: _going_on(tools.run_all(talk)))

    # System prompt and tools come as they are written: what the browser keeps of them may lag behind.
    inputs = [tab.holder, tab.system_prompt, tab.tools.definitions]
    ways: tuple[tuple[Any, Any, list[Any]], ...] = (
        (tab.textbox.submit, send, [tab.textbox]),
        (tab.chatbot.example_select, example, []),
        (tab.acts.select, act, []),
        (tab.editor.save.click, edit, [tab.editor.target, tab.editor.box]),
        (tab.results.send.click, results, tab.results.results),
        (tab.results.run_all.click, run_all, []),
    )
    return [event(change, [*inputs, *more], outputs, js=ASK_JS, **DIRECT) for event, change, more in ways]


def _going_on(conversation: Conversation) -> Asked:
    """The model goes on when all of its calls have results; there are more of them than boxes at times."""
    return Asked(conversation, ask=not tools.pending(conversation))


def wire_answering(
    tab: ChatTab, preferences: Preferences, backend: Backend, visitors: Visitors, asked: list[Any]
) -> None:
    """The one ``answer`` to all ways to ask."""

    async def answer(
        visit: gr.Request, value: Any, ask: Any, begun: Any, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        conversation = _readable(value)
        if (
            visitors.streaming(session(visit))
            or not ask
            or ask != conversation.head
            or not waits_for_answer(conversation)
        ):
            yield gr.skip(), gr.skip(), gr.skip()
            return
        yield gr.skip(), message_box(busy=True), None
        with visitors.answering(session(visit)) as stop:
            async with aclosing(respond(own(backend, visit), conversation, values, stop, begun)) as updates:
                async for update in updates:
                    yield update.history, gr.skip(), update.pending or gr.skip()
            visitors.settling(session(visit))

    def finish(visit: gr.Request, value: Any, grown: Any) -> tuple[Any, ...]:
        kept = (gr.skip(),) * (len(tab.screen) + 1)
        if visitors.streaming(session(visit)):  # asked too early
            return *kept, False
        visitors.settled(session(visit))
        conversation = _readable(value)
        if not grown and not waits_for_answer(conversation):  # nothing was to be answered
            return *kept, False
        # Where nothing has grown, another answer may be about to begin: its box stays as it is.
        return *screen_values(conversation), message_box(busy=False) if grown else gr.skip(), True

    def stop(visit: gr.Request, value: Any, grown: Any) -> tuple[Any, ...]:
        visitors.stop(session(visit))
        *screen, box, over = finish(visit, value, grown)
        # The stream itself tells that it was stopped; without one, as after a restart, the box is set free here.
        return *screen, box if visitors.streaming(session(visit)) else message_box(busy=False), over

    inputs = [tab.holder, tab.ask, tab.begun, *preferences.components]
    ended = [tab.holder, tab.pending], [*tab.screen, tab.textbox, tab.over]
    stopped = tab.textbox.stop(stop, *ended, js=STOP_JS, **DIRECT)
    stopped.then(None, [tab.over], None, js=LOST_JS, **DIRECT)
    finished = [stopped]
    for event in asked:
        answered = event.then(answer, inputs, [tab.chatbot, tab.textbox, tab.pending], js=ANSWER_JS, **STREAMING)
        # Gradio goes on in one way after an answer that ended, and in another after one that was refused.
        finished += [
            following(finish, *ended, js=ENDED_JS, **DIRECT) for following in (answered.then, answered.failure)
        ]
    for event in finished:
        settled = event.then(None, [tab.holder, tab.pending, tab.over], [tab.holder], js=SETTLE_JS, **DIRECT)
        settled.then(None, [tab.holder, tab.documents.patch], [tab.holder], js=documents.KEEP_JS, **DIRECT)


def wire_opening(tab: ChatTab, library: gr.HTML, backend: Backend, visitors: Visitors) -> None:
    """Another conversation is opened, a new one begun, or the open one renamed."""
    outputs = [tab.holder, *tab.screen, *tab.panels, tab.message, tab.editor.group, tab.textbox]

    async def opened(visit: gr.Request, value: Any) -> tuple[Any, ...]:
        # What the running answer still shows must not come after the other conversation.
        await visitors.stopped(session(visit), STOP_SECONDS)
        try:
            conversation = conversations.load(value)
        except InvalidRequestError as error:
            kept = [gr.skip()] * (len(outputs) - 3)
            return *kept, note_html(error.user_text, "error"), gr.skip(), gr.skip()
        shown = *screen_values(conversation), *panel_values(conversation, backend.status())
        held = conversations.dump(conversation) if value else {}
        return held, *shown, "", gr.Group(visible=False), message_box(busy=False)

    async def chosen(visit: gr.Request, event: gr.EventData) -> tuple[Any, ...]:
        return await opened(visit, getattr(event, "conversation", "damaged"))

    async def cleared(visit: gr.Request) -> tuple[Any, ...]:
        return await opened(visit, None)

    def renamed(value: Any, event: gr.EventData) -> tuple[Any, ...]:
        return ({**value, "title": conversations.load(event.conversation).title},)

    library.select(chosen, None, outputs, **DIRECT)
    library.clear(cleared, None, outputs, **DIRECT)
    library.edit(forgiving(renamed, 1), [tab.holder], [tab.holder, tab.message], **DIRECT)


def wire_editor(tab: ChatTab) -> None:
    """The box in which a message that was sent is written anew."""
    editor = tab.editor

    def begin(event: gr.EventData, value: Any) -> tuple[Any, ...]:
        turn = conversations.find(conversations.load(value), str(event.id))
        save = "Save and ask" if turn.role in ("user", "tool") else "Save"
        return gr.Group(visible=True), gr.Textbox(value=turn.content), gr.Button(save), turn.id

    shown = [editor.group, editor.box, editor.save, editor.target]
    begun = tab.acts.edit(forgiving(begin, len(shown)), [tab.holder], [*shown, tab.message], js=SHOWN_JS, **DIRECT)
    begun.then(None, None, None, js="() => document.querySelector('#editor-box textarea')?.focus()", **DIRECT)
    editor.cancel.click(lambda: gr.Group(visible=False), None, [editor.group], **DIRECT)


def _readable(value: Any) -> Conversation:
    """The open conversation, or an empty one in place of what is none."""
    try:
        return conversations.load(value)
    except InvalidRequestError:
        return conversations.start()

"""What happens in the Chat tab: its events, wired to the pure functions that know what they mean."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from granite_demo import conversations
from granite_demo.backends import Backend
from granite_demo.bundle import bundle
from granite_demo.conversations import Conversation
from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types import Citation
from granite_demo.ui import asking, compare, documents, meter, switches, tools, xray
from granite_demo.ui.answering import Visitors, session
from granite_demo.ui.asking import Asked
from granite_demo.ui.chat import ChatTab, attachments, message_box, panel_values, screen_values
from granite_demo.ui.events import DIRECT, STREAMING
from granite_demo.ui.grounding import grounding_html, listed_of
from granite_demo.ui.models import Access
from granite_demo.ui.render import note_html
from granite_demo.ui.responding import respond, settle, unanswered
from granite_demo.ui.settings import Preferences

SYSTEM_JS = "(value, system) => [{ ...value, system }]"
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
    meter.wire(tab.meter, backend, tab.holder, tab.textbox, preferences.components, ready)
    xray.wire(tab.xray, backend, tab.holder, tab.textbox, preferences.components)
    compare.wire(tab.comparison, backend, access, demo)
    changed = [tab.holder.change, *ready]
    switches.wire(tab.switches, tab.holder, backend, changed)
    attached = [*tab.documents.shown, *tab.tools.shown]
    gr.on(
        ready, lambda value: attachments(conversations.load(value), backend.status()), [tab.holder], attached, **DIRECT
    )
    # In the browser alone, at every letter.
    tab.system_prompt.input(None, [tab.holder, tab.system_prompt], [tab.holder], js=SYSTEM_JS, **DIRECT)
    tab.pending.change(None, [tab.pending], None, js=KEEP_JS, **DIRECT)
    tab.earlier.click(
        lambda value: screen_values(conversations.load(value), everything=True), [tab.holder], tab.screen, **DIRECT
    )
    tab.acts.expand(_sources, [tab.holder], [tab.sources, tab.grounding], **DIRECT)
    tab.acts.download(_bundle, [tab.holder], [tab.download], **DIRECT).then(
        None, [tab.download], [tab.download], js=DOWNLOAD_JS, **DIRECT
    )

    def leave(visit: gr.Request) -> None:
        visitors.stop(session(visit))

    demo.unload(leave)


def wire_asking(tab: ChatTab, visitors: Visitors) -> list[Any]:
    """Each way to ask changes the conversation; the events after which it is to be answered."""
    outputs = [tab.holder, *tab.screen, tab.ask, tab.message, tab.textbox, tab.editor.group]

    def changed(
        visit: gr.Request, held: Any, system: str | None, change: Callable[[Conversation], Asked], **box: Any
    ) -> tuple[Any, ...]:
        try:
            if visitors.busy(session(visit)):
                raise InvalidRequestError("The answer is still being written. Stop it first.")
            done = change(conversations.load({**(held or {}), "system": system or ""}))
        except GraniteDemoError as error:
            kept = [gr.skip()] * (1 + len(tab.screen))
            return *kept, gr.skip(), note_html(error.user_text, "error"), gr.skip(), gr.skip()
        shown = screen_values(done.conversation, busy=done.ask)
        # Two events may overlap: a turn's id tells which of them is answered, where a yes or no could not.
        ask = done.conversation.head if done.ask else gr.skip()
        return conversations.dump(done.conversation), *shown, ask, "", gr.Textbox(**box), gr.Group(visible=False)

    def send(visit: gr.Request, held: Any, system: Any, text: str | None) -> tuple[Any, ...]:
        return changed(visit, held, system, lambda conversation: asking.send(conversation, text), value="")

    def example(visit: gr.Request, data: gr.SelectData, held: Any, system: Any) -> tuple[Any, ...]:
        return changed(visit, held, system, lambda conversation: asking.send(conversation, str(data.value["text"])))

    def act(visit: gr.Request, event: gr.EventData, held: Any, system: Any) -> tuple[Any, ...]:
        action, turn_id = str(event.action), str(event.id)
        return changed(visit, held, system, lambda conversation: asking.act(conversation, action, turn_id))

    def edit(visit: gr.Request, held: Any, system: Any, target: Any, text: str | None) -> tuple[Any, ...]:
        return changed(visit, held, system, lambda conversation: asking.edit(conversation, str(target), text))

    def results(visit: gr.Request, held: Any, system: Any, *texts: str | None) -> tuple[Any, ...]:
        return changed(visit, held, system, lambda talk: Asked(tools.with_results(talk, texts), ask=True))

    # The system prompt comes as it is written: what ``SYSTEM_JS`` keeps of it may lag behind.
    inputs = [tab.holder, tab.system_prompt]
    return [
        tab.textbox.submit(send, [*inputs, tab.textbox], outputs, **DIRECT),
        tab.chatbot.example_select(example, inputs, outputs, **DIRECT),
        tab.acts.select(act, inputs, outputs, **DIRECT),
        tab.editor.save.click(edit, [*inputs, tab.editor.target, tab.editor.box], outputs, **DIRECT),
        tab.results.send.click(results, [*inputs, *tab.results.results], outputs, **DIRECT),
    ]


def wire_answering(
    tab: ChatTab, preferences: Preferences, backend: Backend, visitors: Visitors, asked: list[Any]
) -> None:
    """The one ``answer`` to all ways to ask."""

    async def answer(visit: gr.Request, value: Any, ask: Any, *values: Any) -> AsyncGenerator[tuple[Any, ...]]:
        conversation = conversations.load(value)
        if visitors.busy(session(visit)) or not ask or ask != conversation.head or not unanswered(conversation):
            yield gr.skip(), gr.skip(), gr.skip()
            return
        yield gr.skip(), message_box(busy=True), None
        with visitors.answering(session(visit)) as stop:
            async with aclosing(respond(backend, conversation, values, stop)) as updates:
                async for update in updates:
                    yield update.history, gr.skip(), update.pending or gr.skip()

    def finish(visit: gr.Request, value: Any, pending: Any) -> tuple[Any, ...]:
        kept = (gr.skip(),) * (len(settled) - 1)
        if visitors.busy(session(visit)) or not pending:  # asked too early, or nothing was
            return *kept, gr.skip()
        conversation = settle(value, pending)
        if conversation is None:
            return *kept, message_box(busy=False)
        return conversations.dump(conversation), *screen_values(conversation), message_box(busy=False)

    async def stop(visit: gr.Request) -> Any:
        # The stream itself tells that it was stopped; without one, as after a restart, the box is set free here.
        return gr.skip() if visitors.stop(session(visit)) else message_box(busy=False)

    inputs = [tab.holder, tab.ask, *preferences.components]
    settled = [tab.holder, *tab.screen, tab.textbox]
    for event in asked:
        answered = event.then(answer, inputs, [tab.chatbot, tab.textbox, tab.pending], **STREAMING)
        answered.then(finish, [tab.holder, tab.pending], settled, **DIRECT)
    tab.textbox.stop(stop, None, [tab.textbox], **DIRECT)


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
        return await opened(visit, event.conversation)

    async def cleared(visit: gr.Request) -> tuple[Any, ...]:
        return await opened(visit, None)

    def renamed(value: Any, event: gr.EventData) -> Any:
        return {**value, "title": conversations.load(event.conversation).title}

    library.select(chosen, None, outputs, **DIRECT)
    library.clear(cleared, None, outputs, **DIRECT)
    library.edit(renamed, [tab.holder], [tab.holder], **DIRECT)


def wire_editor(tab: ChatTab) -> None:
    """The box in which a message that was sent is written anew."""
    editor = tab.editor

    def begin(event: gr.EventData, value: Any) -> tuple[Any, ...]:
        try:
            turn = conversations.find(conversations.load(value), str(event.id))
        except InvalidRequestError as error:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), note_html(error.user_text, "error")
        save = "Save and ask" if turn.role == "user" else "Save"
        return gr.Group(visible=True), gr.Textbox(value=turn.content), gr.Button(save), turn.id, ""

    tab.acts.edit(
        begin, [tab.holder], [editor.group, editor.box, editor.save, editor.target, tab.message], **DIRECT
    ).then(None, None, None, js="() => document.querySelector('#editor-box textarea')?.focus()", **DIRECT)
    editor.cancel.click(lambda: gr.Group(visible=False), None, [editor.group], **DIRECT)


def _sources(event: gr.EventData, value: Any) -> tuple[Any, ...]:
    conversation = conversations.load(value)
    turn = conversations.find(conversation, str(event.id))
    citations = [Citation(cited.document, cited.start, cited.end) for cited in turn.citations]
    texts = conversations.documents_of(conversation)
    view = grounding_html(turn.content, texts, citations, listed_of(turn))
    return gr.Accordion(visible=True, open=True), view


def _bundle(event: gr.EventData, value: Any) -> Any:
    return bundle(conversations.load(value), str(event.id))

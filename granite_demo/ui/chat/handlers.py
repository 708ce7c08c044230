"""The events of the Chat tab: each calls a function that knows nothing of the page, and shows the result."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from granite_demo.access import Access
from granite_demo.backend import Backend, ModelControl
from granite_demo.chat import actions
from granite_demo.chat import conversation as conversations
from granite_demo.chat.actions import Change
from granite_demo.chat.bundle import bundle
from granite_demo.chat.conversation import Conversation
from granite_demo.chat.tools import parse_tools
from granite_demo.errors import GraniteDemoError, InvalidRequestError
from granite_demo.types.events import Citation
from granite_demo.types.model_status import ModelStatus
from granite_demo.ui.chat import (
    composer,
    context_meter,
    documents,
    empty_state,
    prompt_xray,
    side_by_side,
    template_switches,
    tools,
)
from granite_demo.ui.chat.composer import REMOVE_DOCUMENT_JS
from granite_demo.ui.chat.respond import follow as follow_answer
from granite_demo.ui.chat.respond import respond
from granite_demo.ui.chat.running_answers import RunningAnswers
from granite_demo.ui.chat.sources import as_sent, grounding_html, listed_of
from granite_demo.ui.chat.tab import ChatTab, attachments, message_box, panel_values, screen_values
from granite_demo.ui.conversation_list import SHOWN_JS
from granite_demo.ui.executor import off_loop
from granite_demo.ui.gradio_patches.events import DIRECT, follow, forgiving
from granite_demo.ui.html import note_html
from granite_demo.ui.models import offered
from granite_demo.ui.settings import Preferences
from granite_demo.ui.streaming import StreamingPanel, Update, Visit, Visitors, own, session

SYSTEM_JS = "(value, system) => [(value?.system ?? '') === system ? value : { ...value, system }]"
PATCH_JS = "(held, patch) => [window.graniteDemo?.take(held, patch) ?? held]"
GROWING_JS = "(growing) => { window.graniteDemo?.grow(growing); }"
LOST_JS = "() => { window.graniteDemo?.reloadIfLost(); }"
SETUP_JS = """(held, setup) => {
  const { version, id, title, created, updated, head, turns, ...now } = held ?? {};
  return [JSON.stringify(now) === JSON.stringify(setup) ? setup : now];
}"""
"""The panels show nothing of the turns, which change with every question."""
DOWNLOAD_JS = """(bundle) => {
  if (bundle) window.graniteDemo?.download(JSON.stringify(bundle, null, 1), "answer.json", "application/json");
  return null;
}"""
STOP_SECONDS = 3.0
"""The longest wait for the last update of an answer before another conversation is shown."""


def wire(
    tab: ChatTab,
    library: gr.HTML,
    preferences: Preferences,
    backend: Backend,
    control: ModelControl,
    access: Access,
    demo: gr.Blocks,
    ready: list[Any],
    answers: RunningAnswers,
) -> None:
    """Connect the events. ``ready`` are those after which another model may answer."""
    asking = wire_asking(tab, preferences, backend, answers)

    def leave(visit: gr.Request) -> None:
        answers.leave(session(visit))

    demo.unload(leave)
    wire_opening(tab, library, preferences, backend, asking.visitors, answers)
    documents.wire(tab.documents, tab.holder)
    tools.wire(tab.tools, tab.holder)
    changed = [tab.setup.change, *ready]
    context_meter.wire(tab.meter, backend, tab.holder, tab.textbox, preferences.components, changed)
    prompt_xray.wire(tab.xray, backend, tab.holder, tab.textbox, preferences.components)
    side_by_side.wire(tab.comparison, backend, control, access, demo)
    template_switches.wire(tab.switches, tab.holder, backend, changed)
    # In the browser alone, at every letter. The event ``input`` of Gradio 6.31 does not fire for a pasted text.
    tab.system_prompt.change(None, [tab.holder, tab.system_prompt], [tab.holder], js=SYSTEM_JS, **DIRECT)
    tab.patch.change(None, [tab.holder, tab.patch], [tab.holder], js=PATCH_JS, **DIRECT)
    tab.chips.delete(None, [tab.holder], [tab.holder], js=REMOVE_DOCUMENT_JS, **DIRECT)
    tab.holder.change(None, [tab.holder, tab.setup], [tab.setup], js=SETUP_JS, **DIRECT)
    wire_showing(tab, backend, control, ready)


def wire_showing(tab: ChatTab, backend: Backend, control: ModelControl, ready: list[Any]) -> None:
    """Events that only show a part of the conversation."""

    def attached(value: Any) -> tuple[Any, ...]:
        return attachments(conversations.load(value), backend.status())

    def earlier(value: Any) -> tuple[Any, ...]:
        return screen_values(conversations.load(value), everything=True)

    def sources(event: gr.EventData, value: Any) -> tuple[str]:
        conversation = conversations.load(value)
        turn = conversations.find(conversation, str(event.id))
        citations = [Citation(cited.document, cited.start, cited.end) for cited in turn.citations]
        texts = as_sent(turn, conversation.documents)
        return (grounding_html(turn.content, texts, citations, listed_of(turn)),)

    def download(event: gr.EventData, value: Any) -> tuple[Any, ...]:
        turn_id = str(event.id)
        # The event brings the data that reproduces the answer: the conversation on the page has only a short form.
        whole = conversations.change(conversations.load(value), turn_id, made=event.made or {})
        return (bundle(whole, turn_id),)

    panels = [*tab.documents.shown, *tab.tools.shown]
    holder = [tab.holder]

    def model_shown() -> tuple[str, str]:
        status = backend.status()
        return composer.menu_html(status), empty_state.empty_html(status, offered(control.choices(), status.name))

    follow(ready, model_shown, None, [tab.menu, tab.empty])
    follow(ready, forgiving(attached, len(panels)), [tab.setup], [*panels, tab.message])
    tab.earlier.click(forgiving(earlier, len(tab.screen)), holder, [*tab.screen, tab.message], js=SHOWN_JS, **DIRECT)
    tab.acts.expand(forgiving(sources, 1), holder, [tab.grounding, tab.message], js=SHOWN_JS, **DIRECT)
    asked = tab.acts.download(forgiving(download, 1), holder, [tab.download, tab.message], js=SHOWN_JS, **DIRECT)
    asked.then(None, [tab.download], [tab.download], js=DOWNLOAD_JS, **DIRECT)


def wire_asking(tab: ChatTab, preferences: Preferences, backend: Backend, answers: RunningAnswers) -> StreamingPanel:
    """Events that change the conversation, ask the model, or show an answer that is being written."""
    screen = [*tab.screen, tab.patch, tab.growing, tab.meter.bar]
    panel = StreamingPanel(backend, [tab.textbox], lambda busy: [message_box(busy=busy)], tab.message, screen)

    def way(name: str, event: Any, change: Callable[..., Change], more: Sequence[Any] = (), **box: Any) -> None:
        async def ask(visit: Visit, held: Any, system: Any, definitions: Any, *values: Any) -> AsyncGenerator[Update]:
            def changed() -> tuple[Conversation, Change]:
                before = _with_panels(held, system, definitions)
                done = change(before, visit.event, *values[: len(more)])
                check_room(done)
                return before, done

            before, done = await off_loop(changed)
            shown = respond(tab, visit, answers, before, done, values[len(more) :], **box)
            async with aclosing(shown) as updates:
                async for update in updates:
                    yield update

        inputs = [tab.holder, tab.system_prompt, tab.tools.definitions, *more, *preferences.components]
        # "multiple": a question during an answer gets a reason. Gradio would ignore it without one.
        panel.start(name, [event], ask, inputs, trigger_mode="multiple")

    way("send", tab.textbox.submit, lambda chat, _, text: actions.send(chat, text), [tab.textbox], value="")
    way("queued", tab.chips.submit, lambda chat, event: actions.send(chat, str(event.text)))
    way("act", tab.acts.select, lambda chat, event: actions.act(chat, str(event.action), str(event.id), event.made))
    way("edit", tab.acts.edit, lambda chat, event: actions.edit(chat, str(event.id), str(event.text)))
    way("results", tab.acts.submit, _with_results)

    async def watch(visit: Visit, held: Any, watched: Any, *settings: Any) -> AsyncGenerator[Update]:
        answer = answers.get(str((watched or {}).get("answer")))
        if answer:
            conversation = await off_loop(conversations.load, held)
            async with aclosing(follow_answer(tab, visit, answers, answer, conversation, settings)) as updates:
                async for update in updates:
                    yield update

    inputs = [tab.holder, tab.watched, *preferences.components]
    panel.start("watch", [tab.watched.change], watch, inputs, trigger_mode="multiple")
    tab.chatbot.change(None, [tab.growing], None, js=GROWING_JS, **DIRECT)

    async def stop(visit: gr.Request) -> Any:
        # The end of the answer resets the box; an update from here can be overwritten by one on its way.
        return gr.skip() if answers.stop(session(visit)) else message_box(busy=False)

    tab.textbox.stop(stop, None, [tab.textbox], **DIRECT).then(None, None, None, js=LOST_JS, **DIRECT)
    return panel


def _with_panels(held: Any, system: Any, definitions: Any) -> Conversation:
    """The conversation that the browser sent, with the system prompt and the tools as they stand on the page.

    Those in ``held`` can be older. Raises InvalidRequestError.
    """
    now = {"system": system or "", "tools": (definitions or "").strip()}
    return conversations.load({**held, **now} if isinstance(held, dict) else held)


def check_room(change: Change) -> None:
    """Raise InvalidRequestError where an answer has no room in the conversation, or the tools cannot be read."""
    if change.ask:
        parse_tools(change.conversation.tools)
        if len(change.conversation.turns) >= conversations.MAX_TURNS:
            raise InvalidRequestError(f"This conversation has {conversations.MAX_TURNS:,} turns. Start a new one.")


def _with_results(conversation: Conversation, event: gr.EventData) -> Change:
    """The conversation with the results of the pending calls. The model answers when all of its calls have them."""
    given = [(str(one["result"]), str(one["arguments"])) for one in event.results]
    results, arguments = zip(*given, strict=True) if given else ((), ())
    answered = tools.with_results(conversation, results, arguments)
    return Change(answered, ask=not tools.pending(answered))


def wire_opening(
    tab: ChatTab,
    library: gr.HTML,
    preferences: Preferences,
    backend: Backend,
    visitors: Visitors,
    answers: RunningAnswers,
) -> None:
    """Events that open another conversation, start a new one, or rename the open one."""
    outputs = [
        tab.holder,
        tab.patch,
        *tab.screen,
        *tab.panels,
        tab.meter.bar,
        tab.message,
        tab.textbox,
        tab.watched,
    ]

    async def opened(visit: gr.Request, value: Any, key: Any, settings: tuple[Any, ...]) -> tuple[Any, ...]:
        # The running answer goes on, but no update of it may come after the other conversation.
        answers.release(session(visit))
        await visitors.settled(session(visit), STOP_SECONDS)
        try:
            conversation, *shown = await off_loop(_opened_values, value, backend.status())
        except GraniteDemoError as error:
            kept = [gr.skip()] * (len(outputs) - 3)
            return *kept, note_html(error.user_text, "error"), gr.skip(), gr.skip()
        bar = await context_meter.measure_now(own(backend, visit), conversation, settings)
        answer = answers.get(str(key)) if key else None
        # The time makes each value another one, which starts the event.
        watched = {"answer": answer.key, "time": time.time()} if answer else None
        box = message_box(busy=bool(answer and not answer.state.ended))
        return *shown, bar, "", box, watched

    async def chosen(visit: gr.Request, event: gr.EventData, *settings: Any) -> tuple[Any, ...]:
        key = getattr(event, "answer", None)
        return await opened(visit, getattr(event, "conversation", "damaged"), key, settings)

    async def cleared(visit: gr.Request, *settings: Any) -> tuple[Any, ...]:
        return await opened(visit, None, None, settings)

    def renamed(value: Any, event: gr.EventData) -> tuple[Any, ...]:
        return ({**value, "title": conversations.load(event.conversation).title},)

    library.select(chosen, preferences.components, outputs, **DIRECT)
    library.clear(cleared, preferences.components, outputs, **DIRECT)
    library.edit(forgiving(renamed, 1), [tab.holder], [tab.holder, tab.message], **DIRECT)


def _opened_values(value: Any, status: ModelStatus) -> tuple[Any, ...]:
    """The conversation in ``value``, then what the page keeps and shows of it. Raises InvalidRequestError."""
    conversation = conversations.load(value)
    shown = *screen_values(conversation), *panel_values(conversation, status)
    return conversation, conversations.dump(conversation), None, *shown

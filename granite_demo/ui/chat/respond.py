"""What the Chat tab shows after a question or a button: the changed conversation, then the answer as it streams in.

The conversation stays in the browser, which sends it up once. What comes back are patches with the turns that are new
or changed, see ``conversations.patch``: whatever the visitor changes in the meantime stays. The browser keeps a state
of the answer every two seconds, so a page that is closed or reloaded loses nothing.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from granite_demo.chat import conversation as conversations
from granite_demo.chat.actions import Change
from granite_demo.chat.answer import Answer, waiting_words
from granite_demo.chat.bundle import made
from granite_demo.chat.conversation import Conversation, Turn
from granite_demo.chat.request import build_request, written_tokens
from granite_demo.types.requests import GenerationRequest
from granite_demo.ui.chat import context_meter
from granite_demo.ui.chat.messages import answer_turn, growing_messages
from granite_demo.ui.chat.sources import sent
from granite_demo.ui.chat.tab import ChatTab, message_box, screen_values
from granite_demo.ui.chat.tools import pending
from granite_demo.ui.executor import off_loop
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import Snapshot, Update, Visit, snapshots

BEGINNING = 40
"""Characters of a question that identify it in a note."""
KEEP_SECONDS = 2.0
"""Between two states of an answer that the browser keeps."""
State = Literal["asked", "growing", ""]
"""Of a patch. asked: an answer follows; growing: its answer is not whole, and is only kept; empty: the end."""


async def respond(
    tab: ChatTab, visit: Visit, before: Conversation, change: Change, settings: tuple[Any, ...], **box: Any
) -> AsyncGenerator[Update]:
    """Yield the updates that show ``change`` of the conversation ``before``, and the answer if the change asks for one.

    ``settings`` are the values of the Settings tab; ``box`` are new values of the message box.
    """
    after, request = change.conversation, None

    def build() -> GenerationRequest:
        nonlocal request
        request = build_request(after, to_sampling(*settings))
        if change.begun:
            request = replace(request, written=written_tokens(change.begun, visit.backend.status().name))
        return request

    # Off the event loop: the footnotes of cited answers take time to find.
    first = await off_loop(_screen, tab, before, after, busy=change.ask)
    first |= {tab.message: "", tab.textbox: message_box(busy=change.ask, **box)}
    if not change.ask:
        bar = await context_meter.measure_now(visit.backend, after, settings)
        yield {**first, **({} if after is before else _patch(tab, before, after)), tab.meter.bar: bar}
        return
    past, turn_id, kept = first[tab.chatbot], conversations.new_id(), time.monotonic()
    given = sent(after.documents)
    shot = Snapshot(Answer(), waiting_words(None), "note", 0.0)

    def show(turn: Turn) -> Update:
        return {tab.chatbot: [*past, *growing_messages(turn)]}

    yield {**first, **_patch(tab, before, after, "asked"), **show(answer_turn(turn_id, after.head, shot))}
    async with aclosing(snapshots(visit.backend, build, visit.stop)) as shots:
        async for shot in shots:
            turn = answer_turn(turn_id, after.head, shot)
            if time.monotonic() - kept < KEEP_SECONDS or not (turn.content or turn.thinking):
                yield show(turn)
                continue
            kept = time.monotonic()
            part = turn.model_copy(update={"note": f"{turn.note} · interrupted", "sent": given})
            yield {**show(turn), **_patch(tab, before, conversations.put(after, part), "growing")}
    turn = answer_turn(turn_id, after.head, shot).model_copy(update={"sent": given, **_ending(request, shot)})
    done = conversations.put(after, turn)
    screen = await off_loop(_screen, tab, after, done)
    bar = await context_meter.measure_now(visit.backend, done, settings)
    yield {**screen, **_patch(tab, before, done), tab.meter.bar: bar}


def _ending(request: GenerationRequest | None, shot: Snapshot) -> dict[str, Any]:
    """The values of an answer that are known at its end; ``request`` is None where none could be built."""
    if request is None:
        return {}
    notes = [shot.note, left_out(request, shot.answer.dropped), advice(request, shot.answer)]
    return {"made": made(request, shot.answer.finish), "note": " · ".join(filter(None, notes))}


def _screen(tab: ChatTab, before: Conversation, after: Conversation, *, busy: bool = False) -> Update:
    update: Update = dict(zip(tab.screen, screen_values(after, busy=busy), strict=True))
    if pending(after) == pending(before):  # what the visitor typed as a result stays
        for part in tab.results.shown:
            del update[part]
    return update


def _patch(tab: ChatTab, before: Conversation, after: Conversation, state: State = "") -> Update:
    return {tab.patch: {**conversations.patch(before, after), "state": state}}


def left_out(request: GenerationRequest, count: int) -> str:
    """The first and the last question among the ``count`` oldest messages; empty where none was left out."""
    messages = [message for message in request.messages if message.role != "system"][:count]
    questions = [_beginning(message.content) for message in messages if message.role == "user"]
    if not questions:
        return ""
    if len(questions) == 1:
        return f"the question “{questions[0]}”"
    return f"from “{questions[0]}” to “{questions[-1]}”"


def _beginning(text: str) -> str:
    line = " ".join(text.split()).replace(" · ", " ")  # which separates the parts of a note
    return line if len(line) <= BEGINNING else f"{line[:BEGINNING].rstrip()}…"


def advice(request: GenerationRequest, answer: Answer) -> str:
    """What to do about an answer that was cut; empty for any other, and where its note says so already."""
    finish, limit = answer.finish, request.sampling.max_tokens
    if finish is None or finish.reason != "length" or not answer.text:
        return ""
    if limit is not None and finish.usage.completion_tokens >= limit:
        return "for more, raise Max new tokens in Sampling"
    return "the context is full: start a new conversation for more"

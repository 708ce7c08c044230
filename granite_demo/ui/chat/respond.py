"""What the Chat tab shows after a question or a button: the changed conversation, then the answer as it streams in.

The conversation stays in the browser, which sends it up once. What comes back are patches with the turns that are new
or changed, see ``conversations.patch``: whatever the visitor changes in the meantime stays. The answer is written by a
task of its own, see ``running_answers``, which a page only follows: it goes on while the visitor looks at another
conversation, and a page that is loaded again reads on. The browser keeps what the page shows of it.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from granite_demo.chat import conversation as conversations
from granite_demo.chat.actions import INTERRUPTED_NOTE, Change
from granite_demo.chat.answer import Answer, waiting_words
from granite_demo.chat.bundle import made
from granite_demo.chat.conversation import Conversation, SentDocument, Turn
from granite_demo.chat.request import build_request, written_tokens
from granite_demo.types.requests import GenerationRequest
from granite_demo.types.stop import Stop
from granite_demo.ui.chat import context_meter
from granite_demo.ui.chat.messages import answer_turn, growing_messages
from granite_demo.ui.chat.running_answers import AnswerState, RunningAnswer, RunningAnswers
from granite_demo.ui.chat.sources import sent
from granite_demo.ui.chat.tab import ChatTab, message_box, screen_values
from granite_demo.ui.executor import off_loop
from granite_demo.ui.settings import to_sampling
from granite_demo.ui.streaming import Snapshot, Update, Visit, snapshots

BEGINNING = 40
"""Characters of a question that identify it in a note."""
PatchState = Literal["asked", "growing", ""]
"""Of a patch. asked: an answer follows; growing: its answer is not whole, and is only kept; empty: the end."""


async def respond(
    tab: ChatTab,
    visit: Visit,
    answers: RunningAnswers,
    before: Conversation,
    change: Change,
    settings: tuple[Any, ...],
    **box: Any,
) -> AsyncGenerator[Update]:
    """Yield the updates that show ``change`` of the conversation ``before``, and the answer if the change asks for one.

    ``settings`` are the values of the Settings tab; ``box`` are new values of the message box.
    """
    after = change.conversation
    # Off the event loop: the footnotes of cited answers take time to find.
    first = await off_loop(_screen, tab, after, busy=change.ask)
    first |= {tab.message: "", tab.textbox: message_box(busy=change.ask, **box)}
    if not change.ask:
        bar = await context_meter.measure_now(visit.backend, after, settings)
        yield {**first, **({} if after is before else {tab.patch: _patch(before, after)}), tab.meter.bar: bar}
        return
    stop = Stop()
    writing = _Writing(before, change, settings, conversations.new_id(), sent(after.documents))
    state = writing.state(Snapshot(Answer(), waiting_words(None), "note", 0.0))
    answer = answers.begin(visit.page, visit.address, state, writing.states(visit, stop), stop)
    yield {**first, tab.patch: {**_patch(before, after, "asked"), "answer": answer.key}}
    async with aclosing(follow(tab, visit, answers, answer, after, settings)) as updates:
        async for update in updates:
            yield update


async def follow(
    tab: ChatTab,
    visit: Visit,
    answers: RunningAnswers,
    answer: RunningAnswer,
    held: Conversation,
    settings: tuple[Any, ...],
) -> AsyncGenerator[Update]:
    """Yield the updates that show ``answer`` in the conversation ``held``, until the page shows something else."""
    past = None
    async with aclosing(answers.follow(visit.page, answer)) as states:
        async for state in states:
            if state.ended:
                shown = _with_patch(held, state.patch)
                screen = await off_loop(_screen, tab, shown)
                yield {**screen, tab.patch: state.patch}
                yield {tab.meter.bar: await context_meter.measure_now(visit.backend, shown, settings)}
                return
            if past is None:
                question = conversations.rewind(_with_patch(held, state.patch), state.turn.parent)
                past = (await off_loop(screen_values, question, busy=True))[0]
            yield {tab.chatbot: [*past, *growing_messages(state.turn)], tab.growing: _growing(state, answer)}


def _growing(state: AnswerState, answer: RunningAnswer) -> dict[str, Any]:
    return {**state.patch, "answer": answer.key, "ahead": state.ahead}


def _with_patch(held: Conversation, patch: dict[str, Any]) -> Conversation:
    """``held`` with the turns of ``patch``."""
    turns = {name: Turn.model_validate(turn) for name, turn in patch["turns"].items()}
    return held.model_copy(update={"turns": {**held.turns, **turns}, "head": patch["head"]})


@dataclass(frozen=True, slots=True)
class _Writing:
    """The states of one answer: ``change`` of the conversation ``before`` asks for it."""

    before: Conversation
    change: Change
    settings: tuple[Any, ...]
    turn_id: str
    given: tuple[SentDocument, ...]

    async def states(self, visit: Visit, stop: Stop) -> AsyncGenerator[AnswerState]:
        """Yield the states, until the answer ends or ``stop`` is set."""
        after, request = self.change.conversation, None

        def build() -> GenerationRequest:
            nonlocal request
            request = build_request(after, to_sampling(*self.settings))
            begun = self.change.begun
            if begun and "text" in begun:
                request = replace(request, written_text=begun["text"])
            elif begun:
                request = replace(request, written=written_tokens(begun, visit.backend.status().name))
            return request

        shot = Snapshot(Answer(), waiting_words(None), "note", 0.0)
        async with aclosing(snapshots(visit.backend, build, stop)) as shots:
            async for shot in shots:
                yield self.state(shot)
        turn = self._turn(shot).model_copy(update=_ending(request, shot))
        yield AnswerState(turn, _patch(self.before, conversations.put(after, turn)), ended=True)

    def state(self, shot: Snapshot) -> AnswerState:
        """The state at ``shot``, with a patch for a browser that gets no other one."""
        turn = self._turn(shot)
        part = turn.model_copy(update={"note": turn.note + INTERRUPTED_NOTE})
        patch = _patch(self.before, conversations.put(self.change.conversation, part), "growing")
        return AnswerState(turn, patch, shot.answer.ahead if shot.answer.ttft is None else None)

    def _turn(self, shot: Snapshot) -> Turn:
        turn = answer_turn(self.turn_id, self.change.conversation.head, shot)
        return turn.model_copy(update={"sent": self.given})


def _ending(request: GenerationRequest | None, shot: Snapshot) -> dict[str, Any]:
    """The values of an answer that are known at its end; ``request`` is None where none could be built."""
    if request is None:
        return {}
    notes = [shot.note, left_out(request, shot.answer.dropped), advice(request, shot.answer)]
    return {"made": made(request, shot.answer.finish), "note": " · ".join(filter(None, notes))}


def _screen(tab: ChatTab, after: Conversation, *, busy: bool = False) -> Update:
    return dict(zip(tab.screen, screen_values(after, busy=busy), strict=True))


def _patch(before: Conversation, after: Conversation, state: PatchState = "") -> dict[str, Any]:
    return {**conversations.patch(before, after), "state": state}


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

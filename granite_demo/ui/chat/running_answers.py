"""Answers that are being written. Each goes on while a page reads it, and its last state can be read for a while.

An answer belongs to a conversation, not to what a page shows: a visitor can open another conversation, reload the page
or lose the connection. Who knows the key of an answer can read it; the key is random, and only the browser that asked
has it. Knows nothing of components.
"""

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from granite_demo.chat.conversation import Turn
from granite_demo.errors import log_unexpected
from granite_demo.types.stop import Stop

UNREAD_GRACE = 15.0
"""An answer that no page has read for so long ends. A page that is reloaded on a slow line is back by then."""
ANSWER_SECONDS = 600.0
"""The last state of an answer can be read for so long after its end."""
MAX_ENDED_BYTES, MAX_ENDED_OF_VISITOR = 32_000_000, 4_000_000
"""Of the answers that have ended: of all visitors, and of one. Beyond it, the oldest ones are deleted."""
CHECK_SECONDS = 1.0
MAX_READ = 32
"""Answers that a browser can read at once."""


@dataclass(frozen=True, slots=True)
class AnswerState:
    """One state of an answer."""

    turn: Turn
    patch: dict[str, Any]
    """For the conversation in the browser, see ``conversations.patch``: the new turns, with ``turn`` last."""
    ahead: int | None = None
    """Requests before this one in the queue of the engine. None: it does not wait."""
    ended: bool = False


@dataclass(eq=False, slots=True)
class RunningAnswer:
    """One answer, which a task writes."""

    visitor: str
    state: AnswerState
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    stop: Stop = field(default_factory=Stop)
    pages: set[str] = field(default_factory=set)
    """The open pages that read it."""
    read: float = field(default_factory=time.monotonic)
    """When it was last read."""
    size: int = 0
    """Bytes of the last state, after the end."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class RunningAnswers:
    """The answers of all visitors, by their keys."""

    def __init__(self, grace: float = UNREAD_GRACE) -> None:
        self._grace = grace
        self._answers: OrderedDict[str, RunningAnswer] = OrderedDict()
        self._shown: dict[str, RunningAnswer] = {}
        """The answer that each page shows."""

    def begin(
        self, page: str, visitor: str, first: AnswerState, states: AsyncGenerator[AnswerState], stop: Stop
    ) -> RunningAnswer:
        """Write an answer in a task of its own: ``states``, of which the last one has ended. ``stop`` ends it."""
        answer = RunningAnswer(visitor, first, stop=stop)
        self._answers[answer.key] = answer
        self._show(page, answer)
        answer.task = asyncio.create_task(self._write(answer, states))
        self._check(answer)
        return answer

    def get(self, key: str) -> RunningAnswer | None:
        """The answer with this key, or None: it does not exist, or is no longer kept."""
        answer = self._answers.get(key)
        if answer:
            answer.read = time.monotonic()
        return answer

    def functions(self) -> list[Callable[[Any], Any]]:
        """The functions that a script of the page calls with the keys of answers."""

        def read_answers(keys: Any) -> list[dict[str, Any] | None]:
            """The patch of each answer, with its last state. None where the answer is not kept."""
            wanted = keys if isinstance(keys, list) else []
            found = [self.get(key) if isinstance(key, str) else None for key in wanted[:MAX_READ]]
            return [answer.state.patch if answer else None for answer in found]

        def stop_answer(key: Any) -> None:
            """Stop an answer: its conversation was deleted."""
            answer = self._answers.get(key) if isinstance(key, str) else None
            if answer:
                answer.stop.set()

        return [read_answers, stop_answer]

    async def follow(self, page: str, answer: RunningAnswer) -> AsyncGenerator[AnswerState]:
        """Yield the newest state after each change, up to the end, or until ``page`` shows something else."""
        self._show(page, answer)
        try:
            while self._shown.get(page) is answer:
                state, changed = answer.state, answer.changed
                yield state
                if state.ended:
                    del self._shown[page]
                    return
                if answer.state is state:
                    await changed.wait()
        except (GeneratorExit, asyncio.CancelledError):
            answer.pages.discard(page)  # the page does not read its updates any more
            raise

    def stop(self, page: str) -> bool:
        """Stop the answer that ``page`` shows. False if there is none."""
        answer = self._shown.get(page)
        if answer is None or answer.state.ended:
            return False
        answer.stop.set()
        return True

    def release(self, page: str) -> None:
        """``page`` shows something else. Its answers go on."""
        answer = self._shown.pop(page, None)
        if answer:
            _wake(answer)

    def leave(self, page: str) -> None:
        """``page`` is closed."""
        self.release(page)
        for answer in self._answers.values():
            answer.pages.discard(page)

    def _show(self, page: str, answer: RunningAnswer) -> None:
        answer.pages.add(page)
        self._shown[page] = answer

    async def _write(self, answer: RunningAnswer, states: AsyncGenerator[AnswerState]) -> None:
        try:
            async with aclosing(states):
                async for state in states:
                    answer.state = state
                    _wake(answer)
        except Exception as error:
            log_unexpected(error)
        finally:
            if not answer.state.ended:  # a fault of this program
                answer.state = AnswerState(answer.state.turn, {**answer.state.patch, "state": ""}, ended=True)
            answer.size = len(json.dumps(answer.state.patch))
            _wake(answer)
            asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._forget, answer)
            self._keep_to_limits(answer.visitor)

    def _check(self, answer: RunningAnswer) -> None:
        if answer.state.ended:
            return
        if answer.pages:
            answer.read = time.monotonic()
        elif time.monotonic() - answer.read >= self._grace:
            answer.stop.set()
        asyncio.get_running_loop().call_later(min(CHECK_SECONDS, self._grace), self._check, answer)

    def _keep_to_limits(self, visitor: str) -> None:
        ended = [answer for answer in self._answers.values() if answer.state.ended]
        for answers, most in (
            ([one for one in ended if one.visitor == visitor], MAX_ENDED_OF_VISITOR),
            (ended, MAX_ENDED_BYTES),
        ):
            excess = sum(one.size for one in answers) - most
            for answer in answers:
                if excess <= 0:
                    break
                excess -= answer.size
                self._forget(answer)

    def _forget(self, answer: RunningAnswer) -> None:
        self._answers.pop(answer.key, None)
        for page in [page for page, shown in self._shown.items() if shown is answer]:
            del self._shown[page]


def _wake(answer: RunningAnswer) -> None:
    changed, answer.changed = answer.changed, asyncio.Event()
    changed.set()

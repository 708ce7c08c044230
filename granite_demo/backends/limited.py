"""The limits for each visitor of a public page, as a ``Backend`` that wraps another.

A visitor is one address. Beyond ``Limits.running``, a visitor's requests wait for one another; beyond
``Limits.waiting``, and after ``Limits.tokens`` in one minute, they are rejected. An answer ends after
``Limits.seconds``: its time begins with its turn, and the waits for the engine and for a model do not count.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing, suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any, Self, cast

from granite_demo.access import Limits
from granite_demo.backend import ForwardingBackend, ManagedBackend, R, T
from granite_demo.errors import InvalidRequestError, ModelError, TimeLimitError, VisitorLimitError
from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.events import Dropped, Finish, Queued, ReasoningDelta, ScoreSummary, TextDelta
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest
from granite_demo.types.stop import Stop, StoppedError

MINUTE = 60.0
MAX_VISITORS = 10_000
"""Remembered visitors. Beyond it, those without a request or a recent token are forgotten."""
READ_SHARE = 10
"""Prompt tokens that count as one generated token. Prefill is about this many times faster than decoding."""
TOKEN_CHARACTERS = 4
"""An estimate of the characters in one prompt token. The exact number is known only at the end of the answer."""
LOADING_SECONDS = 3600
"""The longest wait of a request for a model that is not ready."""
WAITING = (Queued, Dropped, Comparing)
"""Events of a request before its generation begins."""


class LimitedBackend(ForwardingBackend):
    """``backend`` within ``limits``. Without ``for_visitor``, all requests count as those of one visitor."""

    def __init__(self, backend: ManagedBackend, limits: Limits) -> None:
        super().__init__(backend)
        self._limits = limits
        self._visitors: dict[str, _Visitor] = {}
        self._visitor = _Visitor()
        self._secret, self._salt = secrets.token_hex(16), ""
        self._reloaded: list[float] = []  # the time of the last try to load a failed model, for all visitors together

    def for_visitor(self, visitor: str) -> Self:
        """See ``Backend.for_visitor``."""
        if len(self._visitors) >= MAX_VISITORS:
            self._visitors = {name: one for name, one in self._visitors.items() if not one.idle}
        own = super().for_visitor(visitor)
        own._visitor = self._visitors.setdefault(visitor, _Visitor())
        own._salt = sha256(f"{self._secret} {visitor}".encode()).hexdigest() if self._limits.own_prefixes else ""
        return own

    def check_visitor(self) -> None:
        """See ``Backend.check_visitor``."""
        self._visitor.check(self._limits)
        super().check_visitor()

    async def answer(self, ask: Callable[[R], AsyncGenerator[T]], request: R) -> AsyncGenerator[T]:
        """Yield the events of ``ask(request)`` after its turn comes. Before that, yield how many requests are ahead.

        Raises InvalidRequestError for a request that is too long, VisitorLimitError, ModelError for a failed model that
        was tried a moment ago, and TimeLimitError in the middle of an answer.
        """
        visitor, limits, spent, arrived = self._visitor, self._limits, 0, time.monotonic()
        stop = Stop()
        if isinstance(request, GenerationRequest):
            stop = request.stop
            request = replace(request, sampling=replace(request.sampling, salt=self._salt))
        cut, event = Stop(), None
        read = self._checked_size(request) // (TOKEN_CHARACTERS * READ_SHARE)
        visitor.check(limits)
        self._check_load()
        turn = asyncio.Event()
        visitor.line.append(turn)
        try:
            while ahead := visitor.ahead(turn, limits):
                yield _waits(request, ahead)
                await stop.guard(turn.wait())
                turn.clear()
                visitor.check_tokens(limits)
            loads = isinstance(request, CompareRequest) or bool(request.model)
            loads = loads or self._backend.status().stage != "ready"
            seconds = LOADING_SECONDS if loads else 0
            with stop.calling(cut.set), closing(_Deadline(limits.seconds, seconds, cut)) as deadline:
                async with aclosing(_until(cut, ask, request)) as events:
                    async for event in events:
                        before, spent = spent, _spent(event, spent, read)
                        visitor.spend(spent - before)
                        deadline.hear(event)
                        yield event
            if deadline.passed and not _is_whole(event):
                raise TimeLimitError(limits.seconds)
        except StoppedError:
            yield cast("T", Finish.unbegun(time.monotonic() - arrived))
        finally:
            visitor.leave(turn)

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        """See ``Backend.inspect``. The limit of running answers also applies to prompts that are inspected at once."""
        self._checked_size(request)
        if 0 < self._limits.running <= self._visitor.inspecting:
            raise VisitorLimitError("Too many of your prompts are being read. Try again in a moment.")
        self._visitor.inspecting += 1
        try:
            return await super().inspect(request, parts)
        finally:
            self._visitor.inspecting -= 1

    def start(self) -> None:
        """See ``ModelControl.start``. Does nothing for a failed model that was tried a moment ago."""
        try:
            self._check_load()
        except ModelError:
            return
        super().start()

    def _checked_size(self, request: GenerationRequest | ScoreRequest | CompareRequest) -> int:
        """Return the number of characters of ``request``. Raises InvalidRequestError if there are too many."""
        characters = _characters(request)
        if 0 < self._limits.characters < characters:
            raise InvalidRequestError(
                f"The request has {characters:,} characters; the limit is {self._limits.characters:,}. Shorten it."
            )
        return characters

    def _check_load(self) -> None:
        """Raise ModelError if a failed model was tried a moment ago, because each request would load it again."""
        status = self._backend.status()
        if not self._limits.reload or status.stage != "failed":
            return
        now = time.monotonic()
        if self._reloaded and now < self._reloaded[0] + self._limits.reload:
            raise ModelError(f"{status.detail} The last attempt was a moment ago. Try again in a minute.".lstrip())
        self._reloaded[:] = [now]


class _Visitor:
    """The requests and tokens of one visitor. The first ``Limits.running`` of ``line`` run, the others wait."""

    def __init__(self) -> None:
        self.line: list[asyncio.Event] = []
        self.inspecting = 0
        self._spent: deque[tuple[float, int]] = deque()

    @property
    def idle(self) -> bool:
        return not self.line and not self.inspecting and not self._recent()

    def _recent(self) -> int:
        while self._spent and self._spent[0][0] <= time.monotonic() - MINUTE:
            self._spent.popleft()
        return sum(tokens for _, tokens in self._spent)

    def check(self, limits: Limits) -> None:
        """Raise VisitorLimitError if the visitor has too many requests or tokens."""
        if limits.running and len(self.line) >= limits.running + limits.waiting:
            raise VisitorLimitError(
                f"You already have {len(self.line)} requests running. Wait for one of them, or stop it."
            )
        self.check_tokens(limits)

    def check_tokens(self, limits: Limits) -> None:
        """Raise VisitorLimitError if the last minute had too many tokens."""
        if limits.tokens and (recent := self._recent()) >= limits.tokens:
            raise VisitorLimitError(
                f"You used {recent:,} tokens in the last minute; the limit is {limits.tokens:,}. Try again in a minute."
            )

    def ahead(self, turn: asyncio.Event, limits: Limits) -> int:
        """Return how many requests of this visitor must end before the request of ``turn`` can start."""
        return max(0, self.line.index(turn) + 1 - limits.running) if limits.running else 0

    def spend(self, tokens: int) -> None:
        """Count ``tokens`` that were generated or read now."""
        if tokens:
            now = time.monotonic()
            if self._spent and now < self._spent[-1][0] + 1:
                began, before = self._spent.pop()
                self._spent.append((began, before + tokens))
            else:
                self._spent.append((now, tokens))

    def leave(self, turn: asyncio.Event) -> None:
        """Remove the request of ``turn``, and wake the others."""
        self.line.remove(turn)
        for other in self.line:
            other.set()


class _Deadline:
    """Sets a stop when the time of a request is over."""

    def __init__(self, seconds: int, loading: int, cut: Stop) -> None:
        """``seconds`` is the limit for the answer; 0: none. ``loading`` is added for a model that is not ready."""
        self.passed = False
        self._seconds = seconds
        self._loading = loading
        self._cut = cut
        self._timer: asyncio.TimerHandle | None = None
        self._set(loading)

    def _set(self, waits: int) -> None:
        self.close()
        if self._seconds:
            self._timer = asyncio.get_running_loop().call_later(waits + self._seconds, self._pass)

    def _pass(self) -> None:
        self.passed = True
        self._cut.set()

    def hear(self, event: object) -> None:
        """Extend the time of a waiting request. From its first token, set the time of an answer."""
        if isinstance(event, Queued):
            # The requests ahead, and one that runs now, have the same limit as this one.
            self._set((event.ahead + 1) * self._seconds)
        elif isinstance(event, Comparing):
            self._set(self._loading)
        elif self._timer and not isinstance(event, WAITING):
            left = self._timer.when() - asyncio.get_running_loop().time()
            if left > self._seconds:
                self._set(0)

    def close(self) -> None:
        """Cancel the deadline."""
        if self._timer:
            self._timer.cancel()


async def _until(cut: Stop, ask: Callable[[R], AsyncGenerator[T]], request: R) -> AsyncGenerator[T]:
    """Yield the events of ``ask(request)`` until ``cut`` is set.

    An answer then ends itself; other requests are cancelled.
    """
    if isinstance(request, GenerationRequest):
        async with aclosing(ask(replace(request, stop=cut))) as events:
            async for event in events:
                yield event
        return
    async with aclosing(ask(request)) as events:
        with suppress(StoppedError):
            while (found := await cut.guard(anext(events, None))) is not None:
                yield found


def _spent(event: object, before: int, read: int) -> int:
    """Return the tokens that count until now: ``before`` this event, and ``read`` as the estimate for the prompt."""
    if isinstance(event, TextDelta | ReasoningDelta):
        return read + event.completion_tokens
    if isinstance(event, Finish):
        usage = event.usage
        return max(before, usage.prompt_tokens // READ_SHARE + usage.completion_tokens)
    return before + isinstance(event, ScoredToken)


def _is_whole(last: object) -> bool:
    """Return whether ``last`` is the end of a complete request."""
    return isinstance(last, ScoreSummary | Comparison) or (isinstance(last, Finish) and last.reason != "stopped")


def _characters(request: GenerationRequest | ScoreRequest | CompareRequest) -> int:
    if not isinstance(request, GenerationRequest):
        return len(request.text)
    texts = [request.prompt or "", request.suffix or "", request.written_text]
    texts += [message.content for message in request.messages]
    texts += [document.text for document in request.documents]
    texts += [str(tool.parameters) for tool in request.tools]
    return sum(map(len, texts))


def _waits(request: object, ahead: int) -> Any:
    """Return the event of a request with ``ahead`` requests of the same visitor before it."""
    if not isinstance(request, CompareRequest):
        return Queued(ahead)
    return Comparing(f"Waiting for your {ahead} other requests" if ahead > 1 else "Waiting for your other request")

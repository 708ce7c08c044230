"""How much one visitor of a public page may ask for: a ``Backend`` around another. Knows neither page nor API.

A visitor is whoever has one address. Their requests beyond ``Limits.running`` wait for one another, beyond
``Limits.waiting`` they are refused, and so is whoever had more tokens written than ``Limits.tokens`` in a minute.
"""

import asyncio
import ipaddress
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from granite_demo.backends import Backend
from granite_demo.errors import InvalidRequestError, TimeLimitError, VisitorLimitError
from granite_demo.scores import CompareRequest, Comparing, Comparison, ScoredToken, ScoreRequest, ScoreSummary
from granite_demo.status import LoadOptions, ModelChoice, ModelStatus
from granite_demo.types import (
    Dropped,
    Finish,
    GenerationRequest,
    PromptView,
    Queued,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
)

MINUTE = 60.0
MAX_VISITORS = 10_000
"""Visitors that are remembered; of more, those who ask for nothing now are forgotten."""
WAITING = (Queued, Dropped, Comparing)
"""Events of a request that does not generate yet."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one visitor may have; 0 is no limit."""

    running: int = 0
    """Requests that are answered at once."""
    waiting: int = 0
    """Requests that wait for these; without a limit on running ones none does."""
    tokens: int = 0
    """Tokens written or scored in any minute. A request that has begun is not ended by it."""
    seconds: int = 0
    """From the first token of an answer to its end."""
    characters: int = 0
    """Of one request's texts, checked before anything reads them."""


def visitor_of(host: str | None) -> str:
    """Who has the address ``host``: of IPv6 the /64 network, since one household has all of it."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)


class LimitedBackend:
    """``backend`` within ``limits``. Used without ``for_visitor``, all requests are one visitor's."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._backend = backend
        self._limits = limits
        self._visitors: dict[str, _Visitor] = {}
        self._visitor = _Visitor()

    def for_visitor(self, visitor: str) -> "LimitedBackend":
        """See ``Backend.for_visitor``."""
        if len(self._visitors) >= MAX_VISITORS:
            self._visitors = {name: one for name, one in self._visitors.items() if not one.idle}
        own = LimitedBackend(self._backend, self._limits)
        own._visitors = self._visitors
        own._visitor = self._visitors.setdefault(visitor, _Visitor())
        return own

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """See ``Backend.stream``. Raises VisitorLimitError, and TimeLimitError in the middle of an answer."""
        self._check_size(_characters(request))
        async with aclosing(self._within(lambda: self._backend.stream(request), Queued)) as events:
            async for event in events:
                yield event

    async def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        """See ``Backend.score``. Raises as ``stream`` does."""
        self._check_size(len(request.text))
        async with aclosing(self._within(lambda: self._backend.score(request), Queued)) as events:
            async for event in events:
                yield event

    async def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        """See ``Backend.compare``. Raises as ``stream`` does."""
        self._check_size(len(request.text))
        async with aclosing(self._within(lambda: self._backend.compare(request), _comparing)) as events:
            async for event in events:
                yield event

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        """See ``Backend.inspect``. Raises VisitorLimitError."""
        self._check_size(_characters(request))
        if 0 < self._limits.running <= self._visitor.inspecting:
            raise VisitorLimitError("Too many prompts of yours are being read at once. Try again in a moment.")
        self._visitor.inspecting += 1
        try:
            return await self._backend.inspect(request, parts)
        finally:
            self._visitor.inspecting -= 1

    def _check_size(self, characters: int) -> None:
        if 0 < self._limits.characters < characters:
            raise InvalidRequestError(
                f"The request has {characters:,} characters; this server takes {self._limits.characters:,}. Shorten it."
            )

    async def _within(self, begin: Callable[[], AsyncGenerator[T]], waits: Callable[[int], T]) -> AsyncGenerator[T]:
        """The events of ``begin`` when it is this request's turn; before, ``waits`` of how many come first."""
        visitor, limits, written = self._visitor, self._limits, 0
        visitor.check(limits)
        turn = asyncio.Event()
        visitor.line.append(turn)
        try:
            while ahead := visitor.ahead(turn, limits):
                yield waits(ahead)
                await turn.wait()
                turn.clear()
                visitor.check_tokens(limits)
            deadline: float | None = None
            async with aclosing(begin()) as events:
                while (event := await _next(events, deadline, limits.seconds)) is not None:
                    written = _written(event, written)
                    if limits.seconds and deadline is None and not isinstance(event, WAITING):
                        deadline = asyncio.get_running_loop().time() + limits.seconds
                    yield event
        finally:
            visitor.leave(turn, written)

    def status(self) -> ModelStatus:
        """See ``Backend.status``."""
        return self._backend.status()

    def start(self) -> None:
        """See ``Backend.start``."""
        self._backend.start()

    def choices(self) -> tuple[ModelChoice, ...]:
        """See ``Backend.choices``."""
        return self._backend.choices()

    def select(self, options: LoadOptions) -> None:
        """See ``Backend.select``."""
        self._backend.select(options)

    def cancel_load(self) -> None:
        """See ``Backend.cancel_load``."""
        self._backend.cancel_load()

    def unload(self) -> None:
        """See ``Backend.unload``."""
        self._backend.unload()

    def close(self) -> None:
        """See ``Backend.close``."""
        self._backend.close()


class _Visitor:
    """What one visitor has asked for. The first ``Limits.running`` of ``line`` run, the others wait."""

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
        """Raise VisitorLimitError where one more request is too much."""
        if limits.running and len(self.line) >= limits.running + limits.waiting:
            raise VisitorLimitError(
                f"{len(self.line)} requests of yours are under way already. Wait for one of them, or stop it."
            )
        self.check_tokens(limits)

    def check_tokens(self, limits: Limits) -> None:
        """Raise VisitorLimitError where too many were written of late."""
        if limits.tokens and (recent := self._recent()) >= limits.tokens:
            raise VisitorLimitError(
                f"{recent:,} tokens were written for you within a minute; the limit is {limits.tokens:,}. "
                "Try again in a minute."
            )

    def ahead(self, turn: asyncio.Event, limits: Limits) -> int:
        """How many requests of this visitor have to end before that of ``turn`` may begin."""
        return max(0, self.line.index(turn) + 1 - limits.running) if limits.running else 0

    def leave(self, turn: asyncio.Event, written: int) -> None:
        """The request of ``turn`` has ended after so many tokens."""
        self.line.remove(turn)
        if written:
            self._spent.append((time.monotonic(), written))
        for other in self.line:
            other.set()


async def _next(events: AsyncGenerator[T], deadline: float | None, seconds: int) -> T | None:
    """The next of ``events``, None after the last. Raises TimeLimitError after ``deadline``, in the loop's time."""
    try:
        async with asyncio.timeout_at(deadline) as limit:
            return await anext(events)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        if limit.expired():
            raise TimeLimitError(seconds) from None
        raise  # somebody else's


def _written(event: object, before: int) -> int:
    """Tokens written so far, of which there were so many ``before`` this event."""
    if isinstance(event, TextDelta | ReasoningDelta):
        return event.completion_tokens
    if isinstance(event, Finish):
        return event.usage.completion_tokens
    return before + isinstance(event, ScoredToken)


def _characters(request: GenerationRequest) -> int:
    texts = [request.prompt or "", request.suffix or ""]
    texts += [message.content for message in request.messages]
    texts += [document.text for document in request.documents]
    texts += [str(tool.parameters) for tool in request.tools]
    return sum(map(len, texts))


def _comparing(ahead: int) -> Comparing:
    return Comparing(f"Waiting for {ahead} other requests of yours" if ahead > 1 else "Waiting for your other request")

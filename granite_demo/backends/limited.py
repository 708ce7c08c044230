"""How much one visitor of a public page may ask for: a ``Backend`` around another. Knows neither page nor API.

A visitor is whoever has one address. Their requests beyond ``Limits.running`` wait for one another, beyond
``Limits.waiting`` they are refused, and so is whoever had more tokens than ``Limits.tokens`` in a minute.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from granite_demo.access import Limits
from granite_demo.backend import Backend
from granite_demo.backends.deadline import LOADING_SECONDS, Deadline, next_event
from granite_demo.errors import InvalidRequestError, ModelError, VisitorLimitError
from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.events import Finish, Queued, ReasoningDelta, ScoreSummary, StreamEvent, TextDelta
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import ModelChoice, ModelStatus
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest

MINUTE = 60.0
MAX_VISITORS = 10_000
"""Visitors that are remembered; of more, those who ask for nothing now are forgotten."""
READ_SHARE = 10
"""Tokens of a prompt that count as one written: a model reads about so much faster than it writes."""
TOKEN_CHARACTERS = 4
"""About so many make a token of a prompt whose length is told only in the end."""
T = TypeVar("T")


class LimitedBackend:
    """``backend`` within ``limits``. Used without ``for_visitor``, all requests are one visitor's."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._backend = backend
        self._limits = limits
        self._visitors: dict[str, _Visitor] = {}
        self._visitor = _Visitor()
        self._reloaded: list[float] = []  # when the failed model was tried last, the same for all visitors

    def for_visitor(self, visitor: str) -> "LimitedBackend":
        """See ``Backend.for_visitor``."""
        if len(self._visitors) >= MAX_VISITORS:
            self._visitors = {name: one for name, one in self._visitors.items() if not one.idle}
        own = LimitedBackend(self._backend, self._limits)
        own._visitors = self._visitors
        own._reloaded = self._reloaded
        own._visitor = self._visitors.setdefault(visitor, _Visitor())
        return own

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """See ``Backend.stream``. Raises VisitorLimitError, and TimeLimitError in the middle of an answer."""
        characters = _characters(request)
        self._check_size(characters)
        async with aclosing(
            self._within(lambda: self._backend.stream(request), Queued, characters, bool(request.model))
        ) as events:
            async for event in events:
                yield event

    async def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        """See ``Backend.score``. Raises as ``stream`` does."""
        self._check_size(len(request.text))
        async with aclosing(
            self._within(lambda: self._backend.score(request), Queued, loads=bool(request.model))
        ) as events:
            async for event in events:
                yield event

    async def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        """See ``Backend.compare``. Raises as ``stream`` does."""
        self._check_size(len(request.text))
        async with aclosing(self._within(lambda: self._backend.compare(request), _comparing, loads=True)) as events:
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

    async def _within(
        self,
        begin: Callable[[], AsyncGenerator[T]],
        waits: Callable[[int], T],
        characters: int = 0,
        loads: bool = False,
    ) -> AsyncGenerator[T]:
        """The events of ``begin`` when it is this request's turn; before, ``waits`` of how many come first.

        ``characters``: of its prompt; ``loads``: whether it may wait for another model than the one that answers here.
        """
        visitor, limits, spent = self._visitor, self._limits, 0
        read = characters // (TOKEN_CHARACTERS * READ_SHARE)
        visitor.check(limits)
        self._check_load()
        turn = asyncio.Event()
        visitor.line.append(turn)
        try:
            while ahead := visitor.ahead(turn, limits):
                yield waits(ahead)
                await turn.wait()
                turn.clear()
                visitor.check_tokens(limits)
            loads = loads or self._backend.status().stage != "ready"
            deadline = Deadline(limits.seconds, LOADING_SECONDS if loads else 0)
            async with aclosing(begin()) as events:
                while (event := await next_event(events, deadline)) is not None:
                    before, spent = spent, _spent(event, spent, read)
                    visitor.spend(spent - before)
                    deadline.hear(event)
                    yield event
        finally:
            visitor.leave(turn)

    def status(self) -> ModelStatus:
        """See ``Backend.status``."""
        return self._backend.status()

    def start(self) -> None:
        """See ``Backend.start``. Does nothing for a model that failed and was tried again a moment ago."""
        try:
            self._check_load()
        except ModelError:
            return
        self._backend.start()

    def _check_load(self) -> None:
        """Raise ModelError rather than load a model that failed again and again: each request for it would."""
        status = self._backend.status()
        if not self._limits.reload or status.stage != "failed":
            return
        now = time.monotonic()
        if self._reloaded and now < self._reloaded[0] + self._limits.reload:
            raise ModelError(f"{status.detail} It was tried again a moment ago. Try once more in a minute.".lstrip())
        self._reloaded[:] = [now]

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
        """Raise VisitorLimitError where there were too many of late."""
        if limits.tokens and (recent := self._recent()) >= limits.tokens:
            raise VisitorLimitError(
                f"{recent:,} tokens were written and read for you within a minute; the limit is {limits.tokens:,}. "
                "Try again in a minute."
            )

    def ahead(self, turn: asyncio.Event, limits: Limits) -> int:
        """How many requests of this visitor have to end before that of ``turn`` may begin."""
        return max(0, self.line.index(turn) + 1 - limits.running) if limits.running else 0

    def spend(self, tokens: int) -> None:
        """So many more tokens were written or read."""
        if tokens:
            now = time.monotonic()
            if self._spent and now < self._spent[-1][0] + 1:
                began, before = self._spent.pop()
                self._spent.append((began, before + tokens))
            else:
                self._spent.append((now, tokens))

    def leave(self, turn: asyncio.Event) -> None:
        """The request of ``turn`` has ended."""
        self.line.remove(turn)
        for other in self.line:
            other.set()


def _spent(event: object, before: int, read: int) -> int:
    """What counts so far, of ``before`` until this event; ``read`` is the estimate for the prompt."""
    if isinstance(event, TextDelta | ReasoningDelta):
        return read + event.completion_tokens
    if isinstance(event, Finish):
        usage = event.usage
        return max(before, usage.prompt_tokens // READ_SHARE + usage.completion_tokens)
    return before + isinstance(event, ScoredToken)


def _characters(request: GenerationRequest) -> int:
    texts = [request.prompt or "", request.suffix or ""]
    texts += [message.content for message in request.messages]
    texts += [document.text for document in request.documents]
    texts += [str(tool.parameters) for tool in request.tools]
    return sum(map(len, texts))


def _comparing(ahead: int) -> Comparing:
    return Comparing(f"Waiting for {ahead} other requests of yours" if ahead > 1 else "Waiting for your other request")

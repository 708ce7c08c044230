"""A backend with another server beside it, which the owner named: for one question to both, side by side."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from granite_demo.backend import Backend
from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.events import Queued, ScoreSummary, StreamEvent
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.model_status import BESIDE, ModelChoice, ModelStatus
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest


class BackendBeside:
    """``backend``, but what asks for the model ``BESIDE`` is answered by ``other``; see ``Backend`` for the methods."""

    def __init__(self, backend: Backend, other: Backend) -> None:
        self._backend = backend
        self._other = other

    def for_visitor(self, visitor: str) -> "BackendBeside":
        return BackendBeside(self._backend.for_visitor(visitor), self._other.for_visitor(visitor))

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        beside = request.model == LoadOptions(BESIDE)
        asked = self._other.stream(replace(request, model=None)) if beside else self._backend.stream(request)
        async with aclosing(asked) as events:
            async for event in events:
                yield event

    def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        return self._backend.score(request)

    def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        return self._backend.compare(request)

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        return await self._backend.inspect(request, parts)

    def status(self) -> ModelStatus:
        other = self._other.status()
        return replace(self._backend.status(), beside=other.title or other.model)

    def start(self) -> None:
        self._backend.start()
        self._other.start()

    def choices(self) -> tuple[ModelChoice, ...]:
        return self._backend.choices()

    def select(self, options: LoadOptions) -> None:
        self._backend.select(options)

    def cancel_load(self) -> None:
        self._backend.cancel_load()

    def unload(self) -> None:
        self._backend.unload()

    def close(self) -> None:
        self._backend.close()
        self._other.close()

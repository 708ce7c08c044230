"""Short hand-written stand-ins at the two seams."""

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Self

from granite_demo.engine.failures import closed_error
from granite_demo.engine.protocol import Measure, T
from granite_demo.loading.source import Source
from granite_demo.models import catalogue
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.comparison import Comparing, Comparison
from granite_demo.types.engine_kinds import EngineKind
from granite_demo.types.events import Finish, FinishReason, Queued, ScoreSummary, StreamEvent, TextDelta, Timings, Usage
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import ScoredToken, Token
from granite_demo.types.messages import Switches
from granite_demo.types.model_status import (
    Chosen,
    EngineSetup,
    EngineStats,
    Fact,
    Feature,
    ModelChoice,
    ModelSetup,
    ModelStatus,
)
from granite_demo.types.prompt_view import PromptView
from granite_demo.types.requests import CompareRequest, GenerationRequest, ScoreRequest
from granite_demo.types.sampling_params import SamplingParams
from granite_demo.types.stop import StoppedError

SETUP = ModelSetup(
    device=Chosen("cpu", "a test"),
    precision=Chosen("bfloat16", "a test"),
    quantization=Chosen("none", "a test"),
    attention=Chosen("sdpa", "a test"),
    engine=EngineSetup(Chosen(EngineKind("fake", serial=False), "a test")),
)
PLACEMENT = SimpleNamespace(chosen={name: getattr(SETUP, name) for name in SETUP.__slots__ if name != "engine"})
"""What a fake LoadedModel has to have of a Placement."""
SOURCE = Source(catalogue.SAMPLE, Path("nowhere"))
"""Of a model that a test makes in memory."""
READY = ModelStatus(
    "fake",
    "ready",
    1.0,
    title="Fake model",
    setup=SETUP,
    facts=(("Device", "cpu", "a test"),),
    context_length=1000,
    switches=Switches(tools=True, documents=True),
)


class FakeEngine:
    """Yields ``queued``, then the given token ids up to one of ``eos_ids``, then raises ``error`` if there is one."""

    setup = SETUP.engine
    facts: tuple[Fact, ...] = (("Engine", "fake", "a test"),)
    unable: tuple[tuple[Feature, str], ...] = ()

    def __init__(
        self, token_ids: Sequence[int], error: Exception | None = None, eos_ids: frozenset[int] = frozenset()
    ) -> None:
        self.token_ids = list(token_ids)
        self.error = error
        self.queued: list[Queued] = []
        self.prompts: list[list[int]] = []
        self.eos_ids = eos_ids
        self.running = 0
        self.closed_streams = 0
        self.closed = False

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        if sampling.max_tokens is None:
            raise ValueError("An engine needs max_tokens.")
        self.prompts.append(list(prompt_ids))
        self.running += 1
        try:
            for place in self.queued:
                yield place
            for token in self.token_ids[: sampling.max_tokens]:
                await asyncio.sleep(0)
                if self.closed:
                    raise closed_error()
                yield Token(token)
                if token in self.eos_ids:
                    return
            if self.error:
                raise self.error
        finally:
            self.running -= 1
            self.closed_streams += 1

    async def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """Chunks of three tokens. Row i of the made-up logits is the same wherever the text is cut."""
        import torch

        self.running += 1
        try:
            for place in self.queued:
                yield place
            logits = torch.randn((len(token_ids), max(token_ids) + 30), generator=torch.Generator().manual_seed(0))
            for start in range(0, len(token_ids), 3):
                await asyncio.sleep(0)
                if self.closed:
                    raise closed_error()
                yield measure(start, logits[start : start + 3])
            if self.error:
                raise self.error
        finally:
            self.running -= 1
            self.closed_streams += 1

    def stats(self) -> EngineStats:
        return EngineStats(running=self.running, waiting=0)

    def close(self) -> None:
        self.closed = True


class FakeBackend:
    """A ``ManagedBackend`` that says ``queued``, then ``words``, one every ``delay`` seconds, then raises ``error``.

    ``allowed`` is how many words it may say; for more it waits until the test has raised it.
    ``script`` is a list of events to answer with instead of the words; ``view`` is what ``inspect`` answers,
    ``scores`` and ``comparison`` are the events of those two. ``held`` are the last events of an answer that is cut.
    """

    def __init__(self, words: Sequence[str] = ("Hello", " world", "!"), delay: float = 0.0) -> None:
        self.words = list(words)
        self.delay = delay
        self.first_delay = 0.0
        self.allowed = sys.maxsize
        self.error: Exception | None = None
        self.queued: list[Queued] = []
        self.state = READY
        self.visitors: list[str] = []
        self.requests: list[GenerationRequest] = []
        self.running = 0
        self.started = threading.Event()
        self.closed = threading.Event()
        self.script: list[StreamEvent] | None = None
        self.held: list[StreamEvent] = []
        self.view: PromptView | None = None
        self.view_error: Exception | None = None
        self.inspected: list[GenerationRequest] = []
        self.scores: list[Queued | ScoredToken | ScoreSummary] = []
        self.scored: list[ScoreRequest] = []
        self.comparison: list[Comparing | Comparison] = []
        self.compared: list[CompareRequest] = []
        self.selected: list[LoadOptions] = []
        self.cancelled = threading.Event()
        self.unloaded = threading.Event()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        self.requests.append(request)
        self.running += 1
        words = self.words[: request.sampling.max_tokens]
        count, failure = 0, self.error
        reason: FinishReason = "length" if len(words) < len(self.words) else "stop"
        try:
            for place in self.queued:
                yield place
            await request.stop.guard(asyncio.sleep(self.first_delay))
            for event in self.script or ():
                yield event
                await request.stop.guard(asyncio.sleep(self.delay))
            if self.script is not None:
                return
            for count, word in enumerate(words, 1):
                while count > self.allowed:
                    await request.stop.guard(asyncio.sleep(0.01))
                yield TextDelta(word, count)
                await request.stop.guard(asyncio.sleep(self.delay))
        except StoppedError:
            reason, failure = "stopped", None
        finally:
            self.running -= 1
        if reason == "stopped" or failure:
            for event in self.held:
                yield event
        if failure:
            raise failure
        if reason != "stopped" or not self.held:
            yield Finish(reason, Usage(5, count), Timings(0.1, 0.1 + count * 0.05), request.sampling.seed)

    async def score(self, request: ScoreRequest) -> AsyncGenerator[Queued | ScoredToken | ScoreSummary]:
        self.scored.append(request)
        for event in self.scores:
            yield event
            await asyncio.sleep(self.delay)
        if self.error:
            raise self.error

    async def compare(self, request: CompareRequest) -> AsyncGenerator[Comparing | Comparison]:
        self.compared.append(request)
        for event in self.comparison:
            yield event
            await asyncio.sleep(self.delay)
        if self.error:
            raise self.error

    async def inspect(self, request: GenerationRequest, parts: bool = False) -> PromptView | None:
        self.inspected.append(request)
        if self.view_error:
            raise self.view_error
        return self.view if parts or self.view is None else replace(self.view, parts=())

    def for_visitor(self, visitor: str) -> Self:
        self.visitors.append(visitor)
        return self

    def check_visitor(self) -> None:
        pass

    def status(self) -> ModelStatus:
        return self.state

    def start(self) -> None:
        self.started.set()

    def choices(self) -> tuple[ModelChoice, ...]:
        return (ModelChoice("one", "Family · one"), ModelChoice("two", "Family · two"))

    def select(self, options: LoadOptions) -> None:
        self.selected.append(options)

    def cancel_load(self) -> None:
        self.cancelled.set()

    def unload(self) -> None:
        self.unloaded.set()

    def close(self) -> None:
        self.closed.set()

"""The seam between front ends and models: messages in, typed events out.

Knows neither pages nor wire formats. The page, the HTTP API and the command line share one ``Backend``.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from granite_demo.errors import ContextOverflowError
from granite_demo.manager import ModelManager, ReadyModel
from granite_demo.parsing import StopStrings
from granite_demo.types import (
    Finish,
    FinishReason,
    GenerationRequest,
    LoadOptions,
    ModelStatus,
    SamplingParams,
    StreamEvent,
    TextDelta,
    Timings,
    Usage,
)


class Backend(Protocol):
    """Answers requests. Closing the stream cancels the request."""

    def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """Yield the answer's events, a Finish last. Raises GraniteDemoError."""
        ...

    def status(self) -> ModelStatus:
        """The state of the model that answers."""
        ...

    def start(self) -> None:
        """Begin to make the model ready; after a failure, try again. Returns at once."""
        ...

    def close(self) -> None:
        """End all requests and give back the model's memory."""
        ...


class LocalBackend:
    """Answers with a model of this process."""

    def __init__(self, manager: ModelManager, options: LoadOptions) -> None:
        self._manager = manager
        self._options = options

    def status(self) -> ModelStatus:
        """See ``Backend.status``."""
        return self._manager.status(self._options)

    def start(self) -> None:
        """See ``Backend.start``."""
        self._manager.load(self._options)

    def wait_until_ready(self) -> ReadyModel:
        """Load the model and wait for it, for callers without an event loop. Raises what the load raises."""
        return self._manager.load(self._options).result()

    def close(self) -> None:
        """See ``Backend.close``."""
        self._manager.close()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[StreamEvent]:
        """See ``Backend.stream``. Waits for the model to be ready first."""
        arrived = time.perf_counter()
        async with self._manager.lease(self._options) as ready:
            # Tokenising a long text takes a second: off the event loop.
            prompt_ids = await asyncio.to_thread(_render, ready.loaded.tokenizer, request)
            sampling = fit_to_context(request.sampling, len(prompt_ids), ready.loaded.context_length)
            async with aclosing(_events(ready, prompt_ids, sampling, arrived)) as events:
                async for event in events:
                    yield event


def fit_to_context(sampling: SamplingParams, prompt_tokens: int, context_length: int) -> SamplingParams:
    """``sampling`` with max_tokens within the room that is left, and a seed where one is needed.

    Raises ContextOverflowError when the prompt alone fills the context.
    """
    room = context_length - prompt_tokens
    if room < 1:
        raise ContextOverflowError(prompt_tokens, context_length)
    if sampling.temperature > 0 and sampling.seed is None:
        sampling = replace(sampling, seed=secrets.randbelow(2**31))
    return replace(sampling, max_tokens=min(sampling.max_tokens or room, room))


def _render(tokenizer: Any, request: GenerationRequest) -> list[int]:
    from granite_demo import prompts

    if request.prompt is not None:
        return prompts.render_completion(tokenizer, request.prompt)
    return prompts.render_chat(tokenizer, request.messages)


async def _events(
    ready: ReadyModel, prompt_ids: list[int], sampling: SamplingParams, arrived: float
) -> AsyncGenerator[StreamEvent]:
    from granite_demo.decoding import IncrementalDecoder

    decoder = IncrementalDecoder(ready.loaded.tokenizer)
    visible = StopStrings(sampling.stop)
    reason: FinishReason = "length"
    count = 0
    first = arrived
    async with aclosing(ready.engine.generate(prompt_ids, sampling)) as tokens:
        async for token in tokens:
            count += 1
            if count == 1:
                first = time.perf_counter()
            if token in ready.loaded.eos_ids:
                reason = "stop"
                break
            yield TextDelta(visible.feed(decoder.feed(token)), count)
            if visible.hit:
                reason = "stop"
                break
    if not visible.hit:
        rest = visible.feed(decoder.flush()) + visible.flush()
        if rest:
            yield TextDelta(rest, count)
    timings = Timings(ttft=first - arrived, total=time.perf_counter() - arrived)
    seed = sampling.seed if sampling.temperature > 0 else None
    yield Finish(reason, Usage(len(prompt_ids), count), timings, seed)

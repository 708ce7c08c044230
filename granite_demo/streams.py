"""The tokens of one answer to the events that a reader sees. Knows engines only by their protocol."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from granite_demo.manager import ReadyModel
from granite_demo.parsing import StopStrings
from granite_demo.types import Finish, FinishReason, Queued, SamplingParams, StreamEvent, TextDelta, Timings, Usage


async def answer_events(
    ready: ReadyModel, prompt_ids: list[int], sampling: SamplingParams, arrived: float
) -> AsyncGenerator[StreamEvent]:
    """Yield the events of the answer to ``prompt_ids``; ``arrived`` is when the request came, by perf_counter."""
    from granite_demo.decoding import IncrementalDecoder

    decoder = IncrementalDecoder(ready.loaded.tokenizer)
    visible = StopStrings(sampling.stop)
    reason: FinishReason = "length"
    count = 0
    first = arrived
    async with aclosing(ready.engine.generate(prompt_ids, sampling)) as tokens:
        async for token in tokens:
            if isinstance(token, Queued):
                yield token
                continue
            count += 1
            if count == 1:
                first = time.perf_counter()
            if token.id in ready.loaded.eos_ids:
                reason = "stop"
                break
            yield TextDelta(visible.feed(decoder.feed(token.id)), count)
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

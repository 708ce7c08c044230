"""The interleaved engine: a few requests take turns on one thread, and each has its own KV cache.

It runs on every device. A ``Runner`` has the model and the caches.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from granite_demo.engine.failures import as_user_error, closed_error, dead_error, gpu_is_lost
from granite_demo.engine.interleaved.runner import Runner
from granite_demo.engine.protocol import Measure, answer_limit
from granite_demo.engine.sampling.sampler import Sampler
from granite_demo.engine.token_stream import Cancelled, TokenStream
from granite_demo.engine.waiting_queue import MAX_WAITING, WaitingQueue
from granite_demo.errors import ContextOverflowError, GraniteDemoError
from granite_demo.loading.device import is_out_of_memory
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.engine_kinds import DYNAMIC
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import Chosen, EngineSetup, EngineStats, Fact, Feature
from granite_demo.types.sampling_params import SamplingParams

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Request:
    """One request. Only the engine's thread uses its attributes, except the stream."""

    stream: TokenStream[Token]
    prompt_ids: list[int]
    sampling: SamplingParams
    left: int
    """The number of tokens that can still be generated."""
    slot: Any = None
    sample: Sampler | None = None
    last: int = 0
    """The newest token of the answer, which is not in the slot yet."""
    matcher: Matcher | None = None

    @property
    def uncached(self) -> list[int]:
        """The rest of the prompt, or the newest token."""
        return self.prompt_ids[len(self.slot.ids) :] or [self.last]


@dataclass(slots=True, eq=False)
class _Score:
    """One text to score. Only the engine's thread uses its attributes, except the stream."""

    stream: TokenStream[Any]
    token_ids: list[int]
    measure: Measure[Any]
    slot: Any = None


class InterleavedEngine:
    """Serves the running requests round robin: in each turn, a chunk of its prompt or one token is computed.

    Therefore a long prompt does not block the other requests. A text to score is processed like a prompt, from its
    first token on. Requests without a free slot wait in a queue.
    """

    def __init__(
        self,
        runner: Runner[Any],
        eos_ids: frozenset[int],
        setup: EngineSetup | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.setup = setup or EngineSetup(Chosen(DYNAMIC, ""))
        self.unable: tuple[tuple[Feature, str], ...] = ()
        self._runner = runner
        self._eos_ids = eos_ids
        self._pace = PrefillPace()
        self._line: WaitingQueue[_Request | _Score] = WaitingQueue(max_waiting)
        self._running: list[_Request | _Score] = []
        self._closed = False
        self._dead: GraniteDemoError | None = None
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    @property
    def facts(self) -> tuple[Fact, ...]:
        """See ``Engine.facts``. The runner has more facts after the warm-up."""
        return self.setup.facts(self._runner.facts)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        """See ``Engine.generate``."""
        limit = answer_limit(sampling)
        stream: TokenStream[Token] = TokenStream(asyncio.get_running_loop())
        request = _Request(stream, list(prompt_ids), sampling, limit, matcher=matcher)
        self._take(request)
        async with aclosing(stream.read()) as items:
            async for item in items:
                yield item

    async def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """See ``Engine.score``. The cache of the text is kept like that of a prompt."""
        if len(token_ids) > self._runner.context_length:
            raise ContextOverflowError(len(token_ids), self._runner.context_length)
        stream: TokenStream[T] = TokenStream(asyncio.get_running_loop())
        self._take(_Score(stream, list(token_ids), measure))
        async with aclosing(stream.read()) as items:
            async for item in items:
                yield item

    def _take(self, request: _Request | _Score) -> None:
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._dead:
                raise self._dead
            self._line.join(request)
            self._fill_slots()
            self._executor.submit(self._work)

    def stats(self) -> EngineStats:
        """See ``Engine.stats``."""
        with self._lock:
            failure = self._dead.user_text if self._dead else ""
            return EngineStats(len(self._running), len(self._line), failure=failure)

    def warm_up(self) -> None:
        """Do the initial work for which the first request would wait, on the model's thread."""

        def warm_up() -> None:
            with torch.inference_mode():
                self._runner.warm_up()

        self._executor.submit(warm_up).result()

    def close(self) -> None:
        """End all requests with EngineClosedError and wait for the model's thread to stop."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for request in self._line.clear():
                    request.stream.finish(closed_error())
                for request in self._running:
                    request.stream.cancel(closed_error())
                self._executor.submit(self._runner.release)
        self._executor.shutdown(wait=True)

    def _work(self) -> None:
        """Serve until no request is left. Each request submits a call; the calls after the first find no work."""
        with torch.inference_mode():
            while self._admit():
                for request in list(self._running):
                    self._turn(request)

    def _admit(self) -> bool:
        with self._lock:
            self._fill_slots()
        self._line.announce()
        return bool(self._running)

    def _fill_slots(self) -> None:
        # Under the lock, so that ``close`` finds each request either in the queue or in the running ones.
        while len(self._running) < self._runner.slots and (request := self._line.take()):
            self._running.append(request)

    def _turn(self, request: _Request | _Score) -> None:
        outcome, keep, out_of_memory = None, True, False
        try:
            if self._dead:
                raise self._dead
            if not (self._measure(request) if isinstance(request, _Score) else self._advance(request)):
                return
        except BaseException as error:
            outcome = self._give_up(error) if gpu_is_lost(error) else as_user_error(error)
            keep = isinstance(error, Cancelled)
            out_of_memory = is_out_of_memory(error)
            if outcome:
                outcome.with_traceback(None)  # its frames hold tensors
        self._end(request, outcome, keep)
        if out_of_memory:
            torch.cuda.empty_cache()

    def _give_up(self, error: BaseException) -> GraniteDemoError:
        """End all requests after the GPU is lost. The running ones end in their turn."""
        log.error("The engine cannot continue.", exc_info=error)
        with self._lock:
            self._dead = dead_error()
            waiting = self._line.clear()
        for request in waiting:
            request.stream.finish(self._dead)
        return self._dead

    def _advance(self, request: _Request) -> bool:
        """Compute a chunk of the prompt or one token. Return whether the answer ended."""
        request.stream.check()
        if request.slot is None:
            request.slot = self._runner.open(request.prompt_ids, request.sampling.salt)
        logits = self._forward(request)
        if len(request.slot.ids) < len(request.prompt_ids):
            return False
        if request.sample is None:
            request.sample = Sampler(request.sampling, request.prompt_ids, logits.device, request.matcher)
        token = request.sample(logits)
        request.stream.put(token)
        request.last = token.id
        request.left -= 1
        return token.id in self._eos_ids or not request.left

    def _forward(self, request: _Request) -> torch.Tensor:
        """Return the logits after the next chunk of the prompt, or after the newest token."""
        uncached = request.uncached
        if len(uncached) == 1:
            return self._runner.forward(request.slot, uncached, request.stream.check)
        chunk = uncached[: self._chunk(self._runner.chunk)]
        start = time.perf_counter()
        logits = self._runner.forward(request.slot, chunk, request.stream.check)
        logits[0, 0].item()  # wait for the GPU
        self._pace.record(len(chunk), time.perf_counter() - start)
        return logits

    def _chunk(self, most: int) -> int:
        return self._pace.size(most, alone=len(self._running) == 1)

    def _measure(self, request: _Score) -> bool:
        """Compute a chunk of a text to score. Return whether the text ended."""
        request.stream.check()
        if request.slot is None:
            request.slot = self._runner.open(())  # an empty slot, because stored caches have no logits
        position = len(request.slot.ids)
        chunk = request.token_ids[position : position + self._chunk(self._runner.score_chunk)]
        start = time.perf_counter()
        logits = self._runner.forward_all(request.slot, chunk, request.stream.check).float()
        request.stream.put(request.measure(position, logits))
        self._pace.record(len(chunk), time.perf_counter() - start)
        return len(request.slot.ids) == len(request.token_ids)

    def _end(self, request: _Request | _Score, outcome: GraniteDemoError | None, keep: bool) -> None:
        try:
            if request.slot is not None:
                # Before the end reaches the reader, so that an immediate next turn finds this cache.
                (self._runner.close if keep else self._runner.discard)(request.slot)
        except Exception:  # the answer is complete, and the other requests continue
            log.exception("The cache of an ended request cannot be released.")
        finally:
            request.slot = None
            with self._lock:
                self._running.remove(request)
            request.stream.finish(outcome)


SECONDS_SHARED = 0.25
"""The target time of a chunk if there are other requests."""
SECONDS_ALONE = 1.0
"""The target time of a chunk of a single request, and the maximum time that a new request waits for it."""
FIRST = 64
"""The size of the first chunk, before a speed is known, in tokens."""
SMALLEST = 32
"""The minimum size of a chunk. Fewer tokens take about the same time, because each chunk reads all weights."""


class PrefillPace:
    """Computes the size of a chunk from the speed of the last one."""

    def __init__(self) -> None:
        self._tokens_per_second = 0.0

    def size(self, most: int, alone: bool) -> int:
        """Return the number of tokens in the next chunk, at most ``most``."""
        if not self._tokens_per_second:
            return min(FIRST, most)
        seconds = SECONDS_ALONE if alone else SECONDS_SHARED
        return min(max(int(self._tokens_per_second * seconds), SMALLEST), most)

    def record(self, tokens: int, seconds: float) -> None:
        """Record the time of a chunk. Small chunks, at the end of prompts, are ignored: their speed is different."""
        if tokens >= SMALLEST and seconds > 0:
            self._tokens_per_second = tokens / seconds

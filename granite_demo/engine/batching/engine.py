"""The batching engine: many requests in each step, based on the continuous batching of transformers.

A request starts only when the cache has space for it, and its end or failure does not affect others. When a step fails,
the loop starts again, and its requests continue from their last token. A request that makes a step fail again, or that
was alone in the step, ends with the error (``recovery.py``).
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from granite_demo.engine.batching import structured_output
from granite_demo.engine.batching.loop import Loop
from granite_demo.engine.batching.recovery import Quarantine, failure_error, refusal_error
from granite_demo.engine.batching.request import Request, fit_to_cache
from granite_demo.engine.batching.sampler import BatchSampler, LogProbs, token_of
from granite_demo.engine.batching.scorer import BatchScorer
from granite_demo.engine.batching.slots import Slots
from granite_demo.engine.failures import closed_error, dead_error
from granite_demo.engine.protocol import Measure
from granite_demo.engine.sampling.reference import not_a_number
from granite_demo.engine.token_stream import TokenStream, deliver
from granite_demo.engine.waiting_queue import MAX_WAITING, WaitingQueue
from granite_demo.errors import EngineError, GraniteDemoError, UnsuitableEngineError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.tensor_parallel import ALONE, Group
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.engine_kinds import BATCHING
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import Chosen, EngineSetup, EngineStats, Fact, Feature
from granite_demo.types.sampling_params import SamplingParams

log = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_SECONDS = 0.5
"""The interval in which the watchdog checks the loop."""


class BatchingEngine:
    """Serves up to ``requests`` simultaneous requests with one model, which must have attention in all layers."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        cache_tokens: int,
        requests: int = 64,
        prefill: int = 2048,
        compile_level: int = 0,
        setup: EngineSetup | None = None,
        max_waiting: int = MAX_WAITING,
        group: Group = ALONE,
    ) -> None:
        """``cache_tokens`` is the size of the shared KV cache in tokens. Raises MemoryError if it does not fit."""
        self.setup = setup or EngineSetup(Chosen(BATCHING, ""))
        self.details: tuple[Fact, ...] = ()
        """Facts that are known after the warm-up, as rows for the Settings tab."""
        self._group = group
        self._capacity = cache_tokens
        self._ends = sorted(loaded.eos_ids)
        self._vocabulary: int = loaded.model.config.vocab_size
        self._sampler = BatchSampler(self._vocabulary, requests, loaded.model.device)
        self._loop = Loop(
            loaded.model,
            self._sampler,
            self._receive,
            tokens=cache_tokens,
            context=loaded.context_length,
            requests=requests,
            prefill=prefill,
            compile_level=compile_level,
            before_step=lambda: self._scorer.advance(),
        )
        self._scorer = BatchScorer(loaded, self._loop.wake, max_waiting, group)
        self.unable: tuple[tuple[Feature, str], ...] = self._scorer.unable
        self._lock = threading.RLock()
        self._waiting: WaitingQueue[Request] = WaitingQueue(max_waiting)
        self._slots = Slots(requests, cache_tokens)
        self._masks = structured_output.Masks(self._vocabulary, self._resume)
        self._quarantine: Quarantine[Request] = Quarantine()
        self._restarts = 0
        self._closed = False
        self._recovering = False
        self._dead: GraniteDemoError | None = None
        self._wake = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)

    def warm_up(self) -> int:
        """Capture the graphs, start the loop and return the number of graphs. Raises UnsuitableEngineError."""
        count = self._loop.warm_up()
        if self._loop.wants_graphs and not count:
            raise UnsuitableEngineError("its steps cannot be captured in CUDA graphs")
        self._loop.start()
        if self._group.leads:
            self._watchdog.start()
        return count

    @property
    def facts(self) -> tuple[Fact, ...]:
        """See ``Engine.facts``."""
        return self.setup.facts(self.details)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        """See ``Engine.generate``. An answer also ends when the cache is full, which can be before the context is.

        Raises ContextOverflowError for a prompt that does not fit in the cache.
        """
        sampling = fit_to_cache(sampling, len(prompt_ids), self._capacity)
        request = Request(list(prompt_ids), sampling, TokenStream(asyncio.get_running_loop()), matcher=matcher)
        await structured_output.prepare(request, self._vocabulary)
        with self._lock:
            if self._closed:
                raise closed_error()
            if self._dead:
                raise self._dead
            self._waiting.join(request)
        self._admit()
        try:
            async with aclosing(request.stream.read()) as items:
                async for item in items:
                    yield item
        finally:
            self._cancel(request)

    def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """See ``BatchScorer.score``."""
        return self._scorer.score(token_ids, measure)

    def stats(self) -> EngineStats:
        """See ``Engine.stats``."""
        with self._lock:
            scored, unscored = self._scorer.counts()
            running = len(self._slots) + len(self._quarantine) + scored
            failure = self._dead.user_text if self._dead else ""
            return EngineStats(running, len(self._waiting) + unscored, self._restarts, self._slots.used, failure)

    def close(self) -> None:
        """End all requests with EngineClosedError, stop the loop and drop the references to the model."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._end_all(closed_error())
        self._scorer.end()
        self._masks.close()
        self._wake.set()
        if self._watchdog.is_alive():
            self._watchdog.join()
        with self._group.deadline():
            self._loop.stop()
        self._scorer.release()
        del self._loop, self._sampler  # a reference to the engine must not keep the weights

    def follow(self) -> None:
        """Compute the steps of the first process of the group until it closes its engine."""
        self._group.end_with_the_first()
        while self._loop.is_running():
            time.sleep(WATCH_SECONDS)
        if error := self._loop.error:
            self._group.abort(f"The model's loop has failed ({type(error).__name__}: {error}).")
        self.close()

    def _admit(self) -> None:
        """Submit waiting requests that fit."""
        with self._lock:
            while not (self._closed or self._dead or self._recovering) and self._slots.free:
                request = self._quarantine.take() if self._quarantine else self._waiting.take(self._slots.fits)
                if request is None:
                    break
                if request.stream.cancelled:
                    self._quarantine.discard(request)
                else:
                    self._submit(request)
            self._waiting.announce()

    def _end_all(self, error: GraniteDemoError) -> None:
        for request in (*self._slots.clear(), *self._quarantine.clear(), *self._waiting.clear()):
            request.stream.finish(error)

    def _submit(self, request: Request) -> None:
        request.row = structured_output.row_of(request, self._slots.enter(request))
        ids = request.prompt_ids + request.answer
        self._loop.submit(request.id, ids, self._ends, request.row)

    def _release(self, request: Request) -> bool:
        """Remove a request from the running ones. Return False if it was not one of them."""
        if not self._slots.leave(request):
            return False
        self._quarantine.discard(request)
        return True

    def _cancel(self, request: Request) -> None:
        request.stream.cancel()
        with self._lock:
            if self._release(request):
                self._loop.cancel(request.id)
        self._admit()

    def _receive(self, outputs: list[Any]) -> None:
        """Process the outputs of a step. Called on the thread of the loop."""
        tokens: list[tuple[TokenStream[Token], Token]] = []
        suspended: list[Request] = []
        ended: list[tuple[Request, GraniteDemoError | None]] = []
        with self._lock:
            quarantine = bool(self._quarantine)
            asked = any(request.sampling.logprobs is not None for request in self._slots.running.values())
            logprobs = self._sampler.read() if asked else None
            for output in outputs:
                request = self._slots.running.get(output.request_id)
                if request is None:
                    continue  # cancelled
                if output.error is not None and self._loop.is_ending:
                    self._recovering = True
                    self._wake.set()  # the loop has ended: see _recover
                    continue
                error = refusal_error(output) or self._collect(request, output, logprobs, tokens)
                if not error and output.is_finished() and structured_output.continues(request, self._ends):
                    self._quarantine.discard(request)
                    self._slots.suspend(request)
                    suspended.append(request)
                elif error or output.is_finished():
                    self._release(request)
                    if error:
                        self._loop.cancel(request.id)
                    ended.append((request, error))
        deliver(tokens)
        for request in suspended:
            self._masks.compute(request)
        for request, error in ended:
            request.stream.finish(error)
        if ended or quarantine:
            self._admit()

    def _resume(self, request: Request, error: GraniteDemoError | None) -> None:
        """Submit a constrained request that has its next mask, or end it with ``error``."""
        with self._lock:
            if not self._slots.leave_suspended(request):
                return  # the request was cancelled, or all requests have ended
            if not error and self._recovering:
                self._quarantine.add([request], alone=False)
            elif not error:
                self._submit(request)  # in the slot that it had
        if error:
            request.stream.finish(error)
            self._admit()

    def _collect(
        self, request: Request, output: Any, logprobs: LogProbs | None, tokens: list[tuple[TokenStream[Token], Token]]
    ) -> GraniteDemoError | None:
        assert request.row is not None
        # After a new submission, the answer so far is a part of the prompt, and the loop reports only new tokens.
        new = output.generated_tokens[request.received :]
        for token_id, logprob in zip(new, output.logprobs[request.received :], strict=True):
            if logprob != logprob:
                return not_a_number()
            tokens.append((request.stream, token_of(token_id, request.row, len(request.answer), logprobs)))
            request.answer.append(token_id)
        request.received += len(new)
        self._quarantine.release_if_passed(request, len(request.answer))
        return None

    def _watch(self) -> None:
        """Start the loop again whenever it has ended. Runs on the watchdog's thread."""
        while not self._closed:
            self._wake.wait(WATCH_SECONDS)
            self._wake.clear()
            if not self._closed and not self._dead and (self._recovering or not self._loop.is_running()):
                try:
                    self._recover()
                except Exception as error:  # no more computation is possible
                    self._give_up(error)

    def _recover(self) -> None:
        if self._group.size > 1:
            raise EngineError("The other processes can still be in the step.") from self._loop.error
        self._recovering = True  # no requests are submitted to a loop that has ended
        cause = failure_error(self._loop.ended_by())
        with self._lock:
            failed = [request for request in self._slots.running.values() if not request.stream.cancelled]
            faulty, innocent = self._quarantine.split(failed)
            for request in list(self._slots.running.values()):
                self._release(request)
            self._quarantine.add(innocent, alone=not faulty)
            self._restarts += 1
        try:
            self._loop.restart()
        finally:  # they end in any case
            for request in faulty:
                request.stream.finish(cause)
        self._recovering = False
        log.warning("The loop was started again. %d requests continue, %d failed.", len(innocent), len(faulty))
        self._admit()

    def _give_up(self, error: BaseException) -> None:
        log.error("The engine cannot continue.", exc_info=error)
        with self._lock:
            self._dead = dead_error()
            self._end_all(self._dead)
        self._scorer.end(self._dead)
        if self._group.size > 1:
            time.sleep(1)  # let the readers get the error
            self._group.abort("The model's loop has failed.")

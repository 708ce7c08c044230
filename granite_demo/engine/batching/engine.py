"""The batching engine: many requests in each step, over transformers' continuous batching, guarded.

The guard: a request is taken only when the cache has room for it, ends itself when it is cancelled, and cannot end
another's. When a step fails, the loop is started again and its requests go on from their last token; one that fails
the loop again, or was alone in it, is answered with the error (``engine/recovery.py``).
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
from granite_demo.engine.batching.recovery import Suspects, as_failed, cause_of
from granite_demo.engine.batching.request import Request, fitted
from granite_demo.engine.batching.sampler import BatchSampler, LogProbs, token_of
from granite_demo.engine.batching.scorer import BatchScorer
from granite_demo.engine.batching.slots import Places
from granite_demo.engine.failures import closed_error, dead_error
from granite_demo.engine.protocol import Measure
from granite_demo.engine.sampling.reference import not_a_number
from granite_demo.engine.token_stream import TokenStream, deliver
from granite_demo.engine.waiting_queue import MAX_WAITING, WaitingLine
from granite_demo.errors import EngineError, GraniteDemoError, UnsuitableEngineError
from granite_demo.loading.load import LoadedModel
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
"""How often the watchdog looks after a loop that reported nothing."""


class BatchingEngine:
    """Serves up to ``requests`` at once on one model. For models whose layers are all full attention."""

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
        """``cache_tokens``: tokens in the KV cache of all requests together. Raises MemoryError if it does not fit."""
        self.setup = setup or EngineSetup(Chosen(BATCHING, ""))
        self.details: tuple[Fact, ...] = ()
        """What is known once it is warm, as rows for the screen."""
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
            between=lambda: self._scorer.advance(),
        )
        self._scorer = BatchScorer(loaded, self._loop.wake, max_waiting, group)
        self.unable: tuple[tuple[Feature, str], ...] = self._scorer.unable
        self._lock = threading.RLock()
        self._waiting: WaitingLine[Request] = WaitingLine(max_waiting)
        self._places = Places(requests, cache_tokens)
        self._masks = structured_output.Masks(self._vocabulary, self._go_on)
        self._suspects: Suspects[Request] = Suspects()
        self._restarts = 0
        self._closed = False
        self._recovering = False
        self._dead: GraniteDemoError | None = None
        self._wake = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="engine-watchdog", daemon=True)

    def warm_up(self) -> int:
        """Capture the graphs and start the loop. Returns the number of graphs."""
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
        """See ``Engine.generate``. An answer ends where the cache does, which may hold less than the context.

        Raises ContextOverflowError for a prompt that the cache cannot hold.
        """
        sampling = fitted(sampling, len(prompt_ids), self._capacity)
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
        """How many requests run and wait, and how often the loop was started again."""
        with self._lock:
            scored, unscored = self._scorer.counts()
            running = len(self._places) + len(self._suspects) + scored
            failure = self._dead.user_text if self._dead else ""
            return EngineStats(running, len(self._waiting) + unscored, self._restarts, self._places.used, failure)

    def close(self) -> None:
        """End all requests with EngineClosedError, stop the loop and let go of the model."""
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
        del self._loop, self._sampler  # whoever still holds the engine does not hold the weights

    def follow(self) -> None:
        """Compute along with the first process of the group, until it closes its engine."""
        self._group.end_with_the_first()
        while self._loop.is_running():
            time.sleep(WATCH_SECONDS)
        if error := self._loop.error:
            self._group.abort(f"The model's loop has failed ({type(error).__name__}: {error}).")
        self.close()

    def _admit(self) -> None:
        """Submit whoever waits and fits."""
        with self._lock:
            while not (self._closed or self._dead or self._recovering) and self._places.free:
                request = self._suspects.take() if self._suspects else self._waiting.take(self._places.fits)
                if request is None:
                    break
                if request.stream.cancelled:
                    self._suspects.gone(request)
                else:
                    self._submit(request)
            self._waiting.announce()

    def _end_all(self, error: GraniteDemoError) -> None:
        for request in (*self._places.clear(), *self._suspects.clear(), *self._waiting.clear()):
            request.stream.finish(error)

    def _submit(self, request: Request) -> None:
        request.row = structured_output.row_of(request, self._places.enter(request))
        ids = request.prompt_ids + request.answer
        self._loop.submit(request.id, ids, self._ends, request.row)

    def _release(self, request: Request) -> bool:
        """Take a request out of the running ones. False if it was not among them."""
        if not self._places.leave(request):
            return False
        self._suspects.gone(request)
        return True

    def _cancel(self, request: Request) -> None:
        request.stream.cancel()
        with self._lock:
            if self._release(request):
                self._loop.cancel(request.id)
        self._admit()

    def _receive(self, outputs: list[Any]) -> None:
        """Take a step's outputs. Called from the loop's thread."""
        tokens: list[tuple[TokenStream[Token], Token]] = []
        between: list[Request] = []
        ended: list[tuple[Request, GraniteDemoError | None]] = []
        with self._lock:
            suspects = bool(self._suspects)
            asked = any(request.sampling.logprobs is not None for request in self._places.running.values())
            logprobs = self._sampler.read() if asked else None
            for output in outputs:
                request = self._places.running.get(output.request_id)
                if request is None:
                    continue  # cancelled meanwhile
                if output.error is not None and self._loop.is_ending:
                    self._recovering = True
                    self._wake.set()  # the loop has died: see _recover
                    continue
                error = as_failed(output) or self._collect(request, output, logprobs, tokens)
                if not error and output.is_finished() and structured_output.goes_on(request, self._ends):
                    self._suspects.gone(request)
                    self._places.step_out(request)
                    between.append(request)
                elif error or output.is_finished():
                    self._release(request)
                    if error:
                        self._loop.cancel(request.id)
                    ended.append((request, error))
        deliver(tokens)
        for request in between:
            self._masks.compute(request)
        for request, error in ended:
            request.stream.finish(error)
        if ended or suspects:
            self._admit()

    def _go_on(self, request: Request, error: GraniteDemoError | None) -> None:
        """A constrained answer has its next mask, or the ``error`` that ends it."""
        with self._lock:
            if not self._places.leave_between(request):
                return  # cancelled, or all have ended
            if not error and self._recovering:
                self._suspects.add([request], alone=False)
            elif not error:
                self._submit(request)  # in the slot that it had
        if error:
            request.stream.finish(error)
            self._admit()

    def _collect(
        self, request: Request, output: Any, logprobs: LogProbs | None, tokens: list[tuple[TokenStream[Token], Token]]
    ) -> GraniteDemoError | None:
        assert request.row is not None
        # After a restart the loop takes the answer so far for a part of the prompt, and reports only what is new.
        new = output.generated_tokens[request.received :]
        for token_id, logprob in zip(new, output.logprobs[request.received :], strict=True):
            if logprob != logprob:
                return not_a_number()
            tokens.append((request.stream, token_of(token_id, request.row, len(request.answer), logprobs)))
            request.answer.append(token_id)
        request.received += len(new)
        self._suspects.clear_if_passed(request, len(request.answer))
        return None

    def _watch(self) -> None:
        """Start the loop again whenever it died. Runs on a thread of its own."""
        while not self._closed:
            self._wake.wait(WATCH_SECONDS)
            self._wake.clear()
            if not self._closed and not self._dead and (self._recovering or not self._loop.is_running()):
                try:
                    self._recover()
                except Exception as error:  # nothing can be computed any more
                    self._give_up(error)

    def _recover(self) -> None:
        if self._group.size > 1:
            raise EngineError("The other processes may be in the middle of the step.") from self._loop.error
        self._recovering = True  # nobody is submitted to a loop that has ended
        cause = cause_of(self._loop.ended_by())
        with self._lock:
            failed = [request for request in self._places.running.values() if not request.stream.cancelled]
            culprits, innocent = self._suspects.judge(failed)
            for request in list(self._places.running.values()):
                self._release(request)
            self._suspects.add(innocent, alone=not culprits)
            self._restarts += 1
        try:
            self._loop.restart()
        finally:  # they are told in any case
            for request in culprits:
                request.stream.finish(cause)
        self._recovering = False
        log.warning("The loop was started again; %d requests go on, %d failed.", len(innocent), len(culprits))
        self._admit()

    def _give_up(self, error: BaseException) -> None:
        log.error("The engine cannot go on.", exc_info=error)
        with self._lock:
            self._dead = dead_error()
            self._end_all(self._dead)
        self._scorer.end(self._dead)
        if self._group.size > 1:
            time.sleep(1)  # the readers are told
            self._group.abort("The model's loop has failed.")

"""A fake engine with a fixed speed, and a wrapper that records the requests of an engine."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

from granite_demo.engine.failures import closed_error
from granite_demo.engine.protocol import Engine, Measure, T, answer_limit
from granite_demo.engine.token_stream import Cancelled, TokenStream, deliver
from granite_demo.engine.waiting_queue import WaitingQueue
from granite_demo.errors import EngineClosedError
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.engine_kinds import EngineKind
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import Chosen, EngineSetup, EngineStats, Fact, Feature
from granite_demo.types.sampling_params import SamplingParams

LETTERS = tuple(range(64, 90))
"""Token ids of letters in the byte tokenizer."""
REMEMBERED = 4096


@dataclass(eq=False)
class _Asked:
    stream: TokenStream[Token]
    left: int
    first: float = 0.0
    written: int = 0


class FixedSpeedEngine:
    """Generates ``rate`` tokens/s for each of up to ``places`` requests, the first after ``ttft`` seconds."""

    unable: tuple[tuple[Feature, str], ...] = ()

    def __init__(self, rate: float, ttft: float, places: int) -> None:
        self.setup = EngineSetup(Chosen(EngineKind("fixed speed", serial=False), f"{rate:g} tokens/s"))
        self.facts: tuple[Fact, ...] = self.setup.facts(())
        self._step, self._ttft, self._places = 1 / rate, ttft, places
        self._line: WaitingQueue[_Asked] = WaitingQueue()
        self._running: list[_Asked] = []
        self._closed = threading.Event()
        self._work = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fixed-speed", daemon=True)
        self._thread.start()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        """See ``Engine.generate``."""
        if self._closed.is_set():
            raise closed_error()
        asked = _Asked(TokenStream(asyncio.get_running_loop()), answer_limit(sampling))
        self._line.join(asked)
        self._work.set()
        async with aclosing(asked.stream.read()) as tokens:
            async for token in tokens:
                yield token

    def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """Not implemented, because no test uses it."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """See ``Engine.stats``."""
        return EngineStats(len(self._running), len(self._line))

    def close(self) -> None:
        """See ``Engine.close``."""
        self._closed.set()
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._closed.is_set():
            if not self._running and not len(self._line):
                self._work.wait()
                self._work.clear()
                due = time.perf_counter()
            self._admit()
            deliver([(asked.stream, self._next(asked)) for asked in self._running if asked.first <= due])
            self._running = [asked for asked in self._running if not self._ended(asked)]
            due = max(due + self._step, time.perf_counter() - self._step)  # the step after a late one comes earlier
            time.sleep(max(0.0, due - time.perf_counter()))
        for asked in (*self._running, *self._line.clear()):
            asked.stream.finish(closed_error())
        self._running = []

    def _admit(self) -> None:
        while len(self._running) < self._places and (asked := self._line.take()):
            asked.first = time.perf_counter() + self._ttft
            self._running.append(asked)
        self._line.announce()

    def _next(self, asked: _Asked) -> Token:
        asked.written += 1
        return Token(LETTERS[asked.written % len(LETTERS)])

    def _ended(self, asked: _Asked) -> bool:
        with contextlib.suppress(Cancelled):
            asked.stream.check()
            if asked.written < asked.left:
                return False
            asked.stream.finish()
        return True


@dataclass
class RequestRecord:
    """The record of one request. Times are of the monotonic clock, which all processes of a machine share."""

    seed: int | None
    """Identifies the visitor."""
    arrived: float
    first: float | None = None
    ended: float | None = None
    tokens: int = 0
    closed: bool = False
    """Whether the engine was closed."""


class RecordingEngine:
    """Forwards to ``engine``, and records the last requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.setup, self.facts, self.unable = engine.setup, engine.facts, engine.unable
        self.served: deque[RequestRecord] = deque(maxlen=REMEMBERED)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        """See ``Engine.generate``."""
        row = RequestRecord(sampling.seed, time.monotonic())
        self.served.append(row)
        try:
            async with aclosing(self._engine.generate(prompt_ids, sampling, matcher)) as items:
                async for item in items:
                    if isinstance(item, Token):
                        row.first = row.first or time.monotonic()
                        row.tokens += 1
                    yield item
        except EngineClosedError:
            row.closed = True
            raise
        finally:
            row.ended = time.monotonic()

    def record(self) -> list[dict[str, Any]]:
        """Return the last requests in the order of their arrival."""
        return [asdict(row) for row in self.served]

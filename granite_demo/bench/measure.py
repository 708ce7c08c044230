"""Measures several ways in turns, and computes rates, times and medians from the samples."""

import asyncio
import logging
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic, TypeAlias, TypeVar

from granite_demo.engine.protocol import Engine
from granite_demo.errors import EngineBusyError, EngineError
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams

log = logging.getLogger(__name__)

R = TypeVar("R")
Progress: TypeAlias = Callable[[str], None]
"""Shows a line of text about a measurement that runs."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The samples of one figure: median, lowest, highest, and all values in the order of the measurement."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Raises statistics.StatisticsError if there is no value."""
        kept = tuple(values)
        return cls(statistics.median(kept), min(kept), max(kept), kept)


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """One answer: the number of tokens, and the seconds from the start of the run to its first and its last token.

    Raises EngineError if there is no token.
    """

    tokens: int
    first: float
    last: float
    ids: tuple[int, ...] = ()
    """The token ids. Empty: not known."""
    counts: tuple[tuple[float, int], ...] = ()
    """(seconds from the start, tokens until then) before_round the first and the last token. Empty: a constant rate."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise EngineError("A request ended without a token.")

    @property
    def rate(self) -> float:
        """Tokens per second from the first token to the last."""
        return (self.tokens - 1) / max(self.last - self.first, 1e-9)

    def tokens_at(self, moment: float) -> float:
        """Return the number of tokens ``moment`` seconds after the start, interpolated linearly."""
        points = [(self.first, 1), *self.counts, (self.last, self.tokens)]
        for (begun, before), (ended, after) in pairwise(points):
            if moment <= ended:
                return before + (after - before) * max(moment - begun, 0.0) / max(ended - begun, 1e-9)
        return self.tokens


@dataclass(frozen=True, slots=True)
class TimedRun:
    """The answers to requests that started together. ``queued`` of them waited in the queue."""

    answers: tuple[TimedAnswer, ...]
    queued: int = 0

    @property
    def tokens(self) -> int:
        """The tokens of all answers."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def ttft(self) -> float:
        """Time to first token in seconds: the median of the requests."""
        return statistics.median(answer.first for answer in self.answers)

    @property
    def decode_rate(self) -> float:
        """Tokens per second of all requests, from the first token of any to the last of any.

        The first token of each request is not counted. The time includes the prefill of the prompts that start later,
        so use short prompts. Raises EngineError if the time is 0.
        """
        seconds = max(answer.last for answer in self.answers) - min(answer.first for answer in self.answers)
        if seconds <= 0:
            raise EngineError("The answers were too short to measure. Ask for more --tokens.")
        return (self.tokens - len(self.answers)) / seconds

    @property
    def together(self) -> float | None:
        """Tokens per second of all requests while all of them generate.

        That time begins when each request has its first token and ends when one of them has its last token. None if
        there is no such time.
        """
        begun, ended = max(answer.first for answer in self.answers), min(answer.last for answer in self.answers)
        if begun >= ended:
            return None
        return sum(answer.tokens_at(ended) - answer.tokens_at(begun) for answer in self.answers) / (ended - begun)

    @property
    def evenness(self) -> float | None:
        """The speed of the slowest user divided by that of the fastest. None for one user."""
        rates = [answer.rate for answer in self.answers]
        return min(rates) / max(rates) if len(rates) > 1 and max(rates) else None


@dataclass(frozen=True, slots=True)
class Way(Generic[R]):
    """One way to do a task. If it ``may_fail``, because other libraries do it, its failure does not end the run."""

    label: str
    run: Callable[[], R]
    warm_up: Callable[[], object] = lambda: None
    may_fail: bool = False


@dataclass(slots=True)
class Turns(Generic[R]):
    """The samples of each way, in the order of the ways.

    A way that failed has no samples, and a note in ``left_out``.
    """

    samples: list[list[R]]
    left_out: list[str]


def in_turns(
    ways: Sequence[Way[R]],
    rounds: int,
    progress: Progress = lambda text: None,
    before_round: Callable[[], object] = lambda: None,
) -> Turns[R]:
    """Warm up each way, then run each way once in each round, so that a slow phase of the machine affects all of them.

    ``before_round`` is called before each round. A way that raises EngineBusyError is left out. So is a way that
    ``may_fail``; the error of any other way is raised.
    """
    turns: Turns[R] = Turns([[] for _ in ways], [])
    failed: set[int] = set()

    def attempt(index: int, action: Callable[[], object]) -> None:
        if index in failed:
            return
        try:
            action()
        except Exception as error:
            if not ways[index].may_fail and not isinstance(error, EngineBusyError):
                raise
            log.debug("The measurement of %s failed.", ways[index].label, exc_info=error)
            failed.add(index)
            turns.samples[index] = []
            turns.left_out.append(f"{ways[index].label} failed: {type(error).__name__}: {_first_line(error)}")

    for index, way in enumerate(ways):
        attempt(index, way.warm_up)
    for number in range(1, rounds + 1):
        progress(f"round {number} of {rounds}")
        before_round()
        for index, way in enumerate(ways):
            attempt(index, lambda index=index, way=way: turns.samples[index].append(way.run()))  # type: ignore[misc]
    return turns


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.7, top_p=0.9, seed=1)


def ask(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> TimedRun:
    """Answer all ``prompts`` at the same time. If there is a seed, each prompt has a different one.

    Raises EngineError.
    """
    return asyncio.run(_ask(engine, prompts, sampling))


async def _ask(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> TimedRun:
    start = time.perf_counter()

    async def answer(index: int) -> tuple[TimedAnswer, bool]:
        ids, queued = [], False
        first = last = 0.0
        own = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)
        async with aclosing(engine.generate(prompts[index], own)) as items:
            async for item in items:
                if isinstance(item, Token):
                    ids.append(item.id)
                    last = time.perf_counter() - start
                    first = first or last
                else:
                    queued = True
        return TimedAnswer(len(ids), first, last, tuple(ids)), queued

    answers = await asyncio.gather(*map(answer, range(len(prompts))))
    return TimedRun(tuple(answer for answer, _ in answers), sum(queued for _, queued in answers))


class Prompts:
    """Makes prompts of random token ids. They have no common prefix, so the prefix cache cannot help."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        self._vocabulary = vocabulary
        self._random = random.Random(seed)

    def one(self, length: int) -> list[int]:
        """Return a new prompt of ``length`` tokens."""
        return [self._random.randrange(self._vocabulary) for _ in range(length)]

    def many(self, count: int, length: int) -> list[list[int]]:
        """Return ``count`` new prompts."""
        return [self.one(length) for _ in range(count)]

"""Measuring in turns, and what is made of the samples. Pure arithmetic: knows neither models nor clocks."""

import asyncio
import logging
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Generic, TypeVar

from granite_demo.engine.protocol import Engine
from granite_demo.errors import EngineBusyError, EngineError
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams

log = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Spread:
    """Samples of one figure. ``values`` are in the order in which they were measured."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of at least one value."""
        kept = tuple(values)
        return cls(statistics.median(kept), min(kept), max(kept), kept)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request got: how many tokens, and the seconds from the start until its first and its last."""

    tokens: int
    first: float
    last: float
    ids: tuple[int, ...] = ()
    """The tokens, where they are known."""
    counts: tuple[tuple[float, int], ...] = ()
    """(seconds from the start, tokens so far) in between, where that is known; else it went on evenly."""

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise EngineError("A request came back without a token.")

    @property
    def rate(self) -> float:
        """Tokens per second from the first to the last."""
        return (self.tokens - 1) / max(self.last - self.first, 1e-9)

    def tokens_at(self, moment: float) -> float:
        """How many there were by then, in seconds from the start, between the first and the last."""
        points = [(self.first, 1), *self.counts, (self.last, self.tokens)]
        for (begun, before), (ended, after) in pairwise(points):
            if moment <= ended:
                return before + (after - before) * max(moment - begun, 0.0) / max(ended - begun, 1e-9)
        return self.tokens


@dataclass(frozen=True, slots=True)
class Run:
    """The answers of requests that started together. ``queued`` is how many of them were told to wait."""

    answers: tuple[Answer, ...]
    queued: int = 0

    @property
    def tokens(self) -> int:
        """Of all requests."""
        return sum(answer.tokens for answer in self.answers)

    @property
    def ttft(self) -> float:
        """Time to first token: the median over the requests."""
        return statistics.median(answer.first for answer in self.answers)

    @property
    def decode_rate(self) -> float:
        """Tokens per second of all requests, each one's first left out, from the first of all to the last.

        The prompts of those who come later are read in that time: short prompts keep that small.
        """
        seconds = max(answer.last for answer in self.answers) - min(answer.first for answer in self.answers)
        if seconds <= 0:
            raise EngineError("The answers were too short to measure. Ask for more --tokens.")
        return (self.tokens - len(self.answers)) / seconds

    @property
    def together(self) -> float | None:
        """Tokens per second of all requests while each of them is answered: from the first token of the last who gets
        one until the first has its answer. None where one has it before another begins.
        """
        begun, ended = max(answer.first for answer in self.answers), min(answer.last for answer in self.answers)
        if begun >= ended:
            return None
        return sum(answer.tokens_at(ended) - answer.tokens_at(begun) for answer in self.answers) / (ended - begun)

    @property
    def evenness(self) -> float | None:
        """The slowest user's speed as a part of the fastest's; None for one user."""
        rates = [answer.rate for answer in self.answers]
        return min(rates) / max(rates) if len(rates) > 1 and max(rates) else None


@dataclass(frozen=True, slots=True)
class Way(Generic[R]):
    """One way of doing a thing. ``may_fail``: it is not ours, and is left out where it does not work."""

    label: str
    run: Callable[[], R]
    warm_up: Callable[[], object] = lambda: None
    may_fail: bool = False


@dataclass(slots=True)
class Turns(Generic[R]):
    """The samples of each way, in the order of the ways; none for a way that was left out, with the reason."""

    samples: list[list[R]]
    left_out: list[str]


def in_turns(
    ways: Sequence[Way[R]],
    rounds: int,
    tell: Callable[[str], None] = lambda text: None,
    between: Callable[[], object] = lambda: None,
) -> Turns[R]:
    """Warm up each way, then run all of them once a round, so that a slow minute of the machine meets them all.

    ``between`` is called before each round. Raises what a way raises that may not fail, but not EngineBusyError.
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
            log.debug("%s failed.", ways[index].label, exc_info=error)
            failed.add(index)
            turns.samples[index] = []
            turns.left_out.append(f"{ways[index].label} is left out: {type(error).__name__}: {_first_line(error)}")

    for index, way in enumerate(ways):
        attempt(index, way.warm_up)
    for number in range(1, rounds + 1):
        tell(f"round {number} of {rounds}")
        between()
        for index, way in enumerate(ways):
            attempt(index, lambda index=index, way=way: turns.samples[index].append(way.run()))  # type: ignore[misc]
    return turns


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=0.7, top_p=0.9, seed=1)


def ask(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> Run:
    """Answer all ``prompts`` at once; each has a seed of its own, where there is one."""
    return asyncio.run(_ask(engine, prompts, sampling))


async def _ask(engine: Engine, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> Run:
    start = time.perf_counter()

    async def answer(index: int) -> tuple[Answer, bool]:
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
        return Answer(len(ids), first, last, tuple(ids)), queued

    answers = await asyncio.gather(*map(answer, range(len(prompts))))
    return Run(tuple(answer for answer, _ in answers), sum(queued for _, queued in answers))


class Prompts:
    """Prompts of random token ids: no two begin alike, so that nothing of one helps with another."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        self._vocabulary = vocabulary
        self._random = random.Random(seed)

    def one(self, length: int) -> list[int]:
        """A new prompt."""
        return [self._random.randrange(self._vocabulary) for _ in range(length)]

    def many(self, count: int, length: int) -> list[list[int]]:
        """New prompts."""
        return [self.one(length) for _ in range(count)]

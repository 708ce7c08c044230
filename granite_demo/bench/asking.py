"""Asks an engine as its users do, all at the same time, and notes when tokens came."""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

from granite_demo.bench.figures import Answer, Run
from granite_demo.engine.base import Engine
from granite_demo.sampling_params import SamplingParams
from granite_demo.types import Token

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

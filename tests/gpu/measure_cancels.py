"""Cancelled requests among others, on a GPU: ``python -m tests.gpu.measure_cancels``.

200 requests of the Granite 3.3 2B shape (random weights, FlashAttention 2) are cancelled at random moments beside 16
that go on. Prints how many of the 16 texts equal those written alone. Speed is what ``granite-demo bench`` measures.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.models import catalogue
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams
from tests.engine.running import has_work
from tests.fakes import SOURCE
from tests.gpu.checkpoints import random_model
from tests.loaded import placed

CONTEXT = 32768


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids, the same for the same seed."""
    return random.Random(seed).choices(range(2, 49000), k=length)


async def answer(engine: BatchingEngine, ids: Sequence[int], **sampling: Any) -> list[Token]:
    """The tokens, without the places in the line."""
    items = [item async for item in engine.generate(ids, SamplingParams(**sampling))]
    return [item for item in items if isinstance(item, Token)]


async def storm(engine: BatchingEngine, cancels: int = 200, users: int = 16, tokens: int = 300) -> None:
    """Cancel requests at random moments among others, and compare these with what they say alone."""
    alone = [await answer(engine, prompt(100, seed), max_tokens=tokens, logprobs=2) for seed in range(users)]
    chance = random.Random(0)

    async def cancelled(seed: int) -> None:
        await asyncio.sleep(chance.random() * 3)
        deadline = time.perf_counter() + chance.random() * 0.3
        ids = prompt(chance.randint(40, 1500), 1000 + seed)
        async with aclosing(engine.generate(ids, SamplingParams(max_tokens=500))) as items:
            async for _ in items:
                if time.perf_counter() > deadline:
                    break

    runs = [answer(engine, prompt(100, seed), max_tokens=tokens, logprobs=2) for seed in range(users)]
    others = asyncio.gather(*(cancelled(seed) for seed in range(cancels)))
    results = await asyncio.gather(*runs)
    await others
    end = time.perf_counter()
    while engine.stats().running or has_work(engine._loop):
        await asyncio.sleep(0.01)
    equal = 0
    gaps: list[tuple[int, float]] = []
    for before, after in zip(alone, results, strict=True):
        pairs = zip(before, after, strict=True)
        token = next((at for at, (one, other) in enumerate(pairs) if one.id != other.id), None)
        if token is None:
            equal += 1
        else:
            best, second = (logprob for _, logprob, _ in before[token].alternatives)
            gaps.append((token, round(best - second, 4)))
    print(f"storm: idle after {time.perf_counter() - end:.2f} s, {engine.stats()}, {equal} of {users} texts equal")
    print(f"  the others differ first at (token, gap of the two likeliest in nats): {gaps}", flush=True)


def main() -> None:
    """Build, warm up, cancel."""
    shape = catalogue.MODELS["granite-3.3-2b-instruct"].shape
    assert shape is not None
    model = random_model(shape, "flash_attention_2")
    loaded = LoadedModel(model, None, SOURCE, placed(LoadOptions(device="cuda")), CONTEXT, frozenset())
    engine = BatchingEngine(loaded, cache_tokens=8 * CONTEXT)
    engine.warm_up()
    asyncio.run(storm(engine))
    engine.close()


if __name__ == "__main__":
    main()

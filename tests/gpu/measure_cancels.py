"""Figures of the batching engine: ``python -m tests.gpu.measure_batching [2b|8b] [compile level]``.

Random weights at the real shapes of Granite 3.3, built on the GPU. Prints one line a figure.
"""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import torch
from transformers import GraniteConfig, GraniteForCausalLM, TextIteratorStreamer

from granite_demo import registry
from granite_demo.engine.batching import BatchingEngine
from granite_demo.engine.sampling import compile_chooser
from granite_demo.loading import LoadedModel, weight_bytes
from granite_demo.placement import place
from granite_demo.shapes import Shape
from granite_demo.types import LoadOptions, SamplingParams, Token


def random_model(shape: Shape, attention: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A Granite of ``shape`` on the GPU with random weights."""
    config = GraniteConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=shape.tie_word_embeddings,
        embedding_multiplier=12.0,
        attention_multiplier=1 / shape.head_dim,
        residual_multiplier=0.22,
        logits_scaling=shape.hidden_size / 256,
    )
    with torch.device("cuda"):
        return GraniteForCausalLM._from_config(config, attn_implementation=attention, dtype=dtype).eval()


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids, the same for the same seed."""
    return random.Random(seed).choices(range(2, 49000), k=length)


async def answer(engine: BatchingEngine, ids: Sequence[int], **sampling: Any) -> tuple[list[Token], float]:
    """(tokens, seconds to the first)"""
    start, first = time.perf_counter(), 0.0
    tokens = []
    async for token in engine.generate(ids, SamplingParams(**sampling)):
        if isinstance(token, Token):
            first = first or time.perf_counter() - start
            tokens.append(token)
    return tokens, first


async def throughput(engine: BatchingEngine, users: int, tokens: int, **sampling: Any) -> float:
    """Tokens/s of all users together, prefill included."""
    start = time.perf_counter()
    runs = [answer(engine, prompt(128, seed), max_tokens=tokens, **sampling) for seed in range(users)]
    results = await asyncio.gather(*runs)
    return sum(len(found) for found, _ in results) / (time.perf_counter() - start)


async def storm(engine: BatchingEngine, cancels: int = 200, users: int = 16, tokens: int = 300) -> None:
    """Cancel requests at random moments among others, and compare these with what they say alone."""
    alone = [(await answer(engine, prompt(100, seed), max_tokens=tokens, logprobs=2))[0] for seed in range(users)]
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
    while engine.stats().running or engine._loop.busy:
        await asyncio.sleep(0.01)
    equal = 0
    gaps: list[tuple[int, float]] = []
    for before, (after, _) in zip(alone, results, strict=True):
        pairs = zip(before, after, strict=True)
        token = next((at for at, (one, other) in enumerate(pairs) if one.id != other.id), None)
        if token is None:
            equal += 1
        else:
            best, second = (logprob for _, logprob in before[token].alternatives)
            gaps.append((token, round(best - second, 4)))
    print(f"storm: idle after {time.perf_counter() - end:.2f} s, {engine.stats()}, {equal} of {users} texts equal")
    print(f"  the others differ first at (token, gap of the two likeliest in nats): {gaps}", flush=True)


async def measure(engine: BatchingEngine) -> None:
    """Print the figures of a warm engine."""
    for length in (128, 128, 1024, 8000):
        found, first = await answer(engine, prompt(length, 77 + length), max_tokens=4)
        print(f"TTFT {length}: {first * 1e3:.1f} ms", flush=True)
    chat = prompt(8000, 77 + 8000)
    for turn in range(3):
        chat += [token.id for token in found] + prompt(20, turn)
        found, first = await answer(engine, chat, max_tokens=4)
        print(f"TTFT follow-up on {len(chat)}: {first * 1e3:.1f} ms", flush=True)
    sampled = {"temperature": 0.7, "top_p": 0.9, "seed": 1}
    for seed in range(3):
        start = time.perf_counter()
        found, first = await answer(engine, prompt(128, seed), max_tokens=300)
        print(f"1 user, after the first token: {299 / (time.perf_counter() - start - first):.1f} tokens/s")
    for users, tokens in ((1, 200), (16, 200), (64, 300), (64, 300)):
        rate = await throughput(engine, users, tokens)
        sampled_rate = await throughput(engine, users, tokens, **sampled)
        print(f"{users} users: greedy {rate:.0f}, sampled {sampled_rate:.0f} tokens/s in all", flush=True)
    print(f"64 users with logprobs: {await throughput(engine, 64, 100, logprobs=5):.0f}", flush=True)
    print(f"64 users again: {await throughput(engine, 64, 100, logprobs=5):.0f}", flush=True)
    await storm(engine)


def documented(model: Any) -> None:
    """The way of the transformers documentation."""
    import transformers

    class Words:
        def decode(self, ids: Any, **_: Any) -> str:
            return " ".join(str(int(i)) for i in ids)

    streamer = TextIteratorStreamer(Words())  # type: ignore[arg-type]
    ids = torch.tensor([prompt(128, 1)], device="cuda")
    start = time.perf_counter()
    options = {"max_new_tokens": 40, "do_sample": False, "streamer": streamer}
    thread = threading.Thread(target=lambda: model.generate(ids, **options))
    thread.start()
    for _ in streamer:
        pass
    thread.join()
    rate = 40 / (time.perf_counter() - start)
    print(f"documented way: {rate:.1f} tokens/s (transformers {transformers.__version__})", flush=True)


def main() -> None:
    """Build, warm up, measure."""
    size, level = (sys.argv[1:] + ["2b", "0"][len(sys.argv) - 1 :])[:2]
    shape = registry.MODELS[f"granite-3.3-{size}-instruct"].shape
    assert shape is not None
    a, b = (torch.empty(2**30, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    a.copy_(b)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a.copy_(b)
    torch.cuda.synchronize()
    bandwidth = 20 * 2 * a.nbytes / (time.perf_counter() - start)
    del a, b
    model = random_model(shape, "flash_attention_2")
    size_bytes = weight_bytes(model)
    print(f"{size}: {size_bytes / 1e9:.2f} GB, copy {bandwidth / 1e12:.2f} TB/s, limit {bandwidth / size_bytes:.0f}/s")
    documented(model)
    placement = place(LoadOptions(device="cuda"))
    loaded = LoadedModel(model, None, registry.SAMPLE, placement, 32768, frozenset(), size_bytes)
    start = time.perf_counter()
    compile_chooser(torch.device("cuda"))
    print(f"sampling kernel compiled in {time.perf_counter() - start:.2f} s")
    start = time.perf_counter()
    engine = BatchingEngine(loaded, cache_tokens=262144, compile_level=int(level))
    made = time.perf_counter() - start
    graphs = engine.warm_up()
    held = torch.cuda.memory_reserved() / 1e9
    print(f"made in {made:.2f} s, {graphs} graphs, warm in {time.perf_counter() - start:.2f} s, {held:.1f} GB held")
    asyncio.run(measure(engine))
    engine.close()
    del model, loaded, engine
    torch.cuda.empty_cache()
    print(f"left after close: {torch.cuda.memory_allocated() / 1e9:.3f} GB")


if __name__ == "__main__":
    main()

"""Figures of the static runner in the interleaved engine: ``python -m tests.gpu.measure_static FOLDER [2b|8b]``.

Random weights with the shape of Granite 3.3, greedy by default. Prints one line for each figure.
"""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from granite_demo.engine.factory import create_engine
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.static import StaticRunner
from granite_demo.engine.protocol import Engine
from granite_demo.models import catalogue
from granite_demo.types.engine_kinds import STATIC
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams
from tests.gpu.checkpoints import write_checkpoint
from tests.loaded import load_checkpoint

CONTEXT = 9216
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "seed": 1}


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids, the same for the same seed."""
    return random.Random(seed).choices(range(2, 49000), k=length)


async def answer(engine: Engine, ids: Sequence[int], tokens: int, **sampling: Any) -> tuple[float, float]:
    """(milliseconds to the first token, tokens/s after it)"""
    start = time.perf_counter()
    times = []
    async for item in engine.generate(ids, SamplingParams(max_tokens=tokens, **sampling)):
        if isinstance(item, Token):
            times.append(time.perf_counter())
    return (times[0] - start) * 1e3, (len(times) - 1) / max(times[-1] - times[0], 1e-9)


async def together(engine: Engine, users: int, tokens: int) -> float:
    """Tokens/s of all users together, prefill included."""
    start = time.perf_counter()
    await asyncio.gather(*(answer(engine, prompt(128, 900 + user), tokens) for user in range(users)))
    return users * tokens / (time.perf_counter() - start)


async def measure(engine: Engine) -> None:
    """Print the figures of a warm engine."""
    for length in (128, 128, 1024, 8192):
        first, _ = await answer(engine, prompt(length, length + 1), 2)
        print(f"  TTFT {length}: {first:.1f} ms", flush=True)
    for depth in (128, 128, 7000):
        _, rate = await answer(engine, prompt(depth, depth + 2), 150)
        _, sampled = await answer(engine, prompt(depth, depth + 2), 80, **SAMPLED)
        print(f"  1 user at depth {depth}: {rate:.1f} tokens/s, sampled {sampled:.1f}", flush=True)
    for users in (2, 4):
        print(f"  {users} users: {await together(engine, users, 80):.1f} tokens/s in all", flush=True)
    chat = prompt(8000, 5)
    for turn in range(3):
        first, _ = await answer(engine, chat, 2)
        print(f"  {'follow-up' if turn else 'first'} TTFT on {len(chat)} tokens: {first:.1f} ms", flush=True)
        chat += prompt(40, 100 + turn)
    first, _ = await answer(engine, chat[:-40], 2)
    print(f"  the same prompt again: {first:.1f} ms", flush=True)


def run(folder: Path, name: str, options: LoadOptions, figures: bool = True, **choices: Any) -> None:
    """Load, warm up, measure, unload."""
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    loaded = load_checkpoint(folder, options, catalogue.SAMPLE)
    seconds, weights = time.perf_counter() - start, torch.cuda.memory_allocated()
    start = time.perf_counter()
    if choices:
        engine: Any = InterleavedEngine(StaticRunner(loaded, 4, **choices), frozenset())
        engine.warm_up()
    else:
        engine = create_engine(loaded, STATIC)
    warm = time.perf_counter() - start
    held, peak = torch.cuda.memory_reserved(), torch.cuda.max_memory_allocated()
    print(f"{name}: loaded in {seconds:.1f} s, {weights / 1e9:.2f} GB; warm in {warm:.2f} s", flush=True)
    print(f"  {held / 1e9:.2f} GB held, {peak / 1e9:.2f} GB allocated at most")
    for fact in engine.facts:
        print(f"  {fact}", flush=True)
    if figures:
        asyncio.run(measure(engine))
        print(f"  {torch.cuda.max_memory_allocated() / 1e9:.2f} GB allocated at most", flush=True)
    else:
        for depth in (128, 7000):
            _, rate = asyncio.run(answer(engine, prompt(depth, 7), 100))
            print(f"  1 user at depth {depth}: {rate:.1f} tokens/s", flush=True)
    engine.close()
    del engine, loaded
    torch.cuda.empty_cache()
    print(f"  left after close: {torch.cuda.memory_allocated() / 1e9:.3f} GB", flush=True)


def main() -> None:
    """Write the checkpoint to the folder of the first argument if it is not there, then measure."""
    size = sys.argv[2] if len(sys.argv) > 2 else "2b"
    name = f"granite-3.3-{size}-instruct"
    folder, shape = Path(sys.argv[1]) / name, catalogue.MODELS[name].shape
    assert shape is not None
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    if not folder.exists():
        write_checkpoint(folder, shape)
        torch.cuda.empty_cache()
    plain = LoadOptions(device="cuda", dtype="bfloat16", quantization="none", attention="sdpa", context=CONTEXT)
    small = LoadOptions(device="cuda", dtype="bfloat16", quantization="nf4", attention="sdpa", context=CONTEXT)
    whole = LoadOptions(device="cuda", dtype="bfloat16", quantization="none", attention="sdpa")
    run(folder, "bf16", plain)
    run(folder, "nf4", small)
    run(folder, "bf16 through sdpa on views", plain, figures=False, rows=False)
    run(folder, "bf16, the whole context", whole, figures=False)


if __name__ == "__main__":
    main()

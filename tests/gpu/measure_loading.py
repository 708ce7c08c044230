"""Figures of loading on a GPU: ``python -m tests.gpu.measure_loading FOLDER``. Prints a table in Markdown.

Random weights at the real shapes. Load time is from the page cache; memory is what torch has allocated.
"""

import asyncio
import sys
import threading
import time
from functools import partial
from pathlib import Path

import torch

from granite_demo.backends.model_manager import ModelManager, ReadyModel
from granite_demo.backends.open_model import open_model
from granite_demo.loading.placement import precision_of
from granite_demo.models import catalogue, memory
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.sampling_params import SamplingParams
from tests.gpu.checkpoints import write_checkpoint

CONTEXT = 4096


async def answer(ready: ReadyModel, prompt: int, tokens: int) -> tuple[float, float]:
    """(seconds to the first token, tokens/s after it)"""
    start, first = time.perf_counter(), 0.0
    ids = [index % 900 + 2 for index in range(prompt)]
    async for _ in ready.engine.generate(ids, SamplingParams(max_tokens=tokens, temperature=1.0, seed=1)):
        first = first or time.perf_counter() - start
    return first, (tokens - 1) / (time.perf_counter() - start - first)


def measure(folder: Path, quantization: str) -> None:
    """Print one row of the table."""
    options = LoadOptions(model=str(folder), device="cuda", quantization=quantization)  # type: ignore[arg-type]
    manager = ModelManager(partial(open_model, folder, 0))
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    ready = manager.load(options).result()
    seconds = time.perf_counter() - start
    weights = torch.cuda.memory_allocated()
    asyncio.run(answer(ready, 64, 8))
    first, rate = asyncio.run(answer(ready, 64, 64))
    torch.cuda.reset_peak_memory_stats()
    long_first, _ = asyncio.run(answer(ready, CONTEXT - 8, 8))
    peak = torch.cuda.max_memory_allocated()
    shape = ready.loaded.spec.shape
    assert shape is not None
    plan = memory.plan(shape, precision_of(ready.loaded.placement.dtype, quantization), 80 * 10**9, CONTEXT)
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    planned = plan.total - memory.RUNTIME_BYTES
    print(
        f"| {folder.name} | {quantization} | {ready.loaded.placement.attention} | {seconds:.1f} "
        f"| {weights / 1e9:.3f} | {plan.weights / 1e9:.3f} | {plan.weights / weights - 1:+.2%} "
        f"| {peak / 1e9:.3f} | {planned / 1e9:.3f} | {planned / peak - 1:+.1%} | {outside / 1e6:.0f} "
        f"| {first * 1e3:.0f} | {rate:.1f} | {long_first * 1e3:.0f} |",
        flush=True,
    )
    del ready
    manager.close()


def keep(folder: Path) -> None:
    """Seconds to load in nf4, from bfloat16 and from the copy that the first load saved."""
    options = LoadOptions(model=str(folder), device="cuda", quantization="nf4", keep_quantized=True)
    for words in ("first, saving a copy", "from the copy"):
        manager = ModelManager(partial(open_model, folder.parent, 0))
        start = time.perf_counter()
        reasons = manager.load(options).result().loaded.placement.reasons["quantization"]
        print(f"{folder.name} nf4, {words}: {time.perf_counter() - start:.1f} s ({reasons})", flush=True)
        manager.close()


def rounds(folder: Path, quantization: str) -> None:
    """Ten times load, answer, unload: what stays allocated."""
    options = LoadOptions(model=str(folder), device="cuda", quantization=quantization)  # type: ignore[arg-type]
    manager = ModelManager(partial(open_model, folder, 0))
    left = []
    for _ in range(10):
        asyncio.run(answer(manager.load(options).result(), 16, 4))
        loaded = torch.cuda.memory_allocated()
        manager.unload(options)
        left.append(torch.cuda.memory_allocated())
    manager.close()
    print(f"{folder.name} {quantization}: loaded {loaded:,} bytes, left after each of ten rounds: {left}", flush=True)


def main() -> None:
    """Write the checkpoints to the folder of the first argument if they are not there, then measure."""
    root = Path(sys.argv[1])
    print(
        "| model | quantization | attention | load s | weights GB | planned | error | peak at 4,096 GB | planned "
        "| error | outside torch MB | TTFT 64 ms | tokens/s | TTFT 4,088 ms |"
    )
    for name in ("granite-3.3-2b-instruct", "granite-3.3-8b-instruct"):
        folder = root / name
        shape = catalogue.MODELS[name].shape
        assert shape is not None
        if not folder.exists():
            write_checkpoint(folder, shape)
            torch.cuda.empty_cache()
        for quantization in ("none", "nf4", "int8"):
            measure(folder, quantization)
    keep(root / "granite-3.3-8b-instruct")
    for quantization in ("none", "nf4"):
        rounds(root / "granite-3.3-2b-instruct", quantization)


if __name__ == "__main__":
    threading.excepthook = threading.__excepthook__
    main()

"""The kernels of the fused layers on a GPU; whole engines are what ``granite-demo bench --suite limit`` measures.

``python -m tests.gpu.measure_fused kernels [2b|8b|half8b] [bf16|nf4] [PRODUCT]``: time and bandwidth by tile.
``python -m tests.gpu.measure_fused attention [2b|8b]``: the same of attention, 30,000 tokens deep.
``python -m tests.gpu.measure_fused prompts [2b|8b]``: the same of prompts, the fourth chunk of four of 2,048 tokens.
``python -m tests.gpu.measure_fused profile FOLDER [nf4]``: kernels of a step, fused and not.
``python -m tests.gpu.measure_fused prompt FOLDER``: kernels of a prompt of 8,192 tokens, fused.
"""

import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from granite_demo.backends.open_model import open_model
from granite_demo.bench.measure import GREEDY, Prompts, ask
from granite_demo.engine.kernels.weights import Weights, codebook
from granite_demo.types.load_options import LoadOptions

SHAPES = {
    "2b": (2048, 32, 8, 64, 8192),
    "8b": (4096, 32, 8, 128, 12800),
    "half8b": (4096, 16, 4, 128, 6400),  # of one of two processes
}
"""hidden, heads, kv heads, head size, intermediate"""
TILES: dict[bool, Sequence[tuple[int, ...]]] = {
    False: (
        *((r, *t) for r in (2, 4, 8) for t in ((1024, 4), (2048, 8), (2048, 4))),
        *((2, 1024, 4, registers) for registers in (64, 80)),
        *((4, 1024, 4, registers) for registers in (80, 96, 128)),
        (8, 1024, 4, 128),
    ),
    True: (
        *((r, 512 * warps, warps) for r in (2, 4, 8) for warps in (2, 4, 8)),
        *((r, 512 * warps, warps, 128) for r in (2, 4, 8) for warps in (2, 4)),
        *((4, 2048, 4, 80), (4, 1024, 2, 80), (8, 2048, 4, 96), (8, 1024, 2, 168), (4, 1024, 2, 168)),
    ),
}
LOOKS = [dict(zip(("PROGRAMS", "KEY_BYTES", "STAGES"), look, strict=True)) for look in
         itertools.product((256, 512), (8192, 16384), (2, 3))]  # fmt: skip
PARTS = [
    (128, 128, 8, 2), (128, 128, 8, 3), (128, 128, 4, 2), (128, 64, 4, 3), (128, 64, 4, 2), (128, 64, 8, 3),
    (128, 64, 8, 4), (64, 128, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4),
]  # fmt: skip
DEPTH, PAGE = 30_000, 256
JOBS = 12
COPIES = 10
"""Of the weights, so that none is read from the cache of the GPU."""
Call = Callable[[torch.Tensor, Weights], torch.Tensor]


def weights_of(results: int, inputs: int, nf4: bool) -> Weights:
    """Random ones."""
    if not nf4:
        codes = torch.randn(results, inputs, device="cuda", dtype=torch.bfloat16) / inputs**0.5
        nothing = codes.new_empty(0)
        return Weights(codes, nothing, nothing, results, inputs)
    codes = torch.randint(0, 256, (results * inputs // 2,), device="cuda", dtype=torch.uint8).view(torch.int64)
    scales = torch.rand(results * inputs // 64, device="cuda") / inputs**0.5
    return Weights(codes, scales, codebook(torch.linspace(-1, 1, 16, device="cuda")), results, inputs)


def products(shape: str, nf4: bool) -> dict[str, tuple[str, tuple[int, int], Call]]:
    """(kernel, sizes of the weights, call) of each product of a layer, and of the head."""
    from granite_demo.engine.kernels import matvec

    hidden, heads, kv_heads, size, width = SHAPES[shape]
    gain = torch.randn(hidden, device="cuda", dtype=torch.bfloat16)
    cos, sin = torch.randn(2, 1, size, device="cuda", dtype=torch.bfloat16)
    residual = torch.randn(1, hidden, device="cuda", dtype=torch.bfloat16)

    def qkv(x: torch.Tensor, weights: Weights) -> torch.Tensor:
        return matvec.norm_qkv(x, gain, 1e-5, weights, cos, sin, heads + kv_heads)

    def add(x: torch.Tensor, weights: Weights) -> torch.Tensor:
        return matvec.linear_add(x, weights, residual, 0.22)

    def gate_up(x: torch.Tensor, weights: Weights) -> torch.Tensor:
        return matvec.norm_gate_up(x, gain, 1e-5, weights)

    found: dict[str, tuple[str, tuple[int, int], Call]] = {
        "qkv": ("rotated", ((heads + 2 * kv_heads) * size, hidden), qkv),
        "out": ("added", (hidden, heads * size), add),
        "gate_up": ("gated", (2 * width, hidden), gate_up),
        "down": ("added", (hidden, width), add),
    }
    if not nf4:
        found["head"] = ("scored", (49159, hidden), matvec.linear)
    return {name: (matvec.name_of(kernel, sizes[1]), sizes, call) for name, (kernel, sizes, call) in found.items()}


def graph_time(work: Callable[[], object], calls: int) -> float:
    """Microseconds of one of ``calls`` calls that ``work`` makes."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times: list[float] = []
    for _ in range(7):
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        for _ in range(3):
            graph.replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(ended) * 1000 / 3 / calls)
    return sorted(times)[3]


def measure_kernels(only: list[str], part: int | None = None, parts: int = 1) -> None:
    """Time all tiles; with ``part`` only compile every ``parts``-th, for another process to find them compiled."""
    for shape, nf4 in itertools.product(SHAPES, (False, True)):
        precision = "nf4" if nf4 else "bf16"
        if only and only[:2] != [shape, precision][: len(only)]:
            continue
        for name, (kernel, sizes, call) in products(shape, nf4).items():
            if only[2:] and name not in only[2:]:
                continue
            if part is not None:
                compile_tiles(TILES[nf4][part::parts], kernel, nf4, sizes, call)
            else:
                print(f"{shape} {precision} {name}: {time_tiles(kernel, nf4, sizes, call)}", flush=True)


def compile_tiles(tiles: Sequence[tuple[int, ...]], kernel: str, nf4: bool, sizes: tuple[int, int], call: Call) -> None:
    """Run each once."""
    from granite_demo.engine.kernels import matvec

    for tile in tiles:
        matvec.TILES[kernel, nf4] = matvec.MatvecTile(*tile)
        call(torch.randn(1, sizes[1], device="cuda", dtype=torch.bfloat16), weights_of(*sizes, nf4))


def time_tiles(kernel: str, nf4: bool, sizes: tuple[int, int], call: Call) -> str:
    """Bandwidth of the best, microseconds of all, and torch's own product."""
    from granite_demo.engine.kernels import matvec

    x = torch.randn(1, sizes[1], device="cuda", dtype=torch.bfloat16)
    copies = [weights_of(*sizes, nf4) for _ in range(COPIES)]
    found: list[tuple[float, tuple[int, ...]]] = []
    for tile in TILES[nf4]:
        matvec.TILES[kernel, nf4] = matvec.MatvecTile(*tile)
        found.append((graph_time(lambda: [call(x, weights) for weights in copies], COPIES), tile))
    found.sort()
    best = " ".join(f"{tile}: {us:.1f}" for us, tile in found)
    speed = (copies[0].codes.nbytes + copies[0].scales.nbytes) / found[0][0] / 1e3
    text = f"{speed:.0f} GB/s | {best}"
    if not nf4:
        theirs = graph_time(lambda: [torch.nn.functional.linear(x, weights.codes) for weights in copies], COPIES)
        text += f" | torch {theirs:.1f}"
    return text


def each(calls: Sequence[Callable[[], object]]) -> None:
    """Make all."""
    for call in calls:
        call()


def measure_attention(only: list[str], part: int | None = None, parts: int = 1) -> None:
    """Time all ways to look at a cache; with ``part`` only compile every ``parts``-th."""
    from granite_demo.engine.kernels import decode_attention

    for shape, (_, heads, kv_heads, size, _) in SHAPES.items():
        if only and only != [shape]:
            continue
        pages = -(-DEPTH // PAGE) + 1
        caches = [torch.randn(2, pages, PAGE, kv_heads, size, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
        table = torch.randperm(pages, device="cuda").int()[None]
        qkv = torch.randn(1, (heads + 2 * kv_heads) * size, device="cuda", dtype=torch.bfloat16)
        found: list[tuple[float, dict[str, int]]] = []
        for look in LOOKS[part::parts] if part is not None else LOOKS:
            vars(decode_attention).update(look)
            attend = decode_attention.PagedAttention(1, heads, kv_heads, size, qkv.device).attend
            for depth in (100, DEPTH):
                length = torch.tensor([depth], dtype=torch.int32, device="cuda")
                calls = [partial(attend, qkv, cache[0], cache[1], table, length, size**-0.5) for cache in caches]
                if part is not None:
                    calls[0]()
                else:
                    spent = graph_time(partial(each, calls), len(calls))
                    found.append((spent, {**look, "depth": depth}))
        for depth in (100, DEPTH) if part is None else ():
            best = sorted(((us, look) for us, look in found if look["depth"] == depth), key=lambda pair: pair[0])
            speed = 2 * depth * kv_heads * size * 2 / best[0][0] / 1e3
            print(
                f"{shape} attention, {depth}: {speed:.0f} GB/s |", *(f"{tuple(k.values())}: {us:.1f}" for us, k in best)
            )


def measure_prompts(only: list[str], part: int | None = None, parts: int = 1) -> None:
    """Time all ways to read a prompt; with ``part`` only compile every ``parts``-th."""
    from granite_demo.engine.kernels import prefill_attention

    for shape, (_, heads, kv_heads, size, _) in SHAPES.items():
        if only and only != [shape]:
            continue
        qkv = torch.randn(2048, (heads + 2 * kv_heads) * size, device="cuda", dtype=torch.bfloat16)
        keys, values = torch.randn(2, 40_000, kv_heads, size, device="cuda", dtype=torch.bfloat16)
        index = torch.arange(20_000, 20_000 + 8192 * 2, device="cuda")
        starts, ends = (torch.tensor([0, last] + [last] * 63, device="cuda").int() for last in (2048, 8192))
        read = partial(prefill_attention.attend, qkv, heads, keys, values, index, starts, ends, size**-0.5)
        found = []
        for tile in PARTS[part::parts] if part is not None else PARTS:
            prefill_attention.ATTENTION_TILES[size] = prefill_attention.AttentionTile(*tile)
            try:
                read() if part is not None else found.append((graph_time(partial(each, [read] * 10), 10), tile))
            except Exception as error:
                print(tile, error)
        if part is None:
            speed = 4 * heads * size * 2048 * (8192 - 1024) / min(found)[0] / 1e6
            print(f"{shape}: {speed:.0f} TFLOP/s |", *(f"{tile}: {us:.0f}" for us, tile in sorted(found)), flush=True)


def measure_prompt(folder: str) -> None:
    """Kernels of a long prompt."""
    from torch.profiler import ProfilerActivity, profile

    ready = open_model(Path(folder), 0, LoadOptions(folder), lambda *_: None, threading.Event(), ignore_ends=True)
    prompts = Prompts(ready.loaded.model.config.vocab_size)
    for _ in range(2):
        ask(ready.engine, prompts.many(1, 8192), replace(GREEDY, max_tokens=2))
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run = ask(ready.engine, prompts.many(1, 8192), replace(GREEDY, max_tokens=1))
    print(f"first token after {run.ttft * 1000:.0f} ms")
    print(profiled.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=90))
    ready.engine.close()


def measure_profile(folder: str, precision: str) -> None:
    """Kernels of a decode step of one user."""
    from torch.profiler import ProfilerActivity, profile

    quantization: Any = "none" if precision == "bf16" else precision
    for fuse in (False, True):
        options = LoadOptions(folder, quantization=quantization)
        ready = open_model(Path(folder), 0, options, lambda *_: None, threading.Event(), ignore_ends=True, fuse=fuse)
        prompts = Prompts(ready.loaded.model.config.vocab_size)
        ask(ready.engine, prompts.many(1, 128), replace(GREEDY, max_tokens=8))
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            run = ask(ready.engine, prompts.many(1, 128), replace(GREEDY, max_tokens=101))
        count, time = Counter[str](), Counter[str]()
        for event in profiled.events():
            if event.device_type.name == "CUDA" and "Mem" not in event.name:
                count[event.name] += 1
                time[event.name] += round(event.device_time)
        kernels, spent = sum(count.values()) / 100, sum(time.values()) / 100
        print(f"{'fused' if fuse else 'plain'}: {kernels:.0f} kernels, {spent:.0f} us, {run.decode_rate:.0f} tokens/s")
        for name, us in time.most_common(16):
            print(f"  {us / 100:7.1f} us {count[name] / 100:6.1f} x {name[:110]}")
        ready.engine.close()
        del ready
        torch.cuda.empty_cache()


def compile_first(what: str, only: list[str]) -> None:
    """Have other processes compile all, side by side."""
    command = [sys.executable, "-m", "tests.gpu.measure_fused", "compile", what]
    for job in [subprocess.Popen([*command, str(part), *only]) for part in range(JOBS)]:
        job.wait()


MEASURES: dict[str, Callable[..., None]] = {
    "kernels": measure_kernels,
    "attention": measure_attention,
    "prompts": measure_prompts,
}


def main() -> None:
    """See the module."""
    match sys.argv[1:]:
        case [what, *only] if what in MEASURES:
            compile_first(what, only)
            MEASURES[what](only)
        case ["compile", what, part, *only]:
            MEASURES[what](only, int(part), JOBS)
        case ["prompt", folder]:
            measure_prompt(folder)
        case ["profile", folder, *precision]:
            measure_profile(folder, *precision or ["bf16"])
        case _:
            print(__doc__)


if __name__ == "__main__":
    main()

"""Triton kernels for ``fused``: matrix-vector products with what comes before and after them, and two small ones.

A program of a product computes ``BLOCK`` results and reads ``BLOCK`` rows of the weights, each once. The norm before a
product is a factor of its results (RMSNorm: x * weight / rms(x)), so it is found on the way. Everything is added up in
float32 and rounded once. Triton comes with torch's CUDA builds for Linux.
"""

# mypy: disallow-untyped-decorators=False
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from granite_demo.engine.kernels.all_reduce import Sums, send, sums_of
from granite_demo.engine.kernels.decode_attention import Pages, early
from granite_demo.engine.kernels.nf4 import products_of_four
from granite_demo.engine.kernels.prefill_attention import attend as attend_to_prompts
from granite_demo.engine.kernels.prefill_attention import keep
from granite_demo.engine.kernels.weights import Weights


@dataclass(frozen=True, slots=True)
class Tile:
    """How much a program takes: results, and of each row so much at a time; ``warps`` of 32 threads.

    ``registers``: the most of a thread, which decides how many programs a multiprocessor has at a time.
    """

    results: int
    inputs: int
    warps: int
    registers: int | None = None


__all__ = ["Pages", "attend_to_prompts", "gate", "keep", "linear", "linear_add", "norm_gate_up", "norm_qkv",
           "reads_prompts", "rotate", "sums_of"]  # fmt: skip
SHORT, LONG, EVEN = 2048, 8192, 1024
BEST = {
    ("rotated", False): Tile(4, 1024, 4, 128),
    ("rotated short", False): Tile(4, 1024, 4, 80),
    ("gated", False): Tile(4, 1024, 4, 128),
    ("added", False): Tile(8, 1024, 4),
    ("added long", False): Tile(4, 1024, 4),
    ("scored", False): Tile(2, 1024, 4),
    ("rotated", True): Tile(4, 1024, 2, 128),
    ("rotated short", True): Tile(4, 2048, 4, 128),
    ("gated", True): Tile(8, 1024, 2, 168),
    ("added", True): Tile(4, 1024, 2, 128),
    ("added long", True): Tile(4, 1024, 2, 128),
}
"""By name (``name_of``) and whether the weights are in NF4; measured on an H100 with ``python -m
tests.gpu.measure_fused kernels``. A limit above the registers that a kernel takes without one makes it ask for more at
a time."""


def name_of(kernel: str, inputs: int) -> str:
    """What decides on the tile: the kernel, and how many inputs its product has."""
    if kernel == "rotated" and inputs <= SHORT:
        return "rotated short"
    if kernel == "added" and (inputs > LONG or inputs % EVEN):
        return "added long"
    return kernel


@triton.jit
def _products(  # type: ignore[no-untyped-def]
    x, codes, scales, table, gain, first, distance, end, K: tl.constexpr, NORM: tl.constexpr, FOUR: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """(the products of ``BLOCK`` rows of the weights with x, the sum of the squares of x)

    The rows are pairs: row ``first``, the one in a ``distance`` from it, and the same a ``STRIDE`` on, to ``end``.
    Weights do not depend on the kernel before, so with ``EARLY`` they are asked for while that one still runs.
    """
    if FOUR:
        sums, total = products_of_four(
            x, codes, scales, table, gain, first, distance, end, K, NORM, STRIDE, BLOCK, STEP // 16, EARLY
        )
    else:
        result = tl.arange(0, BLOCK)
        own = first + (result if STRIDE == 2 else result // 2)
        rows, inside_rows = own if STRIDE == 2 else own + result % 2 * distance, own < end
        sum_of = tl.zeros((BLOCK, STEP), dtype=tl.float32)
        squares = tl.zeros((STEP,), dtype=tl.float32)
        for start in tl.static_range(0, K, STEP):
            at = start + tl.arange(0, STEP)
            mask = inside_rows[:, None] & (at < K)[None, :]
            read = tl.load(codes + rows[:, None].to(tl.int64) * K + at[None, :], mask=mask, other=0.0)
            if EARLY and start == 0:
                gdc_wait()
                gdc_launch_dependents()
            value = tl.load(x + at, mask=at < K, other=0.0).to(tl.float32)
            if NORM:
                squares += value * value
                value *= tl.load(gain + at, mask=at < K, other=0.0).to(tl.float32)
            sum_of += read.to(tl.float32) * value[None, :]
        sums, total = tl.sum(sum_of, 1), tl.sum(squares)
    return sums, total


@triton.jit
def _rotated(  # type: ignore[no-untyped-def]
    x, gain, codes, scales, table, cos, sin, out, eps, turned, K: tl.constexpr, FOUR: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values of one token; a program takes ``BLOCK`` results: pairs of one head."""
    HALF: tl.constexpr = SIZE // 2
    PAIRS: tl.constexpr = BLOCK // 2
    PARTS: tl.constexpr = HALF // PAIRS
    head = tl.program_id(0) // PARTS
    first_pair = (tl.program_id(0) % PARTS) * PAIRS
    first_row = head * SIZE + first_pair
    sums, squares = _products(
        x, codes, scales, table, gain, first_row, HALF, first_row + PAIRS, K, True, FOUR, 1, BLOCK, STEP, EARLY
    )
    low, high = tl.split(tl.reshape(sums * tl.rsqrt(squares / K + eps), (PAIRS, 2)))
    pair = first_pair + tl.arange(0, PAIRS)
    if head < turned:  # values are not rotated
        first = low * tl.load(cos + pair).to(tl.float32) - high * tl.load(sin + pair).to(tl.float32)
        second = high * tl.load(cos + HALF + pair).to(tl.float32) + low * tl.load(sin + HALF + pair).to(tl.float32)
        low, high = first, second
    tl.store(out + head * SIZE + pair, low.to(out.dtype.element_ty))
    tl.store(out + head * SIZE + HALF + pair, high.to(out.dtype.element_ty))


@triton.jit
def _gated(  # type: ignore[no-untyped-def]
    x, gain, codes, scales, table, out, eps, N, K: tl.constexpr, FOUR: tl.constexpr, BLOCK: tl.constexpr,
    STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """silu(gate) * up, of which the weights are the first and the second N rows; ``BLOCK`` rows in a program."""
    first = tl.program_id(0) * (BLOCK // 2)
    sums, squares = _products(x, codes, scales, table, gain, first, N, N, K, True, FOUR, 1, BLOCK, STEP, EARLY)
    gate, up = tl.split(tl.reshape(sums * tl.rsqrt(squares / K + eps), (BLOCK // 2, 2)))
    place = first + tl.arange(0, BLOCK // 2)
    tl.store(out + place, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=place < N)


@triton.jit
def _added(  # type: ignore[no-untyped-def]
    x, codes, scales, table, residual, out, places, number, multiplier, share, N, K: tl.constexpr, FOUR: tl.constexpr,
    RANK: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """share * residual + multiplier * product, into ``out`` or to the ``SIZE`` processes of a group."""
    first = tl.program_id(0) * BLOCK
    sums, _ = _products(x, codes, scales, table, codes, first, 1, N, K, False, FOUR, 2, BLOCK, STEP, EARLY)
    rows = first + tl.arange(0, BLOCK)
    before = tl.load(residual + rows, mask=rows < N, other=0.0).to(tl.float32)
    results = share * before + multiplier * sums
    if SIZE > 1:
        send(places, number, results, rows, rows < N, N, RANK, SIZE)
    else:
        tl.store(out + rows, results.to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def _scored(  # type: ignore[no-untyped-def]
    x, codes, scales, table, out, N, K: tl.constexpr, FOUR: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    sums, _ = _products(x, codes, scales, table, codes, first, 1, N, K, False, FOUR, 2, BLOCK, STEP, EARLY)
    rows = first + tl.arange(0, BLOCK)
    tl.store(out + rows, sums.to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def _rotate(qkv, cos, sin, turned, WIDTH, SIZE: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """In place, a program for each token."""
    token = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    low_at, mask = qkv + token * WIDTH + head * SIZE + pair, (head < turned) & (pair < HALF)
    low = tl.load(low_at, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(low_at + HALF, mask=mask, other=0.0).to(tl.float32)
    turn = token * SIZE + pair
    first = low * tl.load(cos + turn).to(tl.float32) - high * tl.load(sin + turn).to(tl.float32)
    second = high * tl.load(cos + turn + HALF).to(tl.float32) + low * tl.load(sin + turn + HALF).to(tl.float32)
    tl.store(low_at, first.to(qkv.dtype.element_ty), mask=mask)
    tl.store(low_at + HALF, second.to(qkv.dtype.element_ty), mask=mask)


@triton.jit
def _gate(gate_up, out, WIDTH, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < WIDTH
    gate = tl.load(gate_up + token * 2 * WIDTH + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * WIDTH + WIDTH + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=mask)


def reads_prompts(device: torch.device) -> bool:
    """Whether ``attend_to_prompts`` is faster than FlashAttention 2 here: from Hopper on, where it was measured."""
    return bool(early(device)["EARLY"])


def _tiled(tile: Tile, x: torch.Tensor, four: bool) -> dict[str, Any]:
    step = tile.inputs if four else min(tile.inputs, triton.next_power_of_2(x.shape[-1]))
    return {
        "BLOCK": tile.results, "STEP": step, "num_warps": tile.warps, "maxnreg": tile.registers, **early(x.device)
    }  # fmt: skip


def norm_qkv(
    x: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    weights: Weights,
    cos: torch.Tensor,
    sin: torch.Tensor,
    turned: int,
) -> torch.Tensor:
    """Of one token ``x`` (1, K): RMSNorm, product, rotary of the first ``turned`` heads; shape (1, N)."""
    size, tile = cos.shape[-1], BEST[name_of("rotated", weights.inputs), weights.four]
    out = torch.empty((1, weights.results), dtype=x.dtype, device=x.device)
    _rotated[(weights.results // tile.results,)](
        x, gain, weights.codes, weights.scales, weights.table, cos, sin, out, eps, turned, weights.inputs, weights.four,
        SIZE=size, **_tiled(tile, x, weights.four),
    )  # fmt: skip
    return out


def norm_gate_up(x: torch.Tensor, gain: torch.Tensor, eps: float, weights: Weights) -> torch.Tensor:
    """Of one token ``x`` (1, K): RMSNorm, then silu(gate) * up, of ``weights`` with 2 N results; shape (1, N)."""
    width, tile = weights.results // 2, BEST["gated", weights.four]
    out = torch.empty((1, width), dtype=x.dtype, device=x.device)
    _gated[(triton.cdiv(weights.results, tile.results),)](
        x, gain, weights.codes, weights.scales, weights.table, out, eps, width, weights.inputs, weights.four,
        **_tiled(tile, x, weights.four),
    )  # fmt: skip
    return out


def linear_add(
    x: torch.Tensor,
    weights: Weights,
    residual: torch.Tensor,
    multiplier: float,
    share: float = 1.0,
    sums: Sums | None = None,
) -> torch.Tensor:
    """share * residual + multiplier * product of ``x`` (1, K), of all processes of ``sums`` together; shape (1, N)."""
    tile = BEST[name_of("added", weights.inputs), weights.four]
    out = residual if sums else torch.empty_like(residual)
    places, number, rank, size = (sums.places, sums.number, sums.rank, sums.size) if sums else (out, out, 0, 1)
    _added[(triton.cdiv(weights.results, tile.results),)](
        x, weights.codes, weights.scales, weights.table, residual, out, places, number, multiplier, share,
        weights.results, weights.inputs, weights.four, rank, size, **_tiled(tile, x, weights.four),
    )  # fmt: skip
    return sums.receive(residual) if sums else out


def linear(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The product of ``x`` (1, K); shape (1, N)."""
    tile = BEST["scored", weights.four]
    out = torch.empty((1, weights.results), dtype=x.dtype, device=x.device)
    _scored[(triton.cdiv(weights.results, tile.results),)](
        x, weights.codes, weights.scales, weights.table, out, weights.results, weights.inputs, weights.four,
        **_tiled(tile, x, weights.four),
    )  # fmt: skip
    return out


def rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, turned: int) -> torch.Tensor:
    """Rotary of the first ``turned`` heads of ``qkv`` (n, heads * size), in place; ``cos`` and ``sin`` (n, size)."""
    size = cos.shape[-1]
    _rotate[(len(qkv),)](
        qkv, cos, sin, turned, qkv.shape[1], SIZE=size, HALF=size // 2, HEADS=triton.next_power_of_2(turned)
    )
    return qkv


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of ``gate_up`` (n, 2 N), the gates first; shape (n, N)."""
    count, width = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty((count, width), dtype=gate_up.dtype, device=gate_up.device)
    _gate[(count, triton.cdiv(width, 1024))](gate_up, out, width, BLOCK=1024)
    return out

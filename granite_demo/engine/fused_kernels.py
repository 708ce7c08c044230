"""Triton kernels for ``fused``: matrix-vector products with what comes before and after them, and two small ones.

A program of a product computes ``BLOCK`` results and reads ``BLOCK`` rows of the weights, each once. The norm before a
product is a factor of its results (RMSNorm: x * weight / rms(x)), so it is found on the way. Everything is added up in
float32 and rounded once. Triton comes with torch's CUDA builds for Linux.
"""

# mypy: disallow-untyped-decorators=False
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from granite_demo.engine.fused_attention import Pages as Pages
from granite_demo.engine.fused_weights import Weights


@dataclass(frozen=True, slots=True)
class Tile:
    """How much a program takes: results, and of each row so much at a time; ``warps`` of 32 threads."""

    results: int
    inputs: int
    warps: int


BEST = {
    ("rotated", False): Tile(2, 2048, 8),
    ("gated", False): Tile(2, 2048, 8),
    ("added", False): Tile(2, 1024, 4),
    ("scored", False): Tile(2, 2048, 8),
    ("rotated", True): Tile(4, 2048, 2),
    ("gated", True): Tile(4, 2048, 2),
    ("added", True): Tile(4, 2048, 2),
}
"""By kernel and whether the weights are in NF4; measured on an H100 (``python -m tests.gpu.measure_fused kernels``)."""


@triton.jit
def _products(  # type: ignore[no-untyped-def]
    x, codes, scales, table, gain, rows, N, K: tl.constexpr, NORM: tl.constexpr, FOUR: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """(the products of ``rows`` of the weights with x, the sum of the squares of x)"""
    if FOUR:
        # Eight numbers in a word. A thread has four words of every row, so that x is read once for all rows.
        WORDS: tl.constexpr = STEP // 8
        sums = tl.zeros((BLOCK, WORDS), dtype=tl.float32)
        squares = tl.zeros((WORDS,), dtype=tl.float32)
        for start in tl.static_range(0, K // 8, WORDS):
            word = start + tl.arange(0, WORDS)
            inside = word < K // 8
            mask = (rows < N)[:, None] & inside[None, :]
            read = tl.load(codes + rows[:, None].to(tl.int64) * (K // 8) + word[None, :], mask=mask, other=0)
            scale = tl.load(scales + rows[:, None].to(tl.int64) * (K // 64) + word[None, :] // 8, mask=mask, other=0.0)
            product = tl.zeros((BLOCK, WORDS), dtype=tl.float32)
            for place in tl.static_range(0, 8):
                value = tl.load(x + word * 8 + place, mask=inside, other=0.0).to(tl.float32)
                if NORM:
                    squares += value * value
                    value *= tl.load(gain + word * 8 + place, mask=inside, other=0.0).to(tl.float32)
                # Of a byte the upper half comes first.
                code = (read >> (8 * (place // 2) + 4 * (1 - place % 2))) & 15
                product += tl.load(table + code) * value[None, :]
            sums += product * scale
        total = tl.sum(squares, 0)
    else:
        sums = tl.zeros((BLOCK, STEP), dtype=tl.float32)
        squares = tl.zeros((STEP,), dtype=tl.float32)
        for start in tl.static_range(0, K, STEP):
            at = start + tl.arange(0, STEP)
            inside = at < K
            value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
            if NORM:
                squares += value * value
                value *= tl.load(gain + at, mask=inside, other=0.0).to(tl.float32)
            mask = (rows < N)[:, None] & inside[None, :]
            read = tl.load(codes + rows[:, None].to(tl.int64) * K + at[None, :], mask=mask, other=0.0)
            sums += read.to(tl.float32) * value[None, :]
        total = tl.sum(squares, 0)
    return tl.sum(sums, 1), total


@triton.jit
def _rotated(  # type: ignore[no-untyped-def]
    x, gain, codes, scales, table, cos, sin, out, eps, turned, N, K: tl.constexpr, FOUR: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Queries, keys and values of one token; a program takes ``BLOCK`` pairs of one head."""
    HALF: tl.constexpr = SIZE // 2
    PARTS: tl.constexpr = HALF // BLOCK
    head = tl.program_id(0) // PARTS
    pair = (tl.program_id(0) % PARTS) * BLOCK + tl.arange(0, BLOCK)
    low_rows, high_rows = head * SIZE + pair, head * SIZE + HALF + pair
    low, squares = _products(x, codes, scales, table, gain, low_rows, N, K, True, FOUR, BLOCK, STEP)
    high, _ = _products(x, codes, scales, table, gain, high_rows, N, K, True, FOUR, BLOCK, STEP)
    scale = tl.rsqrt(squares / K + eps)
    low, high = low * scale, high * scale
    if head < turned:  # values are not rotated
        first = low * tl.load(cos + pair).to(tl.float32) - high * tl.load(sin + pair).to(tl.float32)
        second = high * tl.load(cos + HALF + pair).to(tl.float32) + low * tl.load(sin + HALF + pair).to(tl.float32)
        low, high = first, second
    tl.store(out + low_rows, low.to(out.dtype.element_ty))
    tl.store(out + high_rows, high.to(out.dtype.element_ty))


@triton.jit
def _gated(  # type: ignore[no-untyped-def]
    x, gain, codes, scales, table, out, eps, N, K: tl.constexpr, FOUR: tl.constexpr, BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """silu(gate) * up, of which the weights are the first and the second N rows."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    gate, squares = _products(x, codes, scales, table, gain, rows, N, K, True, FOUR, BLOCK, STEP)
    up, _ = _products(x, codes, scales, table, gain, rows + N, 2 * N, K, True, FOUR, BLOCK, STEP)
    scale = tl.rsqrt(squares / K + eps)
    gate, up = gate * scale, up * scale
    tl.store(out + rows, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def _added(  # type: ignore[no-untyped-def]
    x, codes, scales, table, residual, out, multiplier, N, K: tl.constexpr, FOUR: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums, _ = _products(x, codes, scales, table, codes, rows, N, K, False, FOUR, BLOCK, STEP)
    before = tl.load(residual + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out + rows, (before + multiplier * sums).to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def _scored(  # type: ignore[no-untyped-def]
    x, codes, scales, table, out, N, K: tl.constexpr, FOUR: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sums, _ = _products(x, codes, scales, table, codes, rows, N, K, False, FOUR, BLOCK, STEP)
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
    size, tile = cos.shape[-1], BEST["rotated", weights.four]
    block = min(tile.results, size // 2)
    out = torch.empty((1, weights.results), dtype=x.dtype, device=x.device)
    _rotated[(weights.results // (2 * block),)](
        x, gain, weights.codes, weights.scales, weights.table, cos, sin, out, eps, turned,
        weights.results, weights.inputs, weights.four, SIZE=size, BLOCK=block, STEP=tile.inputs, num_warps=tile.warps,
    )  # fmt: skip
    return out


def norm_gate_up(x: torch.Tensor, gain: torch.Tensor, eps: float, weights: Weights) -> torch.Tensor:
    """Of one token ``x`` (1, K): RMSNorm, then silu(gate) * up, of ``weights`` with 2 N results; shape (1, N)."""
    width, tile = weights.results // 2, BEST["gated", weights.four]
    out = torch.empty((1, width), dtype=x.dtype, device=x.device)
    _gated[(triton.cdiv(width, tile.results),)](
        x, gain, weights.codes, weights.scales, weights.table, out, eps,
        width, weights.inputs, weights.four, BLOCK=tile.results, STEP=tile.inputs, num_warps=tile.warps,
    )  # fmt: skip
    return out


def linear_add(x: torch.Tensor, weights: Weights, residual: torch.Tensor, multiplier: float) -> torch.Tensor:
    """residual + multiplier * product of ``x`` (1, K); shape (1, N)."""
    out, tile = torch.empty_like(residual), BEST["added", weights.four]
    _added[(triton.cdiv(weights.results, tile.results),)](
        x, weights.codes, weights.scales, weights.table, residual, out, multiplier,
        weights.results, weights.inputs, weights.four, BLOCK=tile.results, STEP=tile.inputs, num_warps=tile.warps,
    )  # fmt: skip
    return out


def linear(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The product of ``x`` (1, K); shape (1, N)."""
    tile = BEST["scored", weights.four]
    out = torch.empty((1, weights.results), dtype=x.dtype, device=x.device)
    _scored[(triton.cdiv(weights.results, tile.results),)](
        x, weights.codes, weights.scales, weights.table, out,
        weights.results, weights.inputs, weights.four, BLOCK=tile.results, STEP=tile.inputs, num_warps=tile.warps,
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

"""The Triton kernels of the fused layers: matrix-vector products with norm, activation or residual, and two small ones.

A program of a product computes ``BLOCK`` results and reads ``BLOCK`` rows of the weights once. The norm before a
product is a factor of the results (RMSNorm: x * weight / rms(x)), so the same loop computes it. All sums are in float32
and are rounded once. Triton is a part of torch's CUDA builds for Linux.
"""

# mypy: disallow-untyped-decorators=False
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from granite_demo.engine.kernels.all_reduce import Sums, send, sums_of
from granite_demo.engine.kernels.decode_attention import PagedAttention, launch_options
from granite_demo.engine.kernels.nf4 import nf4_products
from granite_demo.engine.kernels.prefill_attention import attend as attend_to_prompts
from granite_demo.engine.kernels.prefill_attention import write_cache
from granite_demo.engine.kernels.weights import Weights


@dataclass(frozen=True, slots=True)
class MatvecTile:
    """The work of one program: how many results, and how many inputs of each row at a time. A warp has 32 threads.

    ``registers`` is the maximum for a thread. It limits how many programs a multiprocessor can run at the same time.
    """

    results: int
    inputs: int
    warps: int
    registers: int | None = None


__all__ = ["PagedAttention", "attend_to_prompts", "gate", "linear", "linear_add", "norm_gate_up", "norm_qkv",
           "reads_prompts", "rotate", "sums_of", "write_cache"]  # fmt: skip
SHORT_ROW, LONG_ROW, EVEN_ROW = 2048, 8192, 1024
TILES = {
    ("rotated", False): MatvecTile(4, 1024, 4, 128),
    ("rotated short", False): MatvecTile(4, 1024, 4, 80),
    ("gated", False): MatvecTile(4, 1024, 4, 128),
    ("added", False): MatvecTile(8, 1024, 4),
    ("added long", False): MatvecTile(4, 1024, 4),
    ("scored", False): MatvecTile(2, 1024, 4),
    ("rotated", True): MatvecTile(4, 1024, 2, 128),
    ("rotated short", True): MatvecTile(4, 2048, 4, 128),
    ("gated", True): MatvecTile(8, 1024, 2, 168),
    ("added", True): MatvecTile(4, 1024, 2, 128),
    ("added long", True): MatvecTile(4, 1024, 2, 128),
}
"""The tiles by name (``name_of``) and by whether the weights are in NF4. They were measured on an H100 with
``python -m tests.gpu.measure_fused kernels``. With a limit above the registers that a kernel needs, the compiler loads
more weights at a time."""


def name_of(kernel: str, inputs: int) -> str:
    """Return the key of the tile, which depends on the kernel and on the number of inputs of its product."""
    if kernel == "rotated" and inputs <= SHORT_ROW:
        return "rotated short"
    if kernel == "added" and (inputs > LONG_ROW or inputs % EVEN_ROW):
        return "added long"
    return kernel


@triton.jit
def _products(  # type: ignore[no-untyped-def]
    x, codes, scales, table, gain, first, distance, end, K: tl.constexpr, NORM: tl.constexpr, NF4: tl.constexpr,
    STRIDE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Return the products of ``BLOCK`` rows of the weights with x, and the sum of the squares of x.

    The rows are pairs: row ``first`` and the row at ``distance`` from it, then the same ``STRIDE`` further, up to
    ``end``. The weights do not depend on the previous kernel, so with ``EARLY``, they are loaded while it still runs.
    """
    if NF4:
        sums, total = nf4_products(
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
    x, gain, codes, scales, table, cos, sin, out, eps, rotated, K: tl.constexpr, NF4: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Compute queries, keys and values of one token. A program computes ``BLOCK`` results: pairs of one head."""
    HALF: tl.constexpr = SIZE // 2
    PAIRS: tl.constexpr = BLOCK // 2
    PARTS: tl.constexpr = HALF // PAIRS
    head = tl.program_id(0) // PARTS
    first_pair = (tl.program_id(0) % PARTS) * PAIRS
    first_row = head * SIZE + first_pair
    sums, squares = _products(
        x, codes, scales, table, gain, first_row, HALF, first_row + PAIRS, K, True, NF4, 1, BLOCK, STEP, EARLY
    )
    low, high = tl.split(tl.reshape(sums * tl.rsqrt(squares / K + eps), (PAIRS, 2)))
    pair = first_pair + tl.arange(0, PAIRS)
    if head < rotated:  # values are not rotated
        first = low * tl.load(cos + pair).to(tl.float32) - high * tl.load(sin + pair).to(tl.float32)
        second = high * tl.load(cos + HALF + pair).to(tl.float32) + low * tl.load(sin + HALF + pair).to(tl.float32)
        low, high = first, second
    tl.store(out + head * SIZE + pair, low.to(out.dtype.element_ty))
    tl.store(out + head * SIZE + HALF + pair, high.to(out.dtype.element_ty))


@triton.jit
def _gated(  # type: ignore[no-untyped-def]
    x, gain, codes, scales, table, out, eps, N, K: tl.constexpr, NF4: tl.constexpr, BLOCK: tl.constexpr,
    STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Compute silu(gate) * up. The first N rows of the weights are for the gates, the second N rows for up."""
    first = tl.program_id(0) * (BLOCK // 2)
    sums, squares = _products(x, codes, scales, table, gain, first, N, N, K, True, NF4, 1, BLOCK, STEP, EARLY)
    gate, up = tl.split(tl.reshape(sums * tl.rsqrt(squares / K + eps), (BLOCK // 2, 2)))
    at = first + tl.arange(0, BLOCK // 2)
    tl.store(out + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=at < N)


@triton.jit
def _added(  # type: ignore[no-untyped-def]
    x, codes, scales, table, residual, out, addresses, number, multiplier, share, N, K: tl.constexpr, NF4: tl.constexpr,
    RANK: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Write share * residual + multiplier * product to ``out``, or to the ``SIZE`` processes of a group."""
    first = tl.program_id(0) * BLOCK
    sums, _ = _products(x, codes, scales, table, codes, first, 1, N, K, False, NF4, 2, BLOCK, STEP, EARLY)
    rows = first + tl.arange(0, BLOCK)
    before = tl.load(residual + rows, mask=rows < N, other=0.0).to(tl.float32)
    results = share * before + multiplier * sums
    if SIZE > 1:
        send(addresses, number, results, rows, rows < N, N, RANK, SIZE)
    else:
        tl.store(out + rows, results.to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def _scored(  # type: ignore[no-untyped-def]
    x, codes, scales, table, out, N, K: tl.constexpr, NF4: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    sums, _ = _products(x, codes, scales, table, codes, first, 1, N, K, False, NF4, 2, BLOCK, STEP, EARLY)
    rows = first + tl.arange(0, BLOCK)
    tl.store(out + rows, sums.to(out.dtype.element_ty), mask=rows < N)


@triton.jit
def _rotate(qkv, cos, sin, rotated, WIDTH, SIZE: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rotate in place, with one program for each token."""
    token = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    low_at, mask = qkv + token * WIDTH + head * SIZE + pair, (head < rotated) & (pair < HALF)
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
    """Whether ``attend_to_prompts`` is faster than FlashAttention 2 on ``device``: measured from Hopper on."""
    return bool(launch_options(device)["EARLY"])


def _tiled(tile: MatvecTile, x: torch.Tensor, nf4: bool) -> dict[str, Any]:
    step = tile.inputs if nf4 else min(tile.inputs, triton.next_power_of_2(x.shape[-1]))
    options = {"BLOCK": tile.results, "STEP": step, "num_warps": tile.warps, "maxnreg": tile.registers}
    return {**options, **launch_options(x.device)}


def norm_qkv(
    x: torch.Tensor,
    gain: torch.Tensor,
    eps: float,
    weights: Weights,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotated: int,
) -> torch.Tensor:
    """Compute RMSNorm, product, and rotary embedding of the first ``rotated`` heads for one token.

    ``x``: (1, K). Returns (1, N).
    """
    size, tile = cos.shape[-1], TILES[name_of("rotated", weights.inputs), weights.nf4]
    out = torch.empty((1, weights.results), dtype=x.dtype, device=x.device)
    _rotated[(weights.results // tile.results,)](
        x, gain, weights.codes, weights.scales, weights.table, cos, sin, out, eps, rotated, weights.inputs, weights.nf4,
        SIZE=size, **_tiled(tile, x, weights.nf4),
    )  # fmt: skip
    return out


def norm_gate_up(x: torch.Tensor, gain: torch.Tensor, eps: float, weights: Weights) -> torch.Tensor:
    """Compute RMSNorm, then silu(gate) * up, for one token. ``x``: (1, K). ``weights`` have 2 N results.

    Returns (1, N).
    """
    width, tile = weights.results // 2, TILES["gated", weights.nf4]
    out = torch.empty((1, width), dtype=x.dtype, device=x.device)
    _gated[(triton.cdiv(weights.results, tile.results),)](
        x, gain, weights.codes, weights.scales, weights.table, out, eps, width, weights.inputs, weights.nf4,
        **_tiled(tile, x, weights.nf4),
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
    """Compute share * residual + multiplier * product for one token, added over all processes of ``sums``.

    ``x``: (1, K). Returns (1, N).
    """
    tile = TILES[name_of("added", weights.inputs), weights.nf4]
    out = residual if sums else torch.empty_like(residual)
    addresses, number, rank, size = (sums.addresses, sums.number, sums.rank, sums.size) if sums else (out, out, 0, 1)
    _added[(triton.cdiv(weights.results, tile.results),)](
        x, weights.codes, weights.scales, weights.table, residual, out, addresses, number, multiplier, share,
        weights.results, weights.inputs, weights.nf4, rank, size, **_tiled(tile, x, weights.nf4),
    )  # fmt: skip
    return sums.receive(residual) if sums else out


def linear(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Return the product of ``x`` (1, K) with the weights, shape (1, N)."""
    tile = TILES["scored", weights.nf4]
    out = torch.empty((1, weights.results), dtype=x.dtype, device=x.device)
    _scored[(triton.cdiv(weights.results, tile.results),)](
        x, weights.codes, weights.scales, weights.table, out, weights.results, weights.inputs, weights.nf4,
        **_tiled(tile, x, weights.nf4),
    )  # fmt: skip
    return out


def rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotated: int) -> torch.Tensor:
    """Apply the rotary embedding to the first ``rotated`` heads of ``qkv``, in place.

    ``qkv``: (n, heads * size). ``cos``, ``sin``: (n, size).
    """
    size = cos.shape[-1]
    _rotate[(len(qkv),)](
        qkv, cos, sin, rotated, qkv.shape[1], SIZE=size, HALF=size // 2, HEADS=triton.next_power_of_2(rotated)
    )
    return qkv


def gate(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, shape (n, N). ``gate_up``: (n, 2 N), the gates first."""
    count, width = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty((count, width), dtype=gate_up.dtype, device=gate_up.device)
    _gate[(count, triton.cdiv(width, 1024))](gate_up, out, width, BLOCK=1024)
    return out

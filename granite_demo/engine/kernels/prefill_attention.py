"""Attention of the prompts of several requests over their KV cache, as one Triton kernel.

A program processes ``ROWS`` tokens for one query head and iterates over the keys and values that they can attend to
(FlashAttention, https://arxiv.org/abs/2205.14135). It reads these in place, without a copy.
"""

# mypy: disallow-untyped-decorators=False
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from granite_demo.engine.kernels.decode_attention import LOG2_E, accumulate, empty_softmax


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """The work of one program: the query rows, the key tokens at a time, and the stages of the load pipeline."""

    rows: int
    tokens: int
    warps: int
    stages: int


ATTENTION_TILES = {64: AttentionTile(128, 128, 4, 2), 128: AttentionTile(128, 64, 4, 3)}
"""The tiles by head size for 16 bits, measured on an H100 (``python -m tests.gpu.measure_fused prompts``)."""
SMALL = AttentionTile(64, 32, 4, 2)


def write_cache(qkv: torch.Tensor, heads: int, keys: torch.Tensor, values: torch.Tensor, targets: torch.Tensor) -> None:
    """Write the keys and values of ``qkv`` (n, all heads * size) to the tokens ``targets`` (n,) of the cache.

    ``keys``, ``values``: (tokens, KV heads, size). The heads of a token must be contiguous.
    """
    _, kv_heads, size = keys.shape
    _write_cache[(len(qkv),)](
        qkv, keys, values, targets, qkv.stride(0), heads * size, keys.stride(0), values.stride(0),
        COUNT=kv_heads * size, COLUMNS=triton.next_power_of_2(kv_heads * size),
    )  # fmt: skip


def attend(
    qkv: torch.Tensor,
    heads: int,
    keys: torch.Tensor,
    values: torch.Tensor,
    index: torch.Tensor | None,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Return the causal attention of n tokens of several requests, shape (n, heads * size).

    ``qkv``: (n, all heads * size). ``keys``, ``values``: (tokens, KV heads, size). ``index``: int64, the indices of the
    keys of all requests in order; None means that ``keys`` has that order. ``starts``, ``key_starts``: (requests + 1,)
    int32, the start of the tokens and keys of each request, and the end of the last. The last keys of a request are
    those of its tokens. Tokens after the last request are padding, whose results are undefined.
    """
    (_, kv_heads, size), requests = keys.shape, len(starts) - 1
    tile = ATTENTION_TILES.get(size, SMALL) if qkv.dtype.itemsize == 2 else SMALL
    out = torch.empty((len(qkv), heads * size), dtype=qkv.dtype, device=qkv.device)
    _attend[(triton.cdiv(len(qkv), tile.rows) + requests, heads)](
        qkv, keys, values, index, starts, key_starts, out, scaling * LOG2_E, requests, qkv.stride(0),
        keys.stride(0), keys.stride(1), values.stride(0), values.stride(1), HEADS=heads, GROUP=heads // kv_heads,
        SIZE=size, ROWS=tile.rows, TOKENS=tile.tokens, MOST=triton.next_power_of_2(requests),
        INDEXED=index is not None, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out


@triton.jit
def _write_cache(  # type: ignore[no-untyped-def]
    qkv, keys, values, targets, width, first, key_token, value_token, COUNT: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    target, column = tl.load(targets + token), tl.arange(0, COLUMNS)
    new = qkv + token * width + first + column
    tl.store(keys + target * key_token + column, tl.load(new, mask=column < COUNT), mask=column < COUNT)
    tl.store(values + target * value_token + column, tl.load(new + COUNT, mask=column < COUNT), mask=column < COUNT)


@triton.jit
def _attend_range(  # type: ignore[no-untyped-def]
    query, largest, total, sums, keys, values, index, first, last, row_sees, scaling, key_token, value_token,
    SIZE: tl.constexpr, TOKENS: tl.constexpr, INDEXED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the keys from ``first`` to ``last`` to the running softmax of ``query`` (ROWS, SIZE)."""
    dim = tl.arange(0, SIZE)
    for start in tl.range(first, last, TOKENS):
        token = start + tl.arange(0, TOKENS)
        there = token < last
        at = tl.load(index + token, mask=there, other=0) if INDEXED else token.to(tl.int64)
        key = tl.load(keys + at[:, None] * key_token + dim[None, :], mask=there[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        if MASKED:
            score = tl.where((token[None, :] <= row_sees[:, None]) & there[None, :], score, float("-inf"))
        value = tl.load(values + at[:, None] * value_token + dim[None, :], mask=there[:, None], other=0.0)
        largest, total, sums = accumulate(score, scaling, value, largest, total, sums)
    return largest, total, sums


@triton.jit(do_not_specialize=["requests"])
def _attend(  # type: ignore[no-untyped-def]
    qkv, keys, values, index, starts, key_starts, out, scaling, requests, width, key_token, key_head, value_token,
    value_head, HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr,
    TOKENS: tl.constexpr, MOST: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    """Process the last tokens first, because they have the most keys."""
    block, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    line = tl.arange(0, MOST)
    lengths = tl.load(starts + 1 + line, mask=line < requests, other=0) - tl.load(
        starts + line, mask=line < requests, other=0
    )
    ends = tl.cumsum(tl.cdiv(lengths, ROWS), 0)  # the ends of the requests, in blocks
    request = tl.sum((ends <= block).to(tl.int32), 0)
    if request >= requests:
        return
    before = tl.max(tl.where(ends <= block, ends, 0), 0)
    start, key_start = tl.load(starts + request), tl.load(key_starts + request)
    length, known = tl.load(starts + request + 1) - start, tl.load(key_starts + request + 1) - key_start
    row = (block - before) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, SIZE)
    own = (row < length)[:, None]
    query = tl.load(qkv + (start + row[:, None]).to(tl.int64) * width + head * SIZE + dim[None, :], mask=own, other=0.0)
    if INDEXED:
        index += key_start
    else:
        keys += key_start.to(tl.int64) * key_token
        values += key_start.to(tl.int64) * value_token
    keys += head // GROUP * key_head
    values += head // GROUP * value_head
    largest, total, sums = empty_softmax(ROWS, SIZE)
    row_sees = row + known - length
    first_sees = (block - before) * ROWS + known - length
    seen_by_all = (first_sees + 1) // TOKENS * TOKENS
    last = tl.minimum(first_sees + ROWS, known)
    largest, total, sums = _attend_range(
        query, largest, total, sums, keys, values, index, 0, seen_by_all, row_sees, scaling, key_token, value_token,
        SIZE, TOKENS, INDEXED, False,
    )  # fmt: skip
    largest, total, sums = _attend_range(
        query, largest, total, sums, keys, values, index, seen_by_all, last, row_sees, scaling, key_token, value_token,
        SIZE, TOKENS, INDEXED, True,
    )  # fmt: skip
    result = out + (start + row[:, None]).to(tl.int64) * (HEADS * SIZE) + head * SIZE + dim[None, :]
    tl.store(result, (sums / total[:, None]).to(out.dtype.element_ty), mask=own)

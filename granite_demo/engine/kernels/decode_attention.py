"""Attention of one new token of each request over a paged KV cache, as one Triton kernel.

A program processes a part of the tokens of one request, for the query heads that share a KV head. The last program to
finish combines the parts (flash-decoding, https://pytorch.org/blog/flash-decoding/, without its second kernel). Only
filled pages are read. The program with the last part also writes the new token to the cache.
"""

# mypy: disallow-untyped-decorators=False
import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

PROGRAMS = 256
"""The target number of programs: about two for each multiprocessor of an H100."""
LOG2_E = 1.4426950408889634
KEY_BYTES = 16384
"""How many bytes of the keys a program processes at a time."""
STAGES = 2
"""The number of stages of the load pipeline."""
MIN_BLOCKS: tl.constexpr = tl.constexpr(2)
"""The minimum number of token blocks for a program."""
PARTS_AT_ONCE: tl.constexpr = tl.constexpr(16)
"""How many parts are combined at a time."""
MIN_ROWS = 16
"""The minimum number of rows of a product on tensor cores. Fewer queries are padded."""


@functools.cache
def launch_options(device: torch.device) -> dict[str, Any]:
    """Return the launch options for programmatic dependent launch, with which a kernel starts before the previous ends.

    GPUs support it from Hopper on.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": able, "launch_pdl": able}


class PagedAttention:
    """The kernel with its memory for the parts. A model has one object, which all layers use in turn."""

    def __init__(self, requests: int, heads: int, kv_heads: int, size: int, device: torch.device) -> None:
        self._heads, self._kv_heads, self._size = heads, kv_heads, size
        parts = max(1, PROGRAMS // kv_heads)
        self._parts = torch.empty((max(parts, requests) * heads, size + 2), dtype=torch.float32, device=device)
        self._ended = torch.zeros(requests * kv_heads, dtype=torch.int32, device=device)

    def attend(
        self,
        qkv: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        table: torch.Tensor,
        lengths: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Return the attention of n requests, shape (n, heads * size), and write the new tokens to the cache.

        ``qkv``: (n, all heads * size), the queries, keys and values of the new tokens. ``keys``, ``values``: (pages,
        page size, KV heads, size). ``table``: (n, maximum pages) int32, the pages of each request. ``lengths``: (n,)
        int32, the number of tokens in the cache so far, or -1 for a padding row.
        """
        count, group = len(qkv), self._heads // self._kv_heads
        few = triton.next_power_of_2(group)
        parts = max(1, PROGRAMS // self._kv_heads // count)
        out = torch.empty((count, self._heads * self._size), dtype=qkv.dtype, device=qkv.device)
        _attend[(count, self._kv_heads, parts)](
            qkv, keys, values, table, lengths, out, self._parts, self._ended, scaling * LOG2_E, parts,
            table.stride(0), keys.stride(0), keys.stride(1), keys.stride(2),
            values.stride(0), values.stride(1), values.stride(2),
            KV_HEADS=self._kv_heads, GROUP=group, ROWS=max(MIN_ROWS, few), FEW=few, SIZE=self._size,
            PAGE=keys.shape[1], TOKENS=min(KEY_BYTES // keys.itemsize // self._size, keys.shape[1]),
            num_warps=4, num_stages=STAGES, **launch_options(qkv.device),
        )  # fmt: skip
        return out


@triton.jit
def empty_softmax(ROWS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the state of a running softmax without tokens: the largest score, the total weight, the weighted sums."""
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    return largest, tl.zeros((ROWS,), dtype=tl.float32), tl.zeros((ROWS, SIZE), dtype=tl.float32)


@triton.jit
def _copy(source, target):  # type: ignore[no-untyped-def]
    values = tl.load(source)
    tl.store(target, values)
    return values.to(tl.float32)


@triton.jit
def accumulate(score, scaling, value, largest, total, sums):  # type: ignore[no-untyped-def]
    """Add tokens to the state of a running softmax (as in FlashAttention, but with powers of two)."""
    now = tl.maximum(largest, tl.max(score, 1) * scaling)
    weight, shrunk = tl.exp2(score * scaling - now[:, None]), tl.exp2(largest - now)
    sums = tl.dot(weight.to(value.dtype), value, sums * shrunk[:, None], input_precision="ieee")
    return now, total * shrunk + tl.sum(weight, 1), sums


@triton.jit
def _store_part(target, sums, largest, total, own, dim, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(target[:, None] + dim[None, :], sums, mask=own[:, None])
    tl.store(target + SIZE, largest, mask=own)
    tl.store(target + SIZE + 1, total, mask=own)


@triton.jit
def _join(partial, used, out, dim, ROWS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Combine the parts. Each part has the weighted sums, the largest score and the total weight."""
    row = tl.arange(0, ROWS)
    own = row < GROUP
    largest, total, sums = empty_softmax(ROWS, SIZE)
    for first in tl.range(0, used, PARTS_AT_ONCE):  # many at a time, because they load as fast as one
        part = first + tl.arange(0, PARTS_AT_ONCE)
        there = (part < used)[:, None] & own[None, :]
        source = partial + (part[:, None] * GROUP + row[None, :]) * (SIZE + 2)
        part_largest = tl.load(source + SIZE, mask=there, other=float("-inf"), cache_modifier=".cg")
        part_total = tl.load(source + SIZE + 1, mask=there, other=0.0, cache_modifier=".cg")
        part_sums = tl.load(
            source[:, :, None] + dim[None, None, :], mask=there[:, :, None], other=0.0, cache_modifier=".cg"
        )
        before = largest
        largest = tl.where(own, tl.maximum(before, tl.max(part_largest, 0)), 0.0)
        shrunk, weight = tl.exp2(before - largest), tl.exp2(part_largest - largest[None, :])
        total = total * shrunk + tl.sum(part_total * weight, 0)
        sums = sums * shrunk[:, None] + tl.sum(part_sums * weight[:, :, None], 0)
    target = out + row[:, None] * SIZE + dim[None, :]
    tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=own[:, None])


@triton.jit(do_not_specialize=["parts"])  # otherwise each number of users is compiled separately
def _attend(  # type: ignore[no-untyped-def]
    qkv, keys, values, table, lengths, out, partial, ended, scaling, parts, table_row, key_page, key_token, key_head,
    value_page, value_token, value_head, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    FEW: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, TOKENS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    request, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    heads: tl.constexpr = KV_HEADS * GROUP
    row, dim, token = tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, TOKENS)
    own = row < GROUP
    length = tl.load(lengths + request)
    blocks = tl.cdiv(length, TOKENS)
    each = tl.maximum(tl.cdiv(blocks, parts), MIN_BLOCKS)
    used = tl.maximum(tl.cdiv(blocks, each), 1)
    if part >= used:
        return
    query_at = (kv_head * GROUP + row)[:, None] * SIZE + dim[None, :]
    result = out + request * heads * SIZE + query_at
    if EARLY:  # until here, nothing depends on the previous kernel, which can still read the output memory
        gdc_wait()
        gdc_launch_dependents()
    if length < 0:
        tl.store(result, tl.zeros((ROWS, SIZE), dtype=out.dtype.element_ty), mask=own[:, None])
        return
    new = qkv + request * (heads + 2 * KV_HEADS) * SIZE
    query = tl.load(new + query_at, mask=own[:, None], other=0.0)
    pages = table + request * table_row
    key_at = keys + kv_head * key_head + dim[None, :]
    value_at = values + kv_head * value_head + dim[None, :]
    largest, total, sums = empty_softmax(ROWS, SIZE)
    if part == used - 1:  # the new token is in qkv, and is written to the cache
        page, at = tl.load(pages + length // PAGE).to(tl.int64), length % PAGE
        key = _copy(new + (heads + kv_head) * SIZE + dim[None, :], key_at + page * key_page + at * key_token)
        sums += _copy(
            new + (heads + KV_HEADS + kv_head) * SIZE + dim[None, :], value_at + page * value_page + at * value_token
        )
        largest = tl.sum(query.to(tl.float32) * key, 1) * scaling
        total += 1.0
    for block in tl.range(part * each, tl.minimum((part + 1) * each, blocks)):
        start = block * TOKENS
        page = tl.load(pages + start // PAGE).to(tl.int64)
        at = (start % PAGE + token)[:, None]
        there = start + token < length
        key = tl.load(key_at + page * key_page + at * key_token, mask=there[:, None], other=0.0)
        value = tl.load(value_at + page * value_page + at * value_token, mask=there[:, None], other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee")
        score = tl.where(there[None, :], score, float("-inf"))
        largest, total, sums = accumulate(score, scaling, value, largest, total, sums)
    if used == 1:
        tl.store(result, (sums / total[:, None]).to(out.dtype.element_ty), mask=own[:, None])
        return
    first = partial + (request * KV_HEADS + kv_head) * parts * GROUP * (SIZE + 2)
    _store_part(first + (part * GROUP + row) * (SIZE + 2), sums, largest, total, own, dim, SIZE)
    tl.debug_barrier()
    count = ended + request * KV_HEADS + kv_head
    if tl.atomic_add(count, 1, sem="acq_rel") == used - 1:
        tl.debug_barrier()
        _join(first, used, out + (request * heads + kv_head * GROUP) * SIZE, dim, FEW, SIZE, GROUP)
        tl.store(count, 0)  # for the next layer

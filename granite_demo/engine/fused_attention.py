"""Attention of one new token of each request over the pages of a cache, as one Triton kernel.

A program takes a part of one request's tokens for the query heads that share a key-value head, and the program that
ends last puts the parts together (flash-decoding, https://pytorch.org/blog/flash-decoding/, without its second kernel).
Only pages that are filled are read, and the part with the new token also writes it to the cache.
"""

# mypy: disallow-untyped-decorators=False
import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

PROGRAMS = 256
"""About two for each multiprocessor of an H100."""
TOKENS = 64
"""That a program looks at together."""
STAGES = 3
"""Of loading: so many of them at once, less one."""
JOINED: tl.constexpr = tl.constexpr(16)
"""Parts that are put together at once."""
LEAST_ROWS = 16
"""Of a product on tensor cores; fewer queries are filled up."""


@functools.cache
def early(device: torch.device) -> dict[str, Any]:
    """Whether kernels may begin before the one before has ended (programmatic dependent launch; from Hopper on)."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": able, "launch_pdl": able}


class Pages:
    """Attends, with the memory for the parts. One for a model: the layers take turns."""

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
        """(n, heads * size) of n requests.

        ``qkv``: (n, all heads * size), queries, keys and values of the new tokens. ``keys``, ``values``: (pages, tokens
        in a page, kv heads, size). ``table``: (n, most pages of a request) int32. ``lengths``: (n,) int32, tokens in
        the cache so far, -1 for a row that only pads.
        """
        count, group = len(qkv), self._heads // self._kv_heads
        few = triton.next_power_of_2(group)
        parts = max(1, PROGRAMS // self._kv_heads // count)
        out = torch.empty((count, self._heads * self._size), dtype=qkv.dtype, device=qkv.device)
        _attend[(count, self._kv_heads, parts)](
            qkv, keys, values, table, lengths, out, self._parts, self._ended, scaling,
            table.stride(0), keys.stride(0), keys.stride(1), keys.stride(2),
            values.stride(0), values.stride(1), values.stride(2),
            KV_HEADS=self._kv_heads, GROUP=group, ROWS=max(LEAST_ROWS, few), FEW=few, SIZE=self._size,
            PAGE=keys.shape[1], TOKENS=min(TOKENS, keys.shape[1]), PARTS=parts, num_warps=4, num_stages=STAGES,
            **early(qkv.device),
        )  # fmt: skip
        return out


@triton.jit
def _nothing(ROWS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest score, the total weight, and the weighted sum of no tokens."""
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    return largest, tl.zeros((ROWS,), dtype=tl.float32), tl.zeros((ROWS, SIZE), dtype=tl.float32)


@triton.jit
def _added(rows, place, cache, fresh):  # type: ignore[no-untyped-def]
    """Put the new row, which is at ``place``, where ``fresh`` says, and into the cache."""
    rows = tl.where(fresh, tl.load(place), rows)
    tl.store(cache, rows, mask=fresh)
    return rows


@triton.jit
def _keep(place, sums, largest, total, own, dim, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(place[:, None] + dim[None, :], sums, mask=own[:, None])
    tl.store(place + SIZE, largest, mask=own)
    tl.store(place + SIZE + 1, total, mask=own)


@triton.jit
def _joined(partial, line, used, row, own, dim, ROWS: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the parts amount to: each has sums, the largest score, and the total weight beside it."""
    largest, total, sums = _nothing(ROWS, SIZE)
    for first in tl.range(0, used, JOINED):  # many at a time: each look at them takes as long as one
        part = first + tl.arange(0, JOINED)
        there = (part < used)[:, None] & own[None, :]
        place = partial + (line + part[:, None] * GROUP + row[None, :]) * (SIZE + 2)
        its_largest = tl.load(place + SIZE, mask=there, other=float("-inf"), cache_modifier=".cg")
        its_total = tl.load(place + SIZE + 1, mask=there, other=0.0, cache_modifier=".cg")
        its_sums = tl.load(
            place[:, :, None] + dim[None, None, :], mask=there[:, :, None], other=0.0, cache_modifier=".cg"
        )
        before = largest
        largest = tl.where(own, tl.maximum(before, tl.max(its_largest, 0)), 0.0)
        shrunk, weight = tl.exp(before - largest), tl.exp(its_largest - largest[None, :])
        total = total * shrunk + tl.sum(its_total * weight, 0)
        sums = sums * shrunk[:, None] + tl.sum(its_sums * weight[:, :, None], 0)
    return sums / total[:, None]


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    qkv, keys, values, table, lengths, out, partial, ended, scaling, table_row, key_page, key_token, key_head,
    value_page, value_token, value_head, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    FEW: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, TOKENS: tl.constexpr, PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    request, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    heads: tl.constexpr = KV_HEADS * GROUP
    row, dim, token = tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, TOKENS)
    own = row < GROUP
    query_at = (kv_head * GROUP + row)[:, None] * SIZE + dim[None, :]
    new = qkv + request * (heads + 2 * KV_HEADS) * SIZE
    query = tl.load(new + query_at, mask=own[:, None], other=0.0)
    length = tl.load(lengths + request)
    blocks = length // TOKENS + 1  # with the new token
    each = (blocks + PARTS - 1) // PARTS
    used = (blocks + each - 1) // each
    result = out + request * heads * SIZE + query_at
    if length < 0:
        if part == 0:
            tl.store(result, tl.zeros((ROWS, SIZE), dtype=out.dtype.element_ty), mask=own[:, None])
        return
    if part >= used:
        return
    largest, total, sums = _nothing(ROWS, SIZE)
    for block in tl.range(part * each, tl.minimum((part + 1) * each, blocks)):
        start = block * TOKENS
        page = tl.load(table + request * table_row + start // PAGE).to(tl.int64)
        at = start % PAGE + token
        there = start + token < length
        key_at = keys + page * key_page + kv_head * key_head + at[:, None] * key_token + dim[None, :]
        value_at = values + page * value_page + kv_head * value_head + at[:, None] * value_token + dim[None, :]
        key = tl.load(key_at, mask=there[:, None], other=0.0)
        value = tl.load(value_at, mask=there[:, None], other=0.0)
        if block == blocks - 1:  # the new token comes from this step, and goes to the cache
            fresh = (start + token == length)[:, None]
            own_place = new + heads * SIZE + kv_head * SIZE + dim[None, :]
            key = _added(key, own_place, key_at, fresh)
            value = _added(value, own_place + KV_HEADS * SIZE, value_at, fresh)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
        score = tl.where((start + token <= length)[None, :], score, float("-inf"))
        before = largest
        largest = tl.maximum(before, tl.max(score, 1))
        weight = tl.exp(score - largest[:, None])
        shrunk = tl.exp(before - largest)
        total = total * shrunk + tl.sum(weight, 1)
        sums = sums * shrunk[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    if used == 1:
        tl.store(result, (sums / total[:, None]).to(out.dtype.element_ty), mask=own[:, None])
        return
    line = (request * KV_HEADS + kv_head) * PARTS * GROUP
    _keep(partial + (line + part * GROUP + row) * (SIZE + 2), sums, largest, total, own, dim, SIZE)
    tl.debug_barrier()
    count = ended + request * KV_HEADS + kv_head
    if tl.atomic_add(count, 1, sem="acq_rel") == used - 1:
        tl.debug_barrier()
        few = tl.arange(0, FEW)
        whole = _joined(partial, line, used, few, few < GROUP, dim, FEW, SIZE, GROUP)
        place = out + request * heads * SIZE + (kv_head * GROUP + few)[:, None] * SIZE + dim[None, :]
        tl.store(place, whole.to(out.dtype.element_ty), mask=(few < GROUP)[:, None])
        tl.store(count, 0)  # for the next layer

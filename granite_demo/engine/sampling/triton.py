"""``reference.penalise_and_choose`` as one Triton kernel, for the CUDA graphs of the batching engine.

It has the same bisections and the same noise. As separate operations, it takes some 450 kernels, which are a sixth of a
step for one user and a fourth for 64. As one kernel, with one program for each row, it takes a hundredth. Triton is a
part of torch's CUDA builds for Linux; other platforms use the reference.
"""

# mypy: disallow-untyped-decorators=False
import torch
import triton
import triton.language as tl

from granite_demo.engine.sampling.reference import BISECTIONS, Rows

SCORES_BLOCK = 8192
"""The number of scores that a program processes at a time."""


def penalise_and_choose(logits: torch.Tensor, rows: Rows, seen: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """Return the chosen token ids, shape (B,), int64. Overwrites ``logits``, shape (B, V), float32, contiguous.

    ``seen``: (slots, V) bool, the tokens with a repetition penalty. ``slot``: (B,) int64, the line of each row in
    ``seen``.
    """
    batch, vocabulary = logits.shape
    chosen = torch.empty(batch, dtype=torch.int64, device=logits.device)
    # Separate tensors are always aligned. For pointers into others, Triton compiles a version for each alignment.
    parameters = torch.stack((rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.penalty))
    integers = torch.stack((slot, rows.seed, rows.position))
    _kernel[(batch,)](
        logits,
        chosen,
        seen,
        parameters,
        integers,
        batch,
        vocabulary,
        SCORES_BLOCK=SCORES_BLOCK,
        BISECTIONS=BISECTIONS,
        num_warps=16,
    )
    return chosen


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    # The finalizer of SplitMix64: see reference._mix. The constants are those of the published code as signed numbers.
    x = x + -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _amount_above(row, middle, counting: tl.constexpr, V, SCORES_BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the number of scores >= ``middle``, or the sum of their exponentials."""
    total = tl.zeros((SCORES_BLOCK,), dtype=tl.float32)
    for start in range(0, V, SCORES_BLOCK):
        index = start + tl.arange(0, SCORES_BLOCK)
        score = tl.load(row + index, mask=index < V, other=0.0)
        weight = score * 0 + 1 if counting else tl.exp(score)
        total += tl.where((score >= middle) & (index < V), weight, 0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _largest_threshold(  # type: ignore[no-untyped-def]
    row, wanted, lowest, floor, counting: tl.constexpr, V, SCORES_BLOCK: tl.constexpr, BISECTIONS: tl.constexpr
):
    """See reference._largest_threshold. Scores below ``floor`` are ignored."""
    low = lowest
    high = lowest * 0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = _amount_above(row, tl.maximum(middle, floor), counting, V, SCORES_BLOCK) >= wanted
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return tl.where(_amount_above(row, high * 0, counting, V, SCORES_BLOCK) >= wanted, high * 0, low)


@triton.jit
def _noise(x):  # type: ignore[no-untyped-def]
    bits = (_mix(x) >> 40) & 0xFFFFFF
    # The highest value would round up to 1, whose noise is infinite.
    uniform = tl.minimum((bits.to(tl.float32) + 0.5) * 5.9604644775390625e-08, 0.999999940395355225)
    return -tl.log(-tl.log(uniform))


@triton.jit(do_not_specialize=["B"])
def _kernel(  # type: ignore[no-untyped-def]
    scores, chosen, seen, parameters, integers, B, V, SCORES_BLOCK: tl.constexpr, BISECTIONS: tl.constexpr
):
    i = tl.program_id(0)
    row = scores + i.to(tl.int64) * V
    temperature, top_k, top_p = tl.load(parameters + i), tl.load(parameters + B + i), tl.load(parameters + 2 * B + i)
    min_p, penalty = tl.load(parameters + 3 * B + i), tl.load(parameters + 4 * B + i)
    slot, seed, position = tl.load(integers + i), tl.load(integers + B + i), tl.load(integers + 2 * B + i)
    seen_row = seen + slot * V
    divisor = tl.where(temperature == 0, 1.0, temperature)

    # Penalty and temperature; the highest and the lowest score.
    highest = tl.full((SCORES_BLOCK,), -float("inf"), dtype=tl.float32)
    lowest = tl.full((SCORES_BLOCK,), float("inf"), dtype=tl.float32)
    for start in range(0, V, SCORES_BLOCK):
        index = start + tl.arange(0, SCORES_BLOCK)
        inside = index < V
        score = tl.load(row + index, mask=inside, other=-float("inf"))
        if penalty != 1:
            known = tl.load(seen_row + index, mask=inside, other=0) != 0
            score = tl.where(known, tl.where(score < 0, score * penalty, score / penalty), score)
        score = score / divisor
        tl.store(row + index, score, mask=inside)
        highest = tl.maximum(highest, score)
        lowest = tl.minimum(lowest, tl.where(inside, score, float("inf")))
    # Other threads of the program read these scores, so wait until all are written.
    tl.debug_barrier()
    top = tl.max(highest, axis=0)
    bottom = tl.maximum(tl.min(lowest, axis=0) - top, -1e4)

    threshold = bottom
    if temperature != 0:
        for start in range(0, V, SCORES_BLOCK):
            index = start + tl.arange(0, SCORES_BLOCK)
            score = tl.load(row + index, mask=index < V, other=0.0)
            tl.store(row + index, score - top, mask=index < V)
        tl.debug_barrier()
        if top_k > 0:
            threshold = _largest_threshold(row, top_k, bottom, bottom, True, V, SCORES_BLOCK, BISECTIONS)
        if top_p < 1:
            mass = _amount_above(row, threshold, False, V, SCORES_BLOCK)
            kept = _largest_threshold(row, top_p * mass, bottom, threshold, False, V, SCORES_BLOCK, BISECTIONS)
            threshold = tl.maximum(threshold, kept)
        if min_p > 0:
            threshold = tl.maximum(threshold, tl.log(min_p))

    key = _mix(_mix(seed) + position)
    best = tl.full((SCORES_BLOCK,), -float("inf"), dtype=tl.float32)
    at = tl.zeros((SCORES_BLOCK,), dtype=tl.int64)
    for start in range(0, V, SCORES_BLOCK):
        index = start + tl.arange(0, SCORES_BLOCK)
        score = tl.load(row + index, mask=index < V, other=-float("inf"))
        if temperature != 0:
            score = tl.where(score >= threshold, score + _noise(key + index.to(tl.int64)), -float("inf"))
        at = tl.where(score > best, index.to(tl.int64), at)
        best = tl.maximum(best, score)
    # Of equal scores, choose the first. A row of NaN, such as the padding of a batch, also gets a valid token.
    tl.store(chosen + i, tl.min(tl.where(best == tl.max(best, axis=0), at, V - 1), axis=0))

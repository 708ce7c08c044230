"""``sampling.choose`` and ``sampling.cut_off`` for processors: the same choices, for less work.

On a GPU every step goes over the whole vocabulary, since nothing may wait for a number. Here each cut is found among
the few scores that it may lie between, and noise is made only for what may be drawn. The arithmetic is numpy's: torch
shares a row of numbers among its threads, who wait for one another longer than the row takes, above all beside
llama.cpp's threads and where others use the cores.
"""

import numpy as np
import numpy.typing as npt
import torch

from granite_demo.engine.sampling.reference import BELOW_ONE, BISECTIONS, Rows, penalise

Floats = npt.NDArray[np.float32]

LOWEST = np.float32(-1e4)
"""No score below is ever drawn."""
HOPELESS = np.float32(-20)
"""A score below cannot win from the highest, which is 0: noise is between -2.9 and 16.7."""


def penalise_and_choose(logits: torch.Tensor, rows: Rows, seen: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """See ``sampling.penalise_and_choose``. Overwrites nothing."""
    if (rows.penalty != 1).any():
        logits = penalise(logits, seen[slot], rows.penalty)
    numbers = [of_all.tolist() for of_all in (rows.temperature, rows.top_k, rows.top_p, rows.min_p)]
    keys = zip(rows.seed.tolist(), rows.position.tolist(), strict=True)
    each = zip(logits.numpy(), zip(*numbers, strict=True), keys, strict=True)
    return torch.tensor([choose_one(row, *of_one, seed=seed, position=at) for row, of_one, (seed, at) in each])


def cut_off(scores: torch.Tensor, rows: Rows) -> torch.Tensor:
    """A threshold that keeps the same scores as that of ``sampling.cut_off``; none for a greedy row."""
    values = zip(*(of_all.tolist() for of_all in (rows.top_k, rows.top_p, rows.min_p)), strict=True)
    return torch.tensor([_threshold(row, *of_one) for row, of_one in zip(scores.numpy(), values, strict=True)])


def choose_one(
    logits: Floats, temperature: float, top_k: float, top_p: float, min_p: float, *, seed: int, position: int
) -> int:
    """The choice for one request, from penalised logits of shape (V,). Where one of them is NaN, its place."""
    highest = int(logits.argmax())
    if not temperature or np.isnan(logits[highest]):
        return highest
    scores = logits / np.float32(temperature)
    scores -= scores[highest]
    threshold = np.float32(_threshold(scores, top_k, top_p, min_p))
    kept = np.flatnonzero(scores >= max(threshold, HOPELESS)).astype(np.uint64)
    return int(kept[np.argmax(scores[kept] + gumbel(seed, position, kept))])


def _threshold(scores: Floats, top_k: float, top_p: float, min_p: float) -> float:
    """The lowest of ``sampling.tempered`` scores that may be drawn."""
    threshold = lowest = max(scores.min(), LOWEST)
    if 0 < top_k < len(scores):
        place = len(scores) - int(top_k)
        threshold = _halved(np.partition(scores, place)[place], lowest)
    if top_p < 1:
        weights = np.exp(scores)
        if top_k:
            weights *= scores >= threshold
        threshold = max(threshold, _halved(_last_of(top_p, scores, weights), lowest))
    return max(float(threshold), float(np.log(np.float32(min_p)))) if min_p else float(threshold)


def _last_of(share: float, scores: Floats, weights: Floats) -> np.float32:
    """The highest score from which on the weights add up to ``share`` of all."""
    total = weights.sum()
    # Weights below the others' average part of the rest add up to less than the rest.
    few = np.sort(scores[weights > 0.99 * (1 - share) * total / len(weights)])[::-1]
    sums = np.exp(few).cumsum(dtype=np.float64)
    return np.float32(few[min(np.searchsorted(sums, np.float32(share) * total), len(few) - 1)])


def _halved(threshold: np.float32, lowest: np.float32) -> np.float32:
    """What ``sampling``'s bisection arrives at: slightly less than ``threshold``, the exact one."""
    low, high = lowest, np.float32(0)
    if threshold >= high:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / np.float32(2)
        low, high = (middle, high) if middle <= threshold else (low, middle)
    return low


def gumbel(seed: int, position: int, tokens: npt.NDArray[np.uint64]) -> Floats:
    """``sampling.gumbel`` for some ``tokens`` alone, but for the logarithms' last bits."""
    with np.errstate(over="ignore"):  # it is meant to wrap around
        key = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(position))
        bits = _mix(key + tokens)
    bits >>= np.uint64(40)
    uniform = np.minimum((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24), np.float32(BELOW_ONE))
    noise: Floats = -np.log(-np.log(uniform))
    return noise


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """See ``sampling._mix``; overwrites ``x``."""
    shifted = np.empty_like(x)
    x += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= np.right_shift(x, np.uint64(shift), out=shifted)
        x *= np.uint64(factor)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x

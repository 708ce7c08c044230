"""The functions of ``sampling.reference`` for CPUs: the same choices with less work.

The reference always processes the complete vocabulary, because a GPU must not wait for intermediate results. Here, each
threshold is searched among few scores, and noise is computed only for the tokens that can be drawn. The arithmetic is
that of numpy: torch distributes a row to several threads, whose synchronization takes longer than the computation,
especially if llama.cpp or other processes use the cores.
"""

import numpy as np
import numpy.typing as npt
import torch

from granite_demo.engine.sampling.reference import BELOW_ONE, BISECTIONS, Rows, penalise

FloatArray = npt.NDArray[np.float32]

LOWEST = np.float32(-1e4)
"""Lower scores are never drawn."""
HOPELESS = np.float32(-20)
"""A lower score cannot exceed the highest one, which is 0, because the noise is between -2.9 and 16.7."""


def penalise_and_choose(logits: torch.Tensor, rows: Rows, seen: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """See ``reference.penalise_and_choose``. The arguments are not changed."""
    if (rows.penalty != 1).any():
        logits = penalise(logits, seen[slot], rows.penalty)
    numbers = [of_all.tolist() for of_all in (rows.temperature, rows.top_k, rows.top_p, rows.min_p)]
    keys = zip(rows.seed.tolist(), rows.position.tolist(), strict=True)
    each = zip(logits.numpy(), zip(*numbers, strict=True), keys, strict=True)
    return torch.tensor([choose_one(row, *of_one, seed=seed, position=at) for row, of_one, (seed, at) in each])


def cut_off(scores: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return thresholds that keep the same scores as those of ``reference.cut_off``, shape (B,)."""
    values = zip(*(of_all.tolist() for of_all in (rows.top_k, rows.top_p, rows.min_p)), strict=True)
    return torch.tensor([_threshold(row, *of_one) for row, of_one in zip(scores.numpy(), values, strict=True)])


def choose_one(
    logits: FloatArray, temperature: float, top_k: float, top_p: float, min_p: float, *, seed: int, position: int
) -> int:
    """Choose the token of one request from penalised logits of shape (V,). If one is NaN, return its index."""
    highest = int(logits.argmax())
    if not temperature or np.isnan(logits[highest]):
        return highest
    scores = logits / np.float32(temperature)
    scores -= scores[highest]
    threshold = np.float32(_threshold(scores, top_k, top_p, min_p))
    kept = np.flatnonzero(scores >= max(threshold, HOPELESS)).astype(np.uint64)
    return int(kept[np.argmax(scores[kept] + gumbel(seed, position, kept))])


def _threshold(scores: FloatArray, top_k: float, top_p: float, min_p: float) -> float:
    """Return the lowest of the ``reference.tempered`` scores that can be drawn."""
    threshold = lowest = max(scores.min(), LOWEST)
    if 0 < top_k < len(scores):
        index = len(scores) - int(top_k)
        threshold = _bisected(np.partition(scores, index)[index], lowest)
    if top_p < 1:
        weights = np.exp(scores)
        if top_k:
            weights *= scores >= threshold
        threshold = max(threshold, _bisected(_top_p_threshold(top_p, scores, weights), lowest))
    return max(float(threshold), float(np.log(np.float32(min_p)))) if min_p else float(threshold)


def _top_p_threshold(share: float, scores: FloatArray, weights: FloatArray) -> np.float32:
    """Return the highest score for which the weights of it and of all higher scores have ``share`` of the total."""
    total = weights.sum()
    # Smaller weights together are less than the rest, 1 - share, so they cannot contain the threshold.
    few = np.sort(scores[weights > 0.99 * (1 - share) * total / len(weights)])[::-1]
    sums = np.exp(few).cumsum(dtype=np.float64)
    return np.float32(few[min(np.searchsorted(sums, np.float32(share) * total), len(few) - 1)])


def _bisected(threshold: np.float32, lowest: np.float32) -> np.float32:
    """Return the result of the bisection in ``reference``, which is slightly below the exact ``threshold``."""
    low, high = lowest, np.float32(0)
    if threshold >= high:
        return high
    for _ in range(BISECTIONS):
        middle = (low + high) / np.float32(2)
        low, high = (middle, high) if middle <= threshold else (low, middle)
    return low


def gumbel(seed: int, position: int, tokens: npt.NDArray[np.uint64]) -> FloatArray:
    """Return ``reference.noise`` for ``tokens``, shape (n,). The last bits of the logarithms can differ."""
    with np.errstate(over="ignore"):  # the overflow is intended
        key = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(position))
        bits = _mix(key + tokens)
    bits >>= np.uint64(40)
    uniform = np.minimum((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24), np.float32(BELOW_ONE))
    noise: FloatArray = -np.log(-np.log(uniform))
    return noise


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """See ``reference._mix``. Overwrites ``x``."""
    shifted = np.empty_like(x)
    x += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= np.right_shift(x, np.uint64(shift), out=shifted)
        x *= np.uint64(factor)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x

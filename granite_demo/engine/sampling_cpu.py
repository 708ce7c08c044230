"""``sampling.choose`` and ``sampling.cut_off`` for processors: the same choices, for less work.

On a GPU every step goes over the whole vocabulary, since nothing may wait for a number. Here each halving looks only
at the scores that are still in question, and noise is made only for what may be drawn. The arithmetic is numpy's, in
place: for a row of numbers half of torch's time goes into memory that is asked for anew.
"""

import numpy as np
import numpy.typing as npt
import torch

from granite_demo.engine.sampling import BELOW_ONE, BISECTIONS, Rows, penalise, tempered

Floats = npt.NDArray[np.float32]

FEW = 16
"""This part of a row or less is worth taking out of it."""
DOUBTFUL = 1e-5
"""Relative error of a sum of weights in float32, at most."""


def penalise_and_choose(logits: torch.Tensor, rows: Rows, seen: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """See ``sampling.penalise_and_choose``."""
    if (rows.penalty != 1).any():
        logits = penalise(logits, seen[slot], rows.penalty)
    scores = tempered(logits, rows)
    choice = scores.argmax(dim=-1)
    threshold = cut_off(scores, rows)
    for at, temperature in enumerate(rows.temperature.tolist()):
        if temperature and not scores[at, choice[at]].isnan():
            choice[at] = _draw(scores[at].numpy(), threshold[at].item(), int(rows.seed[at]), int(rows.position[at]))
    return choice


def cut_off(scores: torch.Tensor, rows: Rows) -> torch.Tensor:
    """A threshold that keeps the same scores as that of ``sampling.cut_off``."""
    lowest = scores.amin(dim=-1).clamp(min=-1e4)
    threshold = lowest.clone()
    parameters = zip(rows.temperature.tolist(), rows.top_k.tolist(), rows.top_p.tolist(), strict=True)
    for at, (temperature, top_k, top_p) in enumerate(parameters):
        if not temperature or lowest[at].isnan():
            continue
        row = scores[at].numpy()
        if top_k:
            threshold[at] = _Search(row, None, top_k).largest_threshold(lowest[at].item())
        if top_p < 1:
            weights = torch.where(scores[at : at + 1] >= threshold[at], scores[at : at + 1].exp(), 0.0)
            wanted = (rows.top_p[at] * weights.sum(dim=-1)).item()
            kept = _Search(row, weights[0].numpy(), wanted).largest_threshold(lowest[at].item())
            threshold[at] = max(threshold[at].item(), kept)
    return torch.maximum(threshold, rows.min_p.log())


class _Search:
    """For the largest threshold of one row; see ``sampling._largest_threshold``. Without ``weights`` each is 1."""

    def __init__(self, scores: Floats, weights: Floats | None, wanted: float) -> None:
        self._scores, self._weights, self._wanted = scores, weights, wanted
        self._upper = np.empty(scores.shape, dtype=bool)
        self._scratch = np.empty_like(scores)

    def _enough(self, middle: np.float32) -> bool:
        """Whether the weights from ``middle`` on add up to what is wanted, added as ``sampling`` adds them."""
        np.greater_equal(self._scores, middle, out=self._upper)
        if self._weights is None:
            return bool(np.count_nonzero(self._upper) >= self._wanted)
        np.multiply(self._weights, self._upper, out=self._scratch)
        return torch.from_numpy(self._scratch)[None].sum(dim=-1).item() >= self._wanted

    def largest_threshold(self, lowest: float) -> float:
        low, high, left = np.float32(lowest), np.float32(0), BISECTIONS
        if self._enough(high):
            return 0.0
        few = len(self._scores) // FEW
        # Taking numbers out of the row costs more than another look at all of it, until only a few are left.
        while (many := np.count_nonzero(self._scores >= low) > few) and left:
            middle = (low + high) / np.float32(2)
            low, high = (middle, high) if self._enough(middle) else (low, middle)
            left -= 1
        return float(low) if many else self._narrow(low, high, left)

    def _narrow(self, low: np.float32, high: np.float32, left: int) -> float:
        """Go on for ``left`` halvings with the few scores from ``low`` on."""
        places = np.flatnonzero(self._scores >= low)
        values = self._scores[places]
        masses = np.ones(len(places)) if self._weights is None else self._weights[places].astype(np.float64)
        doubt = 0.0 if self._weights is None else DOUBTFUL * self._wanted
        # The mass from high on. The scores from low to high are still in question.
        above = float(masses[values >= high].sum())
        values, masses = values[values < high], masses[values < high]
        # Where no score is in question, any threshold between the two keeps the same.
        while len(values) and left:
            middle = (low + high) / np.float32(2)
            upper = values >= middle
            mass = above + float(masses[upper].sum())
            if self._enough(middle) if abs(mass - self._wanted) < doubt else mass >= self._wanted:
                low, values, masses = middle, values[upper], masses[upper]
            else:
                high, above, values, masses = middle, mass, values[~upper], masses[~upper]
            left -= 1
        return float(low)


def _draw(scores: Floats, threshold: float, seed: int, position: int) -> int:
    """The choice among the ``scores`` from ``threshold`` on."""
    kept = np.flatnonzero(scores >= np.float32(threshold)).astype(np.uint64)
    return int(kept[np.argmax(scores[kept] + gumbel(seed, position, kept))])


def gumbel(seed: int, position: int, tokens: npt.NDArray[np.uint64]) -> Floats:
    """``sampling.gumbel`` for some ``tokens`` alone, to the bit."""
    with np.errstate(over="ignore"):  # it is meant to wrap around
        key = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(position))
        bits = _mix(key + tokens)
    bits >>= np.uint64(40)
    uniform = torch.from_numpy(bits.astype(np.float32)).add_(0.5).mul_(2.0**-24).clamp_(max=BELOW_ONE)
    # torch's logarithms: others differ in the last bit.
    noise: Floats = uniform.log_().neg_().log_().neg_().numpy()
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

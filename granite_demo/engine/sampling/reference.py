"""The choice of the next token, for one request or for a batch. All engines use the same definition.

The order is that of ``generate`` in transformers: repetition penalty, temperature, top-k, top-p, min-p, then one draw.
``logits_processors`` runs before and after the repetition penalty. The draw is the argmax of the scores plus Gumbel
noise (Gumbel 1954; Maddison et al., arXiv 1411.0030), which samples exactly from their softmax. The noise is a hash of
(seed, position, token id), so the tokens of a request do not depend on other requests, on the engine, or on where the
answer was interrupted. A CUDA graph can capture all functions: thresholds are found by bisection without sorting, and
nothing waits for the GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from granite_demo.errors import EngineError
from granite_demo.types.sampling_params import SamplingParams

BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1. The highest uniform number would round up to 1, whose noise is infinite."""
BISECTIONS = 26
"""The number of bisections of the range of scores. The rest is below the resolution of float32."""


def not_a_number() -> EngineError:
    """Return the error for a request whose logits are NaN."""
    return EngineError("The model's output is not a number. Load it in another precision, such as bfloat16.")


@dataclass(frozen=True, slots=True)
class Rows:
    """The sampling parameters of B requests, each of shape (B,), on the device of the logits."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    """float32; 0 is off"""
    top_p: torch.Tensor
    min_p: torch.Tensor
    penalty: torch.Tensor
    seed: torch.Tensor
    """int64"""
    position: torch.Tensor
    """int64: how many tokens the answer has so far"""


def parameters(sampling: SamplingParams) -> tuple[float, float, float, float, float]:
    """Return the values of the first five fields of ``Rows``, in their order."""
    return (
        sampling.temperature,
        float(sampling.top_k),
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
    )


Chooser = Callable[[torch.Tensor, Rows, torch.Tensor, torch.Tensor], torch.Tensor]
"""The type of ``penalise_and_choose``."""


CutOff = Callable[[torch.Tensor, Rows], torch.Tensor]
"""The type of ``cut_off``."""


def penalise_and_choose(logits: torch.Tensor, rows: Rows, seen: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """Return the chosen token ids, shape (B,), int64. ``logits``, shape (B, V), float32, can be overwritten.

    ``seen``: (slots, V) bool, the tokens with a repetition penalty. ``slot``: (B,) int64, the line of each row in
    ``seen``.
    """
    return choose(penalise(logits, seen[slot], rows.penalty), rows)


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Apply the repetition penalty (CTRL, arXiv 1909.05858) to the logits of tokens in ``seen``.

    ``logits``: (B, V) float32. ``seen``: (B, V) bool. ``penalty``: (B,).
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * factor, logits / factor), logits)


def choose(scores: torch.Tensor, rows: Rows, cut_k: bool = True, cut_p: bool = True) -> torch.Tensor:
    """Return the chosen token ids, shape (B,), from penalised logits of shape (B, V), float32.

    If no row uses top-k or top-p, ``cut_k`` or ``cut_p`` can be False, which saves the search.
    """
    scores = tempered(scores, rows)
    threshold = cut_off(scores, rows, cut_k, cut_p)
    noisy = torch.where(scores >= threshold[:, None], scores + gumbel(rows.seed, rows.position, scores.shape[1]), -1e9)
    return torch.where(rows.temperature[:, None] == 0, scores, noisy).argmax(dim=-1)


def tempered(scores: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Divide penalised logits, shape (B, V), by the temperature, and subtract the highest value of each row."""
    greedy = rows.temperature == 0
    scores = scores / torch.where(greedy, torch.ones_like(rows.temperature), rows.temperature)[:, None]
    return scores - scores.amax(dim=-1, keepdim=True)


def cut_off(scores: torch.Tensor, rows: Rows, cut_k: bool = True, cut_p: bool = True) -> torch.Tensor:
    """Return the lowest of the ``tempered`` scores that can be drawn, shape (B,)."""
    lowest = scores.amin(dim=-1).clamp(min=-1e4)
    threshold = lowest
    if cut_k:
        kept = _largest_threshold(scores, torch.ones_like(scores), rows.top_k, lowest)
        threshold = torch.where(rows.top_k > 0, kept, threshold)
    if cut_p:
        weights = torch.where(scores >= threshold[:, None], scores.exp(), 0.0)
        kept = _largest_threshold(scores, weights, rows.top_p * weights.sum(dim=-1), lowest)
        threshold = torch.where(rows.top_p < 1, torch.maximum(threshold, kept), threshold)
    # min-p: at least min_p times the highest probability, whose score is 0. log(0) = -inf keeps all.
    return torch.maximum(threshold, rows.min_p.log())


def _largest_threshold(
    scores: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor, lowest: torch.Tensor
) -> torch.Tensor:
    """Return the largest t, shape (B,), for which the weights of the scores >= t have a sum of at least ``wanted``.

    If there is none, return ``lowest``.
    """
    low, high = lowest, torch.zeros_like(lowest)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = torch.where(scores >= middle[:, None], weights, 0.0).sum(dim=-1) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    # The highest score alone can be enough, but the bisection never reaches 0 itself.
    top = torch.where(scores >= 0, weights, 0.0).sum(dim=-1) >= wanted
    return torch.where(top, 0.0, low)


def gumbel(seed: torch.Tensor, position: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return Gumbel noise of shape (B, vocabulary) from ``seed`` and ``position``, shape (B,), int64."""
    return noise(seed, position, torch.arange(vocabulary, dtype=torch.int64, device=seed.device))


def noise(seed: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return Gumbel noise of shape (B, n) for ``tokens``, shape (n,), int64."""
    bits = _mix(_mix(_mix(seed) + position)[:, None] + tokens)
    # 24 bits, the precision of float32 in [0, 1), plus half a step to exclude 0 and 1.
    uniform = ((bits >> 40) & 0xFFFFFF).float().add_(0.5).mul_(2.0**-24).clamp_(max=BELOW_ONE)
    return -(-uniform.log()).log()


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Apply the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). The int64 overflow is intended."""
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & 0x1FFFFFFFF)

"""What is told of a chosen token: log probabilities before and after the samplers, as one row of numbers."""

from collections.abc import Sequence

import torch

from granite_demo.engine.sampling.reference import CutOff, Rows, tempered
from granite_demo.types.logprobs import Token


def width(alternatives: int) -> int:
    """Numbers in a row."""
    return 3 + 3 * alternatives


def report(
    logprobs: torch.Tensor, scores: torch.Tensor, rows: Rows, choice: torch.Tensor, cut_off: CutOff, alternatives: int
) -> torch.Tensor:
    """A row for each request, float32 of shape (B, width): exact for token ids below 2**24. For ``token_from``.

    ``logprobs``: (B, V), the model's own; ``scores``: (B, V), what ``choice`` was chosen from, before the temperature.
    """
    sampled = drawn_from(scores, rows, choice, cut_off)
    values, ids = logprobs.topk(alternatives, dim=-1)
    chosen = choice[:, None]
    # entr is -p log p, and 0 for 0.
    entropy = torch.special.entr(logprobs.exp()).sum(dim=-1, keepdim=True)
    own = (logprobs.gather(1, chosen), sampled.gather(1, chosen), entropy)
    return torch.cat((*own, ids.float(), values, sampled.gather(1, ids)), dim=-1)


def drawn_from(scores: torch.Tensor, rows: Rows, choice: torch.Tensor, cut_off: CutOff) -> torch.Tensor:
    """Log probabilities of the draw, (B, V): -inf for what is cut; for greedy 0 for the choice alone."""
    scores = tempered(scores, rows)
    chosen = choice[:, None]
    # What was chosen is in, though another way to add up may have found another threshold.
    threshold = torch.minimum(cut_off(scores, rows)[:, None], scores.gather(1, chosen))
    only = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, torch.ones_like(chosen, dtype=torch.bool))
    kept = torch.where(rows.temperature[:, None] == 0, only, scores >= threshold)
    return torch.log_softmax(torch.where(kept, scores, -torch.inf), dim=-1)


def token_from(token_id: int, row: Sequence[float], alternatives: int) -> Token:
    """The token with what ``row`` tells of it, and the first ``alternatives`` of those there."""
    logprob, sampled, entropy, *others = row
    count = len(others) // 3
    ids, values, after = (others[start : start + alternatives] for start in (0, count, 2 * count))
    return Token(token_id, logprob, sampled, entropy, tuple(zip(map(int, ids), values, after, strict=True)))

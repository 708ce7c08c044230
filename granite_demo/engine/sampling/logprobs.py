"""The log probabilities of a chosen token, before and after the samplers, as one row of numbers."""

from collections.abc import Sequence

import torch

from granite_demo.engine.sampling.reference import CutOff, Rows, tempered
from granite_demo.types.logprobs import Token


def row_width(alternatives: int) -> int:
    """Return how many numbers a row has."""
    return 3 + 3 * alternatives


def logprob_rows(
    logprobs: torch.Tensor, scores: torch.Tensor, rows: Rows, choice: torch.Tensor, cut_off: CutOff, alternatives: int
) -> torch.Tensor:
    """Return a row for each request, shape (B, row_width), float32, which ``token_from`` reads.

    ``logprobs``: (B, V), those of the model. ``scores``: (B, V), those from which ``choice`` was chosen, before the
    temperature. The token ids in a row are exact below 2**24.
    """
    sampled = draw_logprobs(scores, rows, choice, cut_off)
    values, ids = logprobs.topk(alternatives, dim=-1)
    chosen = choice[:, None]
    # entr is -p log p, and 0 for p = 0.
    entropy = torch.special.entr(logprobs.exp()).sum(dim=-1, keepdim=True)
    own = (logprobs.gather(1, chosen), sampled.gather(1, chosen), entropy)
    return torch.cat((*own, ids.float(), values, sampled.gather(1, ids)), dim=-1)


def draw_logprobs(scores: torch.Tensor, rows: Rows, choice: torch.Tensor, cut_off: CutOff) -> torch.Tensor:
    """Return the log probabilities of the draw, shape (B, V).

    Tokens that cannot be drawn have -inf. In a greedy row, only the choice has 0.
    """
    scores = tempered(scores, rows)
    chosen = choice[:, None]
    # The chosen token is always kept, because another implementation can find a slightly different threshold.
    threshold = torch.minimum(cut_off(scores, rows)[:, None], scores.gather(1, chosen))
    only = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, torch.ones_like(chosen, dtype=torch.bool))
    kept = torch.where(rows.temperature[:, None] == 0, only, scores >= threshold)
    return torch.log_softmax(torch.where(kept, scores, -torch.inf), dim=-1)


def token_from(token_id: int, row: Sequence[float], alternatives: int) -> Token:
    """Return the token with the values in ``row`` and the first ``alternatives`` of its alternatives."""
    logprob, sampled, entropy, *others = row
    count = len(others) // 3
    ids, values, after = (others[start : start + alternatives] for start in (0, count, 2 * count))
    return Token(token_id, logprob, sampled, entropy, tuple(zip(map(int, ids), values, after, strict=True)))

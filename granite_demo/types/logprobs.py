"""What a model says of each token of a text: the values of the token view, of scoring and of comparing.

Log probabilities are natural logarithms. ``logprob`` is under the model's own distribution; ``sampled`` is under the
one that is drawn from, after penalties, temperature and cuts, and is -inf for what they leave out.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """A token that could stand in a place. ``id`` is -1 where another server does not tell it."""

    id: int
    text: str
    logprob: float
    sampled: float | None = None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a prompt or an answer. ``logprob`` is None for the first one of a text, which nothing predicts."""

    id: int
    text: str
    """By itself; U+FFFD stands for a part of a character."""
    logprob: float | None = None
    sampled: float | None = None
    entropy: float | None = None
    """Of the model's own distribution in this place, in nats."""
    alternatives: tuple[TokenAlternative, ...] = ()
    """The likeliest tokens of this place, in falling order."""


Alternative = tuple[int, float, float]
"""(token id, log probability, log probability after the samplers), as in ``scores``."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; the log probabilities are those of ``scores``.

    They are None unless ``SamplingParams.logprobs`` asked for them; ``alternatives`` are the likeliest, in falling
    order.
    """

    id: int
    logprob: float | None = None
    sampled: float | None = None
    entropy: float | None = None
    alternatives: tuple[Alternative, ...] = ()

"""The log probabilities of the tokens of a text, for the token view, scoring and comparison.

They are natural logarithms. ``logprob`` is in the distribution of the model. ``sampled`` is in the distribution after
penalties, temperature and filters, from which the token is sampled; it is -inf for a token that they exclude.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """A possible token at a position. ``id`` is -1 if another server does not send it."""

    id: int
    text: str
    logprob: float
    sampled: float | None = None


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a prompt or an answer. ``logprob`` is None for the first token of a text, which has no prediction."""

    id: int
    text: str
    """The text of this token alone. An incomplete character is U+FFFD."""
    logprob: float | None = None
    sampled: float | None = None
    entropy: float | None = None
    """The entropy of the distribution of the model at this position, in nats."""
    alternatives: tuple[TokenAlternative, ...] = ()
    """The most likely tokens at this position, in descending order."""


Alternative = tuple[int, float, float | None]
"""(token id, ``logprob``, ``sampled``)."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, with the values of ``ScoredToken``.

    They are None if ``SamplingParams.logprobs`` is None. ``alternatives`` are in descending order.
    """

    id: int
    logprob: float | None = None
    sampled: float | None = None
    entropy: float | None = None
    alternatives: tuple[Alternative, ...] = ()

"""What a model says of each token of a text: the values of the token view, of scoring and of comparing.

Log probabilities are natural logarithms. ``logprob`` is under the model's own distribution; ``sampled`` is under the
one that is drawn from, after penalties, temperature and cuts, and is -inf for what they leave out.
"""

from dataclasses import dataclass

from granite_demo.errors import InvalidRequestError
from granite_demo.messages import scrub
from granite_demo.sampling_params import MAX_ALTERNATIVES
from granite_demo.status import LoadOptions


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


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text to score, or the ids of its tokens. Raises InvalidRequestError."""

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    alternatives: int = 5
    special_tokens: bool = False
    """Whether the text may spell control tokens."""
    model: LoadOptions | None = None
    """Score with this model rather than the one that is chosen."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", scrub(self.text))
        if not self.text and not self.token_ids:
            raise InvalidRequestError("There is no text to score.")
        if not 0 <= self.alternatives <= MAX_ALTERNATIVES:
            raise InvalidRequestError(f"alternatives must be between 0 and {MAX_ALTERNATIVES}.")


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The last event of scoring."""

    tokens: int
    logprob: float
    """Of the whole text, given its first token."""
    seconds: float

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log probability over all tokens but the first; None for a single token."""
        from math import exp

        mean = -self.logprob / (self.tokens - 1) if self.tokens > 1 else None
        return None if mean is None else exp(min(mean, 700.0))


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """A text that two ways to load a model read, token by token: ``reference`` first. Raises InvalidRequestError."""

    text: str
    reference: LoadOptions
    other: LoadOptions
    special_tokens: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", scrub(self.text))
        if not self.text:
            raise InvalidRequestError("There is no text to compare on.")
        if self.reference == self.other:
            raise InvalidRequestError("Both sides are the same. Choose another precision for one of them.")


@dataclass(frozen=True, slots=True)
class ComparedToken:
    """One place of the text. The distributions are those of the token that comes here."""

    id: int
    text: str
    divergence: float
    """Kullback-Leibler divergence of the other's distribution from the reference's, in nats: sum p log(p/q)."""
    agree: bool
    """Whether both find the same token likeliest."""
    reference: float
    """The reference's log probability of this token."""
    other: float
    reference_top: str = ""
    other_top: str = ""


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """One of the two ways: what it is and what it costs."""

    label: str
    """Such as bfloat16, or nf4."""
    facts: tuple[tuple[str, str, str], ...]
    weights_bytes: int | None
    prefill_rate: float
    """Tokens of the text read per second."""
    decode_rate: float | None
    """Tokens generated per second after it, for one user."""
    perplexity: float | None


@dataclass(frozen=True, slots=True)
class Comparing:
    """Progress: what is done right now."""

    text: str
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The last event of comparing."""

    tokens: tuple[ComparedToken, ...]
    """All but the first token of the text, which nothing predicts."""
    reference: ComparedSide
    other: ComparedSide

    @property
    def mean_divergence(self) -> float:
        """In nats a token."""
        return sum(token.divergence for token in self.tokens) / max(1, len(self.tokens))

    @property
    def agreement(self) -> float:
        """The share of places where both find the same token likeliest."""
        return sum(token.agree for token in self.tokens) / max(1, len(self.tokens))

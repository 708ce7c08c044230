"""Two precisions of one model on one text. Standard library only."""

import csv
import io
import json
from dataclasses import dataclass
from math import isfinite

COLUMNS = ["position", "id", "token", "kl_nats", "agree", "logprob_reference", "logprob_other", "top_reference"]
COLUMNS += ["top_other"]


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


def to_csv(comparison: Comparison) -> str:
    """Every place as a row. Texts are JSON strings: so none begins a formula, and line breaks can be seen."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for position, token in enumerate(comparison.tokens, 1):
        numbers = [_plain(value) for value in (token.divergence, token.reference, token.other)]
        tops = (json.dumps(token.reference_top), json.dumps(token.other_top))
        writer.writerow((position, token.id, json.dumps(token.text), numbers[0], int(token.agree), *numbers[1:], *tops))
    return file.getvalue()


def _plain(value: float) -> str:
    return f"{value:.9g}" if isfinite(value) else str(value)


@dataclass(frozen=True, slots=True)
class Comparing:
    """Progress: what is done right now."""

    text: str
    fraction: float | None = None

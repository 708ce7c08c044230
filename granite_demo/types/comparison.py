"""The result of a comparison of two precisions of a model on one text. Uses the standard library only."""

import csv
import io
import json
from dataclasses import dataclass
from math import isfinite

COLUMNS = ["position", "id", "token", "kl_nats", "agree", "logprob_reference", "logprob_other", "top_reference"]
COLUMNS += ["top_other"]


@dataclass(frozen=True, slots=True)
class ComparedToken:
    """One token of the text, with the distributions that predict it."""

    id: int
    text: str
    divergence: float
    """The Kullback-Leibler divergence in nats: sum p log(p/q), with p of the reference and q of the other."""
    agree: bool
    """Whether both have the same most likely token."""
    reference: float
    """The log probability of this token in the reference."""
    other: float
    reference_top: str = ""
    other_top: str = ""


@dataclass(frozen=True, slots=True)
class ComparedSide:
    """One of the two precisions, with its speed, memory and perplexity."""

    label: str
    """The precision, such as bfloat16 or nf4."""
    facts: tuple[tuple[str, str, str], ...]
    weights_bytes: int | None
    prefill_rate: float
    """Prefill of the text, in tokens per second."""
    decode_rate: float | None
    """Generation after the text for one user, in tokens per second."""
    perplexity: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The last event of a comparison."""

    tokens: tuple[ComparedToken, ...]
    """All tokens of the text except the first, which has no prediction."""
    reference: ComparedSide
    other: ComparedSide

    @property
    def mean_divergence(self) -> float:
        """The mean divergence in nats for each token."""
        return sum(token.divergence for token in self.tokens) / max(1, len(self.tokens))

    @property
    def agreement(self) -> float:
        """The share of tokens for which both have the same most likely token."""
        return sum(token.agree for token in self.tokens) / max(1, len(self.tokens))


def to_csv(comparison: Comparison) -> str:
    """Return CSV with a row for each token.

    Texts are JSON strings, so that no cell is a formula or has a line break.
    """
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
    """The progress of a comparison: the current step, and the completed part from 0 to 1."""

    text: str
    fraction: float | None = None

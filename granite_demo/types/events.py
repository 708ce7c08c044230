"""The values that cross the two seams. Standard library only; knows neither models nor transports.

A ``Backend`` takes a ``GenerationRequest`` and yields ``StreamEvent`` values: ``Dropped`` and ``Queued`` while it
waits, then the answer's parts in the order in which the model wrote them, and one ``Finish``. An ``Engine`` takes
token ids and ``SamplingParams`` and yields ``Queued`` and ``Token`` values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.messages import ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "stopped"]
"""OpenAI's words: ``stop`` for an end token or a stop string, ``length`` for the token limit.

``stopped`` is ours, for an answer that its reader (``GenerationRequest.stop``) or an error has ended.
"""


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; ``ahead`` others come before it. Sent again whenever that changes."""

    ahead: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    """Those of the completion tokens that are thinking."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one request in seconds, from its arrival at the backend."""

    ttft: float
    """Time to first token: template, queue and prefill."""
    total: float
    reasoning: float = 0.0
    """Of these, spent on thinking."""
    written: int = 0
    """Tokens that were there before."""

    def decode_rate(self, completion_tokens: int) -> float | None:
        """Tokens per second after the first one, or None when there was only one."""
        seconds, new = self.total - self.ttft, completion_tokens - self.written
        return (new - 1) / seconds if new > 1 and seconds > 0 else None


@dataclass(frozen=True, slots=True)
class TokenScored:
    """A generated token with its log probabilities, before the text that became certain with it.

    Only where ``SamplingParams.logprobs`` asked for it.
    """

    token: ScoredToken


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer. ``completion_tokens`` counts the tokens generated so far, those held back included."""

    text: str
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the thinking before the answer; ``completion_tokens`` as in ``TextDelta``."""

    text: str
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A call of a tool, whole; one that cannot be read has its ``error`` set."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Citation:
    """What the answer's text from ``start`` to ``end`` rests on; both are the same where the model marks one place."""

    document: str
    """The number of the document, or the mark that the model gave its source."""
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Appendix:
    """A list that the model adds after its answer: of its citations, or of what it may have made up."""

    kind: Literal["citations", "hallucinations"]
    text: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """The oldest ``messages`` of the conversation were left out, since it does not fit the context."""

    messages: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made an answer, as far as it is known: enough to make it again."""

    model: str = ""
    revision: str = ""
    template_sha256: str = ""
    prompt_sha256: str = ""
    """Of the prompt's token ids, as decimal numbers with commas."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """By name, the value of device, precision, quantization, attention and engine."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a stream. A stream that fails after its first token yields one, too, before it raises."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int | None = None
    """The seed the answer was sampled with; None for greedy."""
    token_ids: tuple[int, ...] = ()
    """Every generated token, the end token included; empty where the backend does not know them."""
    provenance: Provenance | None = None

    @classmethod
    def unbegun(cls, seconds: float) -> "Finish":
        """Of an answer that was stopped after ``seconds``, before an engine had the request."""
        return cls("stopped", Usage(0, 0), Timings(0.0, seconds))


StreamEvent = Dropped | Queued | TokenScored | ReasoningDelta | TextDelta | ToolCalled | Citation | Appendix | Finish


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

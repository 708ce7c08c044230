"""The events of a backend. Uses the standard library only.

A ``Backend`` gets a ``GenerationRequest`` and yields ``StreamEvent`` values: ``Dropped`` and ``Queued`` while it waits,
then the parts of the answer in their order, and one ``Finish``. An ``Engine`` gets token ids and ``SamplingParams``,
and yields ``Queued`` and ``Token`` values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from granite_demo.types.logprobs import ScoredToken
from granite_demo.types.messages import ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "stopped"]
"""The finish reasons of OpenAI: ``stop`` for an end token or a stop string, ``length`` for the token limit.

``stopped`` is an addition, for an answer that ``GenerationRequest.stop`` or an error ended.
"""


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits in the queue.

    It is yielded each time that ``ahead``, the number of requests before it, changes.
    """

    ahead: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    """The completion tokens that are thinking."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one request in seconds, from its arrival at the backend."""

    ttft: float
    """Time to first token, which includes template, queue and prefill."""
    total: float
    reasoning: float = 0.0
    """The part of ``total`` for the thinking."""
    written: int = 0
    """Tokens that the answer had before it was continued."""

    def decode_rate(self, completion_tokens: int) -> float | None:
        """Return tokens per second without the first token, or None if there is only one."""
        seconds, new = self.total - self.ttft, completion_tokens - self.written
        return (new - 1) / seconds if new > 1 and seconds > 0 else None


@dataclass(frozen=True, slots=True)
class TokenScored:
    """A generated token with its log probabilities. It comes before the text that the token completes.

    Only if ``SamplingParams.logprobs`` is set.
    """

    token: ScoredToken


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the answer. ``completion_tokens`` is the number of tokens until now, also those held back."""

    text: str
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More text of the thinking before the answer, with ``completion_tokens`` as in ``TextDelta``."""

    text: str
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A complete tool call. If it cannot be parsed, its ``error`` is set."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Citation:
    """The source of the text of the answer from ``start`` to ``end``. They are equal if the model marks a position."""

    document: str
    """The number of the document, or the key that the model uses for its source."""
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Appendix:
    """A list that the model adds after its answer: its citations, or statements that may be hallucinations."""

    kind: Literal["citations", "hallucinations"]
    text: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """The number of the oldest messages that were left out, because the conversation does not fit in the context."""

    messages: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """The model, the prompt and the choices of an answer, to reproduce it. Empty values are not known."""

    model: str = ""
    revision: str = ""
    template_sha256: str = ""
    prompt_sha256: str = ""
    """The SHA-256 of the token ids of the prompt as decimal numbers with commas between them."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """The values of device, precision, quantization, attention and engine, by name."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a stream. A stream that fails after its first token also yields it before it raises."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int | None = None
    """The seed of the sampling. None: greedy."""
    token_ids: tuple[int, ...] = ()
    """All generated tokens, including the end token. Empty: the backend does not know them."""
    provenance: Provenance | None = None

    @classmethod
    def unbegun(cls, seconds: float) -> "Finish":
        """Return the finish of an answer that was stopped after ``seconds``, before an engine had the request."""
        return cls("stopped", Usage(0, 0), Timings(0.0, seconds))


StreamEvent = Dropped | Queued | TokenScored | ReasoningDelta | TextDelta | ToolCalled | Citation | Appendix | Finish


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The last event of a scoring."""

    tokens: int
    logprob: float
    """The log probability of the complete text, given its first token, in nats."""
    seconds: float

    @property
    def perplexity(self) -> float | None:
        """exp of the mean negative log probability of all tokens except the first. None for a single token."""
        from math import exp

        mean = -self.logprob / (self.tokens - 1) if self.tokens > 1 else None
        return None if mean is None else exp(min(mean, 700.0))

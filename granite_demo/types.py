"""The values that cross the two seams. Standard library only; knows neither models nor transports.

A ``Backend`` takes a ``GenerationRequest`` and yields ``StreamEvent`` values: ``Dropped`` and ``Queued`` while it
waits, then the answer's parts in the order in which the model wrote them, and one ``Finish``. An ``Engine`` takes
token ids and ``SamplingParams`` and yields ``Queued`` and ``Token`` values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from granite_demo.errors import InvalidRequestError
from granite_demo.messages import Controls, Document, Message, ToolCall, ToolSpec, scrub
from granite_demo.status import LoadOptions

FinishReason = Literal["stop", "length", "tool_calls"]
"""OpenAI's words: ``stop`` for an end token or a stop string, ``length`` for the token limit."""

MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 64
MAX_SEED = 2**63 - 1
MAX_ALTERNATIVES = 20
"""OpenAI's limit for top_logprobs."""


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value in (inf, -inf) or value != value:
        raise InvalidRequestError(f"{name} must be a number, not {value!r}.")
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must be between {low:g} and {high:g}{_but(value)}.")
    return float(value)


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value % 1:
        raise InvalidRequestError(f"{name} must be a whole number, not {value!r}.")
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must be between {low} and {high}{_but(value)}.")
    return int(value)


def _but(value: float) -> str:
    # A longer number is no help to a reader, and Python refuses to write out very long ones.
    return f", not {value:g}" if abs(value) < 1e15 else ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when generation ends. Values are checked and coerced on construction.

    ``temperature`` 0 is greedy; ``top_p`` 1, ``top_k`` 0, ``min_p`` 0 and ``repetition_penalty`` 1 are off.
    ``max_tokens`` None means as many as the context leaves. ``seed`` None draws a new one. ``logprobs`` is the number
    of alternatives to report with each token's log probability; None reports neither. Raises InvalidRequestError.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        def coerce(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        coerce("temperature", _number("Temperature", self.temperature, 0.0, 2.0))
        top_p = _number("Top-p", self.top_p, 0.0, 1.0)
        if top_p == 0.0:
            raise InvalidRequestError("Top-p must be above 0; use temperature 0 for greedy decoding.")
        coerce("top_p", top_p)
        coerce("top_k", _integer("Top-k", self.top_k, 0, 1_000_000))
        coerce("repetition_penalty", _number("Repetition penalty", self.repetition_penalty, 0.1, 10.0))
        if self.max_tokens is not None:
            coerce("max_tokens", _integer("Max new tokens", self.max_tokens, 1, 1_000_000))
        if self.seed is not None:
            coerce("seed", _integer("Seed", self.seed, 0, MAX_SEED))
        coerce("stop", self._checked_stop())
        coerce("min_p", _number("Min-p", self.min_p, 0.0, 1.0))
        if self.logprobs is not None:
            coerce("logprobs", _integer("Logprobs", self.logprobs, 0, MAX_ALTERNATIVES))

    def _checked_stop(self) -> tuple[str, ...]:
        if not isinstance(self.stop, (str, Sequence)):
            raise InvalidRequestError("Stop strings must be given as a list of texts.")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if len(stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"At most {MAX_STOP_STRINGS} stop strings are allowed, not {len(stop)}.")
        for text in stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise InvalidRequestError(f"A stop string must have 1 to {MAX_STOP_LENGTH} characters.")
        return tuple(scrub(text) for text in stop)


Overflow = Literal["refuse", "drop"]
"""When a conversation does not fit the context: an error, or the oldest turns are left out."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate from: a conversation (``messages``) or raw text (``prompt``), never both."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tools: tuple[ToolSpec, ...] = ()
    documents: tuple[Document, ...] = ()
    controls: Controls = field(default_factory=Controls)
    overflow: Overflow = "refuse"
    model: LoadOptions | None = None
    """Answer with this model rather than the one that is chosen; it takes the other's place in memory meanwhile."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise InvalidRequestError("A request needs either messages or a prompt.")
        if self.overflow not in ("refuse", "drop"):
            raise InvalidRequestError(f"overflow must be refuse or drop, not {self.overflow!r}.")
        if self.prompt is not None:
            if not self.prompt:
                raise InvalidRequestError("The prompt is empty. Write something to continue from.")
            object.__setattr__(self, "prompt", scrub(self.prompt))
            return
        last = self.messages[-1]
        if last.role != "tool" and (last.role != "user" or not last.content.strip()):
            raise InvalidRequestError("The last message must be a user's, and not empty, or a tool's.")


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. Log probabilities are natural logarithms under the model's own distribution.

    That is the one before penalties, temperature and cuts. ``logprob`` is None unless ``SamplingParams.logprobs``
    asked for it; ``alternatives`` are the likeliest (token id, log probability), in falling order.
    """

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


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

    def decode_rate(self, completion_tokens: int) -> float | None:
        """Tokens per second after the first one, or None when there was only one."""
        seconds = self.total - self.ttft
        return (completion_tokens - 1) / seconds if completion_tokens > 1 and seconds > 0 else None


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
    choices: tuple[tuple[str, str], ...] = ()
    """(name, value) of device, precision, quantization, attention and engine."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a stream that was not cancelled."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int | None = None
    """The seed the answer was sampled with; None for greedy."""
    token_ids: tuple[int, ...] = ()
    """Every generated token, the end token included; empty where the backend does not know them."""
    provenance: Provenance | None = None


StreamEvent = Dropped | Queued | ReasoningDelta | TextDelta | ToolCalled | Citation | Appendix | Finish

Origin = Literal["template", "control", "system", "user", "assistant", "document", "tool"]
"""Who wrote a part of a prompt: the chat template, as text or as control tokens, or one of the request's parts."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A stretch of a prompt with one origin."""

    origin: Origin
    text: str
    tokens: tuple[tuple[int, str], ...]
    """(token id, its text) of each."""


@dataclass(frozen=True, slots=True)
class PromptView:
    """The exact prompt of a request, before it is sent."""

    parts: tuple[PromptPart, ...]
    """Empty unless they were asked for."""
    tokens: int
    dropped: int
    """Messages that are left out to make room; see ``GenerationRequest.overflow``."""
    context_length: int

"""The values that cross the two seams. Standard library only; knows neither models nor transports.

A ``Backend`` takes a ``GenerationRequest`` and yields ``StreamEvent`` values: ``Dropped`` and ``Queued`` while it
waits, then the answer's parts in the order in which the model wrote them, and one ``Finish``. An ``Engine`` takes
token ids and ``SamplingParams`` and yields ``Queued`` and ``Token`` values.
"""

from dataclasses import dataclass, field
from typing import Literal

from granite_demo.errors import InvalidRequestError
from granite_demo.messages import Controls, Document, Message, ToolCall, ToolSpec, scrub
from granite_demo.sampling_params import SamplingParams
from granite_demo.scores import ScoredToken
from granite_demo.status import LoadOptions

FinishReason = Literal["stop", "length", "tool_calls", "stopped"]
"""OpenAI's words: ``stop`` for an end token or a stop string, ``length`` for the token limit.

``stopped`` is ours, for an answer that its reader or an error has ended: only in ``GenerationRequest.rest``.
"""

Overflow = Literal["refuse", "drop"]
"""When a conversation does not fit the context: an error, or the oldest turns are left out."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate from: a conversation (``messages``), raw text (``prompt``) or the ids of tokens."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    suffix: str | None = None
    """What follows the gap after ``prompt`` that is to be filled; the prompt may then be empty."""
    special_tokens: bool = False
    """Whether ``prompt`` may spell control tokens; else they are plain text."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    begun: tuple[str, tuple[int, ...]] = ("", ())
    """The end of a prompt that is the beginning of what has to keep to the constraint: a text, and tokens after it."""
    written: tuple[int, ...] = ()
    """Tokens of the answer to ``messages`` that are there already: it is told from its beginning, and goes on."""
    tools: tuple[ToolSpec, ...] = ()
    documents: tuple[Document, ...] = ()
    controls: Controls = field(default_factory=Controls)
    overflow: Overflow = "refuse"
    model: LoadOptions | None = None
    """Answer with this model rather than the one that is chosen; it takes the other's place in memory meanwhile."""
    rest: "list[StreamEvent] | None" = field(default=None, compare=False, repr=False)
    """Where to put the last events of an answer whose stream is closed or fails before its end.

    What was held back as the possible beginning of a marker is among them, and a Finish.
    """

    def __post_init__(self) -> None:
        given = (bool(self.messages), self.prompt is not None, self.prompt_ids is not None)
        if sum(given) != 1:
            raise InvalidRequestError("A request needs either messages or a prompt.")
        if self.written and (not self.messages or self.sampling.constraint):
            raise InvalidRequestError("Only an answer in a conversation, of a free form, can be gone on with.")
        if self.overflow not in ("refuse", "drop"):
            raise InvalidRequestError(f"overflow must be refuse or drop, not {self.overflow!r}.")
        if self.suffix is not None and self.prompt is None:
            raise InvalidRequestError("A suffix needs a prompt that is text.")
        if self.prompt is not None:
            if not self.prompt and not self.suffix:
                raise InvalidRequestError("The prompt is empty. Write something to continue from.")
            object.__setattr__(self, "prompt", scrub(self.prompt))
            object.__setattr__(self, "suffix", None if self.suffix is None else scrub(self.suffix))
        elif self.prompt_ids is not None:
            if not self.prompt_ids:
                raise InvalidRequestError("The prompt is empty. Write something to continue from.")
        elif (last := self.messages[-1]).role != "tool" and (last.role != "user" or not last.content.strip()):
            raise InvalidRequestError("The last message must be a user's, and not empty, or a tool's.")

    @property
    def calls(self) -> bool:
        """Whether the answer may call tools: some are offered, or the conversation has called some before."""
        return bool(self.tools) or any(message.tool_calls for message in self.messages)

    @property
    def raw(self) -> bool:
        """Whether the answer is plain text, without a chat template."""
        return not self.messages


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
    choices: tuple[tuple[str, str], ...] = ()
    """(name, value) of device, precision, quantization, attention and engine."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a stream that was not cancelled; of one that was, see ``GenerationRequest.rest``."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int | None = None
    """The seed the answer was sampled with; None for greedy."""
    token_ids: tuple[int, ...] = ()
    """Every generated token, the end token included; empty where the backend does not know them."""
    provenance: Provenance | None = None


StreamEvent = Dropped | Queued | TokenScored | ReasoningDelta | TextDelta | ToolCalled | Citation | Appendix | Finish

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

"""The values that cross the two seams. Standard library only; knows neither models nor transports.

A ``Backend`` takes a ``GenerationRequest`` and yields ``StreamEvent`` values: any number of ``TextDelta``, then one
``Finish``, with ``Queued`` before them while the request waits. An ``Engine`` takes token ids and ``SamplingParams``
and yields ``Queued`` and ``Token`` values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, get_args

from granite_demo.errors import InvalidRequestError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
"""OpenAI's words: ``stop`` for an end token or a stop string, ``length`` for the token limit."""

MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 64
MAX_SEED = 2**63 - 1
MAX_ALTERNATIVES = 20
"""OpenAI's limit for top_logprobs."""


def scrub(text: str) -> str:
    """Replace lone surrogates, which neither tokenizers nor JSON writers accept, by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InvalidRequestError(
                f"A message's role must be one of {', '.join(get_args(Role))}, not {self.role!r}."
            )
        if not isinstance(self.content, str):
            raise InvalidRequestError("A message's content must be text.")
        object.__setattr__(self, "content", scrub(self.content))


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


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate from: a conversation (``messages``) or raw text (``prompt``), never both."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise InvalidRequestError("A request needs either messages or a prompt.")
        if self.prompt is not None:
            if not self.prompt:
                raise InvalidRequestError("The prompt is empty. Write something to continue from.")
            object.__setattr__(self, "prompt", scrub(self.prompt))
        elif self.messages[-1].role != "user" or not self.messages[-1].content.strip():
            raise InvalidRequestError("The last message must be a user's, and not empty.")


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


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one request in seconds, from its arrival at the backend."""

    ttft: float
    """Time to first token: template, queue and prefill."""
    total: float

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
class Finish:
    """The last event of a stream that was not cancelled."""

    reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int | None = None
    """The seed the answer was sampled with; None for greedy."""


StreamEvent = Queued | TextDelta | Finish

LoadStage = Literal["idle", "downloading", "converting", "loading", "warming up", "ready", "failed"]
Report = Callable[[LoadStage, float | None, str], None]
"""Called with the stage, its progress from 0 to 1 (None: unknown) and a short text."""


Fact = tuple[str, str, str]
"""(name, value, reason) of a choice made for a model"""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """How a loaded model uses its device, in bytes."""

    device: str
    weights: int
    kv_cache: int
    """The cache of one conversation that fills the context."""
    free: int
    """What was free when the model was ready."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model to pick: with its size, and whether it fits here."""

    name: str
    label: str
    """Family, name, size and mark in one line."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the model manager is doing with one model, for every visitor to see."""

    model: str
    stage: LoadStage
    fraction: float | None = None
    """Progress of this stage from 0 to 1, or None where it cannot be known."""
    detail: str = ""
    title: str = ""
    about: str = ""
    facts: tuple[Fact, ...] = ()
    """Each choice made for a ready model, in display order."""
    context_length: int | None = None
    card: tuple[Fact, ...] = ()
    """(name, value, what it does) of the model's configuration."""
    memory: MemoryUse | None = None
    notice: str = ""
    """Why the last load failed, while another model still answers."""


Device = Literal["auto", "cuda", "mps", "cpu"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["auto", "none", "int8", "nf4", "fp4"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4"]
EngineName = Literal["auto", "batching", "static", "dynamic"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Which model to load and how: the key of the model cache."""

    model: str = "sample"
    revision: str | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    quantization: Quantization = "auto"
    attention: Attention = "auto"
    context: int | None = None
    """Tokens to limit the context to; None for as many as the model allows and fit."""
    keep_quantized: bool = False
    """Save a quantized model in the cache folder, from which it loads faster the next time."""
    engine: EngineName = "auto"
    compile: bool = False
    """Have torch compile the decode step while the model is made ready: faster, after a minute."""

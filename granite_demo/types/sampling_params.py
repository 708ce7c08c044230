"""The sampling parameters of one request, and their checks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from granite_demo.errors import InvalidRequestError
from granite_demo.types.constraints import Constraint
from granite_demo.types.messages import scrub

MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 64
MAX_SEED = 2**63 - 1
MAX_ALTERNATIVES = 20
"""The limit of OpenAI for top_logprobs."""
MAX_BIASES = 300


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
    # A longer number does not help a reader, and Python cannot format very long ones.
    return f", not {value:g}" if abs(value) < 1e15 else ""


def _flag(default: Any, help_text: str) -> Any:
    """A field that is also a flag of the commands ``complete`` and ``chat``."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is selected and when the answer ends. Values are checked and converted on construction.

    ``temperature`` 0 is greedy. ``top_p`` 1, ``top_k`` 0, ``min_p`` 0 and ``repetition_penalty`` 1 are off.
    ``max_tokens`` None is the rest of the context. ``seed`` None is random. ``logprobs`` is the number of alternatives
    to return with the log probability of each token; None returns neither. ``frequency_penalty`` and
    ``presence_penalty`` are those of OpenAI: they are subtracted from the logits of the tokens of the answer, for each
    occurrence and once. ``logit_bias`` has (token id, value to add to its logit). ``constraint`` is the format of the
    answer. After ``thinking_token_budget`` tokens, thinking that goes on is closed, and the answer follows. Raises
    InvalidRequestError.
    """

    temperature: float = _flag(0.0, "Randomness of the choice of tokens. 0: always the most likely token (greedy).")
    top_p: float = _flag(1.0, "Sample from the most likely tokens whose probabilities add up to this. 1: from all.")
    top_k: int = _flag(0, "Sample from this many of the most likely tokens. 0: from all.")
    repetition_penalty: float = _flag(1.0, "Above 1: less repetition. 1: off.")
    max_tokens: int | None = _flag(None, "Maximum number of tokens in an answer.")
    seed: int | None = _flag(None, "The same seed gives the same sampled answer. Default: random.")
    stop: tuple[str, ...] = _flag((), "Text that ends the answer and is not part of it. Can be given up to four times.")
    min_p: float = _flag(0.0, "Exclude tokens that are less likely than this share of the most likely one. 0: off.")
    logprobs: int | None = None
    frequency_penalty: float = _flag(0.0, "Above 0: less repetition, by the number of occurrences. 0: off.")
    presence_penalty: float = _flag(0.0, "Above 0: less repetition, once for each token that has occurred. 0: off.")
    logit_bias: tuple[tuple[int, float], ...] = ()
    constraint: Constraint | None = None
    thinking_token_budget: int | None = _flag(None, "Maximum number of thinking tokens; the answer then follows.")
    salt: str = field(default="", compare=False, repr=False)
    """An answer uses only the caches of prompts with the same salt. It changes how fast an answer is, and nothing else.

    The time to the first token would otherwise tell a visitor what another one has asked.
    """

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
        if (budget := self.thinking_token_budget) is not None:
            coerce("thinking_token_budget", _integer("Thinking token budget", budget, 1, 1_000_000))
        if self.seed is not None:
            coerce("seed", _integer("Seed", self.seed, 0, MAX_SEED))
        coerce("stop", self._checked_stop())
        coerce("min_p", _number("Min-p", self.min_p, 0.0, 1.0))
        if self.logprobs is not None:
            coerce("logprobs", _integer("Logprobs", self.logprobs, 0, MAX_ALTERNATIVES))
        coerce("frequency_penalty", _number("Frequency penalty", self.frequency_penalty, -2.0, 2.0))
        coerce("presence_penalty", _number("Presence penalty", self.presence_penalty, -2.0, 2.0))
        coerce("logit_bias", self._checked_bias())

    @property
    def adjusts(self) -> bool:
        """Whether the logits need a processor that most requests do not need."""
        return bool(self.frequency_penalty or self.presence_penalty or self.logit_bias or self.constraint)

    def _checked_bias(self) -> tuple[tuple[int, float], ...]:
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidRequestError(f"logit_bias has {len(self.logit_bias)} tokens; the limit is {MAX_BIASES}.")
        return tuple(
            (_integer("A token id of logit_bias", token, 0, 10_000_000), _number("logit_bias", value, -100.0, 100.0))
            for token, value in self.logit_bias
        )

    def _checked_stop(self) -> tuple[str, ...]:
        if not isinstance(self.stop, (str, Sequence)):
            raise InvalidRequestError("Stop strings must be a list of texts.")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if len(stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"At most {MAX_STOP_STRINGS} stop strings are allowed, not {len(stop)}.")
        for text in stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise InvalidRequestError(f"A stop string must have 1 to {MAX_STOP_LENGTH} characters.")
        return tuple(scrub(text) for text in stop)

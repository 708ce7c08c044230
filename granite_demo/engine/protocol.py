"""The protocol of an engine, which generates tokens from token ids."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import EngineSetup, EngineStats, Fact, Feature
from granite_demo.types.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch

    from granite_demo.outputs.structured_output import Matcher


log = logging.getLogger(__name__)


SCORE_BYTES = 64 * 2**20
"""The maximum memory for the logits of one chunk of a scored text."""


def score_chunk(vocabulary: int) -> int:
    """Return how many tokens are scored at a time. The logits of a token are ``vocabulary`` float32 numbers."""
    return max(1, SCORE_BYTES // (4 * vocabulary))


T = TypeVar("T")
Measure = Callable[[int, "torch.Tensor"], T]
"""Called on the model's thread with the position of the first of n tokens and the logits after each of them.

The logits have the shape (n, vocabulary), float32, on the model's device. They can be overwritten and are not valid
after the call. Row i predicts the token after position + i.
"""


class Engine(Protocol):
    """Generates tokens from token ids."""

    setup: EngineSetup
    """The choices for this engine, with their reasons."""
    unable: tuple[tuple[Feature, str], ...]
    """(feature, reason) of each feature that the engine does not support."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The choices and other facts, as rows for the Settings tab."""
        ...

    def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: "Matcher | None" = None
    ) -> AsyncGenerator[Token | Queued]:
        """Yield Queued while the request waits, then the answer: at most ``sampling.max_tokens`` tokens.

        An end token is also yielded, as the last one. ``matcher`` gives the allowed tokens; it is
        ``sampling.constraint``, compiled for this answer. To cancel the request, close the generator. Raises
        EngineBusyError if too many requests wait, EngineClosedError, and EngineError if the model's thread fails.
        """
        ...

    def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """Compute a text. Yield Queued while the request waits, then the result of ``measure`` for each chunk.

        To cancel the request, close the generator. Raises as ``generate``, and ContextOverflowError.
        """
        ...

    def stats(self) -> EngineStats:
        """Return the number of running and of waiting requests, and the failure of the engine if it has one."""
        ...

    def close(self) -> None:
        """End all requests with EngineClosedError and wait for the model's thread to stop."""
        ...


@runtime_checkable
class TokenScorer(Protocol):
    """An engine that reports log probabilities itself, and gives no logits to measure."""

    def score_tokens(self, token_ids: Sequence[int], alternatives: int) -> AsyncGenerator[list[Token] | Queued]:
        """Yield Queued while it waits, then each token after the first with its log probability and ``alternatives``.

        Closing the generator cancels it. Raises as ``Engine.generate`` does, and ContextOverflowError.
        """
        ...


def answer_limit(sampling: SamplingParams) -> int:
    """Return ``max_tokens``. Raises ValueError if it is None."""
    if sampling.max_tokens is None:
        raise ValueError("An engine needs max_tokens, which the backend limits to the context.")
    return sampling.max_tokens

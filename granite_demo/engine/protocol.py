"""The seam between tokens and models, and the bridge from the model's thread to the event loop."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import EngineSetup, EngineStats, Fact, Feature
from granite_demo.types.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch

    from granite_demo.outputs.structured_output import Matcher


log = logging.getLogger(__name__)


SCORE_BYTES = 64 * 2**20
"""What the logits of one chunk of a scored text may take."""


def score_chunk(vocabulary: int) -> int:
    """How many tokens are scored at once: the logits of each are as long as the vocabulary, in float32."""
    return max(1, SCORE_BYTES // (4 * vocabulary))


T = TypeVar("T")
Measure = Callable[[int, "torch.Tensor"], T]
"""Called on the model's thread with the position of the first of n tokens and the logits after each of them.

These are float32 of shape (n, vocabulary) on the model's device, may be overwritten, and are gone after the call. Row i
predicts the token after position + i.
"""


class Engine(Protocol):
    """Generates tokens from token ids."""

    setup: EngineSetup
    """The choices made for it."""
    unable: tuple[tuple[Feature, str], ...]
    """(feature, why) of what it cannot do."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """``setup`` and what else there is to say of it, as rows for the screen."""
        ...

    def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: "Matcher | None" = None
    ) -> AsyncGenerator[Token | Queued]:
        """Yield Queued while the request waits, then the answer: at most ``sampling.max_tokens`` tokens.

        An end token is yielded, too, and is the last. ``matcher`` says which tokens may come; it is
        ``sampling.constraint``, compiled for this answer. Closing the generator cancels the request. Raises
        EngineBusyError when too many wait, EngineClosedError, and EngineError when the model's thread fails.
        """
        ...

    def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """Read a text; yield what ``measure`` makes of each chunk of it, in order, and Queued while it waits.

        Closing the generator cancels it. Raises as ``generate`` does, and ContextOverflowError.
        """
        ...

    def stats(self) -> EngineStats:
        """How many requests run and wait."""
        ...

    def close(self) -> None:
        """End all requests with EngineClosedError and wait for the model's thread to stop."""
        ...


def answer_limit(sampling: SamplingParams) -> int:
    """``max_tokens``. Raises ValueError where it is missing."""
    if sampling.max_tokens is None:
        raise ValueError("An engine needs max_tokens: the backend fits it to the context.")
    return sampling.max_tokens

"""The seam between tokens and models, and the bridge from the model's thread to the event loop."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from granite_demo.errors import EngineClosedError, EngineError, GraniteDemoError
from granite_demo.sampling_params import SamplingParams
from granite_demo.status import EngineStats, Fact, Feature
from granite_demo.types import Queued, Token

if TYPE_CHECKING:
    import torch

    from granite_demo.constraints import Matcher

log = logging.getLogger(__name__)


class Cancelled(BaseException):
    """Raised inside the model's thread when nobody wants the tokens any more. Never leaves the engine."""


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

    facts: tuple[Fact, ...]
    """(name, value, reason) of the engine's own choices, for the log and the Settings tab."""
    unable: tuple[tuple[Feature, str], ...]
    """(feature, why) of what it cannot do."""

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


@dataclass(frozen=True, slots=True)
class _End:
    """The last that a stream carries."""

    error: GraniteDemoError | None


class TokenStream(Generic[T]):
    """One request's way back: the model's thread puts tokens in, or what was measured; the event loop iterates over it.

    The queue holds at most the request's ``max_tokens`` tokens, so a slow reader never holds up the model.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._queue: asyncio.Queue[T | Queued | _End] = asyncio.Queue()
        self._end: GraniteDemoError | None = None
        self._cancelled = threading.Event()

    def cancel(self, error: GraniteDemoError | None = None) -> None:
        """Ask the model's thread to stop; a reader that still listens gets ``error``. Callable from any thread."""
        self._end = error
        self._cancelled.set()

    def check(self) -> None:
        """Raise Cancelled if the request was cancelled. Called often from the model's thread."""
        if self._cancelled.is_set():
            raise Cancelled

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the tokens any more."""
        return self._cancelled.is_set()

    def put(self, item: T | Queued) -> None:
        """Hand over one item or a place in the line. Called from the model's thread; raises Cancelled."""
        self.check()
        self._send(item)

    def finish(self, error: GraniteDemoError | None = None) -> None:
        """End the stream, with the error that ended it if there was one. Called from the model's thread."""
        with contextlib.suppress(Cancelled):
            self._send(_End(error or self._end))

    def _send(self, item: T | Queued | _End) -> None:
        try:
            self.loop.call_soon_threadsafe(self.accept, item)
        except RuntimeError:  # The event loop is closed: there is no reader left.
            raise Cancelled from None

    def accept(self, item: T | Queued | _End) -> None:
        """Take an item. Called from the event loop; see ``deliver``."""
        self._queue.put_nowait(item)

    async def read(self) -> AsyncGenerator[T | Queued]:
        """Yield the items as they come. Whoever closes it cancels the request. Raises the error that ended that."""
        try:
            while not isinstance(item := await self._queue.get(), _End):
                yield item
        finally:
            self.cancel()
        if item.error:
            raise item.error


def deliver(tokens: Sequence[tuple[TokenStream[Token], Token]]) -> None:
    """Hand over the tokens of one step, waking each event loop once. Called from the model's thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream[Token], Token]]] = {}
    for stream, token in tokens:
        by_loop.setdefault(stream.loop, []).append((stream, token))
    for loop, batch in by_loop.items():
        with contextlib.suppress(RuntimeError):  # The loop is closed: there is no reader left.
            loop.call_soon_threadsafe(_accept, batch)


def _accept(batch: list[tuple[TokenStream[Token], Token]]) -> None:
    for stream, token in batch:
        stream.accept(token)


def answer_limit(sampling: SamplingParams) -> int:
    """``max_tokens``. Raises ValueError where it is missing."""
    if sampling.max_tokens is None:
        raise ValueError("An engine needs max_tokens: the backend fits it to the context.")
    return sampling.max_tokens


def closed_error() -> EngineClosedError:
    """The end of a request whose engine was closed."""
    return EngineClosedError("The model was unloaded or the server is stopping. What was written so far is kept.")


def dead_error() -> EngineError:
    """The end of every request, now and later, of an engine whose GPU is lost."""
    return EngineError("The GPU has failed and the model cannot answer any more. Restart the server.")


def gpu_is_lost(error: BaseException) -> bool:
    """Whether nothing can be computed after ``error``: a device-side assert, say."""
    import torch

    from granite_demo.placement import is_out_of_memory

    # Of the errors of the GPU itself only this one leaves it usable.
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def as_user_error(error: BaseException) -> GraniteDemoError | None:
    """What the reader of a request is told about ``error``; None for a cancelled request."""
    if isinstance(error, Cancelled):
        return None
    if isinstance(error, GraniteDemoError):
        return error
    log.error("Generation failed.", exc_info=error)
    from granite_demo.placement import is_out_of_memory  # torch, which this module is imported without

    if is_out_of_memory(error):
        return EngineError("The model ran out of memory. Use a shorter prompt or fewer new tokens, then try again.")
    return EngineError(
        f"The model failed while generating ({type(error).__name__}). The log has the details. Try again."
    )

"""Scores texts in the batching engine. Continuous batching itself does not return the logits of a prompt.

The thread of the loop owns the model, so it also computes the chunks of a text: one chunk between two steps, and one
text at a time. Each text has its own cache, in addition to the shared one, and uses ordinary attention.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from granite_demo.engine.failures import as_user_error, closed_error
from granite_demo.engine.protocol import Measure, score_chunk
from granite_demo.engine.token_stream import TokenStream
from granite_demo.engine.waiting_queue import WaitingQueue
from granite_demo.errors import ContextOverflowError, GraniteDemoError, InvalidRequestError
from granite_demo.loading.device import free_memory
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.loading.tensor_parallel import Group
from granite_demo.types.events import Queued
from granite_demo.types.model_status import Feature

T = TypeVar("T")
MEMORY_SHARE = 0.5
"""The part of the free memory for the cache of a text. The steps of the loop need the rest."""


@dataclass(slots=True, eq=False)
class _Text:
    stream: TokenStream[Any]
    ids: list[int]
    measure: Measure[Any]
    cache: DynamicCache | None = None
    read: int = 0


class BatchScorer:
    """Computes a chunk of a text in each call of ``advance``. The other methods can be called from any thread."""

    def __init__(self, loaded: LoadedModel, wake: Callable[[], None], max_waiting: int, group: Group) -> None:
        """``wake`` makes the loop call ``advance``."""
        self.unable: tuple[tuple[Feature, str], ...] = ()
        if group.size > 1:
            self.unable = (("scoring", "Several processes share this model. Scoring needs a model in one process."),)
        self._model: Any = loaded.model
        self._context = loaded.context_length
        self._chunk = score_chunk(self._model.config.vocab_size)
        self._wake = wake
        self._line: WaitingQueue[_Text] = WaitingQueue(max_waiting)
        self._text: _Text | None = None
        self._error: GraniteDemoError | None = None
        self._lock = threading.Lock()

    async def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """See ``Engine.score``. Raises InvalidRequestError for a text whose cache does not fit in memory."""
        if self.unable:
            raise InvalidRequestError(f"This text cannot be scored. {self.unable[0][1]}")
        if len(token_ids) > self._context:
            raise ContextOverflowError(len(token_ids), self._context)
        stream: TokenStream[T] = TokenStream(asyncio.get_running_loop())
        with self._lock:
            if self._error:
                raise self._error
            self._line.join(_Text(stream, list(token_ids), measure))
            self._wake()  # the loop does not stop before ``end``
        async with aclosing(stream.read()) as items:
            async for item in items:
                yield item

    def counts(self) -> tuple[int, int]:
        """Return the number of running and of waiting texts."""
        with self._lock:
            return int(self._text is not None), len(self._line)

    def advance(self) -> bool:
        """Compute the next chunk. Return whether there is more to compute. The loop calls this on its thread."""
        with self._lock:
            text = self._text = self._text or self._line.take()
        self._line.announce()
        if text is None:
            return False
        outcome = None
        try:
            if not self._read(text):
                return True
        except BaseException as error:  # the loop and its requests continue
            outcome = as_user_error(error)
            if outcome:
                outcome.with_traceback(None)  # its frames hold tensors
        text.cache = None
        with self._lock:
            self._text = None
            more = bool(len(self._line))
        text.stream.finish(outcome)
        return more

    def _read(self, text: _Text) -> bool:
        """Compute the next chunk of ``text``. Return whether it was the last one."""
        text.stream.check()
        if text.cache is None:
            text.cache = DynamicCache(config=self._model.config)
        ids = text.ids[text.read : text.read + self._chunk]
        with torch.inference_mode(), _plain_attention(self._model):
            input_ids = torch.tensor([ids], device=self._model.device)
            output = self._model(input_ids=input_ids, past_key_values=text.cache, use_cache=True)
            text.stream.put(text.measure(text.read, output.logits[0].float()))
        first = not text.read
        text.read += len(ids)
        if first:
            self._check_memory(text, text.cache)
        return text.read == len(text.ids)

    def _check_memory(self, text: _Text, cache: DynamicCache) -> None:
        parts = [part for layer in cast("list[DynamicLayer]", cache.layers) for part in (layer.keys, layer.values)]
        token = sum(part.nbytes for part in parts if part is not None) / text.read
        room = MEMORY_SHARE * free_memory(str(self._model.device))
        # A growing cache is copied, so there are two copies of a layer for a moment.
        if (len(text.ids) - text.read) * token > room:
            fitting = text.read + int(room / token)
            raise InvalidRequestError(
                f"The text has {len(text.ids):,} tokens, but the batching engine leaves memory for about {fitting:,}. "
                "Shorten the text, or start with the static engine."
            )

    def end(self, error: GraniteDemoError | None = None) -> None:
        """End all texts and refuse new ones, with ``error``. The default error says that the engine is closed."""
        error = error or closed_error()
        with self._lock:
            self._error = error
            texts = self._line.clear()
            if self._text:
                self._text.stream.cancel()
                texts.append(self._text)
        for text in texts:
            text.stream.finish(error)

    def release(self) -> None:
        """Drop the references to the model, after the loop has stopped."""
        self._model, self._wake = None, lambda: None


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """Replace paged eager attention, which supports only the cache of continuous batching, inside the block."""
    paged = model.config._attn_implementation == "paged|eager"
    if paged:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if paged:
            model.set_attn_implementation("paged|eager")

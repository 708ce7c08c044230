"""The engine for Spaces with ZeroGPU: a separate process generates each answer and has a GPU for that time.

The package ``spaces``, which such a Space has, forks the process for a function that it has decorated, and gives it the
GPU. Therefore the model is loaded without a GPU, inputs and outputs are pickled, and no cache is kept for the next
answer.
"""

import asyncio
import contextvars
import importlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import replace
from typing import Any

import torch

from granite_demo.engine.decoder_layers import no_check
from granite_demo.engine.failures import as_user_error, closed_error
from granite_demo.engine.interleaved.dynamic import DynamicRunner
from granite_demo.engine.protocol import Measure, T, answer_limit
from granite_demo.engine.sampling.sampler import Sampler
from granite_demo.engine.token_stream import TokenStream
from granite_demo.engine.waiting_queue import MAX_WAITING
from granite_demo.errors import ConfigurationError, EngineBusyError, EngineError, GraniteDemoError, InvalidRequestError
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.outputs.structured_output import Matcher
from granite_demo.types.events import Queued
from granite_demo.types.logprobs import Token
from granite_demo.types.model_status import EngineSetup, EngineStats, Fact, Feature
from granite_demo.types.sampling_params import SamplingParams

MOVE_SECONDS, TOKENS_PER_SECOND, MAX_SECONDS = 15, 20, 120
"""The requested GPU time: the transfer of the weights, and the answer at a low speed. It counts against the quota."""
CLOSE_SECONDS = 2.0
ELSEWHERE = "on ZeroGPU the model runs in another process"
ZEROGPU_UNABLE: tuple[Feature, ...] = ("scoring", "constraints", "comparing precisions")


def load_spaces() -> Any:
    """Import the package ``spaces``. Call this before torch initializes CUDA. Raises ConfigurationError."""
    try:
        spaces = importlib.import_module("spaces")
    except ImportError:
        raise ConfigurationError("ZeroGPU needs the package spaces. Add it to requirements.txt.") from None
    if not hasattr(spaces.zero, "startup"):
        raise ConfigurationError("The zerogpu engine is for Spaces with ZeroGPU hardware. Choose another, or auto.")
    return spaces


def start_space(loaded: LoadedModel) -> None:
    """Pass the weights to ZeroGPU and report that the Space has started, on the thread that imported ``spaces``.

    On ZeroGPU, ``cuda`` stores the weights for later processes. ``spaces`` itself reports the start only when Gradio
    launches a page, which does not happen if the page is mounted in another application.
    """
    loaded.model.to("cuda")
    load_spaces().zero.startup()


class ZeroGpuEngine:
    """Runs one process for each answer. ZeroGPU queues them if it has no free GPU."""

    unable: tuple[tuple[Feature, str], ...] = tuple((feature, ELSEWHERE) for feature in ZEROGPU_UNABLE)

    def __init__(self, loaded: LoadedModel, spaces: Any, setup: EngineSetup, device: str = "cuda") -> None:
        """``device`` is that of the process that generates the answer."""
        self.setup = setup
        self._generate = spaces.GPU(duration=seconds_for)(generator(loaded, device))
        self._running: dict[TokenStream[Token], threading.Thread] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def facts(self) -> tuple[Fact, ...]:
        """See ``Engine.facts``."""
        return self.setup.facts((("KV cache", "of one answer", "the GPU is released after each answer"),))

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, matcher: Matcher | None = None
    ) -> AsyncGenerator[Token | Queued]:
        """See ``Engine.generate``."""
        answer_limit(sampling)
        if matcher:
            raise InvalidRequestError(f"An answer cannot be constrained: {ELSEWHERE}.")
        stream: TokenStream[Token] = TokenStream(asyncio.get_running_loop())
        self._begin(stream, list(prompt_ids), sampling)
        async with aclosing(stream.read()) as items:
            async for item in items:
                yield item

    async def score(self, token_ids: Sequence[int], measure: Measure[T]) -> AsyncGenerator[T | Queued]:
        """See ``Engine.score``. Not supported: raises InvalidRequestError."""
        raise InvalidRequestError(f"A text cannot be scored: {ELSEWHERE}.")
        yield

    def _begin(self, stream: TokenStream[Token], prompt_ids: list[int], sampling: SamplingParams) -> None:
        # In the context of the page's event, where ZeroGPU finds the visitor whose quota counts.
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(self._answer, stream, prompt_ids, sampling), name="engine", daemon=True
        )
        with self._lock:
            if self._closed:
                raise closed_error()
            if len(self._running) >= MAX_WAITING:
                raise EngineBusyError(len(self._running))
            self._running[stream] = thread
            thread.start()

    def _answer(self, stream: TokenStream[Token], prompt_ids: list[int], sampling: SamplingParams) -> None:
        outcome = None
        try:
            with closing(self._generate(prompt_ids, sampling)) as tokens:  # closing it ends the work of the process
                for token in tokens:
                    stream.put(token)
        except BaseException as error:
            outcome = _reader_error(error)
        with self._lock:
            self._running.pop(stream, None)
        stream.finish(outcome)

    def stats(self) -> EngineStats:
        """See ``Engine.stats``."""
        return EngineStats(len(self._running), 0)

    def close(self) -> None:
        """See ``Engine.close``. This does not wait for answers that are still waiting for a GPU."""
        with self._lock:
            self._closed = True
            running = list(self._running.items())
        for stream, _ in running:
            stream.cancel(closed_error())
        for _, thread in running:
            thread.join(CLOSE_SECONDS)


def seconds_for(prompt_ids: list[int], sampling: SamplingParams) -> int:
    """Return the GPU time to request, in seconds."""
    return min(MOVE_SECONDS + (sampling.max_tokens or 0) // TOKENS_PER_SECOND, MAX_SECONDS)


def generator(loaded: LoadedModel, device: str) -> Callable[[list[int], SamplingParams], Iterator[Token]]:
    """Return a function that generates an answer. It moves the model to ``device`` if necessary."""
    # The settings for a CPU do not apply to a GPU.
    there = replace(loaded, placement=replace(loaded.placement, device=device, float32_prefill=False))

    def generate(prompt_ids: list[int], sampling: SamplingParams) -> Iterator[Token]:
        there.model.to(device)
        runner = DynamicRunner(there, 0)
        with torch.inference_mode(), ExitStack() as stack:
            stack.callback(runner.release)  # the process can generate another answer
            slot = runner.open(prompt_ids)
            for start in range(0, len(prompt_ids), runner.chunk):
                logits = runner.forward(slot, prompt_ids[start : start + runner.chunk], no_check)
            sample = Sampler(sampling, prompt_ids, logits.device)
            for left in reversed(range(answer_limit(sampling))):
                token = sample(logits)
                yield token
                if token.id in there.eos_ids or not left:
                    return
                logits = runner.forward(slot, [token.id], no_check)

    return generate


def _reader_error(error: BaseException) -> GraniteDemoError | None:
    """Return the error for the reader. ``spaces`` raises errors of Gradio, whose text about quotas is kept."""
    message, title = getattr(error, "message", None), getattr(error, "title", "ZeroGPU")
    return EngineError(f"{title}: {message}") if isinstance(message, str) else as_user_error(error)

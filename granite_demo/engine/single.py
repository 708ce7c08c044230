"""The single-stream engine: requests one after another, each with a KV cache of its own. Runs on every device."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import torch
from transformers import DynamicCache

from granite_demo.engine.base import EngineStats, TokenStream, as_user_error, closed_error
from granite_demo.engine.sampling import Sampler
from granite_demo.loading import LoadedModel
from granite_demo.planning import PREFILL_TOKENS
from granite_demo.types import SamplingParams


class SingleStreamEngine:
    """Prefill, then one token at a time, on the one thread that may touch the model.

    A request that waits is cancelled at once, a running one within a layer of the forward pass.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._model: Any = loaded.model
        self._eos_ids = loaded.eos_ids
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._lock = threading.Lock()
        self._streams: list[TokenStream] = []
        self._running: TokenStream | None = None
        self._closed = False
        self.prefill_chunk = PREFILL_TOKENS
        self._hooks = [layer.register_forward_pre_hook(self._check_running) for layer in decoder_layers(self._model)]

    async def generate(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> AsyncGenerator[int]:
        """See ``Engine.generate``. Requests are served in the order of arrival."""
        if sampling.max_tokens is None:
            raise ValueError("An engine needs max_tokens: the backend fits it to the context.")
        stream = TokenStream(asyncio.get_running_loop())
        with self._lock:
            if self._closed:
                raise closed_error()
            self._streams.append(stream)
            self._executor.submit(self._serve, stream, list(prompt_ids), sampling)
        try:
            async with aclosing(stream.read()) as tokens:
                async for token in tokens:
                    yield token
        finally:
            stream.cancel()

    def stats(self) -> EngineStats:
        """How many requests run and wait."""
        with self._lock:
            running = int(self._running is not None)
            return EngineStats(running=running, waiting=len(self._streams) - running)

    def warm_up(self) -> None:
        """One forward pass on the model's thread, so that the first user does not pay for lazy set-up."""

        def forward() -> None:
            with torch.inference_mode():
                cache = DynamicCache(config=self._model.config)
                self._forward(torch.zeros((1, 8), dtype=torch.long, device=self._model.device), cache)

        self._executor.submit(forward).result()

    def close(self) -> None:
        """End all requests with EngineClosedError and wait for the model's thread to stop."""
        with self._lock:
            self._closed = True
            for stream in self._streams:
                stream.cancel(closed_error())
        self._executor.shutdown(wait=True)
        for hook in self._hooks:
            hook.remove()
        self._model = None  # whoever still holds the engine does not hold the weights

    def _check_running(self, *_: Any) -> None:
        # Called before each layer, so that Stop also works inside a long prefill.
        if self._running is not None:
            self._running.check()

    def _serve(self, stream: TokenStream, prompt_ids: list[int], sampling: SamplingParams) -> None:
        with self._lock:
            self._running = stream
        outcome = None
        try:
            with torch.inference_mode():
                self._generate(stream, prompt_ids, sampling)
        except BaseException as error:
            # Explained here and dropped: its traceback holds the KV cache.
            outcome = as_user_error(error)
        with self._lock:
            self._running = None
            self._streams.remove(stream)
        stream.finish(outcome)

    def _generate(self, stream: TokenStream, prompt_ids: list[int], sampling: SamplingParams) -> None:
        stream.check()
        assert sampling.max_tokens is not None
        device = self._model.device
        sample = Sampler(sampling, prompt_ids, device)
        cache = DynamicCache(config=self._model.config)
        logits = self._prefill(torch.tensor([prompt_ids], device=device), cache)
        for remaining in range(sampling.max_tokens - 1, -1, -1):
            token = sample(logits)
            stream.put(token)
            if token in self._eos_ids or not remaining:
                return
            logits = self._forward(torch.tensor([[token]], device=device), cache)

    def _prefill(self, input_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        for chunk in torch.split(input_ids, self.prefill_chunk, dim=1):
            logits = self._forward(chunk, cache)
        return logits

    def _forward(self, input_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Logits of shape (1, vocabulary) after the last of ``input_ids``, shape (1, n); extends ``cache``."""
        output = self._model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """The layers of a decoder-only model of transformers. The only place that reaches into one."""
    layers: Sequence[torch.nn.Module] = model.get_decoder().layers
    return layers

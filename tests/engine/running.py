"""Helpers for the tests of engines: a tiny model, and functions that run requests."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GraniteConfig, GraniteForCausalLM

from granite_demo.engine.batching.engine import BatchingEngine
from granite_demo.engine.batching.loop import Loop
from granite_demo.engine.interleaved.dynamic import DynamicRunner
from granite_demo.engine.interleaved.engine import InterleavedEngine
from granite_demo.engine.interleaved.static import StaticRunner
from granite_demo.engine.interleaved.static_steps import Sizes
from granite_demo.engine.protocol import Engine
from granite_demo.loading.loaded_model import LoadedModel
from granite_demo.types.load_options import LoadOptions
from granite_demo.types.logprobs import Token
from granite_demo.types.sampling_params import SamplingParams
from tests.fakes import SOURCE
from tests.loaded import placed


async def tokens(engine: Engine, prompt: Sequence[int], **sampling: Any) -> list[Token]:
    """Return the complete answer. Fails after two minutes."""
    async with asyncio.timeout(120):
        items = [item async for item in engine.generate(prompt, SamplingParams(**sampling))]
    return [item for item in items if isinstance(item, Token)]


async def answer(engine: Engine, prompt: Sequence[int], **sampling: Any) -> list[int]:
    """Return the token ids of the complete answer."""
    return [token.id for token in await tokens(engine, prompt, **sampling)]


async def wait_idle(engine: Engine) -> float:
    """Wait until the engine has no requests, and return the seconds. Fails after five seconds."""
    start = time.perf_counter()
    while engine.stats().running or engine.stats().waiting:
        await asyncio.sleep(0.01)
        assert time.perf_counter() - start < 5, "the engine is still busy"
    return time.perf_counter() - start


async def until(engine: Engine, running: int, waiting: int = 0) -> None:
    """Wait until the engine has these numbers of requests. Fails after twenty seconds."""
    async with asyncio.timeout(20):
        while (engine.stats().running, engine.stats().waiting) != (running, waiting):
            await asyncio.sleep(0.002)


def has_work(loop: Loop) -> bool:
    """Whether the loop still computes a request, cancelled ones included."""
    return bool(loop._manager.batch_processor.has_pending_requests())


def reference(loaded: LoadedModel, prompt: Sequence[int], count: int, **options: Any) -> list[int]:
    """Return the greedy answer of ``generate`` in transformers."""
    inputs = torch.tensor([list(prompt)], device=loaded.model.device)
    output = loaded.model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=count, do_sample=False, **options
    )
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids


@contextmanager
def one_thread() -> Iterator[None]:
    """Engines made inside compute on one thread: for a tiny model, several only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_model(**changes: Any) -> LoadedModel:
    """A random Granite of two layers, for what needs no sense in the answers."""
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # Ten times the usual: with small weights every answer repeats one token.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = GraniteForCausalLM(config).eval()
    placement = placed(LoadOptions(device="cpu", dtype="float32"))
    values: dict[str, Any] = {
        "model": model,
        "tokenizer": None,
        "source": SOURCE,
        "placement": placement,
        "context_length": 512,
        "eos_ids": frozenset(),
    }
    return LoadedModel(**{**values, **changes})


def dynamic_engine(loaded: LoadedModel, **changes: Any) -> InterleavedEngine:
    """The interleaved engine on growing caches, which keep up to a gigabyte."""
    return InterleavedEngine(DynamicRunner(loaded, 10**9), loaded.eos_ids, **changes)


def batching_engine(loaded: LoadedModel, **changes: Any) -> BatchingEngine:
    """The batching engine, warm: four requests at once on a cache of 8192 tokens."""
    options = {"cache_tokens": 8192, "requests": 4, "prefill": 512, **changes}
    engine = BatchingEngine(loaded, **options)
    engine.warm_up()
    return engine


def record(work: Callable[[], object]) -> Callable[[], None]:
    """Does again what a CUDA graph would: the same work on the same tensors, with none of the arguments."""

    def replay() -> None:
        work()

    return replay


def static_engine(loaded: LoadedModel, **changes: Any) -> InterleavedEngine:
    """The interleaved engine on a static cache of four slots, warm, with small recorded steps."""
    runner = StaticRunner(loaded, 4, rows=True, record=record, sizes=Sizes(shortest=16, padded=(8, 32)))
    engine = InterleavedEngine(runner, loaded.eos_ids, **changes)
    engine.warm_up()
    return engine

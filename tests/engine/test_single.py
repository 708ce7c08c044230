"""The single-stream engine on the real sample model."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from granite_demo import registry
from granite_demo.engine.base import EngineStats
from granite_demo.engine.single import SingleStreamEngine, decoder_layers
from granite_demo.errors import EngineClosedError, EngineError
from granite_demo.loading import LoadedModel
from granite_demo.placement import place
from granite_demo.prompts import encode, render_chat
from granite_demo.types import LoadOptions, Message, SamplingParams

PROMPTS = (
    "Write a story about a lighthouse.",
    "List the planets and say one thing about each.",
    "def quicksort(items):",
)


async def collect(engine: SingleStreamEngine, prompt: list[int], **sampling: Any) -> list[int]:
    return [token async for token in engine.generate(prompt, SamplingParams(**sampling))]


async def wait_idle(engine: SingleStreamEngine) -> float:
    """Seconds until the engine has nothing to do; fails after five."""
    start = time.perf_counter()
    while engine.stats() != EngineStats(running=0, waiting=0):
        await asyncio.sleep(0.01)
        assert time.perf_counter() - start < 5, "the engine is still busy"
    return time.perf_counter() - start


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
    )
    model = GraniteForCausalLM(config).eval()
    placement = place(LoadOptions(device="cpu", dtype="float32"))
    values: dict[str, Any] = {
        "model": model,
        "tokenizer": None,
        "spec": registry.SAMPLE,
        "placement": placement,
        "context_length": 512,
        "eos_ids": frozenset(),
    }
    return LoadedModel(**{**values, **changes})


@pytest.mark.parametrize("text", PROMPTS)
async def test_greedy_equals_generate_for_100_tokens(
    engine: SingleStreamEngine, sample: LoadedModel, text: str
) -> None:
    prompt = render_chat(sample.tokenizer, (Message("user", text),))
    ours = await collect(engine, prompt, max_tokens=100)
    theirs = sample.model.generate(torch.tensor([prompt]), max_new_tokens=100, do_sample=False)[
        0, len(prompt) :
    ].tolist()
    assert ours == theirs
    assert len(ours) == 100 or ours[-1] in sample.eos_ids


async def test_the_same_seed_gives_the_same_tokens(engine: SingleStreamEngine, sample: LoadedModel) -> None:
    prompt = encode(sample.tokenizer, "The sea is")
    first, again, other = [
        await collect(engine, prompt, max_tokens=20, temperature=1.0, top_p=0.95, top_k=50, seed=seed)
        for seed in (7, 7, 8)
    ]
    assert first == again
    assert first != other


async def test_repetition_penalty_matches_generate(engine: SingleStreamEngine, sample: LoadedModel) -> None:
    prompt = encode(sample.tokenizer, "one two three one two three one two")
    ours = await collect(engine, prompt, max_tokens=20, repetition_penalty=1.3)
    theirs = sample.model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, repetition_penalty=1.3)[
        0, len(prompt) :
    ].tolist()
    assert ours == theirs
    assert ours != await collect(engine, prompt, max_tokens=20)


async def test_a_long_prompt_in_chunks_equals_one_pass() -> None:
    engine = SingleStreamEngine(tiny_model())
    prompt = [index % 60 for index in range(500)]
    whole = await collect(engine, prompt, max_tokens=10)
    engine.prefill_chunk = 64
    assert await collect(engine, prompt, max_tokens=10) == whole
    engine.close()


async def test_an_end_token_ends_the_answer_and_is_yielded() -> None:
    engine = SingleStreamEngine(tiny_model())
    plain = await collect(engine, [1, 2, 3], max_tokens=10)
    engine.close()
    end = plain[4]
    engine = SingleStreamEngine(tiny_model(eos_ids=frozenset({end})))
    assert await collect(engine, [1, 2, 3], max_tokens=10) == plain[: plain.index(end) + 1]
    engine.close()


async def test_stop_frees_the_engine_within_a_second(engine: SingleStreamEngine, sample: LoadedModel) -> None:
    prompt = encode(sample.tokenizer, "Once upon a time")
    async with aclosing(engine.generate(prompt, SamplingParams(max_tokens=1000))) as tokens:
        async for _ in tokens:
            break
    assert await wait_idle(engine) < 1


async def test_stop_before_the_first_token_ends_a_long_prefill(engine: SingleStreamEngine, sample: LoadedModel) -> None:
    prompt = encode(sample.tokenizer, "word " * 2500)
    task = asyncio.create_task(collect(engine, prompt, max_tokens=5))
    while engine.stats().running == 0:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert engine.stats().running == 1, "the prefill was over before it could be stopped"
    task.cancel()
    await asyncio.wait([task])
    assert await wait_idle(engine) < 1


async def test_a_cancelled_waiting_request_never_runs(engine: SingleStreamEngine, sample: LoadedModel) -> None:
    prompt = encode(sample.tokenizer, "Once upon a time")
    first = asyncio.create_task(collect(engine, prompt, max_tokens=30))
    second = asyncio.create_task(collect(engine, prompt, max_tokens=1000))
    while engine.stats() != EngineStats(running=1, waiting=1):
        await asyncio.sleep(0.01)
    second.cancel()
    assert len(await first) == 30
    assert await wait_idle(engine) < 1


async def test_a_reader_who_vanished_does_not_hold_up_the_next(engine: SingleStreamEngine) -> None:
    slow = engine.generate([1, 2, 3], SamplingParams(max_tokens=20))
    await anext(slow)
    # Nobody reads `slow` any more, and nobody closes it: its tokens wait in its own queue.
    assert len(await collect(engine, [4, 5, 6], max_tokens=5)) == 5
    await slow.aclose()


async def test_an_exception_in_the_thread_reaches_the_reader_within_a_second() -> None:
    loaded = tiny_model()
    engine = SingleStreamEngine(loaded)
    baseline = await collect(engine, [1, 2, 3], max_tokens=5)
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError("secret")

    hook = decoder_layers(loaded.model)[0].register_forward_pre_hook(fail)
    start = time.perf_counter()
    with pytest.raises(EngineError, match="ZeroDivisionError") as caught:
        await collect(engine, [1, 2, 3], max_tokens=5)
    assert time.perf_counter() - start < 1
    assert "secret" not in str(caught.value)
    hook.remove()
    assert await collect(engine, [1, 2, 3], max_tokens=5) == baseline
    engine.close()


async def test_out_of_memory_says_what_to_do() -> None:
    loaded = tiny_model()
    engine = SingleStreamEngine(loaded)

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    hook = decoder_layers(loaded.model)[0].register_forward_pre_hook(fail)
    with pytest.raises(EngineError, match="shorter prompt"):
        await collect(engine, [1, 2, 3], max_tokens=5)
    hook.remove()
    assert len(await collect(engine, [1, 2, 3], max_tokens=5)) == 5
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_not_a_number_is_an_error_and_not_a_token(temperature: float) -> None:
    loaded = tiny_model()
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(float("nan"))
    engine = SingleStreamEngine(loaded)
    with pytest.raises(EngineError, match="not a number"):
        await collect(engine, [1, 2, 3], max_tokens=5, temperature=temperature, seed=1)
    engine.close()


async def test_close_ends_running_and_waiting_requests_with_an_error() -> None:
    engine = SingleStreamEngine(tiny_model())
    tasks = [asyncio.create_task(collect(engine, [1, 2, 3], max_tokens=400)) for _ in range(3)]
    while engine.stats().running == 0:
        await asyncio.sleep(0)
    await asyncio.to_thread(engine.close)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [EngineClosedError] * 3
    with pytest.raises(EngineClosedError):
        await collect(engine, [1, 2, 3], max_tokens=5)


async def test_an_engine_needs_max_tokens() -> None:
    engine = SingleStreamEngine(tiny_model())
    with pytest.raises(ValueError, match="max_tokens"):
        await collect(engine, [1, 2, 3])
    engine.close()
